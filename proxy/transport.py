"""A pooled HTTP/1.1 transport made for relaying: asyncio protocols, llhttp as the parser, bytes in and bytes out.

Rules of the house:
- One exchange at a time to a connection. Only a connection whose answer ended where its framing says (RFC 9112 6.3), and
  whose request was sent to its end, is used again; every other way out closes it.
- The pool costs the same whatever the number of connections: the idle ones stand in a dict, last in, first out, and a
  connection that dies takes itself out.
- A timer is armed once for a connection, not once for each exchange: a deadline that moved on is looked at when it rings.
- Exceptions are httpx's, so that whoever calls needs no second table.

`Pool.open` is what the hot path calls; `RelayTransport` is the same behind httpx's interface.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

import httptools
import httpx

from proxy.dial import dial
from proxy.errors import Pairs
from proxy.exchange import Body, Timeouts

HIGH_WATER = 256 * 1024  # bytes of an answer that wait for the client before the upstream is no longer read
MAX_HEAD = 128 * 1024  # bytes of an answer's head
MAX_FIELDS = 256
SMALL = 64 * 1024  # a body whose stated length is no more goes out together with the head
IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))  # RFC 9110 9.2.2


class PooledAnswer:
    """An answer as it streams. `complete` turns true when its last byte is here, be it read already or not."""

    __slots__ = ("_connection", "_waiter", "chunks", "complete", "headers", "problem", "size", "status", "timeout")

    def __init__(self, connection: "Connection", timeout: float | None) -> None:
        self._connection: Connection | None = connection
        self._waiter: asyncio.Future[None] | None = None
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
        """Return all bytes that are here, waiting for some if there are none; b"" at the end.

        Raises `httpx.ReadTimeout` where nothing came for too long, `httpx.RemoteProtocolError` or `httpx.ReadError`
        where the answer broke off.
        """
        while not self.chunks:
            if self.problem is not None:
                raise self.problem
            if self.complete:
                return b""
            await self._wait()
        data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.size = 0
        if self._connection is not None:
            self._connection.go_on()
        return data

    async def close(self) -> None:
        """Give the connection back, or close it if the exchange has not come to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish(self)

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
        connection = cast(Connection, self._connection)
        self._waiter = connection.loop.create_future()
        connection.expect(self.timeout)
        try:
            await self._waiter
        finally:
            self._waiter = None
            connection.deadline = None


