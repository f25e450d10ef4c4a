"""The far bank of a WebSocket: where sessions go, over the `websockets` library, and what its failures are called.

What the library would add of its own (user agent, redirects, a URL quoted anew) is left out; framing, masking and the
closing handshake are its work. `Remote` has a bounded queue on each side: the library stops reading the upstream when
one message waits, and `send` waits for the upstream to read.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from io import BytesIO, StringIO
from typing import Self, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, ProxyError
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from proxy.dial import Dial
from proxy.errors import Failure, Pairs, UpstreamTimeout, UpstreamUnreachable
from proxy.exchange import ABNORMAL, Call, Close
from proxy.settings import Settings
from proxy.tunnel import way_out
from proxy.upgrade import PING_INTERVAL
from proxy.upstream import Upstream, root, trust

CLOSE_TIMEOUT = 10.0  # seconds in which the upstream has to answer a close, and to read what stands before it
PARTING = 1.0  # seconds in which it has to end the connection, once both have said that the session is over
WAITING = 1  # messages that may wait for a client before the upstream is no longer read

# Most specific first.
TRANSLATION: tuple[tuple[type[Exception], type[Failure], str], ...] = (
    (ProxyError, UpstreamUnreachable, "The outbound proxy did not let the connection through"),
    (InvalidHandshake, UpstreamUnreachable, "The upstream's answer to the handshake is not valid, or ended too early"),
    (
        ImportError,
        UpstreamUnreachable,
        "WebSocket through a SOCKS proxy takes one more package: pip install python-socks",
    ),
    (OSError, UpstreamUnreachable, "Could not connect to the upstream"),
)
Make = Callable[..., ClientConnection]
Texts = list[tuple[str, str]]

log = logging.getLogger("oxy.websocket")


class Refused(Exception):
    """The upstream answered the handshake, but not with a session. Its answer is for the client."""

    def __init__(self, status: int, headers: Pairs, body: bytes) -> None:
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


class WebSocketUpstream:
    """Opens sessions with the one target that the settings name.

    `upstream` tells which path stands before theirs, and how long it may take.
    """

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._target = settings.target
        self._authorities = settings.upstream_ca
        self._place = upstream.place
        self._prepare = upstream.prepare
        self._proxy = settings.outbound_proxy
        # Through proxies of other kinds it is the library that connects.
        self._by = way_out(self._proxy) if self._proxy is None or settings.by_tunnel else None
        self._max_size = settings.websocket_max
        self._timeouts = upstream.timeouts
        self._tls: ssl.SSLContext | None = None

    async def open(self, call: Call, subprotocols: list[bytes]) -> "Remote":
        """Open a session with what the call says. Raises `Refused`, `Failure` or, of httpx's, `NoTunnel`."""
        await self._prepare(call)
        offered = [Subprotocol(item.decode("latin-1")) for item in subprotocols] or None
        # Path and query together, as they are: the library would put them together anew.
        uri = WebSocketURI(
            secure=self._target.scheme == "https",
            host=self._target.host,
            port=self._target.port,
            path=self._place(call.target).decode("ascii"),
            query="",
        )

        def make(*_: object, **__: object) -> ClientConnection:
            protocol = ClientProtocol(uri, subprotocols=offered, max_size=self._max_size, logger=log)
            return Link(
                protocol,
                ping_interval=PING_INTERVAL,
                ping_timeout=None,  # one that is slow is not gone; of one that is, TCP learns
                close_timeout=CLOSE_TIMEOUT,
                max_queue=WAITING,
            )

        if uri.secure and self._tls is None:
            self._tls = await asyncio.to_thread(trust, self._target, self._authorities)  # it takes a tenth of a second
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.headers]
        try:
            return Remote(await (self._dial(make, fields, self._by) if self._by else self._by_library(make, fields)))
        except InvalidStatus as refusal:
            raise refused(refusal.response) from None
        except (InvalidHandshake, ImportError, OSError) as problem:
            raise translated(problem) from problem

    async def _dial(self, make: Make, fields: Texts, by: Dial) -> ClientConnection:
        """Go straight to the target, or through a tunnel."""
        address = (self._target.host, self._target.port)
        async with within(self._timeouts.connect, "Timeout while connecting to the upstream", "ConnectTimeout"):
            connection = await by(asyncio.get_running_loop(), make, address, self._tls)
        try:
            async with within(self._timeouts.read, "Timeout while waiting for the upstream's response", "ReadTimeout"):
                await connection.handshake(fields, None)
        except BaseException:
            connection.transport.abort()
            raise
        connection.start_keepalive()
        return connection

    async def _by_library(self, make: Make, fields: Texts) -> ClientConnection:
        """Have the library go through an outbound proxy of another kind."""
        scheme = "wss" if self._tls else "ws"
        async with within(self._timeouts.read, "Timeout while waiting for the upstream's response", "ReadTimeout"):
            return await Opening(
                f"{scheme}://{self._target.authority}",
                proxy=self._proxy,
                ssl=self._tls,
                compression=None,
                additional_headers=fields,
                user_agent_header=None,
                open_timeout=None,
                create_connection=make,  # type: ignore[arg-type]  # "a wrapper or a subclass", say its documents
            )


