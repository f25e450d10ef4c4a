"""The pool: which connection a call gets, how many there are, and what is never given to the next one."""

import asyncio
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.answer import PooledAnswer
from proxy.pool import SMALL, Pool, head_of
from tests.peers import PATIENCE, Upstream, answer, chunked
from tests.test_connection import (
    NOTHING_OPEN,
    OK,
    ONE_IDLE,
    STREAM,
    UNTIL_CLOSE,
    Clock,
    Line,
    Said,
    answered_by_hand,
    ask,
    by_hand,
    clock,
    exchange,
    far,
    lines,
    patient,
    pool,
    pooled,
    turns,
    until,
    whole,
)
from tests.test_properties import pure

__all__ = ["clock", "far", "lines", "pool"]  # fixtures
Asking = asyncio.Task[PooledAnswer]


async def asked(pool: Pool, number: int, **seconds: float | None) -> list[Asking]:
    """Ask so many times at once, in order."""
    asking = [asyncio.create_task(ask(pool, "GET", None, **seconds)) for _ in range(number)]
    await turns()
    return asking


async def busy(pool: Pool, lines: list[Line], number: int) -> list[PooledAnswer]:
    """Keep so many new connections busy, each with an answer that is whole but not closed."""
    asking = await asked(pool, number)
    for line in lines[-number:]:
        line.says(answer())
    return [await one for one in asking]


async def idle(pool: Pool, lines: list[Line], number: int) -> list[Line]:
    """Have so many connections idle; return their lines, the one that was used last at the end."""
    for one in await busy(pool, lines, number):
        await one.close()
    for line in lines:
        line.told = b""
    return lines[-number:]


# Which connection.


async def test_the_connection_that_was_used_last_is_used_next(pool: Pool, lines: list[Line]) -> None:
    first, second, third = await idle(pool, lines, 3)
    for expected in (third, third):
        assert (await answered_by_hand(pool, lines, answer(body=b"hi")))[2] == b"hi"
        assert (first.told, second.told, expected.told) == (b"", b"", b"")
    asking = await asked(pool, 4)
    assert [bool(line.told) for line in lines] == [True] * 4
    assert len(lines) == 4
    for line in lines:
        line.says(answer())
    for one in asking:
        await (await one).close()
    assert repr(pool) == "<Pool 0 busy, 4 idle, 0 dialling, 0 waiting>"


class Steps:
    """Counts the lines of our own code that are run."""

    def __init__(self) -> None:
        self.count = 0
        self.before = sys.gettrace()

    def __enter__(self) -> "Steps":
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, _: str, __: object) -> Any:
        return self._line if Path(frame.f_code.co_filename).parent.name == "proxy" else None

    def _line(self, _: FrameType, event: str, __: object) -> Any:
        self.count += event == "line"
        return self._line


async def test_an_exchange_takes_as_many_steps_however_many_connections_there_are(lines: list[Line]) -> None:
    counts = []
    async with pooled(max_idle=4000) as pool:
        for number in (1, 2000):
            line = (await idle(pool, lines, number))[-1]
            await answered_by_hand(pool, [line], answer())  # what is learnt from a first one is learnt
            with Steps() as steps:
                for _ in range(500):
                    asking = asyncio.create_task(exchange(pool))
                    await turns(1)
                    line.says(answer())
                    await asking
            counts.append(steps.count)
        assert repr(pool) == "<Pool 0 busy, 2000 idle, 0 dialling, 0 waiting>"
    assert counts[0] == counts[1]
    assert counts[0] % 500 == 0


# Bounds on the open ones.


async def test_no_more_connections_are_opened_than_may_be_and_waiters_are_served_in_order(lines: list[Line]) -> None:
    async with pooled(max_connections=2) as pool:
        asking = await asked(pool, 5)
        assert repr(pool) == "<Pool 2 busy, 0 idle, 0 dialling, 3 waiting>"
        for number in (2, 3, 4):
            line = lines[number % 2]
            line.says(answer(body=b"%d" % number))
            await (await asking[number - 2]).close()
            await turns()
            assert [one.done() for one in asking] == [place < number - 1 for place in range(5)]
        assert len(lines) == 2
        for line in lines:
            line.says(answer())
        for one in asking[3:]:
            await (await one).close()
        assert repr(pool) == "<Pool 0 busy, 2 idle, 0 dialling, 0 waiting>"


