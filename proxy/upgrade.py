"""A client's connection once it speaks WebSocket: uvicorn's protocol over the `websockets` library, less its edges.

`HttpProtocol` hands the connection over, with the head that it has parsed. Beyond ASGI the scope has `target`, `fields`
and `line`, as it has for HTTP. What it does that uvicorn's does not, each with a test:

- the head is bounded and kept as that of any request: uvicorn would parse it again, by bounds of its own;
- what comes before the answer to the handshake waits, and a hang-up before it cancels the task;
- a client that ends without a word is said to have (1006, not 1005), and one that has closed holds up no answer;
- a message in a million fragments takes no more room than in one, and pings no more than their last pong;
- the order to stop closes with 1001 at once, and both sides hear of it;
- an answer that is no session goes out as it is, without a date or a type of content that nobody said;
- `over` tells an exchange that waits for its upstream that the client is done, and `let_go` ends the wait for a client.
"""

import asyncio
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from proxy.cycle import close, last_head
from proxy.errors import Pairs
from proxy.exchange import GOING_AWAY
from proxy.handshake import NONCE, examine_handshake
from proxy.headers import by_name
from proxy.request import examine, measure, origin_form

STOPS = "The proxy stops"
STALL = 60.0  # seconds after the end of a session in which a client has to read what is left of it
MOST_EARLY = 64 * 1024  # bytes that a client may say before its handshake is answered, and still be read
# Less than the idle timeouts of common middle boxes and load balancers, whose shortest are around a minute.
PING_INTERVAL = 20.0
HEAD = (
    b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: %b\r\n\r\n"
)


def opening(method: str, target: bytes, pairs: Pairs) -> Scope:
    """Return what the scope of a session says of its handshake. Raises `Failure` where it is none."""
    fields = by_name(pairs)
    examine(pairs, fields, "1.1")
    measure(target, pairs)
    examine_handshake(method, pairs, fields)
    target = origin_form(target)
    path, _, query = target.partition(b"?")
    return {"headers": pairs, "fields": fields, "target": target, "raw_path": path, "query_string": query}


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One session."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gone = False
        self.over = asyncio.Event()  # nothing more comes of the client: it has closed, or is gone, or was told to go
        self._paced = True
        self._full = False
        self._task: asyncio.Task[Any] | None = None
        self._early: bytearray | None = bytearray()
        self._pong: list[bytes] = []
        self._refusal = b""  # the head of an answer that is no session
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def broke(self) -> bool:
        """Whether the client ended, or was ended, without having closed the session itself (RFC 6455 7.1.7)."""
        return self.conn.close_rcvd is None

    def begin(self, transport: asyncio.Transport, head: Scope, early: bytes) -> None:
        """Take the connection over, and what came behind the head."""
        self.connection_made(transport)
        transport.set_protocol(self)
        super().data_received(HEAD % head["fields"][NONCE])
        cast(Scope, self.scope).update(head, line=self)  # its task has not begun yet
        if early:
            self.data_received(early)

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        """Hear the client, who has to wait for the answer to its handshake first (RFC 6455 4.1).

        One that does not is read on up to a bound: while nothing is read, no hang-up is noticed.
        """
        if self._early is None:
            super().data_received(data)
            return
        self._early += data
        if len(self._early) > MOST_EARLY:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session, or what was to become one."""
        self.gone = True
        if self._task is not None and not self.handshake_complete:
            self._task.cancel()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)
        self._hear_no_more()

    def pause_writing(self) -> None:
        """Let the session wait for the client to read."""
        self._full = True
        if self._paced:
            super().pause_writing()

    def resume_writing(self) -> None:
        """Let the session go on, and answer the last ping."""
        self._full = False
        super().resume_writing()
        if self._pong:
            self.transport.writelines(self._pong)
            self._pong = []

    # What uvicorn's server calls

    def shutdown(self) -> None:
        """Close the session. The application hears it as it would hear a client, since ASGI has no word for this.

        A handshake that still waits for its upstream is cancelled, so that its exchange answers 503; uvicorn would
        write a 500.
        """
        if self._task is not None and not self.handshake_complete:
            self._task.cancel()
        elif self.close_sent or not self.handshake_complete:
            super().shutdown()
            close(self.transport)  # as in `run_asgi`
        elif not self.transport.is_closing():  # else the client has closed, or is gone
            self._go_away()

    # What an exchange calls

    def let_go(self) -> None:
        """Wait no more for the client to read: little is left to say, and for that it has its time (`STALL`)."""
        self._paced = False
        self.writable.set()

    async def send(self, message: Any) -> None:
        """Say it to the client; an answer that is no session is a head, and then a body in one piece."""
        if message["type"] == "websocket.http.response.start":
            self._refusal = last_head(message["status"], message["headers"])
        elif self._refusal:
            self.handshake_complete = self.close_sent = True
            self.transport.write(self._refusal + message["body"])
        else:
            await super().send(message)

    # What uvicorn's protocol calls

    async def run_asgi(self) -> None:
        """Run the application; what it leaves unread for too long is dropped."""
        self._task = asyncio.current_task()
        await super().run_asgi()
        self.scope.clear()  # type: ignore[attr-defined]  # it holds this object
        if not self.gone:
            if self.transport.is_closing():
                close(self.transport)  # uvicorn's has it wait where that is TLS
            self._stalled = self.loop.call_later(STALL, self.transport.abort)

    def start_keepalive(self) -> None:
        """Begin with the session: the answer to its handshake has gone."""
        super().start_keepalive()
        early, self._early = self._early, None
        if early:
            self.transport.resume_reading()
            self.data_received(bytes(early))

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment. In one buffer: each by itself would take many times the room of a single byte."""
        frames = cast(list[bytes | bytearray], self.frames)
        if not isinstance(frames[0], bytearray):
            frames[0] = bytearray(frames[0])
        frames[0] += event.data
        if event.fin:
            frames[0] = bytes(frames[0])
            self.send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answer a ping; to a client that does not read, only the last one is (RFC 6455 5.5.3)."""
        if not self._full:
            super().handle_ping()
        else:  # of several that came at once, the first finds the answers to all
            self._pong = self.conn.data_to_send() or self._pong

    def handle_close(self, event: Frame) -> None:
        """End the session; a message that still waits for the client to read goes nowhere."""
        super().handle_close(event)
        self._hear_no_more()

    def handle_parser_exception(self) -> None:
        """End the session of a client that does not speak the protocol, or says too much at once."""
        super().handle_parser_exception()
        self._hear_no_more()

    # Its own

    def _go_away(self) -> None:
        # Here, not in the application: that may be waiting for its upstream, or for this client to read.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": GOING_AWAY, "reason": STOPS})
        self.conn.send_close(GOING_AWAY, STOPS)
        self.transport.writelines(self.conn.data_to_send())
        self.close_sent = True
        if self.read_paused:  # the client's answer stands behind what it said
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, close, self.transport)
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        self.disconnected = True
        self.let_go()
        self.over.set()