class Connection(asyncio.Protocol):
    """One connection to the upstream."""

    def __init__(self, pool: "Pool", loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.deadline: float | None = None
        self.alive = False
        self.heard = False  # whether a byte of the current answer has come
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._answer: PooledAnswer | None = None
        self._uploader: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._writing_paused = self._reading_paused = False
        self._start("GET")

    def __repr__(self) -> str:
        state = "closed" if not self.alive else "idle" if self._answer is None else "busy"
        return f"<Connection {state}>"

    def _start(self, method: str) -> None:
        """Forget all of the exchange before."""
        self.heard = False
        self._bodiless = method == "HEAD"
        self._head_size = self._fields_size = 0
        self._fields: Pairs = []
        self._sized = False  # whether the answer's framing says where it ends; else it ends with the connection
        self._coded = False
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
            self._uploader = self.loop.create_task(self._upload(body, len(first), timeouts.write))
        try:
            await answer.head()
            if answer.complete and answer.problem is not None:
                raise answer.problem  # it went on beyond its end: none of it is to be trusted
        except BaseException:
            self.abort()
            raise
        return answer

    def finish(self, answer: PooledAnswer) -> None:
        """Make the connection ready for the next exchange, or close it."""
        if not (answer.complete and self._sent and self._reusable and answer.problem is None and self.alive):
            self.abort()
            return
        self._answer = None
        self.go_on()
        if self._bodiless:
            self._parser = httptools.HttpResponseParser(self)  # the old one still waits for the body of that HEAD
        self._pool.release(self)

    def expect(self, timeout: float | None) -> None:
        """Let something be heard within so many seconds; only a request that is sent can be answered late."""
        if timeout is None or not self._sent:
            return
        self.deadline = self.loop.time() + timeout
        if self._alarm is None or self._alarm.when() > self.deadline:
            self._set_alarm(self.deadline)

    def go_on(self) -> None:
        """Read on, now that what was read is on its way."""
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; whatever is under way here is lost."""
        self.alive = False
        if self._uploader is not None:
            self._uploader.cancel()
        self._transport.abort()

    async def _upload(self, body: Body, sent: int, timeout: float | None) -> None:
        try:
            while data := await body.read():
                sent += len(data)
                if body.length is None:
                    self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
                elif sent > body.length:
                    raise httpx.LocalProtocolError("Too much data for declared Content-Length")
                else:
                    self._transport.write(data)
                if self._writing_paused:
                    await self._drain(timeout)
            if body.length is None:
                self._transport.write(b"0\r\n\r\n")
            elif sent < body.length:
                raise httpx.LocalProtocolError("Too little data for declared Content-Length")
        except Exception as problem:
            self._break(problem)
            return
        self._sent = True
        if self._answer is not None:
            self.expect(self._answer.timeout)

    async def _drain(self, timeout: float | None) -> None:
        self._drained = self.loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._drained
        except TimeoutError:
            raise httpx.WriteTimeout("") from None

    def _break(self, problem: Exception) -> None:
        if self._answer is not None:
            self._answer.fail(problem)
        self.abort()

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
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
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:  # Excess comes as the former
            self._break(httpx.RemoteProtocolError(str(problem)))
            return
        if not answer.status:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._break(httpx.RemoteProtocolError("The head is too large"))
            return
        answer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way: an answer without a length ends well so, any other does not."""
        self.alive = False
        self._pool.forget(self)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._uploader is not None:
            self._uploader.cancel()
        answer = self._answer
        if answer is None or answer.complete:
            return
        if exc is not None:
            answer.fail(httpx.ReadError(str(exc)))
        elif not answer.status:
            answer.fail(httpx.RemoteProtocolError("Server disconnected without sending a response."))
        elif self._sized:
            answer.fail(httpx.RemoteProtocolError("Server disconnected before the end of its response."))
        else:
            answer.complete = True
            answer.wake()

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
        if cast(PooledAnswer, self._answer).complete:
            raise Excess("Data beyond the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; fields behind the body are trailers and end here."""
        if cast(PooledAnswer, self._answer).status:
            return
        name = name.lower()
        if name == b"content-length":
            self._sized = True
        elif name == b"transfer-encoding":
            # No other coding than chunked can be relayed: the field that names it is hop-by-hop (RFC 9112 6.1).
            if self._coded or value.strip().lower() != b"chunked":
                raise Excess("A transfer coding other than chunked")
            self._sized = self._coded = True
        self._fields.append((name, value.rstrip(b" \t")))
        self._fields_size += len(name) + len(value)
        if self._fields_size > MAX_HEAD or len(self._fields) > MAX_FIELDS:
            raise Excess("The head is too large")

    def on_headers_complete(self) -> None:
        """Hand over the head, unless it is an interim one."""
        status = self._parser.get_status_code()
        if status == 101:
            raise Excess("An upgrade that nobody asked for")
        if status < 200:  # RFC 9110 15.2: any number of these may come first
            self._fields, self._sized, self._coded = [], False, False
            return
        answer = cast(PooledAnswer, self._answer)
        answer.headers = self._fields
        answer.status = status
        if self._bodiless:
            # llhttp does not know of the HEAD and waits for a body: its word counts for neither end nor connection.
            answer.complete = True
            self._reusable = self._parser.get_http_version() == "1.1" and (b"connection", b"close") not in self._fields
        else:
            self._reusable = self._parser.should_keep_alive()  # asked after the message it always says no
        if not self._sent:
            # RFC 9112 9.5: the rest of the upload would be read by nobody.
            cast("asyncio.Task[None]", self._uploader).cancel()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body; too many unread ones, and the upstream has to wait."""
        answer = cast(PooledAnswer, self._answer)
        if self._bodiless:
            raise Excess("A body in the answer to a HEAD")
        answer.chunks.append(data)
        answer.size += len(data)
        if answer.size > HIGH_WATER and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Note the end of the answer, if it is not just that of an interim one."""
        answer = cast(PooledAnswer, self._answer)
        if answer.status:
            answer.complete = True


class Excess(Exception):
    """What a response may not be, although the parser would let it be."""


class Pool:
    """Connections to one origin. `max_connections` bounds the open ones (None: no bound), `max_idle` the unused ones.

    `idle_for` is how long, in seconds, an unused connection is kept.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int | None = None,
        max_idle: int = 512,
        idle_for: float = 60.0,
    ) -> None:
        self._address = (host, port)
        self._tls = tls
        self._limit = max_connections or float("inf")
        self._max_idle = max_idle
        self._idle_for = idle_for
        self._idle: dict[Connection, float] = {}  # with the time at which each is given up, oldest first
        self._open: set[Connection] = set()
        self._dialling = 0
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        busy = len(self._open) - len(self._idle)
        return f"<Pool {busy} busy, {len(self._idle)} idle, {self._dialling} dialling, {len(self._waiters)} waiting>"

    async def open(
        self, method: str, target: bytes, headers: Pairs, body: Body | None, timeouts: Timeouts
    ) -> PooledAnswer:
        """Send a request; return its answer when the head is there. The caller closes it, whatever happens.

        `headers` go out as they are, framing included, which must fit `body`. Raises httpx's transport exceptions, and
        what reading `body` raises. A request that found its kept connection dead goes out once more on a fresh one, if
        that can do no harm (RFC 9110 9.2.2).
        """
        head = head_of(method, target, headers)
        first, rest = b"", body
        if body is not None and body.length is not None and body.length <= SMALL:
            first = await body.read()
            if len(first) == body.length:
                rest = None
        while True:
            connection, kept = await self._take(timeouts)
            try:
                return await connection.open(method, head, first, rest, timeouts)
            except (httpx.RemoteProtocolError, httpx.ReadError):
                if not kept or connection.heard or rest is not None or method not in IDEMPOTENT:
                    raise

    def release(self, connection: Connection) -> None:
        """Take a connection back: whoever has waited longest gets it, else it is idle."""
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        self._idle[connection] = connection.loop.time() + self._idle_for
        if len(self._idle) > self._max_idle:
            next(iter(self._idle)).abort()
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
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # so that the transports have told their protocols

    async def _take(self, timeouts: Timeouts) -> tuple[Connection, bool]:
        """Return a connection, and whether it was used before."""
        while True:
            if self._idle:
                connection: Connection | None = self._idle.popitem()[0]
            elif len(self._open) + self._dialling < self._limit:
                connection = None
            else:
                connection = await self._queue(timeouts.pool)
            if connection is None:
                return await self._connect(timeouts.connect), False
            if connection.alive:
                return connection, True

    async def _connect(self, timeout: float | None) -> Connection:
        loop = asyncio.get_running_loop()
        self._dialling += 1
        try:
            async with asyncio.timeout(timeout):
                connection = await dial(loop, lambda: Connection(self, loop), self._address, self._tls)
        except TimeoutError as problem:
            raise httpx.ConnectTimeout(str(problem)) from problem
        except (OSError, UnicodeError) as problem:  # the latter from a host name that is none
            raise httpx.ConnectError(str(problem)) from problem
        else:
            self._open.add(connection)
        finally:
            self._dialling -= 1
            self._pass_on()
        return connection

    async def _queue(self, timeout: float | None) -> Connection | None:
        """Wait in order for a connection, or for leave (None) to open one."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except BaseException as problem:
            if waiter.done() and not waiter.cancelled() and (connection := waiter.result()) is not None:
                self.release(connection)
            self._pass_on()
            if isinstance(problem, TimeoutError):
                raise httpx.PoolTimeout("") from None
            raise

    def _next_waiter(self) -> "asyncio.Future[Connection | None] | None":
        while self._waiters:
            if not (waiter := self._waiters.popleft()).done():
                return waiter
        return None

    def _pass_on(self) -> None:
        if len(self._open) + self._dialling < self._limit and (waiter := self._next_waiter()) is not None:
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


def head_of(method: str, target: bytes, headers: Pairs) -> bytes:
    """Return a request's head as bytes. Raises `httpx.LocalProtocolError` if it would be read as something else."""
    start = b"%b %b HTTP/1.1" % (method.encode("ascii"), target)
    head = b"\r\n".join([start, *[b"%b: %b" % pair for pair in headers], b"", b""])
    # RFC 9112 2.2, 3: whoever gets a line break or a space in here speaks in our name.
    if head.count(b"\n") != len(headers) + 2 or head.count(b"\r") != len(headers) + 2 or b"\0" in head:
        raise httpx.LocalProtocolError("A line break or NUL in the request's head")
    if start.count(b" ") != 2 or not start.isascii():
        raise httpx.LocalProtocolError("A space or a character beyond ASCII in the request's target")
    return head


class RelayTransport(httpx.AsyncBaseTransport):
    """The pool behind httpx's interface, for whoever wants this transport in an `httpx.AsyncClient` or beside ours."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **limits: float | None) -> None:
        self._tls = tls
        self._limits = limits
        self._pools: dict[tuple[str, str, int | None], Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; return the response when its head is there, its body as a stream."""
        timeout = request.extensions.get("timeout", {})
        answer = await self._pool(request.url).open(
            request.method,
            request.extensions.get("target", request.url.raw_path),
            request.headers.raw,
            StreamBody.of(request),
            Timeouts(**{name: timeout.get(name) for name in ("connect", "read", "write", "pool")}),
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=AnswerStream(answer))

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.aclose()

    def _pool(self, url: httpx.URL) -> Pool:
        origin = (url.scheme, url.host, url.port)
        if origin not in self._pools:
            tls = (self._tls or ssl.create_default_context()) if url.scheme == "https" else None
            self._pools[origin] = Pool(url.host, url.port or (443 if tls else 80), tls=tls)
        return self._pools[origin]


class StreamBody:
    """The body of an `httpx.Request` as the pool reads it."""

    def __init__(self, stream: httpx.AsyncByteStream, length: int | None) -> None:
        self.length = length
        self._chunks = aiter(stream)

    @classmethod
    def of(cls, request: httpx.Request) -> "StreamBody | None":
        """Return the body that the request's framing announces, or None."""
        stated = request.headers.get("content-length")
        if stated in (None, "0") and "transfer-encoding" not in request.headers:
            return None
        return cls(cast(httpx.AsyncByteStream, request.stream), int(stated) if stated is not None else None)

    async def read(self) -> bytes:
        """Return the next chunk that is not empty, b"" at the end."""
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


class AnswerStream(httpx.AsyncByteStream):
    """An answer's body as httpx reads it."""

    def __init__(self, answer: PooledAnswer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._answer.read():
            yield chunk

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._answer.close()