async def test_a_connection_that_is_dialled_is_counted(upstream: Upstream) -> None:
    upstream.says(answer())
    async with pooled(upstream.port, max_connections=3) as pool:
        asking = [asyncio.create_task(exchange(pool)) for _ in range(10)]
        await turns(1)
        assert repr(pool) == "<Pool 0 busy, 0 idle, 3 dialling, 7 waiting>"
        await asyncio.gather(*asking)
        assert repr(pool) == "<Pool 0 busy, 3 idle, 0 dialling, 0 waiting>"
        assert upstream.accepted == 3


async def test_who_waits_too_long_for_a_connection_is_told_so_and_forgotten(lines: list[Line]) -> None:
    async with pooled(max_connections=1) as pool:
        (taken,) = await busy(pool, lines, 1)
        with pytest.raises(httpx.PoolTimeout):
            await ask(pool, pool=0.02)
        assert repr(pool) == "<Pool 1 busy, 0 idle, 0 dialling, 0 waiting>"
        await taken.close()
        assert repr(pool) == ONE_IDLE


@pytest.mark.parametrize("freed", ["its connection", "its place"])
@pytest.mark.parametrize("when", ["waiting", "handed on"])
async def test_the_turn_of_a_waiter_that_was_cancelled_passes_on(lines: list[Line], freed: str, when: str) -> None:
    async with pooled(max_connections=1) as pool:
        (taken,) = await busy(pool, lines, 1)
        first, second = await asked(pool, 2)
        if when == "waiting":
            first.cancel()
        if freed == "its connection":
            await taken.close()
        else:
            lines[0].is_lost()
        first.cancel()
        await turns()
        assert first.cancelled()
        lines[-1].says(answer())
        await (await second).close()
        assert repr(pool) == ONE_IDLE
        assert len(lines) == (1 if freed == "its connection" else 2)


async def test_a_connection_handed_to_a_waiter_that_is_gone_becomes_idle(lines: list[Line]) -> None:
    async with pooled(max_connections=1) as pool:
        (taken,) = await busy(pool, lines, 1)
        (waiting,) = await asked(pool, 1)
        await taken.close()
        waiting.cancel()
        await turns()
        assert repr(pool) == ONE_IDLE


async def test_a_dead_connection_handed_to_a_waiter_that_is_gone_is_dropped(lines: list[Line]) -> None:
    async with pooled(max_connections=1) as pool:
        (taken,) = await busy(pool, lines, 1)
        (waiting,) = await asked(pool, 1)
        await taken.close()
        lines[0].ends()
        waiting.cancel()
        await turns()
        assert repr(pool) == NOTHING_OPEN


async def test_a_waiter_whose_connection_died_on_the_way_takes_the_next_before_all_others(lines: list[Line]) -> None:
    async with pooled(max_connections=2) as pool:
        one, other = await busy(pool, lines, 2)
        asking = await asked(pool, 3)
        lines[0].abort(ConnectionResetError())  # its connection hears of it in the next turn
        await one.close()  # so that it is handed to the first waiter; and when it is lost, its place to the second
        await turns()
        assert repr(pool) == "<Pool 2 busy, 0 idle, 0 dialling, 2 waiting>"
        assert [bool(line.told) for line in lines[2:]] == [True]
        await other.close()
        await turns()
        lines[1].says(answer(body=b"first"))
        assert await whole(await asking[0]) == b"first"
        await turns()
        lines[1].says(answer(body=b"third"))
        lines[2].says(answer(body=b"second"))
        assert [await whole(await waiter) for waiter in asking[1:]] == [b"second", b"third"]


async def test_a_place_that_was_given_to_a_waiter_is_not_taken_by_a_newcomer(lines: list[Line]) -> None:
    async with pooled(max_connections=1) as pool:
        await busy(pool, lines, 1)
        (waiting,) = await asked(pool, 1)
        lines[0].is_lost()
        newcomer = asyncio.ensure_future(ask(pool))
        await turns()
        assert repr(pool) == "<Pool 1 busy, 0 idle, 0 dialling, 1 waiting>"
        lines[-1].says(answer())
        await (await waiting).close()
        await turns()
        lines[-1].says(answer())
        await (await newcomer).close()
        assert len(lines) == 2


