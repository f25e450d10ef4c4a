"""One request and its answer on a client's connection, in ASGI's messages, framed by RFC 9112.

An application that leaves its answer unfinished has it torn, so that no client takes a part for the whole. `Farewell`
is the end of a connection on which there is still something to say or to hear.
"""

import asyncio
import http
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Scope

from proxy.errors import Failure, Pairs
from proxy.exchange import Exchange, as_answer, new_id
from proxy.headers import NO_BODY, first, has_any

LAST_CHUNK = b"0\r\n\r\n"
SMALL = 4 * 1024  # bytes that are copied sooner than handed on in three pieces
HIGH_WATER = 64 * 1024  # bytes of an upload that wait for the upstream before the client is no longer read
PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
STATUS_LINES = {status: b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, "").encode()) for status in range(200, 1000)}
COLON = b": "
END_OF_HEAD = b"\r\n\r\n"
END_OF_ALL = b"\r\nconnection: close\r\n\r\n"
STALL = 60.0  # seconds in which a client has to read something of what is left to say on a connection that is to close
LINGER = 2.0  # seconds for it to hang up then

log = logging.getLogger("oxy")


def refusal(failure: Failure, exchange: Exchange | None = None) -> bytes:
    """Return a whole answer that refuses what cannot be taken; the connection is to close behind it.

    Where it ends an exchange that has begun, it has the ids of that one.
    """
    fields, body = as_answer(failure, exchange or Exchange(id=new_id(), method="", path=""))
    return last_head(failure.status, fields) + body


def head_of(status: int, headers: Pairs) -> bytes:
    """Return the lines of a head, without its end. Raises `ValueError` where a field is more than one."""
    lines = [STATUS_LINES[status], *map(COLON.join, headers)]
    if has_any(b"".join(lines), b"\n", b"\r"):
        raise ValueError("a line break in a header field")  # whoever put it there would speak in our name
    return b"\r\n".join(lines)


def last_head(status: int, headers: Pairs) -> bytes:
    """Return the whole head of the last answer on a connection; a `Connection` that it has says so itself."""
    return head_of(status, headers) + (END_OF_ALL if first(headers, b"connection") is None else END_OF_HEAD)


