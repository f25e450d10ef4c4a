"""The client's bank: the one file that speaks ASGI HTTP messages for an exchange.

Facts of uvicorn that this file rests on, each with its test: a hang-up is announced by `receive()` alone, and `send()`
after it returns in silence; after our own last body message `receive()` says disconnect too, and that is none; an
application that returns without its last message has its connection closed, so that the client sees a torn answer.
"""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import cast

from starlette.types import Message, Receive, Scope, Send

from proxy.errors import DownstreamClosed, Failure, Pairs
from proxy.exchange import Answer, Exchange
from proxy.headers import FRAMING, inbound

# An answer that comes sooner than this is not worth a task that looks for a hang-up; one that takes longer is cut off
# well within the second that is promised.
WATCH_AFTER = 0.05
NO_BODY_STATUSES = (204, 304)  # RFC 9110 15.3.5, 15.4.5


class Downstream:
    """The client's side of one exchange."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._inbox = Inbox(receive)
        self.method: str = scope["method"]
        self.headers: Pairs = scope["headers"]  # names in lower case
        self.started = False

    @property
    def target(self) -> bytes:
        """Path and query as they came on the wire, in origin form (RFC 9112 3.2.1)."""
        raw: bytes = self._scope.get("target", b"")  # our own server's; any other has only the two parts
        if raw.startswith(b"/"):
            return raw
        query: bytes = self._scope["query_string"]
        path: bytes = self._scope["raw_path"]
        return path + b"?" + query if query else path

    @property
    def client_address(self) -> bytes | None:
        """The address that the connection came from, if the server knows it."""
        client = self._scope["client"]
        return client[0].encode() if client else None

    @property
    def has_body(self) -> bool:
        """Whether the request comes with a body (RFC 9112 6.3: its framing alone says so)."""
        return any(name in FRAMING and value != b"0" for name, value in self.headers)

    async def upload(self) -> AsyncIterator[bytes]:
        """Yield the request's body as it comes; reading on is the backpressure. Raises `DownstreamClosed`."""
        more = True
        while more:
            message = await self._inbox.next()
            if message["type"] == "http.disconnect":
                raise DownstreamClosed("the client hung up during its upload")
            more = message.get("more_body", False)
            if body := message.get("body"):
                yield body
        self._inbox.discard()

    def watch(self) -> "Inbox":
        """Return a context in which a client that hangs up ends the exchange with `DownstreamClosed`."""
        if not self.has_body:
            self._inbox.discard()
        return self._inbox

    async def relay(self, exchange: Exchange, answer: Answer) -> None:
        """Pass on the answer: its head, then each chunk as it comes. Waiting for `send` is the backpressure."""
        if answer.status in NO_BODY_STATUSES:
            # uvicorn wants as many bytes as Content-Length says unless it answers a HEAD; a 304 may well state the
            # length of what it does not send (RFC 9110 8.6).
            self._scope["method"] = "HEAD"
        self._inbox.discard()  # an answer that comes before the upload's end ends it
        await self._begin(answer.status, inbound(answer.headers) + _ids(exchange))
        async for chunk in answer:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._finish(b"")

    async def refuse(self, exchange: Exchange, failure: Failure) -> None:
        """Answer with a failure, or, once the head has gone, leave the answer torn: never finish what broke."""
        if self.started or isinstance(failure, DownstreamClosed):
            return
        body = failure.body(request_id=exchange.id, incoming_id=exchange.incoming_id)
        content = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._begin(failure.status, content + failure.headers + _ids(exchange))
        await self._finish(body)

    async def _begin(self, status: int, headers: Pairs) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _finish(self, body: bytes) -> None:
        self._inbox.close()  # what `receive` says after the last message is no hang-up
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class Inbox:
    """The one reader of `receive`: for the upload, and in its stead for the watch, which reads one message ahead.

    As a context it is the watch. Its end is written as `asyncio.timeout` does it: our own cancellation becomes
    `DownstreamClosed`, anyone else's is left alone.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: asyncio.Task[Message] | None = None
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._timer: asyncio.TimerHandle | None = None
        self._reading = False
        self._discarding = False
        self._looking = False
        self._gone = False

    async def next(self) -> Message:
        """Return the next message; what the watch has begun to read comes first."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return await ahead
        self._reading = True
        try:
            return await self._receive()
        finally:
            self._reading = False

    def discard(self) -> None:
        """Let nobody wait for the rest of the upload; from here on only a hang-up counts."""
        self._discarding = True
        if self._looking:
            self._look()

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()
        if self._gone and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise DownstreamClosed("the client hung up") from problem

    def close(self) -> None:
        """Stop looking."""
        self._looking = False
        if self._timer is not None:
            self._timer.cancel()
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None

    def _look(self) -> None:
        self._looking = True
        if not self._reading and self._ahead is None:
            self._ahead = asyncio.ensure_future(self._receive())
            self._ahead.add_done_callback(self._seen)

    def _seen(self, ahead: "asyncio.Task[Message]") -> None:
        if not self._looking or ahead.cancelled():
            return
        if ahead.result()["type"] == "http.disconnect":
            self._gone = True
            self._task.cancel()
        elif self._discarding:
            self._ahead = None
            self._look()


def _ids(exchange: Exchange) -> Pairs:
    ids = [(b"x-proxy-request-id", exchange.id.encode())]
    if exchange.incoming_id is not None:
        ids.append((b"x-incoming-request-id", exchange.incoming_id.encode("latin-1")))
    return ids
