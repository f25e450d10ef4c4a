"""What a Python without httptools does beyond uvicorn's own protocol; the modules that go each `way` have the rest."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy import board
from proxy.recall import Recall
from proxy.request import MAX_HEAD, MAX_TARGET
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Start, ways
from tests.desk import BEARER, TOKEN
from tests.peers import Pairs, Peer, Upstream, answer, chunked, request
from tests.sockets import OFFER, Far, ended, fields, hear, session
from tests.test_upgrade import PAIRS

way = ways("pure")

IN_CHUNKS = b"POST /v1/files HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    async with Far().listening() as far:
        yield far


async def test_a_session_passes_with_the_key_swapped_and_is_written_down(
    start: Start, far: Far, tmp_path: Path
) -> None:
    history = str(tmp_path / "history.sqlite")
    async with start(**SWAP, OXY_TARGET=far.url, PROXY_HISTORY=history, ACCESS_TOKEN=TOKEN) as proxy:
        async with session(proxy, far, target="/v1/realtime?a=%2F", key=CLIENT_KEY) as (client, there):
            for said in ("text €", b"\x00\xff" * 100_000):
                await client.send(said)
                assert await hear(there) == said
                await there.send(said)
                assert await hear(client) == said
            await there.close(4001, "enough")
            assert await ended(client) == (4001, "enough")
        assert far.heard[0].path == "/v1/realtime?a=%2F"
        assert fields(far.heard[0], "authorization") == [f"Bearer {UPSTREAM_KEY}"]
        reader = await proxy.connect()
        await reader.say(request("GET", b"/metrics", [BEARER]))
        assert (await reader.hear()).body.startswith(b"# HELP oxy_exchanges_total")
    (entry,) = Recall(Path(history)).newest()
    assert (entry["route"], entry["result"], entry["close_code"]) == ("websocket", "success", 4001)


async def test_what_comes_right_behind_a_handshake_is_not_lost(start: Start, far: Far) -> None:
    async with start(OXY_TARGET=far.url) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER), b"\x81\x85\0\0\0\0early")
        assert await hear(await far.accept()) == "early"


@pytest.mark.parametrize(
    ("change", "status"), [((b"sec-websocket-version", b"8"), 426), ((b"sec-websocket-key", b"short"), 400)]
)
async def test_a_handshake_that_is_none_is_refused(
    start: Start, upstream: Upstream, change: tuple[bytes, bytes], status: int
) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[pair for pair in PAIRS[1:] if pair[0] != change[0]] + [change]))
        refused = await client.hear()
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (status, "OPENAI_PROXY_BAD_REQUEST")
        await client.closed()
    assert upstream.accepted == 0


@pytest.mark.parametrize(
    "headers",
    [[(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")], OFFER[1:]],
    ids=["of another protocol", "not in Connection"],
)
async def test_an_offer_that_is_not_one_of_websocket_is_no_more_than_a_request(
    start: Start, upstream: Upstream, headers: Pairs
) -> None:
    upstream.says(answer(body=b"plain"))
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request(headers=headers))
        assert (await client.hear()).body == b"plain"
    assert upstream.heard[0].get(b"upgrade") is None


async def test_a_method_goes_on_as_it_came(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request("patCH"))
        assert (await client.hear()).status == 200
    assert upstream.heard[0].start.startswith(b"patCH ")  # RFC 9110 9.1: the case of a method counts


async def test_the_order_to_stop_ends_a_stream_of_ours(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "TURN", 0.01)
    async with start(ACCESS_TOKEN=TOKEN) as proxy:
        client = await proxy.connect()
        await client.say(request("GET", b"/log/live", [BEARER]))
        assert (await client.head()).status == 200
        proxy.stop()
        assert (await client.rest()).endswith(b"0\r\n\r\n")


async def test_the_order_to_stop_closes_both_sides_of_a_session(start: Start, far: Far) -> None:
    async with start(OXY_TARGET=far.url) as proxy, session(proxy, far) as (client, there):
        proxy.stop()
        for end in (client, there):
            assert await ended(end) == (1001, "The proxy stops")


async def test_what_is_malformed_gets_the_proxy_s_own_error(start: Start) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(b"GET nowhere\r\n\r\n")
        assert json.loads((await client.hear()).body)["error"]["code"] == "OPENAI_PROXY_BAD_REQUEST"


async def test_a_client_that_says_nothing_is_not_waited_for(start: Start) -> None:
    async with start(PROXY_HEAD_TIMEOUT_MS="50") as proxy:
        client = await proxy.connect()
        assert (await client.hear()).status == 408
        await client.closed()


async def test_a_session_may_take_longer_than_a_head(start: Start, far: Far) -> None:
    async with start(OXY_TARGET=far.url, PROXY_HEAD_TIMEOUT_MS="200") as proxy, session(proxy, far) as (client, there):
        await asyncio.sleep(0.3)
        await client.send("late")
        assert await hear(there) == "late"


async def test_a_head_without_an_end_is_not_kept(start: Start) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(b"GET / HTTP/1.1\r\nX: ", b"x" * (MAX_TARGET + MAX_HEAD))
        assert (await client.head()).status == 400


async def test_a_body_that_turns_out_malformed_ends_the_exchange(start: Start, upstream: Upstream) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(IN_CHUNKS + chunked(b"{}"))
        there = await upstream.accept()
        await there.until(b"{}")
        await client.say(b"no length\r\n")
        assert (await client.hear()).status == 400
        await there.closed()


async def test_nothing_is_said_of_what_is_malformed_behind_an_answer(start: Start, upstream: Upstream) -> None:
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        await client.say(IN_CHUNKS + chunked(b"{}"))
        assert (await client.hear()).status == 401
        await client.say(b"no length\r\n")
        assert await client.rest() == b""
    assert upstream.accepted == 0


@asynccontextmanager
async def under_way(start: Start, upstream: Upstream) -> AsyncIterator[tuple[Peer, Peer]]:
    """A client of HTTP/1.0 that has heard a part of its answer, and who says it."""
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(b"GET /v1/models HTTP/1.0\r\n\r\n")
        there = await upstream.accept()
        await there.hear()
        await there.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"one"))
        await client.until(b"one")
        yield client, there


async def test_an_answer_that_breaks_off_never_looks_whole_to_a_client_of_http_1_0(
    start: Start, upstream: Upstream
) -> None:
    async with under_way(start, upstream) as (client, there):
        there.abort()
        with pytest.raises(ConnectionResetError):
            await client.until(b"more")


async def test_a_client_of_http_1_0_that_vanishes_is_no_fault(
    start: Start, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async with under_way(start, upstream) as (client, there):
        client.abort()
        await there.closed()
    assert "Traceback" not in capsys.readouterr().err
