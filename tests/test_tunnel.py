"""Through an outbound proxy: what it is asked, what it may answer, and that nothing else changes."""

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from proxy.tunnel import NoTunnel, Tunnels
from proxy.upstream import translated
from tests.conftest import Start
from tests.peers import PATIENCE, Tunnel, Upstream, answer, chunked, free_port, request
from tests.test_connection import OK, until
from tests.test_dial import Authority, Secure, found

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return found(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def secure(authority: Authority) -> AsyncIterator[Secure]:
    async with Secure(authority.context()).listening() as secure:
        yield secure


def through(tunnel: Tunnel, authority: Authority, user: str = "") -> dict[str, str]:
    """Settings for a target that nobody but the proxy can reach."""
    return {
        "OXY_TARGET": "https://localhost:4321",
        "HTTPS_PROXY": f"http://{user}127.0.0.1:{tunnel.at}",
        "PROXY_UPSTREAM_CA": str(authority.file),
    }


async def test_calls_go_through_one_tunnel_which_is_kept(start: Start, secure: Secure, authority: Authority) -> None:
    secure.said = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"data: 1\n\n", b"data: 2\n\n", b"")
    async with Tunnel(secure.port).listening() as tunnel, start(**through(tunnel, authority, "m%40e:p%40ss@")) as proxy:
        client = await proxy.connect()
        for _ in range(3):
            await client.say(request("POST", b"/v1/a%2Fb//?x=%20&&", body=b"{}"))
            assert (await client.hear()).body == b"data: 1\n\ndata: 2\n\n"
    (asked,) = tunnel.asked
    assert asked.startswith(b"CONNECT localhost:4321 HTTP/1.1\r\nHost: localhost:4321\r\n")
    assert b"\r\nProxy-Authorization: Basic " + base64.b64encode(b"m@e:p@ss") + b"\r\n" in asked
    assert secure.names == ["localhost"]


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_the_proxy_hears_nothing_but_where_to(start: Start, secure: Secure, authority: Authority) -> None:
    async with Tunnel(secure.port).listening() as tunnel, start(**through(tunnel, authority)) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"User-Agent", b"a client")]))
        assert (await client.hear()).status == 200
    assert tunnel.asked == [b"CONNECT localhost:4321 HTTP/1.1\r\nHost: localhost:4321\r\n\r\n"]


async def test_an_upload_may_take_longer_than_the_answer_to_it(
    start: Start, secure: Secure, authority: Authority
) -> None:
    async with (
        Tunnel(secure.port).listening() as tunnel,
        start(**through(tunnel, authority), OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="200") as proxy,
    ):
        client = await proxy.connect()
        await client.say(request("POST", headers=[(b"Content-Length", b"8")]))
        for _ in range(8):
            await asyncio.sleep(0.05)
            await client.say(b"x")
        assert (await client.hear()).status == 200


@pytest.mark.parametrize("status", [301, 403, 407, 502])
async def test_a_proxy_that_refuses_is_a_502(start: Start, upstream: Upstream, status: int) -> None:
    upstream.says(answer(status, body=b"not you"))
    async with start(OXY_TARGET="https://api.example", HTTPS_PROXY=f"http://me:secret@{upstream.url[7:]}") as proxy:
        client = await proxy.connect()
        await client.say(request())
        back = await client.hear()
    message = json.loads(back.body)["error"]["message"]
    assert (back.status, message) == (502, "The outbound proxy did not let the connection through")
    assert [heard.start for heard in upstream.heard] == [b"CONNECT api.example:443 HTTP/1.1"]


@pytest.mark.parametrize("kind", [httpx.ProxyError, NoTunnel])
def test_of_what_a_proxy_said_the_log_has_the_status_alone(kind: type[httpx.ProxyError]) -> None:
    failures = [translated(kind(said)) for said in ("407 me:secret is wrong", "4070", "me:secret")]
    assert [failure and failure.detail for failure in failures] == ["ProxyError: 407", "ProxyError", "ProxyError"]


class Out(asyncio.Protocol):
    """What comes out of a tunnel, until it ends."""

    def __init__(self) -> None:
        self.heard = b""
        self.over = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, problem: Exception | None) -> None:
        self.over.set()