async def test_a_place_whose_dialling_failed_goes_to_the_next(upstream: Upstream) -> None:
    async with pooled(upstream.port, max_connections=1) as pool:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "getaddrinfo", failing)
            failed, fine = await asked(pool, 2)
            assert repr(pool) == "<Pool 0 busy, 0 idle, 1 dialling, 1 waiting>"
        with pytest.raises(httpx.ConnectError, match="no such host"):
            await failed
        there = await upstream.accept()
        await there.hear()
        await there.say(answer())
        await (await fine).close()
        assert repr(pool) == ONE_IDLE


async def failing(*_: object, **__: object) -> None:
    await turns(5)
    raise OSError("no such host")


# Bounds on the idle ones.


async def test_of_too_many_idle_ones_the_oldest_are_closed(lines: list[Line]) -> None:
    async with pooled(max_idle=2) as pool:
        for one in await busy(pool, lines, 5):
            await one.close()  # all in one turn
        assert [line.closed for line in lines] == [True, True, True, False, False]
        await turns()
        assert repr(pool) == "<Pool 0 busy, 2 idle, 0 dialling, 0 waiting>"


async def test_none_may_be_kept(lines: list[Line]) -> None:
    async with pooled(max_idle=0) as pool:
        for _ in range(2):
            assert (await answered_by_hand(pool, lines, answer(body=b"hi")))[2] == b"hi"
        await turns()
        assert [line.closed for line in lines] == [True, True]
        assert repr(pool) == NOTHING_OPEN


async def test_a_connection_in_steady_use_is_replaced_all_the_same(lines: list[Line], clock: Clock) -> None:
    async with pooled(used_for=300) as pool:
        for _ in range(6):
            await answered_by_hand(pool, lines, answer())
            await clock.passes(50)
        assert [line.closed for line in lines] == [False]
        asking = asyncio.create_task(exchange(pool, read=1000))
        await clock.passes(50)
        lines[0].says(answer())  # it began when nobody knew better, and may end
        assert (await asking)[0] == 200
        assert [line.closed for line in lines] == [True]


async def test_one_that_has_grown_old_while_idle_takes_no_further_call(lines: list[Line], clock: Clock) -> None:
    async with pooled(used_for=300, idle_for=1000) as pool:
        await answered_by_hand(pool, lines, answer())
        await clock.passes(301)
        await answered_by_hand(pool, lines, answer())
        assert [line.closed for line in lines] == [True, False]


async def test_what_is_idle_for_too_long_is_closed(lines: list[Line], clock: Clock) -> None:
    async with pooled(idle_for=60) as pool:
        first, second, third, fourth = await busy(pool, lines, 4)
        await first.close()
        await clock.passes(10)
        await second.close()
        assert clock.rings_for(Pool) == [60]  # one timer for all
        await clock.passes(0.5)
        await third.close()
        await clock.passes(49.5)
        assert [line.closed for line in lines] == [True, False, False, False]
        assert clock.rings_for(Pool) == [70]
        await fourth.close()
        await clock.passes(10)
        assert [line.closed for line in lines] == [True, True, False, False]
        assert clock.rings_for(Pool) == [71]  # not more often than once a second
        await clock.passes(1)
        assert [line.closed for line in lines] == [True, True, True, False]
        assert clock.rings_for(Pool) == [120]
        await clock.passes(49)
        assert [line.closed for line in lines] == [True, True, True, True]
        assert clock.rings_for(Pool) == []  # there is nothing to look after
        assert repr(pool) == NOTHING_OPEN


# What happens to one while it is idle.


@pytest.mark.parametrize("how", ["ends", "resets", "says something", "answers what nobody asked"])
async def test_a_connection_that_the_upstream_ended_while_idle_is_not_used(
    far: Pool, upstream: Upstream, how: str
) -> None:
    asking = asyncio.create_task(exchange(far, "POST", Said(b"")))
    there = await upstream.accept()
    await there.hear()
    await there.say(answer())
    await asking
    assert repr(far) == ONE_IDLE
    match how:
        case "ends":
            await there.close()
        case "resets":
            there.abort()
        case "says something":
            await there.say(b"x")
        case _:
            await there.say(answer(body=b"another's"))
    await until(lambda: repr(far) == NOTHING_OPEN)
    upstream.says(answer(body=b"mine"))
    assert (await exchange(far, "POST", Said(b"")))[2] == b"mine"


async def test_an_end_that_came_a_moment_ago_is_noticed(pool: Pool, lines: list[Line]) -> None:
    await idle(pool, lines, 1)
    lines[0].ends()  # the transport will say so in its next turn
    asking = asyncio.ensure_future(exchange(pool, "POST"))
    await turns()
    assert lines[0].told == b""
    lines[1].says(answer(body=b"hi"))
    assert (await asking)[2] == b"hi"


