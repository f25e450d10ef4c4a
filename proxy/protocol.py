"""HTTP/1.1 on the client's side: a server protocol for uvicorn, on asyncio and llhttp (see `intake`), for relaying.

It takes the place of uvicorn's own under uvicorn's server, configuration, lifespan and worker processes. Beyond ASGI it
puts five things into the scope (see `downstream`), and cancels an exchange's task the moment that its client is gone.
What else it does that uvicorn's does not, each with a test:

- framing by RFC 9112: trailers do not become fields, an upgrade that is not taken costs nobody the body (Kludex/uvicorn
  #2722), a client of HTTP/1.0 hears no chunks, codings other than chunked are refused, a 304 keeps its length;
- malformed requests get the proxy's JSON error; target and fields are bounded; a head has to come within a time;
- what came before something malformed is answered first; an answer that broke never looks whole, not even where only
  the end of the connection tells the end of the answer; a client that is still sending gets to read what it was told.
"""

import asyncio
from collections import deque
from typing import Any, cast

from starlette.types import ASGIApp, Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from proxy.cycle import Cycle, Farewell, close, refusal, reset
from proxy.errors import BadRequest, Failure, Fields, Pairs, RequestTimeout, Unforeseen
from proxy.heads import Head, Heads
from proxy.intake import Intake
from proxy.upgrade import WebSocketProtocol, opening

MAX_WAITING = 100  # requests that a client may send ahead
FEW_WAITING = 8  # as many may wait before no more is read, for while nothing is read no hang-up is noticed
HEAD_TIMEOUT = 30.0  # seconds for a head to come
CLIENT_TIMEOUT = 300.0  # seconds for a client to send something of its body, or to read something of its answer


