"""Slots and room: counted, refused at once where there are none, freed on every way out."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.app import bounds
from proxy.errors import Overloaded
from proxy.guard import Budget, Guard, SharedGuard, SharedTraffic, Traffic, share
from proxy.tally import IN_FLIGHT, MOST, OWNERS, RELAYED, VARIABLE, Tally, laid_out
from tests.conftest import CLIENT_KEY, SWAP, SettingsOf, Start
from tests.peers import Peer, Upstream, answer, chunked, request

CHAT = b'{"security_key": "client-key-of-a-test", "model": "m", "messages": []}'


def test_a_slot_is_taken_and_given_back_whatever_happens_within() -> None:
    guard = Guard(2)
    with guard, guard:
        assert repr(guard) == "<Guard 2/2>"
        with pytest.raises(Overloaded, match="2 exchanges"), guard:
            pass
        assert guard.busy == 2
    with pytest.raises(ZeroDivisionError), guard:
        raise ZeroDivisionError
    assert guard.busy == 0


def test_what_is_in_flight_is_counted_and_the_most_that_was() -> None:
    traffic = Traffic()
    for _ in range(3):
        traffic.enter()
    traffic.leave()
    traffic.leave()
    traffic.enter()
    assert repr(traffic) == "<Traffic 2, at most 3>"


@pytest.fixture
def tallies(tmp_path: Path) -> Iterator[tuple[Tally, Tally]]:
    """Those of two processes."""
    with laid_out(tmp_path):
        file = Path(os.environ[VARIABLE])
        yield Tally(file), Tally(file)


def test_several_processes_have_one_bound_together(tallies: tuple[Tally, Tally]) -> None:
    first, second = (SharedGuard(3, tally.column(RELAYED)) for tally in tallies)
    with first, first, second:
        assert [repr(first), repr(second)] == ["<SharedGuard 2 of 3/3>", "<SharedGuard 1 of 3/3>"]
        for guard in (first, second):
            with pytest.raises(Overloaded, match="3 exchanges"):
                guard.check()
            with pytest.raises(Overloaded, match="3 exchanges"), guard:
                pass
    with second, second, second:
        assert repr(first) == "<SharedGuard 0 of 3/3>"
    first.check()


def test_nobody_is_refused_for_one_who_has_died_meanwhile(
    tallies: tuple[Tally, Tally],
) -> None:
    first, second = (SharedGuard(1, tally.column(RELAYED)) for tally in tallies)
    first.check()
    with second:
        tallies[1].column(OWNERS).put(2**22 + 1)  # no process has that number
        with first:
            assert repr(first) == "<SharedGuard 1 of 1/1>"


@pytest.mark.parametrize(("total", "expected"), [("7", (7, 7)), ("", (1024, 32))], ids=["set", "unset"])
def test_workers_that_meet_have_the_whole_bound_and_others_a_share(
    settings_of: SettingsOf,
    tmp_path: Path,
    total: str,
    expected: tuple[int, int],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(PROXY_WORKERS="4", OPENAI_PROXY_MAX_PARALLEL_REQUESTS=total)
    for missing in (None, str(tmp_path / "taken away")):
        if missing is not None:
            monkeypatch.setenv(VARIABLE, missing)
        _, *shares = bounds(settings)
        assert tuple(guard.limit for guard in shares) == tuple(most // 4 for most in expected)
    assert told == ["the workers have no memory in common: each has its share of the bounds to itself"] * 2
    with laid_out(tmp_path):
        traffic, relayed, shaped = bounds(settings)
    assert (relayed.limit, shaped.limit) == expected
    assert (relayed is shaped) == bool(total)
    traffic.enter()
    with relayed:
        assert repr(shaped) == f"<SharedGuard {int(bool(total))} of {int(bool(total))}/{expected[1]}>"
    assert repr(traffic) == "<SharedTraffic 1, at most 1>"


def test_the_most_that_were_in_flight_is_that_of_all_at_one_time(tallies: tuple[Tally, Tally]) -> None:
    first, second = (SharedTraffic(tally.column(IN_FLIGHT), tally.column(MOST)) for tally in tallies)
    for traffic in (first, second, first):
        traffic.enter()
        traffic.leave()
    assert repr(first) == repr(second) == "<SharedTraffic 0, at most 1>"
    first.enter()
    second.enter()
    assert repr(first) == repr(second) == "<SharedTraffic 1, at most 2>"
    first.leave()
    another = SharedTraffic(tallies[1].column(IN_FLIGHT), tallies[1].column(MOST))
    another.enter()
    assert another.most == 2, "who takes the place of another goes on where that one was"


def test_room_is_counted_in_bytes() -> None:
    budget = Budget(10)
    budget.take(10)
    with pytest.raises(Overloaded):
        budget.take(1)
    budget.give(4)
    budget.take(4)
    assert repr(budget) == "<Budget 10/10>"


@pytest.mark.parametrize(("total", "workers", "each"), [(32, 1, 32), (1024, 3, 341), (2, 2, 1), (1, 4, 1)])
def test_a_bound_is_shared_out_among_workers(total: int, workers: int, each: int) -> None:
    assert share(total, workers) == each


async def waiting(client: Peer, upstream: Upstream, said: bytes) -> Peer:
    """Bring an exchange so far that it waits for the upstream; return the upstream's side of it."""
    await client.say(said)
    far = await upstream.accept()
    await far.head()
    return far


