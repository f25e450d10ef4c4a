"""The far bank: where calls go, with which timeouts, and what its failures are called here.

Calls go through our own pool, or through one of httpx's transports, called as such (`handle_async_request`) and not
through a client: a client would add headers, decode paths, follow redirects, keep cookies and write a log line of its
own. What a plain `httpx.Request` with a base URL parsed once, `extensions["target"]` and a stream puts on the wire is
what the call says, and nothing else.
"""

import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Protocol, cast

import httpx

from proxy.dial import Resuming
from proxy.errors import BadRequest, Failure, Pairs, UpstreamTimeout, UpstreamUnreachable
from proxy.exchange import Answer, Body, Call, Sink, Timeouts
from proxy.settings import Settings
from proxy.values import Target

# Most specific first; a test holds it against all of httpx's transport exceptions.
TRANSLATION: tuple[tuple[type[httpx.TransportError], type[Failure], str], ...] = (
    (httpx.ConnectTimeout, UpstreamTimeout, "Timeout while connecting to the upstream"),
    (httpx.PoolTimeout, UpstreamTimeout, "Timeout while waiting for a connection to the upstream"),
    (httpx.WriteTimeout, UpstreamTimeout, "Timeout while sending the request to the upstream"),
    (httpx.TimeoutException, UpstreamTimeout, "Timeout while waiting for the upstream's response"),
    (httpx.ConnectError, UpstreamUnreachable, "Could not connect to the upstream"),
    (httpx.ProxyError, UpstreamUnreachable, "The outbound proxy did not let the connection through"),
    (httpx.LocalProtocolError, BadRequest, "The request cannot be sent on: a header or the target is malformed"),
    (httpx.RemoteProtocolError, UpstreamUnreachable, "The upstream's response is not valid HTTP, or ended too early"),
    (httpx.TransportError, UpstreamUnreachable, "The connection to the upstream broke"),
)

# A kept connection is given up before common middle boxes drop it in silence.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=512, keepalive_expiry=60.0)
SOCKET_OPTIONS = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


class Bank(Protocol):
    """What takes a request to the target and brings the answer, one way or the other. Raises httpx's exceptions."""

    async def open(
        self, method: str, target: bytes, headers: Pairs, body: Body | None, timeouts: Timeouts
    ) -> Answer: ...
    async def aclose(self) -> None: ...


class Upstream:
    """Sends calls to the one target that the settings name, and nowhere else.

    `transport` is one of httpx's to use instead of our own.
    """

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        target = settings.target
        self._bank = bank(settings, transport)
        self._host = (b"host", target.authority.encode())
        self._prefix = target.path.encode()
        self._last_segment = self._prefix[self._prefix.rfind(b"/") :]
        self._timeouts = Timeouts(
            connect=settings.connect_timeout,
            read=settings.upstream_timeout,
            write=settings.upstream_timeout,
            pool=settings.connect_timeout,
        )

    async def open(self, call: Call) -> Answer:
        """Send the call; return its answer when the head is there.

        Raises `Failure`, or httpx's exceptions, as reading the answer does; `translated` says what they mean.
        """
        headers = [self._host, *call.headers]
        answer = await self._bank.open(call.method, self._place(call.target), headers, call.body, self._timeouts)
        if not 200 <= answer.status <= 599:  # RFC 9110 15: no other status can be a final one
            await answer.close()
            raise UpstreamUnreachable(f"The upstream answered with status {answer.status}, which is none")
        return answer

    async def aclose(self) -> None:
        """Close all connections."""
        await self._bank.aclose()

    def _place(self, target: bytes) -> bytes:
        """Put the target's own path before the request's, but never its last segment twice.

        `OPENAI_BASE_URL` is often written with a `/v1` that the request path brings along too.
        """
        if target == b"*":  # RFC 9112 3.2.4: OPTIONS for the server as a whole
            return target
        last = self._last_segment
        if last and target.startswith(last) and target[len(last) : len(last) + 1] in (b"", b"/", b"?"):
            return self._prefix[: -len(last)] + target
        return self._prefix + target


def bank(settings: Settings, transport: httpx.AsyncBaseTransport | None) -> Bank:
    """Return the way to the target: our own, unless there is a reason for httpx's."""
    target = settings.target
    if transport is not None:
        return ThroughHttpx(target, transport)
    if settings.way == "fast":
        from proxy.pool import Pool  # it takes httptools, which is not everywhere

        return Pool(target.host, target.port, tls=trust(target) if target.scheme == "https" else None)
    transport = httpx.AsyncHTTPTransport(
        verify=trust(target),
        http2=settings.http2,
        limits=LIMITS,
        proxy=settings.outbound_proxy,
        socket_options=SOCKET_OPTIONS,
    )
    return ThroughHttpx(target, transport)


def trust(target: Target) -> ssl.SSLContext:
    """Return whom we believe to be the target: the system's authorities and those that Python clients ship with.

    Where `SSL_CERT_FILE` or `SSL_CERT_DIR` names authorities, those alone. A target without TLS needs none, and
    reading them would take longer than the rest of the start.
    """
    if target.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = httpx.create_ssl_context()
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        context.load_default_certs()
    return Resuming.of(context)


class ThroughHttpx:
    """The way through one of httpx's transports."""

    def __init__(self, target: Target, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._url = httpx.URL(str(target))

    async def open(
        self, method: str, target: bytes, headers: Pairs, body: Body | None, timeouts: Timeouts
    ) -> "HttpxAnswer":
        """Send a request; return its answer when the head is there."""
        extensions = {"timeout": asdict(timeouts)}
        stream = BodyStream(body) if body is not None else NOTHING
        request = httpx.Request(method, self._url, headers=headers, stream=stream, extensions=extensions)
        # The extension "target" would keep the bytes as they are too, but an outbound proxy would be given it as well.
        request.url = RawUrl(self._url, target)  # type: ignore[assignment]
        return HttpxAnswer(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


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
        self.complete = False  # known only when nothing more comes
        self._stream = cast(httpx.AsyncByteStream, response.stream)

    async def pour(self, sink: Sink) -> None:
        """Push each piece into the sink as it comes."""
        async for piece in self._stream:
            if not sink.push(piece):
                await sink.drain()

    def take(self) -> bytes:
        """Return nothing: all has gone into the sink."""
        return b""

    async def close(self) -> None:
        """Give the connection back to the pool, or close it where the answer was not heard to its end."""
        await self._stream.aclose()


def translated(problem: Exception) -> Failure | None:
    """Return the failure that a transport's exception means here, None for any other exception."""
    if not isinstance(problem, httpx.TransportError):
        return None
    failure = next(failure(message) for kind, failure, message in TRANSLATION if isinstance(problem, kind))
    failure.detail = type(problem).__name__
    if isinstance(problem, httpx.ConnectError):  # nothing was sent or heard yet, so that nothing secret can be in it
        failure.detail += f": {root(problem)}"
    return failure


def root(problem: BaseException) -> BaseException:
    """Return the exception at the bottom of the chain: the system's own word for what went wrong."""
    while (deeper := problem.__cause__ or problem.__context__) is not None:
        problem = deeper
    return problem
