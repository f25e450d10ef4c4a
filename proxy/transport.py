"""Our own pool behind httpx's transport interface, for an `httpx.AsyncClient` or for a test beside httpx's own.

The proxy itself does not come this way: `upstream` calls the pool.
"""

import ssl
from collections.abc import AsyncIterator
from typing import TypedDict, Unpack, cast

import httpx

from proxy.answer import PooledAnswer
from proxy.dial import Resuming
from proxy.exchange import Timeouts
from proxy.pool import Pool


class Limits(TypedDict, total=False):
    """What bounds the pool of each origin; see `Pool`."""

    max_connections: int | None
    max_idle: int
    idle_for: float


class RelayTransport(httpx.AsyncBaseTransport):
    """The pool behind httpx's interface, for whoever wants this transport in an `httpx.AsyncClient` or beside ours."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **limits: Unpack[Limits]) -> None:
        self._tls = tls
        self._limits = limits
        self._pools: dict[tuple[str, str, int | None], Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; return the response when its head is there, its body as a stream."""
        timeout = request.extensions.get("timeout", {})
        answer = await self._pool(request.url).open(
            request.method,
            request.extensions.get("target", request.url.raw_path),
            request.headers.raw,
            StreamBody.of(request),
            Timeouts(**{name: timeout.get(name) for name in ("connect", "read", "write", "pool")}),
            None,
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=AnswerStream(answer))

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in list(self._pools.values()):
            await pool.aclose()

    def _pool(self, url: httpx.URL) -> Pool:
        origin = (url.scheme, url.host, url.port)
        if origin not in self._pools:
            tls = (self._tls or Resuming.of(ssl.create_default_context())) if url.scheme == "https" else None
            host = url.raw_host.decode("ascii")  # a name in other letters as it goes on the wire
            self._pools[origin] = Pool(host, url.port or (443 if tls else 80), tls=tls, **self._limits)
        return self._pools[origin]


class StreamBody:
    """The body of an `httpx.Request` as the pool reads it."""

    def __init__(self, stream: httpx.AsyncByteStream, length: int | None) -> None:
        self.length = length
        self._chunks = aiter(stream)

    @classmethod
    def of(cls, request: httpx.Request) -> "StreamBody | None":
        """Return the body that the request's framing announces, or None."""
        stream = cast(httpx.AsyncByteStream, request.stream)
        if "transfer-encoding" in request.headers:  # RFC 9112 6.3: a length beside it says nothing
            return cls(stream, None)
        length = int(request.headers.get("content-length", "0"))
        return cls(stream, length) if length else None

    async def read(self) -> bytes:
        """Return the next chunk that is not empty, b"" at the end."""
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


class AnswerStream(httpx.AsyncByteStream):
    """An answer's body as httpx reads it."""

    def __init__(self, answer: PooledAnswer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._answer.read():
            yield chunk

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._answer.close()