class HttpProtocol(asyncio.Protocol):
    """One connection of a client, with its exchanges one after the other."""

    __slots__ = (
        "_alarm", "_app", "_client_timeout", "_config", "_current", "_deadline", "_drained", "_head_timeout", "_intake",
        "_keep_alive_timeout", "_reading_paused", "_refusal", "_scope", "_state", "_task", "_transport", "_unsent",
        "_waiting", "client_due", "gone", "loop", "stopping", "writable", "write", "writelines",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        heads: Heads,
        head_timeout: float = HEAD_TIMEOUT,
        client_timeout: float = CLIENT_TIMEOUT,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.gone = False
        self._app = cast(ASGIApp, config.loaded_app)
        self._keep_alive_timeout = config.timeout_keep_alive
        self._intake = Intake(self, heads)
        self._head_timeout = head_timeout
        self._client_timeout = client_timeout
        self._state = server_state
        self._config = config
        self._transport: asyncio.Transport
        self.stopping = False
        self._reading_paused = False
        self.writable = True  # whether the client reads fast enough
        self._drained: asyncio.Future[None] | None = None  # there while an answer waits for that
        self._current: Cycle | None = None  # whose answer is under way
        self._waiting: deque[tuple[Cycle, Scope]] = deque()  # whose heads came while another answer was under way
        self._deadline: float | None = None  # for the next request
        self.client_due: float | None = None  # for the client, in an exchange that waits for it
        self._unsent = 0  # bytes, when that wait began
        self._alarm: asyncio.TimerHandle | None = None
        self._refusal: Failure | None = None  # what is said once those before are answered

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what every scope of this connection is to say."""
        self._transport = cast(asyncio.Transport, transport)
        self.write, self.writelines = self._transport.write, self._transport.writelines  # what a cycle calls
        self._state.connections.add(self)  # type: ignore[arg-type]  # it knows its own kinds only
        self._scope = {  # of each request
            "server": address(transport.get_extra_info("sockname")),
            "client": address(transport.get_extra_info("peername")),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        self._expect_within(self._head_timeout)

    def data_received(self, data: bytes) -> None:
        """Take in what came; the exchanges whose heads are complete start from there."""
        self._intake.take(data)

    def eof_received(self) -> None:
        """Take it that the client is gone, although it might still read."""
        if self._current is not None and self._current.started:
            self.tear(self._current)
        else:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange that is under way; those that wait never begin."""
        self.gone = True
        self._state.connections.discard(self)
        self._waiting.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        self.resume_writing()
        for cycle in (self._current, self._intake.latest):
            if cycle is not None:
                cycle.disconnect()
        # In the same turn: a cancellation that came later would break into what httpcore does, once the upload has
        # raised, to close its connection, and leave that open.
        if self._current is not None and asyncio.current_task() is not self._task:
            self._task.cancel()
        self._current = None
        self._intake.end()

    def pause_writing(self) -> None:
        """Let the answer wait: the client reads more slowly than the upstream writes."""
        self.writable = False

    def resume_writing(self) -> None:
        """Let the answer go on."""
        self.writable = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # What uvicorn's server calls

    def shutdown(self) -> None:
        """Close after the next answer. Nobody waits for a connection that has none under way: it ends with the server.

        To close it now would break off a request that is on its way here. But what a slow client has not read of the
        last answer goes out first.
        """
        self.stopping = True
        if self._current is not None or self._transport.is_closing():
            return  # it is forgotten when all has gone out
        if self._transport.get_write_buffer_size():
            self._part()
        else:
            self._state.connections.discard(self)

    # What its intake calls

    def begin(self, head: Head, pairs: Pairs, fields: Fields) -> Cycle:
        """Start an exchange, or let it wait for the one before."""
        self._deadline = None
        scope = head.scope | self._scope
        scope["head"], scope["headers"], scope["fields"], scope["line"] = head, pairs, fields, self
        scope["sink"] = cycle = Cycle(self, scope, last=head.last)
        if self._current is None:
            self._start(cycle, scope)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append((cycle, scope))
            if len(self._waiting) > FEW_WAITING:
                self.pause_reading()
        else:
            self._waiting[-1][0].last = True  # what follows it has to be asked for again (RFC 9112 9.3.2)
        return cycle

    def hand_over(self, method: str, target: bytes, pairs: Pairs, early: bytes) -> None:
        """Let the connection speak WebSocket from here on; `early` is what came behind the head."""
        try:
            if self._current is not None:
                raise BadRequest("A WebSocket handshake does not wait behind another request")
            head = opening(method, target, pairs)
        except Failure as failure:
            self.fail(failure)
            return
        cast(asyncio.TimerHandle, self._alarm).cancel()  # there is one while nothing is under way
        self._state.connections.discard(self)
        websocket = WebSocketProtocol(self._config, self._state, {}, self.loop)
        websocket.begin(self._transport, head, early)
        self._intake.end()

    def expect_head(self) -> None:
        """Give the client its time for a head, or for the rest of one."""
        self._expect_within(self._head_timeout)

    def fail(self, failure: Failure) -> None:
        """Take nothing more from this client; what came whole before is answered first."""
        if self._intake.in_body:
            if self._current is None:  # its answer has gone
                self._close()
                return
            if self._current is self._intake.latest:
                self._break_off(self._current, failure)
                return
            if self._waiting and self._waiting[-1][0] is self._intake.latest:
                self._waiting.pop()
        if self._current is None:
            self._refuse(failure)
        else:
            self._intake.deaf, self._refusal = True, failure

    # What a cycle calls

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        if self.writable:
            return
        if self._drained is None or self._drained.done():
            self._drained = self.loop.create_future()
        self.expect_client()
        try:
            await self._drained
        finally:
            self.client_due = None

    def expect_client(self) -> None:
        """Give the client its time to go on, until `client_due` is None again."""
        self._unsent = self._transport.get_write_buffer_size()
        self.client_due = self.loop.time() + self._client_timeout
        self._ring_at(self.client_due)

    def pause_reading(self) -> None:
        """Let the client wait."""
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Hear the client on, unless many requests of its wait already."""
        if self._reading_paused and len(self._waiting) <= FEW_WAITING:
            self._reading_paused = False
            self._transport.resume_reading()

    def keeps(self, cycle: Cycle) -> bool:
        """Tell whether the connection goes on after this exchange."""
        return not (cycle.last or self.stopping)

    def finish(self, cycle: Cycle) -> None:
        """Go on to the next exchange, or close behind the last."""
        self._current = None
        if not self.keeps(cycle):
            self._close()
        elif self._waiting:
            self._start(*self._waiting.popleft())
            self.resume_reading()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        else:
            self._expect_within(self._head_timeout if self._intake.in_head else self._keep_alive_timeout)
            self.resume_reading()

    def tear(self, cycle: Cycle) -> None:
        """End an answer that its application left unfinished."""
        self._break_off(cycle, Unforeseen("Something went wrong in the proxy; its log says more"))

    # Its own

    def _start(self, cycle: Cycle, scope: Scope) -> None:
        self._current = cycle
        self._task = task = self.loop.create_task(cycle.run(self._app, scope))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _break_off(self, cycle: Cycle, failure: Failure) -> None:
        """End an answer so that its client sees that it is not whole (RFC 9112 8), or say why there is none."""
        if not cycle.started:
            self._refuse(failure, cycle)
        elif cycle.until_close:
            reset(self._transport)  # its end would be taken for that of the answer
        else:
            self._close()

    def _refuse(self, failure: Failure, cycle: Cycle | None = None) -> None:
        """Answer what cannot be taken, or a cycle in its application's place, and close."""
        if cycle is None:
            self.write(refusal(failure))
        else:
            cycle.refused = failure
            self.write(refusal(failure, cycle.exchange))
        self._part()

    def _close(self) -> None:
        """Close, at once where nothing is left to say or to hear."""
        if self._intake.in_head or self._intake.in_body or self._waiting or self._transport.get_write_buffer_size():
            self._part()
        else:
            close(self._transport)

    def _part(self) -> None:
        Farewell(self._transport, self.loop, self._state.connections)
        self.connection_lost(None)

    def _expect_within(self, seconds: float) -> None:
        """Close if nothing comes for so long. The alarm is armed anew only where it would ring too late."""
        self._deadline = self.loop.time() + seconds
        self._ring_at(self._deadline)

    def _ring_at(self, when: float) -> None:
        if self._alarm is None or self._alarm.when() > when:
            self._set_alarm(when)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        due = self._deadline if self._current is None else self.client_due
        if due is None:
            return
        if self.loop.time() < due:
            self._set_alarm(due)
        elif self._current is not None:
            self._give_up(self._current)
        elif self._intake.in_head:
            self._refuse(RequestTimeout("The head of the request took too long"))
        elif (latest := self._intake.latest) is not None and latest.dropped:
            latest.dropped = False  # something came meanwhile, of an upload that has its answer
            self._expect_within(self._keep_alive_timeout)
        else:
            self._close()

    def _give_up(self, cycle: Cycle) -> None:
        """End an exchange whose client neither sends nor reads; one that reads slowly has its time anew."""
        if self._transport.get_write_buffer_size() < self._unsent:
            self.expect_client()
        elif cycle.started:
            reset(self._transport)
        else:
            self._refuse(RequestTimeout("The body of the request does not go on"), cycle)


def address(name: object) -> tuple[str, int] | None:
    """Return host and port of a socket's name, None where it is no internet address."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