class Line(Protocol):
    """The connection, as far as one of its cycles knows it."""

    loop: asyncio.AbstractEventLoop
    writable: bool
    client_due: float | None

    @property
    def write(self) -> Callable[[bytes], None]: ...
    @property
    def writelines(self) -> Callable[[Sequence[bytes]], None]: ...
    async def drain(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def expect_client(self) -> None: ...
    def keeps(self, cycle: "Cycle") -> bool: ...
    def finish(self, cycle: "Cycle") -> None: ...
    def tear(self, cycle: "Cycle") -> None: ...


class Cycle:
    """One request and its answer. `last` says that no other follows on this connection.

    `more` is true until the request is whole, `dropped` once something of it has come to nobody. `started` turns true
    with the answer's head; `until_close` where nothing but the connection's end will end it. `exchange` is what the
    application says that it is, and `refused` what the server has answered in its place.
    """

    __slots__ = (
        "_app_told",
        "_bodiless",
        "_chunked",
        "_chunks",
        "_chunks_allowed",
        "_expects_100",
        "_held",
        "_left",
        "_line",
        "_over",
        "_size",
        "_to_head",
        "_waiter",
        "dropped",
        "exchange",
        "last",
        "more",
        "refused",
        "started",
        "until_close",
    )

    def __init__(self, line: Line, scope: Scope, *, last: bool) -> None:
        self.last = last
        self.more = True
        self.dropped = False
        self.started = False
        self.until_close = False
        self.exchange: Exchange | None = None
        self.refused: Failure | None = None
        self._line = line
        self._to_head = scope["method"] == "HEAD"
        self._chunks_allowed = scope["http_version"] == "1.1"
        self._expects_100 = b"expect" in scope["fields"] and scope["http_version"] == "1.1"
        self._chunks: list[bytes] = []
        self._size = 0
        self._app_told = False  # that the request has ended
        self._waiter: asyncio.Future[None] | None = None
        self._over = False  # the answer is complete, or the client is gone
        self._bodiless = self._chunked = False
        self._held = b""  # a head that waits for the first of its body
        self._left = -1  # bytes of the body that Content-Length still promises; before the head none are in order

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application; what it leaves unfinished is left torn."""
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            log.exception("the application broke")
        finally:
            if not self._over:
                self._line.tear(self)

    async def receive(self) -> Message:
        """Return the next piece of the body, then wait for the client to hang up."""
        if self._expects_100:
            self._expects_100 = False
            if self.more and not self._chunks and not self._over:
                self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._chunks or self._over) and (self.more or self._app_told):
            await self._wait()
        if self._over:
            return {"type": "http.disconnect"}
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._app_told = not self.more
        self._line.resume_reading()
        return {"type": "http.request", "body": body, "more_body": self.more}

    def push(self, piece: bytes) -> bool:
        """Send a piece of the body; return whether the client reads fast enough for more. Silent once all is over."""
        if piece and not (self._over or self._bodiless):
            if self._chunked and not self._held and len(piece) < SMALL:  # an event of a stream: `_write`, in one step
                self._line.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                self._write(piece)
        return self._line.writable

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        await self._line.drain()

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body, and wait while the client reads too slowly. Silent once all is over.

        `hold`, in the message of the head, says that the body's first message comes at once: the two go out together.
        """
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"], hold=message.get("hold", False))
        else:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        if not (self._line.writable or self._over):
            await self._line.drain()

    def hear(self, data: bytes) -> None:
        """Take a piece of the body; one that comes after the answer's end is dropped."""
        if self._over:
            self.dropped = True
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER:
            self._line.pause_reading()
        self._wake()

    def hear_end(self) -> None:
        """Take it that the request is whole."""
        self.more = False
        self._wake()

    def disconnect(self) -> None:
        """Take it that the client is gone."""
        self._over = True
        self._wake()

    async def _wait(self) -> None:
        self._waiter = self._line.loop.create_future()
        if self.more and not self.started:
            self._line.expect_client()
        try:
            await self._waiter
        finally:
            if not self.started:  # else it is whoever waits for the client to read that has set it
                self._line.client_due = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _begin(self, status: int, headers: Pairs, *, hold: bool) -> None:
        head = head_of(status, headers)
        framing = b""
        self._left = 0
        if self._to_head or status in NO_BODY:
            self._bodiless = True
        elif (length := first(headers, b"content-length")) is not None:
            self._left = int(length)
        elif self._chunks_allowed:
            self._chunked = True
            framing = b"\r\ntransfer-encoding: chunked"
        else:
            self.until_close = self.last = True
        if self._expects_100:  # nobody asked for the body: it may come all the same, or not (RFC 9110 10.1.1)
            self._expects_100 = False
            self.last = self.last or self.more
        self.started = True
        self._line.client_due = None  # from here on it is the upstream that may be late with the rest
        self._held = head + framing + (END_OF_HEAD if self._line.keeps(self) else END_OF_ALL)
        if not hold:
            self._say()

    def _go_on(self, body: bytes, *, more: bool) -> None:
        if body and not self._bodiless:
            self._write(body, end=b"" if more else LAST_CHUNK)
        elif not more and self._chunked:
            self._say(LAST_CHUNK)
        elif self._held:
            self._say()
        if more:
            return
        if self._left:
            raise ValueError("the body is shorter than Content-Length, or comes before the head")
        self._over = True
        self._wake()
        self._line.finish(self)

    def _write(self, body: bytes, end: bytes = b"") -> None:
        if self._chunked:
            if len(body) < SMALL:
                self._say(b"%x\r\n%b\r\n%b" % (len(body), body, end))
            else:
                self._say(b"%x\r\n" % len(body), body, b"\r\n" + end)
            return
        if not self.until_close:
            self._left -= len(body)
            if self._left < 0:
                raise ValueError("the body is longer than Content-Length, or comes before the head")
        self._say(body)

    def _say(self, *pieces: bytes) -> None:
        """Send pieces, behind the head if that was held back for them: together they are one call of the kernel."""
        if self._held:
            pieces, self._held = (self._held, *pieces), b""
        self._line.writelines(pieces)


class Farewell(asyncio.Protocol):
    """What is left of a connection that is to close: what is still to be said goes out, what still comes is dropped.

    To close with something unread would reset the connection, and take what was said last from a client that has not
    read it yet (RFC 9112 9.6). `connections` is where a server looks for those it has to shut down.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._transport = transport
        self._loop = loop
        self._connections = connections
        self._give_up = 0.0  # where nothing is read by then
        connections.add(self)
        transport.set_protocol(self)
        transport.resume_reading()
        if transport.can_write_eof():  # TLS has no such thing
            transport.write_eof()
        self._wait_anew()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._alarm.cancel()
        self._connections.discard(self)

    def shutdown(self) -> None:
        """Let it be: it ends by itself."""

    def _wait_anew(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._give_up = self._loop.time() + STALL
        self._wait()

    def _wait(self) -> None:
        self._alarm = self._loop.call_later(LINGER, self._ring)

    def _ring(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._wait_anew()
        elif unsent and self._loop.time() < self._give_up:
            self._wait()
        elif unsent:
            reset(self._transport)
        else:
            close(self._transport)


def close(transport: asyncio.Transport) -> None:
    """Close a connection, and do not wait where it is closing; what is still unsent goes out.

    TLS would wait for the client to say that it has heard, half a minute long, and a server that is told to stop with
    it. But one that keeps the connection for its next request does not look at it before.
    """
    transport.close()
    sock = transport.get_extra_info("socket")  # none once the connection is lost: its descriptor may be another's
    if sock is not None and transport.get_extra_info("sslcontext") is not None:
        with suppress(OSError), sock.dup() as same:
            same.shutdown(socket.SHUT_RD)  # as if the client had hung up


def reset(transport: asyncio.Transport) -> None:
    """Break a connection, so that nobody takes its end for the end of what was said."""
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