async def dialled(said: bytes, address: tuple[str, int] = ("api.example", 443)) -> tuple[bytes, bytes]:
    """Dial through a proxy that says this and closes; return what it heard, and what came out of the tunnel."""
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        for at in range(len(said)):  # an answer may come in any pieces
            writer.write(said[at : at + 1])
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(PATIENCE):
        tunnels = Tunnels(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        out = await tunnels.dial(asyncio.get_running_loop(), Out, address, None)
        await out.over.wait()
        return heard[0], out.heard


@pytest.mark.parametrize(
    "said",
    [
        CONNECTED,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 204 Connected\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",  # RFC 9110 9.3.6: ignored
        b"HTTP/1.1 103 Wait\r\nLink: x\r\n\r\n" + CONNECTED,
    ],
    ids=["plain", "1.0", "framing that means nothing", "an interim answer first"],
)
async def test_a_tunnel_is_there_behind_any_2xx(said: bytes) -> None:
    assert await dialled(said) == (b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n", b"")


async def test_an_address_stands_in_brackets() -> None:
    asked, _ = await dialled(CONNECTED, ("[2001:db8::1]", 8443))
    assert asked == b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "ended without an answer, or spoke no HTTP"),
        (CONNECTED[:-2], "ended without an answer, or spoke no HTTP"),
        (b"\x05\x00", "ended without an answer, or spoke no HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "ended without an answer, or spoke no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "ended without an answer, or spoke no HTTP"),
        (b"HTTP/1.1 407 Who me:secret\r\n\r\n", "407"),
        (b"HTTP/1.1 301 Elsewhere\r\nLocation: /\r\n\r\n", "301"),
    ],
    ids=["nothing", "half a head", "SOCKS", "SSH", "without an end", "a refusal", "a redirect"],
)
async def test_whatever_else_a_proxy_says_is_no_tunnel_and_leaves_no_socket(said: bytes, told: str) -> None:
    before = sockets()
    with pytest.raises(httpx.ProxyError) as raised:
        await dialled(said)
    assert str(raised.value) == told
    await until(lambda: sockets() <= before)


def sockets() -> int:
    """How many sockets this process holds open, where the system tells."""
    links = (os.readlink(fd) for fd in Path("/proc/self/fd").glob("*") if fd.is_symlink())
    return sum(link.startswith("socket:") for link in links)


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_a_proxy_that_speaks_before_tls_does_is_a_502(start: Start, secure: Secure, authority: Authority) -> None:
    async with (
        Tunnel(secure.port, CONNECTED + b"\x16\x03").listening() as tunnel,
        start(**through(tunnel, authority)) as proxy,
    ):
        client = await proxy.connect()
        await client.say(request())
        assert (await client.hear()).status == 502


async def test_who_is_at_the_other_end_has_to_be_the_target(start: Start, secure: Secure, authority: Authority) -> None:
    async with (
        Tunnel(secure.port).listening() as tunnel,
        start(**through(tunnel, authority) | {"OXY_TARGET": "https://api.example"}) as proxy,
    ):
        client = await proxy.connect()
        await client.say(request())
        assert (await client.hear()).status == 502
    assert secure.names[0] == "api.example"


async def test_a_proxy_without_a_port_is_at_80(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def reach(_: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
        asked.append((host, port))
        raise ConnectionRefusedError

    monkeypatch.setattr("proxy.tunnel.reach", reach)
    with pytest.raises(ConnectionRefusedError):
        await Tunnels("http://me@proxy.example").dial(asyncio.get_running_loop(), Out, ("api.example", 443), None)
    assert asked == [("proxy.example", 80)]


@pytest.mark.parametrize("way", ["fast"], indirect=True)  # httpx takes it for the target's silence
async def test_a_proxy_that_is_silent_is_a_504(start: Start, upstream: Upstream) -> None:
    async with start(
        OXY_TARGET="https://api.example", HTTPS_PROXY=upstream.url, OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS="200"
    ) as proxy:
        client = await proxy.connect()
        await client.say(request())
        back = await client.hear()
        assert json.loads(back.body)["error"]["message"] == "Timeout while connecting to the upstream"
        assert await (await upstream.accept()).rest()  # it is hung up on, behind what it was asked


async def test_a_proxy_that_nobody_reaches_is_a_502(start: Start) -> None:
    async with start(OXY_TARGET="https://api.example", HTTPS_PROXY=f"http://127.0.0.1:{free_port()}") as proxy:
        client = await proxy.connect()
        await client.say(request())
        back = await client.hear()
    assert (back.status, json.loads(back.body)["error"]["message"]) == (502, "Could not connect to the upstream")
