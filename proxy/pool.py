"""Connections to one origin, kept for the next call: last in, first out.

A call costs the same whatever the number of connections: the idle ones stand in order, oldest first, and a connection
that dies takes itself out.
"""

import asyncio
import ssl
from collections import OrderedDict

import httpx

from proxy.answer import PooledAnswer
from proxy.connection import Connection
from proxy.dial import Dial, dial
from proxy.errors import Pairs
from proxy.exchange import IDEMPOTENT, Body, Timeouts
from proxy.headers import has_any
from proxy.heads import Shaped

LOOK = 15.0  # seconds
SMALL = 64 * 1024  # a body whose stated length is no more goes out together with the head


class Pool:
    """Connections to one origin. `max_connections` bounds the open ones (None: no bound), `max_idle` the unused ones.

    `idle_for` is how long, in seconds, an unused connection is kept, and `used_for` how long any is used for further
    calls: a host's name may mean another machine by then. `by` dials in place of `dial`. The proxy itself sets no
    bound of connections: it bounds exchanges (see `guard`).
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        by: Dial | None = None,
        max_connections: int | None = None,
        max_idle: int = 512,
        idle_for: float = 60.0,
        used_for: float = 300.0,
    ) -> None:
        self._address = (host, port)
        self._tls = tls
        self._by = by
        self._limit = max_connections or float("inf")
        self._max_idle = max_idle
        self._idle_for = idle_for
        self._used_for = used_for
        # Oldest first; with each connection the time at which it is given up.
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        self._open: set[Connection] = set()
        self._dialling = 0  # a place is taken from when it is given to someone who is to dial
        self._waiters: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self._watch = Watch(self._open)

    def __repr__(self) -> str:
        busy = len(self._open) - len(self._idle)
        return f"<Pool {busy} busy, {len(self._idle)} idle, {self._dialling} dialling, {len(self._waiters)} waiting>"

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are open, and how many of them are idle."""
        return len(self._open), len(self._idle)

    async def open(
        self, method: str, target: bytes, headers: Pairs, body: Body | None, timeouts: Timeouts, shaped: Shaped | None
    ) -> PooledAnswer:
        """Send a request; return its answer when the head is there. The caller closes it, whatever happens.

        `headers` go out as they are, framing included, which must fit `body`; with `shaped` the head is made once.
        Raises httpx's transport exceptions, and what reading `body` raises. A request that found its kept connection
        dead goes out once more on a fresh one, if that can do no harm (RFC 9110 9.2.2).
        """
        length = b"%d" % body.length if body is not None and body.length is not None else b""
        if shaped is not None and shaped.wire is not None:
            head = length.join(shaped.wire)
        else:
            head = head_of(method, target, headers)
            if shaped is not None:
                shaped.wire = around_length(head, length)
        first, rest = b"", body
        if body is not None and body.length is not None and body.length <= SMALL:
            first = await body.read()
            if len(first) > body.length:
                raise httpx.LocalProtocolError("Too much data for declared Content-Length")
            if len(first) == body.length:
                rest = None
        connection, kept = await self._take(timeouts)
        try:
            return await connection.open(method, head, first, rest, timeouts)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if not kept or connection.heard or rest is not None or method not in IDEMPOTENT:
                raise
        connection, _ = await self._take(timeouts, fresh=True)
        return await connection.open(method, head, first, rest, timeouts)

    def release(self, connection: Connection) -> None:
        """Take a connection back: whoever has waited longest gets it, else it is idle. An old one is closed."""
        now = connection.loop.time()
        if now > connection.retires:
            connection.abort()
            return
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        self._idle[connection] = now + self._idle_for
        if len(self._idle) > self._max_idle:
            self._idle.popitem(last=False)[0].abort()
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(self._idle_for, self._sweep)

    def forget(self, connection: Connection) -> None:
        """Strike out a connection that is closed; its place goes to whoever has waited longest."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._pass_on()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._watch.end()
        for connection in list(self._open):
            connection.abort()
        for _ in range(3):  # turns of the loop, until transports, and TLS between, have told the connections
            await asyncio.sleep(0)

    async def _take(self, timeouts: Timeouts, *, fresh: bool = False) -> tuple[Connection, bool]:
        """Return a connection, and whether it was used before; where there is room for a `fresh` one, that if asked."""
        first = False
        while True:
            if self._idle and not (fresh and self._has_room()):
                connection: Connection | None = self._idle.popitem()[0]
            elif self._has_room():
                self._dialling += 1
                connection = None
            else:
                connection = await self._queue(timeouts.pool, first=first)
            if connection is None:
                return await self._connect(timeouts.connect), False
            if connection.alive and connection.loop.time() > connection.retires:
                connection.abort()
            if connection.alive:
                return connection, True
            first = True  # it was given one, and that one died on the way

    async def _connect(self, within: float | None) -> Connection:
        """Dial, in a place that is counted already."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within):
                connection = await (self._by or dial)(loop, lambda: Connection(self, loop), self._address, self._tls)
            if not connection.alive:
                raise ConnectionResetError("closed by the upstream before a request was sent")
            connection.retires = loop.time() + self._used_for
            self._open.add(connection)
            self._watch.begin(loop)
        except TimeoutError as problem:
            raise httpx.ConnectTimeout(str(problem)) from problem
        except (OSError, UnicodeError) as problem:  # the latter from a host name that is none
            raise httpx.ConnectError(str(problem)) from problem
        finally:
            self._dialling -= 1
            self._pass_on()
        return connection

    async def _queue(self, within: float | None, *, first: bool) -> Connection | None:
        """Wait in order for a connection, or for a place (None) to open one; `first`: before all others."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        self._waiters.move_to_end(waiter, last=not first)
        try:
            async with asyncio.timeout(within):
                return await waiter
        except BaseException as problem:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():
                self._give_back(waiter.result())
            if isinstance(problem, TimeoutError):
                raise httpx.PoolTimeout("") from None
            raise

    def _give_back(self, connection: Connection | None) -> None:
        """Take back what was handed to a waiter that has gone."""
        if connection is None:
            self._dialling -= 1
            self._pass_on()
        elif connection.alive:
            self.release(connection)

    def _next_waiter(self) -> "asyncio.Future[Connection | None] | None":
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                return waiter
        return None

    def _has_room(self) -> bool:
        return len(self._open) + self._dialling < self._limit

    def _pass_on(self) -> None:
        if self._has_room() and (waiter := self._next_waiter()) is not None:
            self._dialling += 1
            waiter.set_result(None)

    def _sweep(self) -> None:
        """Close what has been idle for too long, and come back when the next one may have been."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        while self._idle:
            connection, until = next(iter(self._idle.items()))
            if until > loop.time():
                self._sweeper = loop.call_at(max(until, loop.time() + 1), self._sweep)
                return
            del self._idle[connection]
            connection.abort()


