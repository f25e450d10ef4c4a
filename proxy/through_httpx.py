"""The way through one of httpx's transports, called as such (`handle_async_request`) and not through a client.

A client would add headers, decode paths, follow redirects, keep cookies and write a log line of its own. What a plain
`httpx.Request` with a base URL parsed once and a stream puts on the wire is what the call says, and nothing else.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, cast

import httpx

from proxy.errors import Pairs
from proxy.exchange import IDEMPOTENT, Body, Sink, Timeouts
from proxy.heads import Shaped
from proxy.values import Target

# A kept connection is given up before common middle boxes drop it in silence.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=512, keepalive_expiry=60.0)
SOCKET_OPTIONS = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]

# httpcore looks for sniffio at each request. Where it is not, the search is 14 to 18 % of a request's CPU; a None here
# ends it at once (docs.python.org/3/reference/import.html#the-module-cache).
if find_spec("sniffio") is None:  # pragma: no cover  # the SDK that tests bring along brings it
    sys.modules["sniffio"] = None  # type: ignore[assignment]


def own_transport(tls: ssl.SSLContext, *, http2: bool, proxy: str | None) -> httpx.AsyncHTTPTransport:
    """Return httpx's transport as it is to be for relaying."""
    transport = httpx.AsyncHTTPTransport(
        verify=tls, http2=http2, limits=LIMITS, proxy=proxy, socket_options=SOCKET_OPTIONS
    )
    connections: Any = transport._pool
    connections._network_backend = Dialling(connections._network_backend)
    return transport


class ThroughHttpx:
    """The way through one of httpx's transports. How many connections that has is not known."""

    connections = (0, 0)

    def __init__(self, target: Target, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._url = httpx.URL(str(target))

    async def open(
        self, method: str, target: bytes, headers: Pairs, body: Body | None, timeouts: Timeouts, shaped: Shaped | None
    ) -> "HttpxAnswer":
        """Send a request; return its answer when the head is there.

        One without a body that found its kept connection dead goes out once more, if that can do no harm.
        """
        progress = Progress(timeouts.read)
        extensions = {"timeout": asdict(timeouts), "trace": progress}
        stream = BodyStream(body) if body is not None else NOTHING
        request = httpx.Request(method, self._url, headers=headers, stream=stream, extensions=extensions)
        request.method = method  # it has made capitals of it
        # The extension "target" would keep the bytes as they are too, but an outbound proxy would be given it as well.
        request.url = RawUrl(self._url, target)  # type: ignore[assignment]
        try:
            return await self._send(request, progress)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if progress.dialled or body is not None or method not in IDEMPOTENT:
                raise
        return await self._send(request, progress)

    async def _send(self, request: httpx.Request, progress: "Progress") -> "HttpxAnswer":
        try:
            async with asyncio.timeout(None) as progress.patience:
                return HttpxAnswer(await self._transport.handle_async_request(request))
        except TimeoutError:
            raise httpx.ReadTimeout("") from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class Dialling:
    """httpcore's way to the network. A connection that is made just as its exchange is cancelled is closed.

    anyio would forget it, and leave it open.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._late: set[asyncio.Task[None]] = set()

    async def connect_tcp(self, *where: Any, **how: Any) -> Any:
        """Return a stream. Raises httpcore's exceptions."""
        dialling = asyncio.ensure_future(self._backend.connect_tcp(*where, **how))
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            late = asyncio.ensure_future(self._close(dialling))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            raise

    async def _close(self, dialling: "asyncio.Future[Any]") -> None:
        with contextlib.suppress(Exception):
            await (await dialling).aclose()


class Progress:
    """What httpcore tells of an exchange on the way: whether it has `dialled` for it, and when the head is waited for.

    That has `read` seconds, of which `patience` makes an end: httpcore's own begin anew with whatever comes before it.
    """

    patience: asyncio.Timeout

    def __init__(self, read: float | None) -> None:
        self.dialled = False
        self._read = read

    async def __call__(self, event: str, _: object) -> None:
        """Take an event."""
        if "connect_tcp" in event:
            self.dialled = True
        elif event.endswith("receive_response_headers.started") and self._read is not None:
            self.patience.reschedule(asyncio.get_running_loop().time() + self._read)
        elif event.endswith("receive_response_headers.complete"):  # it may be the outbound proxy's, before an upload
            self.patience.reschedule(None)


class RawUrl:
    """What a transport asks of a URL, with path and query as they are. `httpx.URL` would quote them anew."""

    def __init__(self, origin: httpx.URL, target: bytes) -> None:
        self.raw_scheme = origin.raw_scheme
        self.raw_host = origin.raw_host
        self.port = origin.port
        self.raw_path = target


class BodyStream(httpx.AsyncByteStream):
    """A call's body in the form that a transport takes."""

    def __init__(self, body: Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._body.read():
            yield chunk


NOTHING = httpx.ByteStream(b"")


class HttpxAnswer:
    """An answer that comes through one of httpx's transports."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Pairs = [(name.lower(), value) for name, value in response.headers.raw]
        self.complete = False
        self._stream = cast(httpx.AsyncByteStream, response.stream)

    async def pour(self, sink: Sink) -> None:
        """Push each piece into the sink as it comes."""
        async for piece in self._stream:
            if not sink.push(piece):
                await sink.drain()
        self.complete = True

    def take(self) -> bytes:
        """Return nothing: all has gone into the sink."""
        return b""

    async def close(self) -> None:
        """Give the connection back to the pool, or close it where the answer was not heard to its end, or beyond."""
        parser = parser_of(self._stream)
        if parser is not None and parser.trailing_data[0]:
            parser.send_failed()  # httpcore would take what came beyond for the next answer
        await self._stream.aclose()


def parser_of(stream: object) -> Any:
    """Return the h11 connection beneath an answer of httpcore's over HTTP/1.1, None for any other.

    There is no public way to it; test_faults fails should this one end.
    """
    found: object = stream
    for name in ("_httpcore_stream", "_stream", "_connection", "_h11_state"):
        found = getattr(found, name, None)
    return found
