"""A client's connection where httptools is missing: uvicorn's protocol in Python, on h11.

What it does that uvicorn's does not:

- it tells the exchange the target as it came (in ASGI's path and query `/v1/models?` and `/v1/models` look alike), and
  whether the server is about to stop;
- a head has to come within a time, and what is malformed gets the proxy's JSON error;
- an answer that breaks off does not look whole to a client of HTTP/1.0 either;
- an offer of WebSocket is taken as `HttpProtocol` takes it, by the same protocol.
"""

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from proxy.cycle import refusal, reset
from proxy.errors import BadRequest, Failure, RequestTimeout
from proxy.handshake import offers_websocket
from proxy.request import MAX_HEAD, MAX_TARGET
from proxy.upgrade import WebSocketProtocol, opening


class Connection(h11.Connection):
    """Keeps the target of the latest request: the next one is not parsed before this one has its answer."""

    target = b""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what came next."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.target = event.target
        return event

    @property
    def in_head(self) -> bool:
        """Whether a part of a head has come, and not the rest."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])


class PureProtocol(H11Protocol):
    """One connection of a client."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_timeout: float,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = self._requests = Connection(h11.SERVER, MAX_TARGET + MAX_HEAD)
        self.app = self._tell_more
        self.stopping = False
        self._head_timeout = head_timeout
        self._alarm: asyncio.TimerHandle | None = None  # there while a head is waited for

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head is bounded from its first byte to its last."""
        super().data_received(data)
        if self._requests.in_head:
            self._expect_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    # What uvicorn's server calls

    def shutdown(self) -> None:
        """Close after what is under way."""
        self.stopping = True
        super().shutdown()

    # What uvicorn's protocol calls

    def send_400_response(self, msg: str) -> None:
        """Answer what is malformed, if there is still something to answer, and close."""
        self._refuse(BadRequest("This is not valid HTTP"))

    def on_response_complete(self) -> None:
        """Go on to the next request, a part of which may be here."""
        super().on_response_complete()
        if self._requests.in_head:
            self._expect_head()

    def _should_upgrade(self) -> bool:
        offered = self._get_upgrade() is not None
        return offered and offers_websocket(self.headers, self.scope["http_version"])

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Let the connection speak WebSocket from here on."""
        try:
            head = opening(event.method.decode("ascii"), event.target, self.headers)
        except Failure as failure:
            self._refuse(failure)
            return
        self.connections.discard(self)
        websocket = WebSocketProtocol(self.config, self.server_state, {}, self.loop)
        websocket.begin(self.transport, head, self.conn.trailing_data[0])

    # Its own

    async def _tell_more(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.config.loaded_app({**scope, "target": self._requests.target, "line": self}, receive, send)
        finally:
            torn = self.cycle.response_started and not self.cycle.response_complete
            if torn and scope["http_version"] == "1.0" and not self.transport.is_closing():
                reset(self.transport)  # its end would be taken for that of the answer

    def _expect_head(self) -> None:
        if self._alarm is None:
            self._alarm = self.loop.call_later(self._head_timeout, self._ring)

    def _stop_waiting(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._refuse(RequestTimeout("The head of the request took too long"))

    def _refuse(self, failure: Failure) -> None:
        """Answer with a failure, where an answer is still to come, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(refusal(failure))
        self.transport.close()
