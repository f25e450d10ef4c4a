"""The client's bank: the one file that speaks ASGI HTTP messages for an exchange.

`send()` after a hang-up returns in silence; an application that returns without its last message has its answer torn
(see `cycle`). Two things more than ASGI come in the scope from our own server (see `protocol`): `target`, the request
target as it came, and `line`, which tells of a hang-up the moment that it happens.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, cast

from starlette.types import Receive, Scope, Send

from proxy.errors import DownstreamClosed, Failure, Pairs
from proxy.exchange import Answer, Exchange
from proxy.headers import FRAMING, Fields, inbound


class Line(Protocol):
    """The client's connection, as far as an exchange knows it: it calls `on_hang_up`, if set, on the client's end."""

    on_hang_up: Callable[[], None] | None


class Downstream:
    """The client's side of one exchange."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.method: str = scope["method"]
        self.headers: Pairs = scope["headers"]  # names in lower case
        self.fields: Fields = scope["fields"]
        self.upload = Upload(receive, self.fields) if not FRAMING.isdisjoint(self.fields) else None
        self.started = False

    @property
    def target(self) -> bytes:
        """Path and query as they came on the wire, in origin form (RFC 9112 3.2.1)."""
        target: bytes = self._scope["target"]
        return target

    @property
    def client_address(self) -> bytes | None:
        """The address that the connection came from, if the server knows it."""
        client = self._scope["client"]
        return client[0].encode() if client else None

    def watch(self) -> "Watch":
        """Return a context in which a client that hangs up ends the exchange with `DownstreamClosed`."""
        return Watch(self._scope.get("line"))

    async def relay(self, exchange: Exchange, answer: Answer) -> None:
        """Pass on the answer: its head, then what comes as it comes. Waiting for `send` is the backpressure."""
        if self.upload is not None:
            self.upload.drop()  # an answer that comes before the upload's end ends it
        send = self._send
        await self._begin(answer.status, inbound(answer.headers) + _ids(exchange))
        while chunk := await answer.read():
            if answer.complete:
                break
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def refuse(self, exchange: Exchange, failure: Failure) -> None:
        """Answer with a failure, or, once the head has gone, leave the answer torn: never finish what broke."""
        if self.started or isinstance(failure, DownstreamClosed):
            return
        body = failure.body(request_id=exchange.id, incoming_id=exchange.incoming_id)
        content = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._begin(failure.status, content + failure.headers + _ids(exchange))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self, status: int, headers: Pairs) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


class Upload:
    """The request's body as it comes; reading on is the backpressure. The only reader of `receive`."""

    def __init__(self, receive: Receive, fields: Fields) -> None:
        self._receive = receive
        self._more = True
        self._dropping: asyncio.Task[None] | None = None
        self.length = int(fields[b"content-length"]) if b"transfer-encoding" not in fields else None

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises `DownstreamClosed`."""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise DownstreamClosed("the client hung up during its upload")
            self._more = message.get("more_body", False)
            if body := message.get("body"):
                return cast(bytes, body)
        return b""

    def drop(self) -> None:
        """Let the client say the rest of it to nobody, so that one that reads only afterwards does not wait forever."""
        if self._more:
            self._dropping = asyncio.ensure_future(self._drop())

    async def _drop(self) -> None:
        while self._more:
            message = await self._receive()
            self._more = message.get("more_body", False)


class Watch:
    """The context of an exchange that a hang-up ends.

    Its end is written as `asyncio.timeout` does it: our own cancellation becomes `DownstreamClosed`, anyone else's is
    left alone.
    """

    def __init__(self, line: Line | None) -> None:
        self._line = line
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._gone = False

    def __enter__(self) -> None:
        if self._line is not None:
            self._line.on_hang_up = self._hang_up

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.on_hang_up = None
        if self._gone and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise DownstreamClosed("the client hung up") from problem

    def _hang_up(self) -> None:
        self._gone = True
        self._task.cancel()


def _ids(exchange: Exchange) -> Pairs:
    ids = [(b"x-proxy-request-id", exchange.id.encode())]
    if exchange.incoming_id is not None:
        ids.append((b"x-incoming-request-id", exchange.incoming_id.encode("latin-1")))
    return ids