CALL = request(headers=[(b"X-API-Key", SWAP["PROXY_X_API_KEY"].encode())])
SHAPED = request("POST", b"/openai", body=CHAT)


@pytest.mark.parametrize("said", [CALL, SHAPED], ids=["relayed", "shaped"])
async def test_beyond_the_bound_is_503_at_once_and_the_next_after_it_is_served(
    start: Start, upstream: Upstream, said: bytes
) -> None:
    async with start(**SWAP, OPENAI_PROXY_MAX_PARALLEL_REQUESTS="1") as proxy:
        busy, refused = await proxy.connect(), await proxy.connect()
        far = await waiting(busy, upstream, CALL)
        await refused.say(said)
        back = await refused.hear()
        assert (back.status, back.get(b"retry-after")) == (503, b"1")
        error = json.loads(back.body)["error"]
        assert (error["type"], error["code"]) == ("proxy_overloaded", "OPENAI_PROXY_OVERLOADED")
        await far.say(answer(body=b"one"))
        assert (await busy.hear()).body == b"one"
        await refused.say(said)
        await far.head()
        await far.say(answer(body=b"two"))
        assert (await refused.hear()).body == b"two"


@pytest.mark.parametrize("when", ["before the head", "in the answer"])
@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_whoever_goes_the_slot_is_free_again(start: Start, upstream: Upstream, when: str, who: str) -> None:
    async with start(**SWAP, OPENAI_PROXY_MAX_PARALLEL_REQUESTS="1") as proxy:
        for _ in range(3):
            client = await proxy.connect()
            far = await waiting(client, upstream, CALL)
            if when == "in the answer":
                await far.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"part"))
                await client.head()
            (client if who == "client" else far).abort()
            if who == "client":
                assert await far.rest() == b""  # the upstream's work is ended
                await asyncio.sleep(0.02)
            elif when == "before the head":
                assert (await client.hear()).status == 502
            else:
                await client.rest()  # torn
        upstream.says(answer(body=b"well"))
        client = await proxy.connect()
        await client.say(CALL)
        assert (await client.hear()).body == b"well"


async def test_convenience_routes_have_a_bound_of_their_own_where_none_is_set(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.app.MOST_SHAPED", 1)
    async with start(**SWAP) as proxy:
        busy, other = await proxy.connect(), await proxy.connect()
        await waiting(busy, upstream, SHAPED)
        await other.say(SHAPED)
        assert (await other.hear()).status == 503
        upstream.says(answer(body=b"relayed"))
        await other.say(CALL)
        assert (await other.hear()).body == b"relayed"


async def test_bodies_whose_senders_are_not_known_yet_have_bounded_room(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.counter.MOST_OF_ALL_OBJECTS", 1000)
    async with start(**SWAP) as proxy:
        first, second = await proxy.connect(), await proxy.connect()
        half = b"POST /openai HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n" + b" " * 600
        await first.say(half)
        await asyncio.sleep(0.05)
        await second.say(half)
        assert (await second.hear()).status == 503
        first.abort()
        await asyncio.sleep(0.05)
        third = await proxy.connect()
        await third.say(half + b" " * 300)
        assert (await third.hear()).status == 403


HALF_AN_OBJECT = b"POST /openai HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
HALF_A_FORM = (
    b"POST /openai/audio/transcriptions HTTP/1.1\r\nHost: h\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b'Content-Length: %d\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
)
A_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    b'x\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
)
KNOWN = (b"X-API-Key", CLIENT_KEY.encode())
AS_A_FORM = (b"Content-Type", b"multipart/form-data; boundary=b")


@pytest.mark.parametrize(
    ("half", "entire"),
    [
        (HALF_AN_OBJECT, request("POST", b"/openai", [KNOWN], b'{"a": "%b"}' % (b"x" * 600))),
        (HALF_A_FORM, request("POST", b"/openai/audio/transcriptions", [KNOWN, AS_A_FORM], A_FORM)),
    ],
    ids=["objects", "forms"],
)
async def test_strangers_who_hold_their_last_bytes_back_take_no_room_from_those_whose_key_is_known(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, half: bytes, entire: bytes
) -> None:
    monkeypatch.setattr("proxy.counter.MOST_OF_ALL_OBJECTS", 1000)
    monkeypatch.setattr("proxy.counter.MOST_OF_ALL_FORMS", 1000)
    upstream.says(answer())
    async with start(**SWAP) as proxy:
        first, second = await proxy.connect(), await proxy.connect()
        await first.say(half % 950, b" " * 800)
        await asyncio.sleep(0.05)
        await second.say(half % 950, b" " * 800)
        assert (await second.hear()).status == 503
        known = await proxy.connect()
        await known.say(entire)
        assert (await known.hear()).status == 200
