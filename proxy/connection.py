"""One connection to the upstream: an asyncio protocol, with llhttp as the parser.

Rules of the house:
- One exchange at a time. Only a connection whose answer ended where its framing says (RFC 9112 6.3), and whose request
  was sent to its end, is used again; every other way out closes it.
- A timer is armed once for a connection, not once for each exchange: when it rings for a deadline that has moved on, it
  is armed for that one.
- Exceptions are httpx's.
"""

import asyncio
from typing import Protocol, cast

import httptools
import httpx

from proxy.answer import MAX_HEAD, Excess, PooledAnswer, examined
from proxy.dial import unheard, unread
from proxy.errors import Pairs
from proxy.exchange import Body, Timeouts
from proxy.headers import LOWER_CASE, NO_BODY, in_lower_case
from proxy.pace import gaps

HIGH_WATER = 64 * 1024  # bytes of an answer that wait for the client before the upstream is no longer read
UNHEARD = 60.0  # seconds after which an upstream that does not even acknowledge what was sent is gone
PAUSE = 0.05  # seconds


class Home(Protocol):
    """The pool, as far as one of its connections knows it."""

    def release(self, connection: "Connection") -> None: ...
    def forget(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """One connection to the upstream."""

    __slots__ = (
        "_alarm", "_alarm_at", "_answer", "_bodiless", "_drained", "_framed", "_head_size", "_in_head", "_large",
        "_left", "_pairs", "_parser", "_parser_behind", "_pool", "_reading_paused", "_reusable", "_sent", "_transport",
        "_uploader", "_writing_paused", "alive", "deadline", "heard", "loop", "retires",
    )  # fmt: skip

    def __init__(self, pool: Home, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.deadline: float | None = None
        self.alive = False
        self.retires = 0.0  # when it is too old for a further call
        self.heard = False  # whether a byte of the current answer has come
        self._pool = pool
        self._parser = new_parser(self)
        self._transport: asyncio.Transport
        self._answer: PooledAnswer | None = None
        self._uploader: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._writing_paused = self._reading_paused = False
        self._start("GET")

    def __repr__(self) -> str:
        state = "closed" if not self.alive else "idle" if self._answer is None else "busy"
        return f"<Connection {state}>"

    def _start(self, method: str) -> None:
        """Forget all of the exchange before."""
        self.heard = False
        self._bodiless = method == "HEAD"
        self._in_head = True
        self._head_size = 0  # bytes of a head, or of trailers, that are not complete
        self._large = False  # whether a head that is complete now may be too large
        self._pairs: Pairs = []
        self._framed = False  # whether a length or chunks say where the answer ends; else the connection does
        self._left = 0  # bytes of a body of known length that are still to come
        self._parser_behind = False  # whether the parser was passed by, and waits for a body that has come
        self._sent = False
        self._reusable = False

    # The exchange

    async def open(self, method: str, head: bytes, first: bytes, body: Body | None, timeouts: Timeouts) -> PooledAnswer:
        """Send a request; return its answer when the head is there.

        `first` is the beginning of the body, sent together with the head; `body` is what is still to come, or None.
        """
        self._start(method)
        self._answer = answer = PooledAnswer(self, timeouts.read)
        self._transport.write(head + first if first else head)
        if body is None:
            self._sent = True
        else:
            self._uploader = self.loop.create_task(self._upload(answer, body, len(first), timeouts.write))
        if gaps.wanted:
            gaps.begin()
        try:
            await answer.head()
            if answer.complete and answer.problem is not None:
                raise answer.problem  # it went on beyond its end: none of it is to be trusted
        except BaseException:
            self.abort()
            answer.problem = given_up()  # the one that was raised knows this answer
            raise
        return answer

    def finish(self, answer: PooledAnswer) -> None:
        """Make the connection ready for the next exchange, or close it."""
        if not (answer.complete and self._sent and self._reusable and answer.problem is None and self.alive):
            self.abort()
            if answer.problem is not None:
                answer.problem = given_up()  # the one that was raised knows this answer
            return
        self._answer = None
        self.go_on()
        if self._parser_behind:
            self._parser = new_parser(self)
        self._pool.release(self)

    def expect(self, timeout: float | None) -> None:
        """Let something be heard within so many seconds; a head cannot be late while its request is under way."""
        if timeout is None or (self._uploader is not None and self._in_head):
            return
        self.deadline = self.loop.time() + timeout
        if self._alarm is None or self._alarm_at > self.deadline:
            self._set_alarm(self.deadline)

    def look(self) -> None:
        """Give up an upstream that acknowledges nothing any more: its machine has vanished."""
        under_way = self._answer is not None and not self._answer.complete
        if under_way and unheard(self._transport.get_extra_info("socket")) > UNHEARD:
            self._break(httpx.ReadError("What was sent is not even acknowledged"))

    def go_on(self) -> None:
        """Read on, now that what was read is on its way."""
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; whatever is under way here is lost."""
        self.alive = False
        if self._answer is not None and not self._answer.complete:
            self._answer.fail(given_up())
        if self._uploader is not None:
            self._uploader.cancel()
        self._transport.abort()

    async def _upload(self, answer: PooledAnswer, body: Body, sent: int, within: float | None) -> None:
        """Send the body, behind the head of an answer too: until that one ends, or says that something is wrong."""
        has_input = unread(self._transport.get_extra_info("socket"))
        try:
            while data := await body.read():
                while unread_now := has_input():
                    await asyncio.sleep(0)  # two turns, in which it is read, and may end this task
                    await asyncio.sleep(0)
                    if not (self._reading_paused and unread_now == "all"):
                        break
                    await asyncio.sleep(PAUSE)  # its end is read when the client has read on
                sent += len(data)
                if body.length is None:
                    self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
                elif sent > body.length:
                    raise httpx.LocalProtocolError("Too much data for declared Content-Length")
                else:
                    self._transport.write(data)
                answer.renew()
                if self._writing_paused:
                    await self._drain(within)
            if body.length is None:
                self._transport.write(b"0\r\n\r\n")
            elif sent < body.length:
                raise httpx.LocalProtocolError("Too little data for declared Content-Length")
        except Exception as problem:
            if not answer.complete:
                self._break(problem)
            return
        self._sent, self._uploader = True, None
        answer.renew()

    def _take(self, answer: PooledAnswer, data: bytes) -> None:
        """Keep a piece of the body; too many unread ones, and the upstream has to wait."""
        answer.chunks.append(data)
        answer.size += len(data)
        if answer.size > HIGH_WATER and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _take_rest(self, answer: PooledAnswer, data: bytes) -> None:
        """Keep a piece of a body whose length is known, past the parser.

        llhttp would have nothing to say of these bytes, and httptools would copy each once more.
        """
        self._left -= len(data)
        if self._left < 0:
            self._break(httpx.RemoteProtocolError("Data beyond the end of the response"))
            return
        self._parser_behind = True
        answer.complete = not self._left
        self._take(answer, data)
        answer.arrived()

    async def _drain(self, within: float | None) -> None:
        self._drained = self.loop.create_future()
        try:
            async with asyncio.timeout(within):
                await self._drained
        except TimeoutError:
            raise httpx.WriteTimeout("") from None

    def _break(self, problem: Exception) -> None:
        cast(PooledAnswer, self._answer).fail(problem)
        self.abort()

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when  # its own `when` is rounded, and may seem later
        self._alarm = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self.deadline is None:
            return
        if self.loop.time() < self.deadline:
            self._set_alarm(self.deadline)
        else:
            self._break(httpx.ReadTimeout(""))

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self.alive = True

    def data_received(self, data: bytes) -> None:
        """Parse what came and wake whoever waits for it, once, however many pieces it was."""
        answer = self._answer
        if answer is None:
            self.abort()  # nothing was asked
            return
        self.heard = True
        if answer.complete:
            self._break(httpx.RemoteProtocolError("Data beyond the end of the response"))
            return
        if self._left:
            self._take_rest(answer, data)
            return
        self._large = self._head_size + len(data) > MAX_HEAD
        waiting = answer.size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:  # Excess comes as the former
            self._break(httpx.RemoteProtocolError(str(problem)))
            return
        if answer.size == waiting:  # fields of the head or trailers: the parser keeps what it has of one until it ends
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._break(httpx.RemoteProtocolError("The head is too large, or what follows the body"))
                return
        if answer.status:
            answer.arrived()

    def eof_received(self) -> None:
        """Take no further call, and let an answer without a length end well (RFC 9112 6.3, 9.8).

        The transport closes itself now, and says so a turn of the loop later. TLS that is cut off does not come here.
        """
        self.alive = False
        answer = self._answer
        if answer is not None and answer.status and not self._framed:
            answer.complete = True
            answer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Break off what is under way."""
        self.alive = False
        self._pool.forget(self)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._uploader is not None:
            self._uploader.cancel()
            self._uploader = None
        # The garbage collector comes rarely: those that know one another let go.
        answer, self._answer = self._answer, None
        self._parser = cast(httptools.HttpResponseParser, None)
        if answer is None or answer.complete:
            return
        if exc is not None:
            answer.fail(httpx.ReadError(str(exc)))
        elif not answer.status:
            answer.fail(httpx.RemoteProtocolError("Server disconnected without sending a response."))
        else:
            answer.fail(httpx.RemoteProtocolError("Server disconnected before the end of its response."))

    def pause_writing(self) -> None:
        """Note that the upstream reads more slowly than the client writes."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Let the upload go on."""
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # What the parser calls

    def on_message_begin(self) -> None:
        """Refuse what comes behind the answer: it would be taken for the next exchange's (response splitting)."""
        if self._answer.complete:  # type: ignore[union-attr]
            raise Excess("Data beyond the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; fields behind the body are trailers and end here."""
        if self._in_head:
            self._pairs.append((LOWER_CASE.get(name) or in_lower_case(name), value.rstrip()))

    def on_headers_complete(self) -> None:
        """Hand over the head, unless it is an interim one."""
        status = self._parser.get_status_code()
        if status == 101 or status < 100:
            raise Excess("An upgrade that nobody asked for, or a status that is none")
        if status < 200:  # RFC 9110 15.2: any number of these may come first
            self._pairs = []
            return
        self._in_head = False
        pairs = self._pairs
        length, coding = examined(pairs, large=self._large)
        answer: PooledAnswer = self._answer  # type: ignore[assignment]
        answer.headers = pairs
        answer.status = status
        self._framed = length is not None or coding
        if self._bodiless:
            # llhttp does not know of the HEAD and waits for a body: its word counts for neither end nor connection,
            # and it would say nothing of an empty chunk.
            answer.complete = self._parser_behind = True
            closes = coding or any(name == b"connection" and b"close" in value.lower() for name, value in pairs)
            self._reusable = self._parser.get_http_version() == "1.1" and not closes
        else:
            # Two framings are a sign of splitting (RFC 9112 6.3), chunks of HTTP/1.0 of a broken one (6.1).
            faulty = coding and (length is not None or self._parser.get_http_version() != "1.1")
            self._reusable = self._parser.should_keep_alive() and not faulty  # after the message, it always says no
            if length is not None and not coding and status not in NO_BODY:
                self._left = length
        if self._uploader is not None and status >= 400:
            self._uploader.cancel()  # RFC 9112 9.5: the rest of the upload would be read by nobody
            self._uploader = None

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body; too many unread ones, and the upstream has to wait."""
        if self._bodiless or self._in_head:
            raise Excess("A body in the answer to a HEAD, or in an interim one (RFC 9112 6.3)")
        if self._left:
            self._left -= len(data)
        self._head_size = 0
        self._take(self._answer, data)  # type: ignore[arg-type]  # a body has a head before it

    def on_message_complete(self) -> None:
        """Note the end of the answer, if it is not just that of an interim one."""
        if not self._in_head:
            self._answer.complete = True  # type: ignore[union-attr]


def given_up() -> httpx.CloseError:
    """Return what is raised to whoever reads on nevertheless."""
    return httpx.CloseError("The connection was given up")


def new_parser(connection: Connection) -> httptools.HttpResponseParser:
    """Return a parser that lets chunks override a length stated beside them (RFC 9112 6.3)."""
    parser = httptools.HttpResponseParser(connection)
    parser.set_dangerous_leniencies(lenient_chunked_length=True)
    return parser