class Link(ClientConnection):
    """A connection to the upstream. While that does not read, it has only its last ping answered (RFC 6455 5.5.3)."""

    _hearing = _parting = False
    _pong: Sequence[bytes] = ()

    def data_received(self, data: bytes) -> None:
        """Hear the upstream. Once it has closed it has a moment to end the connection, and then we do (7.1.1)."""
        self._hearing = True
        super().data_received(data)
        self._hearing = False
        if self.protocol.close_rcvd is not None and not self._parting:
            self._parting = True
            self.loop.call_later(PARTING, self.transport.abort)

    def send_data(self) -> None:
        """Say what is to be said; what answers pings may have to wait."""
        if self._hearing and self.paused and self.protocol.state is State.OPEN:  # else there is a close among it
            self._pong = self.protocol.data_to_send()[-1:] or self._pong
        else:
            super().send_data()

    def resume_writing(self) -> None:
        """Go on saying, and answer the last ping."""
        super().resume_writing()
        self.transport.writelines(self._pong)
        self._pong = ()


class Opening(connect):
    """The library's way through a proxy, which follows no redirect: that is for the client to decide."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Take a redirect for the answer that it is."""
        return exc


class Remote:
    """A session with the upstream, which ends with the block. `closing` is how the upstream ended it, once it has."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.subprotocol = connection.subprotocol
        self.headers = pairs(cast(Response, connection.response))
        self.closing = Close(ABNORMAL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it as one that broke off, unless it is closed already."""
        await self.close(Close(ABNORMAL))

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Yield what the upstream says until the session is over; reading on is the backpressure."""
        try:
            while True:
                yield await whole(self._connection.recv_streaming())  # not `recv`, which takes but 4096 fragments
        except ConnectionClosed as end:
            if end.rcvd is not None:
                self.closing = Close(end.rcvd.code, end.rcvd.reason)
            elif end.sent is not None:
                self.closing = Close(ABNORMAL, "The upstream said what the proxy does not take")
            else:
                self.closing = Close(ABNORMAL, "The connection to the upstream broke")

    async def send(self, message: str | bytes) -> None:
        """Pass on a message, and wait while the upstream reads too slowly. Silent once it is gone."""
        with suppress(ConnectionClosed):
            await self._connection.send(message)

    async def close(self, close: Close) -> None:
        """Close, and break the connection off if the upstream takes too long over it."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._connection.close(close.sayable, close.reason)  # type: ignore[arg-type]  # None is no code
        except TimeoutError:
            pass
        finally:
            self._connection.transport.abort()

    async def break_off(self) -> None:
        """Break the connection off once the time for a close is over."""
        await asyncio.sleep(CLOSE_TIMEOUT)
        self._connection.transport.abort()

    async def lost(self) -> None:
        """Wait until there is no connection any more; what came before that is still to be had."""
        await self._connection.wait_closed()


async def whole(pieces: AsyncIterator[str | bytes]) -> str | bytes:
    """Return a message. Its fragments go into one buffer: each by itself would take many times the room of a byte."""
    message = await anext(pieces)
    buffer: StringIO | BytesIO | None = None
    async for piece in pieces:
        if buffer is None:
            buffer = StringIO() if isinstance(message, str) else BytesIO()
            buffer.write(message)  # type: ignore[arg-type]
        buffer.write(piece)  # type: ignore[arg-type]  # all are of one kind
    return message if buffer is None else buffer.getvalue()


def refused(response: Response) -> Exception:
    """Return what an answer means that is no session."""
    if response.status_code < 200:
        return UpstreamUnreachable(f"The upstream answered with status {response.status_code}, which is none")
    return Refused(response.status_code, pairs(response), bytes(response.body or b""))


def pairs(response: Response) -> Pairs:
    """Return the fields of an answer as we write them."""
    return [
        # Before version 17 the library kept bytes beyond ASCII as surrogates.
        (name.lower().encode("ascii"), value.encode("latin-1", "surrogateescape"))
        for name, value in response.headers.raw_items()
    ]


@asynccontextmanager
async def within(seconds: float | None, message: str, detail: str) -> AsyncIterator[None]:
    """Raise `UpstreamTimeout` with that message, and httpx's word for it as the detail, if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        failure = UpstreamTimeout(message)
        failure.detail = detail
        raise failure from None


def translated(problem: Exception) -> Failure:
    """Return the failure that an exception of the library, or of the system beneath it, means here."""
    failure = next(failure(message) for kind, failure, message in TRANSLATION if isinstance(problem, kind))
    failure.detail = type(problem).__name__
    if isinstance(problem, OSError):  # nothing was sent or heard yet, so that nothing secret can be in it
        failure.detail += f": {root(problem)}"
    return failure
