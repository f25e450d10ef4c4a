"""What a client's connection does at the edges of a session that no well-behaved client reaches."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from proxy import upgrade
from proxy.cycle import close
from proxy.protocol import HttpProtocol
from proxy.settings import load
from proxy.upgrade import WebSocketProtocol, opening
from proxy.upstream_websocket import Remote
from tests.conftest import Running, running
from tests.peers import PATIENCE, Peer, Upstream, request
from tests.sockets import OFFER, Far, ended, fill, hear, proxy_protocols, session, settled
from tests.test_connection import until

PAIRS = [(name.lower(), value) for name, value in [(b"Host", b"proxy.example"), *OFFER]]


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    async with Far().listening() as far:
        yield far


@pytest.fixture
async def proxy(far: Far, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(load({"OXY_TARGET": far.url}, tmp_path)) as proxy:
        yield proxy


def test_the_scope_of_a_session_has_the_target_as_it_came() -> None:
    scope = opening("GET", b"http://host/v1/a%2Fb?c=;d", PAIRS)
    assert (scope["target"], scope["raw_path"], scope["query_string"]) == (b"/v1/a%2Fb?c=;d", b"/v1/a%2Fb", b"c=;d")
    assert scope["headers"] is PAIRS


async def test_a_message_in_many_fragments_takes_the_room_of_their_bytes(proxy: Running, far: Far) -> None:
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    await client.head()
    there = await far.accept()
    empty, one, ping = b"\x00\x80\0\0\0\0", b"\x00\x81\0\0\0\0a", b"\x89\x80\0\0\0\0"
    await client.say(b"\x01\x81\0\0\0\0a", (empty * 9 + one) * 1000, ping)
    await client.until(b"\x8a\0")  # all of them have been read
    [protocol] = proxy_protocols()
    assert [len(piece) for piece in protocol.frames] == [1001]
    await client.say(b"\x80\x80\0\0\0\0")
    assert await hear(there) == "a" * 1001


@pytest.mark.untraced
@pytest.mark.parametrize("early", [b"", b"\x81\x80\0\0\0\0"], ids=["silent", "hasty"])
async def test_a_client_that_hangs_up_before_its_handshake_is_answered_is_noticed(tmp_path: Path, early: bytes) -> None:
    async with Upstream().listening() as upstream, running(load({"OXY_TARGET": upstream.url}, tmp_path)) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER), early)
        there = await upstream.accept()
        await there.head()
        await client.close()
        assert await there.rest() == b""


@pytest.mark.parametrize("most", [3, 1000], ids=["too much to be read at once", "little"])
async def test_what_is_said_early_is_heard_when_the_handshake_is_answered(
    proxy: Running, far: Far, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(upgrade, "MOST_EARLY", most)
    client = await proxy.connect()
    await client.say(request(headers=OFFER), b"\x81\x85\0\0\0\0hello", b"\x81\x85\0\0\0\0again")
    there = await far.accept()
    assert [await hear(there), await hear(there)] == ["hello", "again"]


async def test_a_flood_of_pings_to_one_who_does_not_read_leaves_one_pong(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there):
        await fill(there, b"x" * 2**20, most=100)
        [protocol] = proxy_protocols()
        held = protocol.transport.get_write_buffer_size()
        for _ in range(2000):
            await client.ping()
        await client.send("behind the pings")
        assert await hear(there) == "behind the pings"
        assert protocol.transport.get_write_buffer_size() <= held
        client.transport.abort()


@pytest.mark.untraced
async def test_a_flood_of_pings_behind_the_order_to_stop_leaves_one_pong(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there):
        await fill(there, b"x" * 2**20, most=100)
        [protocol] = proxy_protocols()
        proxy.stop()
        held = protocol.transport.get_write_buffer_size()
        for _ in range(2000):
            await client.ping()
        await client.ping(b"the last")
        async with asyncio.timeout(PATIENCE):
            while b"the last" not in b"".join(protocol._pong):  # noqa: ASYNC110  nothing tells when
                await asyncio.sleep(0.01)
        assert protocol.transport.get_write_buffer_size() <= held
        client.transport.abort()


@pytest.mark.parametrize(("frame", "code"), [(b"\x88", 1005), (b"\x83", 1011)], ids=["closed", "broke"])
async def test_a_client_that_is_done_and_does_not_read_is_cut_off_in_time(
    proxy: Running, far: Far, monkeypatch: pytest.MonkeyPatch, frame: bytes, code: int
) -> None:
    lost = asyncio.Event()

    def connection_lost(self: WebSocketProtocol, problem: Exception | None) -> None:
        lost.set()
        losing(self, problem)

    losing = WebSocketProtocol.connection_lost
    monkeypatch.setattr(WebSocketProtocol, "connection_lost", connection_lost)
    monkeypatch.setattr(upgrade, "STALL", 0.01)
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    await client.head()
    there = await far.accept()
    await fill(there, b"x" * 2**20, most=100)
    await client.say(frame + b"\x80\0\0\0\0")
    assert (await ended(there))[0] == code
    async with asyncio.timeout(PATIENCE):
        await lost.wait()


@pytest.mark.parametrize("first", ["the client", "the upstream"])
async def test_for_a_client_that_is_gone_no_timer_is_kept(proxy: Running, far: Far, first: str) -> None:
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    await client.head()
    there = await far.accept()
    [protocol] = proxy_protocols()
    if first == "the upstream":
        closing = asyncio.create_task(there.close())
        await until(lambda: not proxy_protocols())
        assert protocol._stalled is not None
        client.abort()
        await closing
    else:
        client.abort()
        await ended(there)
    await until(lambda: protocol.gone and not proxy_protocols())
    assert protocol._stalled is None or protocol._stalled.cancelled()


async def test_the_order_to_stop_before_the_upstream_has_answered_is_an_error(tmp_path: Path) -> None:
    """It is too early to close a session, and too late to begin one."""
    arrived: asyncio.Queue[Peer] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: arrived.put_nowait(Peer(*ends)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running(load({"OXY_TARGET": f"http://127.0.0.1:{port}"}, tmp_path)) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER))
        upstream = await arrived.get()
        await upstream.head()
        [protocol] = proxy_protocols()
        protocol.shutdown()
        assert (await client.hear()).status == 503
        await upstream.closed()
        await upstream.close()
    server.close()


async def test_a_second_order_to_stop_waits_for_no_clients_close(proxy: Running, far: Far) -> None:
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    await client.head()
    there = await far.accept()
    proxy.stop()
    assert (await ended(there))[0] == 1001
    proxy.stop()
    await client.closed()


async def test_a_client_that_does_not_answer_the_order_to_stop_is_closed_by_us(
    proxy: Running, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By the function that does not wait for such a client over TLS either: its own tests are in `test_protocol`.
    closed: list[asyncio.Transport] = []

    def close_and_tell(transport: asyncio.Transport) -> None:
        closed.append(transport)
        close(transport)

    monkeypatch.setattr(upgrade, "close", close_and_tell)
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    await client.head()
    there = await far.accept()
    [protocol] = proxy_protocols()
    protocol.close_timeout = 0.05
    proxy.stop()
    await client.until(b"\x88\x11\x03\xe9")
    await client.closed()
    assert closed == [protocol.transport]
    assert (await ended(there))[0] == 1001


async def test_nothing_waits_any_more_for_a_client_that_is_let_go(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there):
        [protocol] = proxy_protocols()
        protocol.let_go()
        assert await fill(there, b"x" * 2**20, most=30) == 30
        await there.close(4000, "done")
        await settled()
        assert [await hear(client) for _ in range(30)] == [b"x" * 2**20] * 30
        assert await ended(client) == (4000, "done")


async def test_a_client_that_has_closed_hears_no_second_close_when_the_proxy_stops(proxy: Running, far: Far) -> None:
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    await client.head()
    there = await far.accept()
    await fill(there, b"x" * 2**20, most=100)
    await client.say(b"\x88\x80\0\0\0\0")
    assert await ended(there) == (1005, "")
    proxy.stop()
    heard = await client.rest()
    assert (heard[-2:], heard.count(b"x") % 2**20) == (b"\x88\0", 0)


@pytest.mark.parametrize("end", ["client closes", "client vanishes", "upstream vanishes", "upstream refuses"])
async def test_a_session_leaves_nothing_for_the_collector(proxy: Running, far: Far, end: str) -> None:
    """It comes rarely (see `app.spare_the_collector`), and would find whole connections."""
    far.answers = Response(403, "No", Headers()) if end == "upstream refuses" else None
    kinds = {HttpProtocol, WebSocketProtocol, Remote}
    gc.collect()
    gc.disable()
    try:
        client = await proxy.connect()
        await client.say(request(headers=OFFER))
        assert (await client.head()).status == (403 if far.answers else 101)
        if end == "client closes":
            await client.say(b"\x88\x80\0\0\0\0")
        elif end == "client vanishes":
            client.abort()
        elif end == "upstream vanishes":
            (await far.accept()).transport.abort()
            await client.say(b"\x88\x80\0\0\0\0")
        await client.closed()
        async with asyncio.timeout(PATIENCE):
            while any(type(one) in kinds for one in gc.get_objects()):  # noqa: ASYNC110  nothing tells when
                await asyncio.sleep(0.01)
        # The library keeps a refusal. From Python 3.13 on, frames of its traceback would lead to all those kinds.
        assert not [one for one in gc.get_objects() if type(one) is InvalidStatus and one.__traceback__ is not None]
    finally:
        gc.enable()
