"""The way through an outbound proxy: a tunnel to the target, asked for with CONNECT (RFC 9110 9.3.6), TLS inside it."""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import h11
import httpx

from proxy.dial import Dial, P, dial, over, reach

PORT = 80
SIZE = 4096  # bytes read at once


def way_out(proxy: str | None) -> Dial:
    """Return how to dial where such an outbound proxy stands before the target, or none."""
    return dial if proxy is None else Tunnels(proxy).dial


class NoTunnel(httpx.ProxyError):
    """The outbound proxy opened no tunnel. Where it said so, its status is what this says, and nothing else of it."""


class Tunnels:
    """Dials through the outbound proxy at `http://[user:password@]host[:port]`."""

    def __init__(self, proxy: str) -> None:
        parts = urlsplit(proxy)
        self._proxy = (parts.hostname or "", parts.port or PORT)
        self._fields: list[tuple[str, str]] = []
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._fields = [("Proxy-Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")]  # RFC 7617

    async def dial(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], P],
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
    ) -> P:
        """Do as `dial.dial` does, and raise what it raises, or `NoTunnel`."""
        host, port = address
        sock = await reach(loop, *self._proxy)
        try:
            await self._ask(loop, sock, f"{host}:{port}")
        except BaseException:
            sock.close()
            raise
        return await over(loop, factory, sock, host, tls)

    async def _ask(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, authority: str) -> None:
        talk = h11.Connection(h11.CLIENT)
        request = h11.Request(method="CONNECT", target=authority, headers=[("Host", authority), *self._fields])
        await loop.sock_sendall(sock, talk.send(request) + talk.send(h11.EndOfMessage()))
        try:
            while not isinstance(event := talk.next_event(), h11.Response):  # it may be told to wait with a 1xx
                if event is h11.NEED_DATA:
                    talk.receive_data(await loop.sock_recv(sock, SIZE))
        except h11.RemoteProtocolError as problem:
            raise NoTunnel("ended without an answer, or spoke no HTTP") from problem
        if not 200 <= event.status_code <= 299:
            raise NoTunnel(f"{event.status_code}")
        if talk.trailing_data[0]:
            raise NoTunnel("spoke on, where a target that speaks TLS waits for us")
