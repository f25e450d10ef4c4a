"""The answer of a pooled connection, as it streams.

What came together goes on together: whoever reads is told once for each arrival, however many pieces it was.
"""

import asyncio
from typing import Protocol

from proxy.errors import Pairs
from proxy.exchange import Sink

MAX_HEAD = 128 * 1024  # bytes of an answer's head
MAX_FIELDS = 256
LARGE = 16 * 1024  # bytes of a piece that is not worth joining to others


class Source(Protocol):
    """The connection, as far as its answer knows it."""

    loop: asyncio.AbstractEventLoop
    deadline: float | None

    def expect(self, timeout: float | None) -> None: ...
    def go_on(self) -> None: ...
    def finish(self, answer: "PooledAnswer") -> None: ...


class PooledAnswer:
    """An answer as it streams. `complete` turns true when its last byte is here, be it read already or not."""

    __slots__ = (
        "_closed",
        "_connection",
        "_full",
        "_sink",
        "_waiter",
        "chunks",
        "complete",
        "headers",
        "problem",
        "size",
        "status",
        "timeout",
    )

    def __init__(self, connection: Source, timeout: float | None) -> None:
        self._connection: Source = connection
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None  # while a piece can go straight into it
        self._full = False  # whether it took the last one and has no room for more
        self.timeout = timeout
        self.status = 0  # none yet
        self.headers: Pairs = []
        self.chunks: list[bytes] = []
        self.size = 0  # bytes in `chunks`
        self.complete = False
        self.problem: Exception | None = None

    async def head(self) -> None:
        """Wait for the head. Raises httpx's transport exceptions, or what the request's body raised."""
        while not self.status:
            if self.problem is not None:
                raise self.problem
            await self._wait()

    async def read(self) -> bytes:
        """Return what is here, waiting for some if there is nothing; b"" at the end.

        What came in several pieces is returned as one, unless that would only be a copy for its own sake.

        Raises `httpx.ReadTimeout` where nothing came for too long, `httpx.RemoteProtocolError` or `httpx.ReadError`
        where the answer broke off.
        """
        while not self.chunks:
            if self.problem is not None:
                raise self.problem
            if self.complete:
                return b""
            await self._wait()
        return self._next()

    def _next(self) -> bytes:
        if len(self.chunks) == 1 or len(self.chunks[0]) > LARGE:
            data = self.chunks.pop(0)
        else:
            data = b"".join(self.chunks)
            self.chunks.clear()
        self.size -= len(data)
        self._connection.go_on()
        return data

    async def pour(self, sink: Sink) -> None:
        """Push each piece into the sink the moment that it comes, until the last byte is here.

        While the sink has room and nothing else happens, nobody is woken: `arrived` pushes by itself. Raises what
        `read` raises.
        """
        try:
            while not self.complete:
                if self.chunks:
                    if not sink.push(self._next()):
                        await sink.drain()
                elif self.problem is not None:
                    raise self.problem
                else:
                    self._sink = sink
                    await self._wait()
                    self._sink = None
                    if self._full:
                        self._full = False
                        await sink.drain()
        finally:
            self._sink = None

    def take(self) -> bytes:
        """Return what is here and has not been read."""
        data = b"".join(self.chunks)
        self.chunks.clear()
        return data

    def arrived(self) -> None:
        """Pass on what came, or let whoever waits do so."""
        if self._sink is not None and self.chunks and not self.complete:
            if self._sink.push(self._next()):
                self._connection.expect(self.timeout)
                if not self.chunks:
                    return
            else:
                self._sink, self._full = None, True
        self.wake()

    async def close(self) -> None:
        """Give the connection back, or close it if the exchange has not come to its end."""
        if not self._closed:
            self._closed = True
            self._connection.finish(self)

    def renew(self) -> None:
        """Give the upstream its time anew, if it is waited for."""
        if self._waiter is not None:
            self._connection.expect(self.timeout)

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, problem: Exception) -> None:
        """End the answer with what went wrong; bytes that came before are still to be read."""
        if self.problem is None:
            self.problem = problem
        self.wake()

    async def _wait(self) -> None:
        connection = self._connection
        self._waiter = connection.loop.create_future()
        connection.expect(self.timeout)
        try:
            await self._waiter
        finally:
            self._waiter = None
            connection.deadline = None


def examined(pairs: Pairs, *, large: bool) -> tuple[int | None, bool]:
    """Return the stated length of an answer, if any, and whether it comes in chunks. A `large` head may be too large.

    Raises `Excess` for any other coding: the field that names it is hop-by-hop, so that it could not be told to the
    client (RFC 9112 6.1).
    """
    length, coded = None, False
    for name, value in pairs:
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            if coded or value.lower() != b"chunked":
                raise Excess("A transfer coding other than chunked")
            coded = True
    if len(pairs) > MAX_FIELDS or (large and sum(len(name) + len(value) for name, value in pairs) > MAX_HEAD):
        raise Excess("The head is too large")
    return length, coded


class Excess(Exception):
    """What a response may not be, although the parser would let it be."""