async def test_an_end_that_came_a_moment_ago_is_noticed_where_there_is_room_for_one_alone(lines: list[Line]) -> None:
    async with pooled(max_connections=1) as pool:
        await idle(pool, lines, 1)
        lines[0].ends()
        asking = asyncio.ensure_future(exchange(pool, "POST"))
        await turns(5)
        lines[1].says(answer(body=b"hi"))
        assert (await asking)[2] == b"hi"


@pytest.mark.parametrize("first_word", [b"", answer(body=b"unasked")], ids=["closes", "answers what nobody asked"])
async def test_a_connection_that_is_dead_on_arrival_is_not_used_and_not_counted(first_word: bytes) -> None:
    with by_hand(first_word) as lines:
        async with pooled(max_connections=1) as pool:
            for _ in range(3):
                with pytest.raises(httpx.ConnectError, match="before a request was sent"):
                    await exchange(pool)
                await turns()
                assert repr(pool) == NOTHING_OPEN
            assert [line.told for line in lines] == [b""] * 3


# A kept connection that turns out to be dead.

STALE: dict[str, tuple[Callable[[], Said | None], bool]] = {
    "GET": (lambda: None, True),
    "HEAD": (lambda: None, True),
    "OPTIONS": (lambda: None, True),
    "DELETE": (lambda: Said(b"hi", length=2), True),
    "PUT": (lambda: Said(b"hi", length=2), True),
    "PUT ": (lambda: Said(b"hi", b""), False),
    "PUT  ": (lambda: Said(b"h", b"i", length=2), False),
    "POST": (lambda: None, False),
    "POST ": (lambda: Said(b"hi", length=2), False),
    "PATCH": (lambda: Said(b"hi", length=2), False),
    "POST  ": (lambda: Said(b"h", b"i", b""), False),
    "get": (lambda: None, False),
}


@pytest.mark.parametrize("name", STALE)
@pytest.mark.parametrize("how", ["ends", "resets"])
async def test_what_found_its_kept_connection_dead_goes_out_again_only_if_that_does_no_harm(
    far: Pool, upstream: Upstream, name: str, how: str
) -> None:
    body, again = STALE[name]
    warm = asyncio.create_task(exchange(far))
    there = await upstream.accept()
    await there.hear()
    await there.say(answer())
    await warm
    asking = asyncio.create_task(exchange(far, name.strip(), body()))
    await there.head()
    await (there.close() if how == "ends" else asyncio.to_thread(there.abort))
    if not again:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await asking
        assert upstream.accepted == 1
        return
    fresh = await upstream.accept()
    heard = await fresh.hear()
    assert heard.start.startswith(name.encode())
    assert heard.body == (b"hi" if body() else b"")
    await fresh.say(answer(body=b"").replace(b"Whatever", b"Again"))
    assert (await asking)[0] == 200
    assert repr(far) == ONE_IDLE


async def test_it_goes_out_once_more_and_on_a_fresh_connection(pool: Pool, lines: list[Line]) -> None:
    # A request that kills whoever hears it would go through all that are idle.
    old = await idle(pool, lines, 3)
    asking = asyncio.create_task(exchange(pool))
    await turns()
    old[2].ends()
    await turns()
    assert len(lines) == 4
    lines[3].ends()
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await asking
    assert [bool(line.told) for line in lines] == [False, False, True, True]
    assert repr(pool) == "<Pool 0 busy, 2 idle, 0 dialling, 0 waiting>"


async def test_where_there_is_no_room_for_a_fresh_one_it_goes_out_on_another(lines: list[Line]) -> None:
    async with pooled(max_connections=2) as pool:
        await idle(pool, lines, 2)
        asking = asyncio.create_task(exchange(pool))
        await turns()
        pool._limit = 1  # as if another had taken the place in the meantime
        lines[1].ends()
        await turns()
        lines[0].says(answer(body=b"hi"))
        assert (await asking)[2] == b"hi"


@pytest.mark.parametrize("said", [b"HTTP/1.1 100 Continue\r\n\r\n", b"H", b"not HTTP"])
async def test_what_was_answered_in_part_does_not_go_out_again(pool: Pool, lines: list[Line], said: bytes) -> None:
    await idle(pool, lines, 1)
    with pytest.raises(httpx.RemoteProtocolError):
        await answered_by_hand(pool, lines, said, ends=True)
    assert len(lines) == 1


