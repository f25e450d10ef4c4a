"""The far bank of a WebSocket: how it is reached, and what goes wrong there."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.protocol import State

from proxy.recall import Recall
from proxy.settings import load
from proxy.upstream_websocket import Link, Remote, whole
from tests.conftest import running
from tests.peers import PATIENCE, Tunnel, Upstream, answer, chunked, free_port, request
from tests.sockets import OFFER, SWITCHING, Far, dial, ended, fill, hear, raw_session, session
from tests.test_dial import Authority, found
from tests.test_websocket import Start, refused


@pytest.fixture
def start(upstream: Upstream) -> Start:
    return lambda **environ: running(load({"OXY_TARGET": upstream.url, **environ}, None))


async def told(start: Start, **environ: str) -> tuple[int, str, str]:
    async with start(**environ) as proxy:
        response = await refused(proxy, headers=[("X-Request-Id", "mine")])
    error = json.loads(response.body)["error"]
    assert response.headers["X-Proxy-Request-Id"] == error["requestId"]
    assert error["incomingRequestId"] == "mine"
    return response.status_code, error["code"], error["message"]


@pytest.mark.parametrize("host", ["name.invalid", "127.0.0.1"], ids=["unknown", "refused"])
async def test_an_upstream_that_cannot_be_reached_is_a_502(start: Start, host: str) -> None:
    heard = await told(start, OXY_TARGET=f"http://{host}:{free_port()}")
    assert heard == (502, "OPENAI_PROXY_TRANSPORT", "Could not connect to the upstream")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0\r\n\r\n",
        SWITCHING % b"wrong",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        answer(200, body=b"x" * (2**20 + 1)),
    ],
    ids=["nothing", "not HTTP", "another's answer", "no upgrade", "far too much"],
)
async def test_what_is_no_answer_to_a_handshake_is_a_502(start: Start, upstream: Upstream, said: bytes) -> None:
    upstream.says(said, closes=True)
    status, code, message = await told(start)
    assert (status, code) == (502, "OPENAI_PROXY_TRANSPORT")
    assert message == "The upstream's answer to the handshake is not valid, or ended too early"


async def test_a_preliminary_answer_is_none(start: Start, upstream: Upstream) -> None:
    upstream.says(b"HTTP/1.1 103 Early Hints\r\n\r\n", closes=True)
    status, _, message = await told(start)
    assert (status, message) == (502, "The upstream answered with status 103, which is none")


async def test_an_upstream_that_does_not_answer_is_a_504(start: Start, upstream: Upstream) -> None:
    heard = await told(start, OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="50")
    assert heard == (504, "OPENAI_PROXY_TIMEOUT", "Timeout while waiting for the upstream's response")
    await (await upstream.accept()).closed()


async def test_an_upstream_that_does_not_shake_hands_in_time_is_a_504(start: Start, upstream: Upstream) -> None:
    target = f"https://127.0.0.1:{upstream.port}"
    heard = await told(start, OXY_TARGET=target, OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS="50")
    assert heard == (504, "OPENAI_PROXY_TIMEOUT", "Timeout while connecting to the upstream")


@pytest.mark.parametrize(
    ("setting", "scheme", "kind"),
    [
        ("OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS", "https", "connect"),
        ("OPENAI_PROXY_UPSTREAM_TIMEOUT_MS", "https", "connect"),
        ("OPENAI_PROXY_UPSTREAM_TIMEOUT_MS", "http", "head"),
    ],
)
async def test_what_took_too_long_is_written_down(
    start: Start, upstream: Upstream, tmp_path: Path, setting: str, scheme: str, kind: str
) -> None:
    history, target = tmp_path / "history.sqlite", f"{scheme}://127.0.0.1:{upstream.port}"
    await told(start, OXY_TARGET=target, PROXY_HISTORY=str(history), **{setting: "50"})
    (entry,) = Recall(history).newest()
    assert (entry["result"], entry["timed_out"]) == ("upstream_timeout", kind)


async def test_a_refusal_in_chunks_has_a_length_here(start: Start, upstream: Upstream) -> None:
    upstream.says(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"not ", b"you", b""))
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER))
        back = await client.hear()
    assert (back.status, back.body, back.all(b"content-length")) == (403, b"not you", [b"7"])
    assert back.get(b"transfer-encoding") is None


async def test_an_upstream_that_does_not_answer_a_close_is_broken_off(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.CLOSE_TIMEOUT", 0.05)
    async with start() as proxy:
        client, there = await raw_session(proxy, upstream)
        await client.say(b"\x88\x80\0\0\0\0")
        await there.closed()


async def test_an_upstream_that_closes_and_does_not_hang_up_ends_the_session(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.PARTING", 0.05)
    async with start() as proxy:
        client, there = await raw_session(proxy, upstream)
        await there.say(b"\x81\x04last", b"\x88\x02\x0f\xa0")
        await client.until(b"\x81\x04last\x88\x02\x0f\xa0")
        await there.closed()


async def test_an_upstream_that_closes_has_a_moment_to_hang_up_itself(start: Start, upstream: Upstream) -> None:
    async with start() as proxy:
        client, there = await raw_session(proxy, upstream)
        await there.say(b"\x88\x02\x0f\xa0")
        await there.until(b"\x88\x82")
        await there.reader.readexactly(6)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await there.reader.read()
        there.writer.close()
        await client.until(b"\x88\x02\x0f\xa0")


async def test_an_upstream_that_goes_on_before_it_answers_a_close_has_its_time(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.PARTING", 0)
    async with start() as proxy:
        client, there = await raw_session(proxy, upstream)
        await client.say(b"\x88\x80\0\0\0\0")
        await there.until(b"\x88\x80")
        await there.reader.readexactly(4)
        await there.say(b"\x81\x04last")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await there.reader.read()
        await there.say(b"\x88\0")
        await there.closed()


async def test_what_an_upstream_said_before_it_closed_outlasts_its_connection(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.PARTING", 0)
    said = (b"\x82\x7f" + (2**19).to_bytes(8, "big") + bytes(2**19)) * 40 + b"\x88\x02\x0f\xa0"
    async with start() as proxy:
        client, there = await raw_session(proxy, upstream)
        saying = asyncio.create_task(there.say(said))
        async with asyncio.timeout(PATIENCE):
            assert await client.reader.readexactly(len(said)) == said
        await saying


async def test_a_session_ends_with_its_block_even_where_that_breaks() -> None:
    ended: list[object] = []

    async def close(code: int, _: str) -> None:
        ended.append(code)

    transport = SimpleNamespace(abort=lambda: ended.append("and for good"))
    response = Response(101, "", Headers())
    connection = SimpleNamespace(subprotocol=None, response=response, close=close, transport=transport)
    with pytest.raises(LookupError):
        async with Remote(cast(ClientConnection, connection)):
            raise LookupError
    assert ended == [1011, "and for good"]


async def test_a_message_in_many_fragments_takes_the_room_of_their_bytes() -> None:
    async def pieces() -> AsyncIterator[str | bytes]:
        for _ in range(100_000):
            yield bytes(2)

    tracemalloc.start()
    try:
        assert await whole(pieces()) == bytes(200_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_a_flood_of_pings_of_an_upstream_that_does_not_read_leaves_one_pong(tmp_path: Path) -> None:
    async with (
        Far().listening() as far,
        running(load({"OXY_TARGET": far.url}, tmp_path)) as proxy,
        session(proxy, far) as (client, there),
    ):
        held = await fill(client, b"x" * 2**20, most=100)
        [link] = (each for each in gc.get_objects() if type(each) is Link and each.state is State.OPEN)
        size = link.transport.get_write_buffer_size()
        for _ in range(2000):
            await there.ping()
        last = await there.ping()
        await there.send("behind the pings")
        assert await hear(client) == "behind the pings"
        await there.send("by itself")  # which takes no pong away
        assert await hear(client) == "by itself"
        assert link.transport.get_write_buffer_size() <= size
        for _ in range(held):
            await hear(there)
        async with asyncio.timeout(PATIENCE):
            await last


async def test_an_upstream_that_does_not_read_is_told_of_a_close_all_the_same(tmp_path: Path) -> None:
    async with (
        Far().listening() as far,
        running(load({"OXY_TARGET": far.url}, tmp_path)) as proxy,
        session(proxy, far) as (client, there),
    ):
        await fill(client, b"x" * 2**20, most=100)
        there.transport.write(b"\xff\xff")  # no frame
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionClosed):
                while True:
                    await there.recv()
        assert there.close_code == 1002


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return found(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def secure(authority: Authority) -> AsyncIterator[Far]:
    async with Far().listening(ssl=authority.context()) as far:
        yield far


@pytest.mark.parametrize("named_in", ["SSL_CERT_FILE", "PROXY_UPSTREAM_CA"])
async def test_a_target_with_tls_is_spoken_to_with_tls(
    named_in: str,
    start: Start,
    secure: Far,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ = {"OXY_TARGET": f"https://localhost:{secure.port}"}
    if named_in == "SSL_CERT_FILE":  # which OpenSSL reads
        monkeypatch.setenv(named_in, str(authority.file))
    else:
        environ[named_in] = str(authority.file)
    async with start(**environ) as proxy:
        for _ in range(2):
            async with dial(proxy) as client:
                there = await secure.accept()
                await client.send("hello")
                assert await hear(there) == "hello"
                await there.close(4000, "bye")
                assert await ended(client) == (4000, "bye")


async def test_a_target_with_tls_that_nobody_vouches_for_is_a_502(start: Start, secure: Far) -> None:
    heard = await told(start, OXY_TARGET=f"https://localhost:{secure.port}")
    assert heard == (502, "OPENAI_PROXY_TRANSPORT", "Could not connect to the upstream")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_outbound_proxy_is_taken(
    start: Start,
    secure: Far,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with Far().listening() as plain:
        far = secure if scheme == "https" else plain
        name = f"{scheme}_proxy".upper()
        async with (
            Tunnel(far.port).listening() as tunnel,
            start(OXY_TARGET=f"{scheme}://localhost:4321", **{name: f"http://127.0.0.1:{tunnel.at}"}) as proxy,
            dial(
                proxy, "/v1/r;p?a=%20&?", subprotocols=["realtime"], headers=[("X-Twice", "1"), ("X-Twice", "2")]
            ) as client,
        ):
            there = await far.accept()
            await client.send("hello")
            assert await hear(there) == "hello"
    assert tunnel.asked[0].startswith(b"CONNECT localhost:4321 HTTP/1.1\r\n")
    assert b"user-agent" not in tunnel.asked[0].lower()
    [heard] = far.heard
    assert heard.path == "/v1/r;p?a=%20&?"
    assert heard.headers.get_all("X-Twice") == ["1", "2"]
    assert heard.headers["Host"] == "localhost:4321"


async def test_an_outbound_proxy_that_refuses_is_a_502(start: Start, upstream: Upstream) -> None:
    upstream.says(answer(407))
    heard = await told(start, OXY_TARGET="https://api.example", HTTPS_PROXY=upstream.url)
    assert heard == (502, "OPENAI_PROXY_TRANSPORT", "The outbound proxy did not let the connection through")


async def test_an_outbound_proxy_that_is_silent_has_the_time_to_connect(start: Start, upstream: Upstream) -> None:
    proxied = {"OXY_TARGET": "https://api.example", "HTTPS_PROXY": upstream.url}
    heard = await told(start, **proxied, OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS="50")
    assert heard == (504, "OPENAI_PROXY_TIMEOUT", "Timeout while connecting to the upstream")


async def test_an_outbound_proxy_that_wants_a_password_is_told_of_in_the_log(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.says(answer(407))
    history = tmp_path / "history.sqlite"
    await told(start, OXY_TARGET="https://api.example", HTTPS_PROXY=upstream.url, PROXY_HISTORY=str(history))
    (entry,) = Recall(history).newest()
    assert entry["detail"] == "ProxyError: 407"


async def test_behind_an_outbound_proxy_a_redirect_is_the_clients_to_follow(start: Start, tmp_path: Path) -> None:
    async with Upstream().listening() as upstream:
        upstream.says(answer(302, [(b"Location", b"ws://elsewhere.example/")]))
        async with (
            Tunnel(upstream.port).listening() as tunnel,
            start(OXY_TARGET="http://api.example", HTTP_PROXY=f"http://127.0.0.1:{tunnel.at}") as proxy,
        ):
            client = await proxy.connect()
            await client.say(request(headers=OFFER))
            back = await client.head()
    assert (back.status, back.get(b"location")) == (302, b"ws://elsewhere.example/")
    assert len(tunnel.asked) == 1


async def test_a_socks_proxy_without_its_package_says_which(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.values.find_spec", lambda _: object())
    plain = httpx.AsyncHTTPTransport
    monkeypatch.setattr("proxy.through_httpx.httpx.AsyncHTTPTransport", lambda **_: plain())
    status, _, message = await told(start, OXY_TARGET="https://api.example", ALL_PROXY="socks5://127.0.0.1:1")
    assert (status, message) == (
        502,
        "WebSocket through a SOCKS proxy takes one more package: pip install python-socks",
    )
