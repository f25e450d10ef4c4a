"""One request and its answer on a client's connection, in ASGI's messages, framed by RFC 9112.

An application that leaves its answer unfinished has it torn, so that no client takes a part for the whole.
"""

import asyncio
import http
import logging
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from proxy.errors import Pairs
from proxy.headers import first

HIGH_WATER = 64 * 1024  # bytes of an upload that wait for the upstream before the client is no longer read
NO_BODY = frozenset((204, 304))  # RFC 9112 6.3; the answer to a HEAD comes on top
PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
STATUS_LINES = {status: b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, "").encode()) for status in range(100, 600)}
COLON = b": "
END_OF_HEAD = (b"", b"")

log = logging.getLogger("oxy")


class Line(Protocol):
    """The connection, as far as one of its cycles knows it."""

    loop: asyncio.AbstractEventLoop
    writable: bool

    def write(self, *pieces: bytes) -> None: ...
    async def drain(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def keeps(self, cycle: "Cycle") -> bool: ...
    def finish(self, cycle: "Cycle") -> None: ...
    def tear(self, cycle: "Cycle") -> None: ...


class Cycle:
    """One request and its answer. `last` says that no other follows on this connection.

    `started` turns true with the answer's head; `until_close` where nothing but the connection's end will end it.
    """

    __slots__ = (
        "_app_told",
        "_bodiless",
        "_chunked",
        "_chunks",
        "_chunks_allowed",
        "_complete",
        "_expects_100",
        "_gone",
        "_left",
        "_line",
        "_more",
        "_size",
        "_to_head",
        "_waiter",
        "last",
        "started",
        "until_close",
    )

    def __init__(self, line: Line, scope: Scope, *, last: bool) -> None:
        self.last = last
        self.started = False
        self.until_close = False
        self._line = line
        self._to_head = scope["method"] == "HEAD"
        self._chunks_allowed = scope["http_version"] == "1.1"
        self._expects_100 = b"expect" in scope["fields"] and scope["http_version"] == "1.1"
        self._chunks: list[bytes] = []
        self._size = 0
        self._more = True
        self._app_told = False  # that the request has ended
        self._waiter: asyncio.Future[None] | None = None
        self._gone = False
        self._complete = False
        self._bodiless = self._chunked = False
        self._left = 0  # bytes of the body that Content-Length still promises

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application; what it leaves unfinished is left torn."""
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            log.exception("the application broke")
        finally:
            if not (self._complete or self._gone):
                self._line.tear(self)

    async def receive(self) -> Message:
        """Return the next piece of the body, then wait for the client to hang up."""
        if self._expects_100 and self._more and not self._chunks:
            self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects_100 = False
        while not (self._chunks or self._gone or self._complete) and (self._more or self._app_told):
            self._waiter = self._line.loop.create_future()
            await self._waiter
        if self._gone or self._complete:
            return {"type": "http.disconnect"}
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._app_told = not self._more
        self._line.resume_reading()
        return {"type": "http.request", "body": body, "more_body": self._more}

    def push(self, piece: bytes) -> bool:
        """Send a piece of the body; return whether the client reads fast enough for another. Silent once it is gone."""
        if piece and not (self._gone or self._bodiless):
            self._write(piece)
        return self._line.writable

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        await self._line.drain()

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body, and wait while the client reads too slowly. Silent once it is gone."""
        if self._gone:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
        else:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        if not self._line.writable:
            await self._line.drain()

    def hear(self, data: bytes) -> None:
        """Take a piece of the body; one that comes after the answer's end is dropped."""
        if self._complete:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER:
            self._line.pause_reading()
        self._wake()

    def hear_end(self) -> None:
        """Take it that the request is whole."""
        self._more = False
        self._wake()

    def disconnect(self) -> None:
        """Take it that the client is gone."""
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _begin(self, status: int, headers: Pairs) -> None:
        lines = [STATUS_LINES[status], *map(COLON.join, headers)]
        if self._to_head or status in NO_BODY:
            self._bodiless = True
        elif (length := first(headers, b"content-length")) is not None:
            self._left = int(length)
        elif self._chunks_allowed:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked")
        else:
            self.until_close = self.last = True
        if not self._line.keeps(self):
            lines.append(b"connection: close")
        lines += END_OF_HEAD
        head = b"\r\n".join(lines)
        if head.count(b"\n") >= len(lines) or head.count(b"\r") >= len(lines):
            raise ValueError("a line break in a header field")  # whoever put it there would speak in our name
        self.started = True
        self._line.write(head)

    def _go_on(self, body: bytes, *, more: bool) -> None:
        if body and not self._bodiless:
            self._write(body)
        if more:
            return
        if self._chunked:
            self._line.write(b"0\r\n\r\n")
        elif self._left:
            raise ValueError("the body is shorter than Content-Length")
        self._complete = True
        self._wake()
        self._line.finish(self)

    def _write(self, body: bytes) -> None:
        if self._chunked:
            self._line.write(b"%x\r\n" % len(body), body, b"\r\n")
            return
        if not self.until_close:
            self._left -= len(body)
            if self._left < 0:
                raise ValueError("the body is longer than Content-Length")
        self._line.write(body)
