"""The client's bank: the one file that speaks ASGI HTTP messages for an exchange.

`send()` after a hang-up returns in silence; an application that returns without its last message has its answer torn
(see `cycle`). Five things more than ASGI come in the scope from our own server (see `protocol`): `target`, the request
target as it came; `fields`, its header values by name; `head`, which may have come before (see `heads`); `line`, the
connection, which knows whether the client is gone; and `sink`, which takes pieces of a body without a task being woken
for each. A hang-up cancels the task that runs the exchange.
"""

import asyncio
import time
from typing import Protocol, cast

from starlette.types import Receive, Scope, Send

from proxy.errors import DownstreamClosed, Failure, Fields, Pairs
from proxy.exchange import Answer, Exchange, Sink, as_answer
from proxy.headers import inbound
from proxy.heads import Head

ENOUGH_TO_HEAR = 16 * 1024  # bytes


class Tap(Protocol):
    """What hears a copy of the answer."""

    def hear(self, piece: bytes) -> None: ...


class Cycle(Sink, Protocol):
    """The request and its answer on that connection; what the server says in our place has the ids of `exchange`."""

    exchange: Exchange | None
    refused: Failure | None


class Line(Protocol):
    """The client's connection, as far as an exchange knows it."""

    gone: bool


class Downstream:
    """The client's side of one exchange."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._line: Line = scope["line"]
        self._sink: Cycle = scope["sink"]
        self.method: str = scope["method"]
        self.headers: Pairs = scope["headers"]  # names in lower case
        self.fields: Fields = scope["fields"]
        self.head: Head | None = scope.get("head")
        self.upload = Upload(receive, self.fields) if has_body(self.fields) else None
        self.started = False

    @property
    def target(self) -> bytes:
        """Path and query as they came on the wire, in origin form (RFC 9112 3.2.1)."""
        target: bytes = self._scope["target"]
        return target

    @property
    def path(self) -> bytes:
        """The path as it came, without the query."""
        path: bytes = self._scope["raw_path"]
        return path

    @property
    def query(self) -> bytes:
        """The query as it came, b"" where there is none."""
        query: bytes = self._scope["query_string"]
        return query

    @property
    def client_address(self) -> bytes | None:
        """The address that the connection came from, if the server knows it."""
        client = self._scope["client"]
        return client[0].encode() if client else None

    @property
    def gone(self) -> bool:
        """Whether the client has hung up."""
        return self._line.gone

    @property
    def refused(self) -> Failure | None:
        """What the server has answered in our place."""
        return self._sink.refused

    def bears(self, exchange: Exchange) -> None:
        """Let the server know which exchange this is."""
        self._sink.exchange = exchange

    async def relay(self, exchange: Exchange, answer: Answer, tap: Tap) -> None:
        """Pass on the answer: its head, then what comes as it comes, then what came with its end; the tap hears it."""
        if self.upload is not None and answer.status >= 400:
            self.upload.drop()  # no more of it is sent: see `connection`
        exchange.status = answer.status
        await self._begin(answer.status, inbound(answer.headers) + exchange.ids, hold=answer.complete)
        exchange.first_byte = exchange.elapsed()
        if not answer.complete:
            copied = Copied(self._sink, exchange, tap)
            try:
                await answer.pour(copied)
            finally:
                copied.settle()
            if exchange.first_chunk is None:  # all of the body came with its end
                exchange.first_chunk = exchange.elapsed()
        rest = answer.take()
        exchange.bytes_out += len(rest)
        await self._send({"type": "http.response.body", "body": rest, "more_body": False})
        tap.hear(rest)

    async def refuse(self, exchange: Exchange, failure: Failure) -> None:
        """Answer with a failure, or, once the head has gone, leave the answer torn: never finish what broke."""
        if self.started or isinstance(failure, DownstreamClosed):
            return
        exchange.status = failure.status
        fields, body = as_answer(failure, exchange)
        await self._begin(failure.status, fields, hold=True)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        exchange.bytes_out = len(body) if self.method != "HEAD" else 0

    async def _begin(self, status: int, headers: Pairs, *, hold: bool) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers, "hold": hold})


class Copied:
    """A sink that keeps a copy of what has gone on through it, for a tap to hear many pieces at a time."""

    __slots__ = ("_exchange", "_hear", "_keep", "_pieces", "_push", "_room", "drain")

    def __init__(self, sink: Sink, exchange: Exchange, tap: Tap) -> None:
        self._push = sink.push
        self.drain = sink.drain
        self._exchange = exchange
        self._hear = tap.hear
        self._pieces: list[bytes] = []
        self._keep = self._pieces.append
        self._room = 0  # the first piece is heard at once, as it tells when the body began

    def push(self, piece: bytes) -> bool:
        """Pass on a piece."""
        room = self._push(piece)
        self._keep(piece)
        self._room -= len(piece)
        if self._room < 0:
            self.settle()
        return room

    def settle(self) -> None:
        """Count what has gone through, and let it be heard."""
        copy = b"".join(self._pieces)
        self._pieces.clear()
        self._room = ENOUGH_TO_HEAR
        if self._exchange.first_chunk is None and copy:
            self._exchange.first_chunk = self._exchange.elapsed()
        self._exchange.bytes_out += len(copy)
        self._hear(copy)


def has_body(fields: Fields) -> bool:
    """Tell whether a request comes with a body: its framing alone says so (RFC 9112 6.3)."""
    return b"content-length" in fields or b"transfer-encoding" in fields


class Upload:
    """The request's body as it comes; reading on is the backpressure. The only reader of `receive`."""

    def __init__(self, receive: Receive, fields: Fields) -> None:
        self._receive = receive
        self._more = True
        self._dropping: asyncio.Task[None] | None = None
        self.size = 0  # bytes that have come
        self.waited = 0.0  # seconds
        self.length = int(fields[b"content-length"]) if b"transfer-encoding" not in fields else None

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises `DownstreamClosed`."""
        while self._more:
            began = time.perf_counter()
            message = await self._receive()
            self.waited += time.perf_counter() - began
            if message["type"] == "http.disconnect":
                raise DownstreamClosed("the client hung up during its upload")
            self._more = message.get("more_body", False)
            if body := cast(bytes, message.get("body")):
                self.size += len(body)
                return body
        return b""

    def drop(self) -> None:
        """Let the client say the rest of it to nobody, so that one that reads only afterwards does not wait forever."""
        if self._more:
            self._dropping = asyncio.ensure_future(self._drop())

    async def _drop(self) -> None:
        while self._more:
            message = await self._receive()
            self._more = message.get("more_body", False)