async def test_what_was_late_does_not_go_out_again(pool: Pool, lines: list[Line], clock: Clock) -> None:
    await idle(pool, lines, 1)
    asking = asyncio.create_task(exchange(pool, read=30))
    await turns()
    await clock.passes(30)
    with pytest.raises(httpx.ReadTimeout):
        await asking
    assert len(lines) == 1


# What goes out.


def test_a_head_goes_out_as_it_is_given() -> None:
    pairs = [(b"Host", b"h"), (b"a", b""), (b"A", b"\xff \t"), (b"a", b"1")]
    assert head_of("GET", b"//x?y=%2F;&", pairs) == (
        b"GET //x?y=%2F;& HTTP/1.1\r\nHost: h\r\na: \r\nA: \xff \t\r\na: 1\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "target", "pairs"),
    [
        ("GET", b"/a b", []),
        ("GET", b"/a\tb", []),
        ("GET", b"/a\x0cb", []),
        ("GET", b"/\x7f", []),
        ("GET", b"/\xc3\xa9", []),
        ("GET", b"/ HTTP/1.1\r\nHost: elsewhere\r\n\r\n", []),
        ("GET /", b"/", []),
        ("GET\r\n", b"/", []),
        ("G\xc9T", b"/", []),
        ("GET", b"/", [(b"a", b"1\r\nb: 2")]),
        ("GET", b"/", [(b"a", b"1\nb: 2")]),
        ("GET", b"/", [(b"a", b"1\rb: 2")]),
        ("GET", b"/", [(b"a\r\nb", b"1")]),
        ("GET", b"/", [(b"a", b"\0")]),
    ],
)
async def test_what_would_be_read_as_something_else_is_not_sent(
    pool: Pool, lines: list[Line], method: str, target: bytes, pairs: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await pool.open(method, target, pairs, None, patient(), None)
    assert lines == []


@pytest.mark.parametrize("over", [0, 1])
async def test_a_body_is_held_until_it_is_whole_only_if_it_is_small(pool: Pool, lines: list[Line], over: int) -> None:
    asking = asyncio.create_task(exchange(pool, "POST", Said(b"z" * SMALL, b"z" * over, length=SMALL + over)))
    await turns(1)
    assert [line.told.count(b"z") for line in lines] == [0 if over else SMALL]
    await turns()
    lines[0].says(answer())
    await asking
    assert lines[0].told.count(b"z") == SMALL + over


# Faults of connecting.


async def test_a_port_that_refuses_is_a_connect_error(unused_tcp_port: int) -> None:
    async with pooled(unused_tcp_port) as pool:
        with pytest.raises(httpx.ConnectError) as problem:
            await exchange(pool)
        assert isinstance(problem.value.__cause__, ConnectionRefusedError)
        assert repr(pool) == NOTHING_OPEN


@pytest.mark.parametrize("host", ["name.invalid", "x" * 64 + ".example", "a..b"])
async def test_a_name_that_is_none_is_a_connect_error(host: str) -> None:
    pool = Pool(host, 1)
    with pytest.raises(httpx.ConnectError):
        await exchange(pool)
    assert repr(pool) == NOTHING_OPEN


async def test_a_host_that_cannot_be_reached_in_time_is_a_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    async with pooled() as pool:
        with pytest.raises(httpx.ConnectTimeout):
            await exchange(pool, connect=0.02)
        assert repr(pool) == NOTHING_OPEN


# Cancelling.


KINDS: dict[str, Callable[[], tuple[str, Said | None]]] = {
    "GET": lambda: ("GET", None),
    "small": lambda: ("POST", Said(b"hi", length=2)),
    "chunks": lambda: ("POST", Said(b"h", b"i", b"")),
    "held back": lambda: ("POST", Said(b"h")),
}


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_at_any_moment_an_exchange_leaves_nothing_half_used(
    upstream: Upstream, kind: str, kept: bool
) -> None:
    said = STREAM + chunked(b"hello", b"world", b"")
    pieces = [said[at : at + 16] for at in range(0, len(said), 16)]
    for turn in range(31):
        async with pooled(upstream.port, max_connections=1) as pool:
            upstream.says(answer(body=b"warm"))
            if kept:
                await exchange(pool)
            upstream.says(*pieces)
            asking = asyncio.create_task(exchange(pool, *KINDS[kind]()))
            await turns(turn)
            asking.cancel()
            waiting = asyncio.create_task(exchange(pool))  # the only place is taken until the other is gone
            await asyncio.wait([asking])
            assert asking.cancelled() or asking.result()[2] in (b"helloworld", b"")
            async with asyncio.timeout(PATIENCE):
                assert (await waiting)[2] == b"helloworld"
            upstream.says(answer(body=b"mine"))
            assert (await exchange(pool))[2] == b"mine"
            assert repr(pool) == ONE_IDLE
            await pool.aclose()
            assert repr(pool) == NOTHING_OPEN


# Closing.


async def test_closing_the_pool_closes_all(far: Pool, upstream: Upstream) -> None:
    warm = await asked(far, 3)
    peers = [await upstream.accept() for _ in range(3)]
    for there in peers:
        await there.hear()
    for there in peers[:2]:
        await there.say(answer())
    await until(lambda: sum(one.done() for one in warm) == 2)
    warm.sort(key=asyncio.Task.done)
    for one in warm[1:]:
        await (await one).close()
    assert repr(far) == "<Pool 1 busy, 2 idle, 0 dialling, 0 waiting>"
    await far.aclose()
    assert repr(far) == NOTHING_OPEN
    with pytest.raises(httpx.CloseError):  # and it does not go out again
        await warm[0]
    for there in peers:
        await there.closed()
    await far.aclose()


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
async def test_a_call_under_way_when_the_pool_is_closed_does_not_go_out_again(
    pool: Pool, lines: list[Line], kept: bool
) -> None:
    if kept:
        await idle(pool, lines, 1)
    asking = asyncio.create_task(exchange(pool))
    await turns()
    await pool.aclose()
    with pytest.raises(httpx.CloseError):
        await asking
    assert len(lines) == 1


async def test_an_answer_until_close_that_we_closed_is_not_whole(pool: Pool, lines: list[Line]) -> None:
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(UNTIL_CLOSE + b"half")
    given = await asking
    await pool.aclose()
    assert not given.complete
    assert await given.read() == b"half"
    with pytest.raises(httpx.CloseError):
        await given.read()
    await given.close()


async def test_a_closed_pool_may_be_used_again_and_sweeps_again(lines: list[Line]) -> None:
    async with pooled(idle_for=0.03) as pool:
        await answered_by_hand(pool, lines, answer())
        await pool.aclose()
        await answered_by_hand(pool, lines, answer())
        await until(lambda: repr(pool) == NOTHING_OPEN)


# Whatever an upstream says.


BASES = (
    OK + b"Content-Length: 5\r\nA: 1\r\n\r\nhello",
    OK + b"Content-Length: 0\r\n\r\n",
    STREAM + chunked(b"hello", b"you", b""),
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil close",
)


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """An answer with some bytes turned over, gone, or put in, cut into pieces."""
    said = bytearray(draw(st.sampled_from(BASES)))
    inserts = st.sampled_from([b"\r\n", b"\n", b"\0", b" ", b"0\r\n\r\n", b"Content-Length: 3\r\n", *BASES])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(said) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                said[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del said[at : at + draw(st.integers(1, 9))]
            case 2:
                said[at:at] = draw(inserts)
            case _:
                said[at:at] = draw(st.binary(min_size=1, max_size=3))
        said = said or bytearray(b"x")
    places = draw(st.lists(st.integers(0, len(said)), max_size=4))
    return [bytes(said[start:end]) for start, end in pairwise((0, *sorted(places), len(said))) if start < end]


@given(pieces=mutated(), method=st.sampled_from(["GET", "HEAD", "POST"]), ends=st.booleans(), eager=st.booleans())
@settings(pure, max_examples=150)
async def test_whatever_is_said_instead_of_an_answer_the_next_exchange_is_right(
    pieces: list[bytes], method: str, ends: bool, eager: bool
) -> None:
    with by_hand() as lines:
        async with pooled(max_connections=2) as pool:
            asking = asyncio.create_task(exchange(pool, method, None, read=0.01))
            await turns()
            for piece in pieces:
                lines[0].says(piece)
                if not eager:
                    await turns()
            if ends:
                lines[0].ends()
            await asyncio.wait([asking], timeout=PATIENCE)
            assert asking.done()
            assert asking.exception() is None or isinstance(asking.exception(), httpx.TransportError)
            await turns()
            for body in (b"right", b"again"):
                assert (await answered_by_hand(pool, lines, answer(body=body)))[2] == body
            assert repr(pool) == ONE_IDLE