class Watch:
    """Has connections look now and then whether their upstream is still there."""

    def __init__(self, connections: set[Connection]) -> None:
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch, for as long as there is a connection."""
        if self._timer is None:
            self._timer = loop.call_later(LOOK, self._look, loop)

    def end(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for connection in [*self._connections]:
            connection.look()
        if self._connections:
            self.begin(loop)


def head_of(method: str, target: bytes, headers: Pairs) -> bytes:
    """Return a request's head as bytes. Raises `httpx.LocalProtocolError` if it would be read as something else."""
    start = b"%b %b HTTP/1.1" % (method.encode(), target)
    lines = [start, *map(b": ".join, headers), b"", b""]
    # RFC 9112 2.2, 3: whoever gets a line break or a space in here speaks in our name.
    if has_any(b"".join(lines), b"\n", b"\r", b"\0"):
        raise httpx.LocalProtocolError("A line break or NUL in the request's head")
    if start.count(b" ") != 2 or not (start.isascii() and start.decode().isprintable()):
        raise httpx.LocalProtocolError("A space, a control character or one beyond ASCII in the request's target")
    return b"\r\n".join(lines)


def around_length(head: bytes, digits: bytes) -> tuple[bytes, bytes] | None:
    """Return what of a head stands before and behind the digits of its length; all of it where it has none."""
    if not digits:
        return head, b""
    before, found, behind = head.partition(b"\r\ncontent-length: %b\r\n" % digits)
    return (before + b"\r\ncontent-length: ", b"\r\n" + behind) if found else None
