"""The exchange on any ASGI server: what our own protocol gives it beyond ASGI (see `downstream`), made of ASGI alone.

It serves where httptools is missing, and the server speaks to clients by h11 (see `pure`), and where `create_app` is
handed to a server of somebody else's. That server has to tell `raw_path`. What it has got wrong in a request is put
right or refused here as far as it can still be seen; docs/one-file.md names what cannot.
"""

import asyncio
import re
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.errors import BadRequest, Failure
from proxy.exchange import Exchange, as_answer, new_id
from proxy.headers import by_name
from proxy.request import examine, measure, origin_form

LENGTH = re.compile(rb"\d{1,18}")  # RFC 9112 6.3; what has more digits no machine can hold, nor Python's int() read
ALL_SAID: Message = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: Message = {"type": "http.disconnect"}


class Beneath(Protocol):
    """The server's connection, where it is `pure`: it knows whether its server is about to stop."""

    stopping: bool


class Plain:
    """Wraps the application for a server that says no more than ASGI does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request with what our own server would have said of it, or refuse it as that one would have."""
        if scope["type"] == "websocket" and "line" not in scope:
            await self._app({"client": None, **scope, **essence(scope), "line": WebSocketLine()}, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            completed = complete(scope)
        except Failure as failure:
            await refuse(failure, send)
            return
        fields = completed["fields"]
        has_body = b"content-length" in fields or b"transfer-encoding" in fields
        line = Line(receive, send, has_body=has_body, beneath=scope.get("line"))
        await line.run(self._app, completed)


def complete(scope: Scope) -> Scope:
    """Return the scope with `fields`, and `target` in origin form. Raises `Failure` for what is malformed."""
    found = essence(scope)
    pairs, fields, target = scope["headers"], found["fields"], found["target"]
    if scope["method"] == "CONNECT":
        raise BadRequest("A tunnel is nothing to relay")
    if b"content-length" in fields and b"transfer-encoding" in fields:
        raise BadRequest("A body has one length")  # RFC 9112 6.3: it may be an attempt at smuggling
    if not LENGTH.fullmatch(fields.get(b"content-length", b"0")):
        raise BadRequest("The length of the body is no number, or one beyond reason")
    examine(pairs, fields, scope["http_version"])
    measure(target, pairs)
    target = origin_form(target)
    path, _, query = target.partition(b"?")
    return {"client": None, **scope, "raw_path": path, "query_string": query, "fields": fields, "target": target}


def essence(scope: Scope) -> Scope:
    """Return `fields` and `target` of a request."""
    fields = by_name(scope["headers"])
    return {"fields": fields, "target": scope["target"] if "target" in scope else rebuilt(scope)}


def rebuilt(scope: Scope) -> bytes:
    """Return the target of a request from what ASGI tells of it, less the path under which we are mounted."""
    path: bytes = scope["raw_path"].removeprefix(scope.get("root_path", "").encode())
    return path + b"?" + scope["query_string"] if scope["query_string"] else path


async def refuse(failure: Failure, send: Send) -> None:
    """Answer what cannot be taken, and have the connection closed."""
    fields, body = as_answer(failure, Exchange(id=new_id(), method="", path=""))
    fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": failure.status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class WebSocketLine:
    """The client's connection as one exchange over WebSocket sees it: all that is known comes with its messages."""

    gone = broke = False

    def __init__(self) -> None:
        self.over = asyncio.Event()  # never set

    def let_go(self) -> None:
        """Leave the waiting to the server."""


class Line:
    """The client's connection as one exchange sees it; a hang-up cancels the task that runs the exchange.

    It alone calls the server's `receive`: for the upload as long as that goes on, then to hear the client hang up.
    """

    def __init__(self, receive: Receive, send: Send, *, has_body: bool, beneath: Beneath | None) -> None:
        self.gone = False
        self.exchange: Exchange | None = None
        self.refused: Failure | None = None  # this server says nothing by itself
        self._beneath = beneath
        self._receive = receive
        self._send = send
        self._has_body = has_body
        self._told = False  # that the request has ended
        self._over = False  # the answer is complete: that the server says "disconnect" then is no hang-up
        self._pieces: list[bytes] = []

    @property
    def stopping(self) -> bool:
        """Whether the server is about to stop, if it tells."""
        return self._beneath is not None and self._beneath.stopping

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application for one exchange."""
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None if self._has_body else asyncio.create_task(self._listen())
        try:
            await app({**scope, "line": self, "sink": self}, self.receive, self.send)
        except asyncio.CancelledError:
            if not self.gone:  # then it is the server that stops
                raise
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def receive(self) -> Message:
        """Return the next piece of the body, then wait for the client to hang up."""
        if self._watch is None:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._hang_up()
            elif not message.get("more_body", False):
                self._told = True
                self._watch = asyncio.create_task(self._listen())
            return message
        if not self._told:
            self._told = True
            return ALL_SAID
        await asyncio.wait([self._watch])
        return DISCONNECT

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body."""
        if self._beneath is None and message.get("status") == 304:
            # The length is that of a 200's body (RFC 9110 8.6); a server that counts would miss it here.
            lengthless = [pair for pair in message["headers"] if pair[0] != b"content-length"]
            message = {**message, "headers": lengthless}
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._over = True
        await self._send(message)

    def push(self, piece: bytes) -> bool:
        """Take a piece of the answer's body; `drain` sends it."""
        self._pieces.append(piece)
        return False

    async def drain(self) -> None:
        """Send what was pushed, and wait while the client reads too slowly."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._hang_up()

    def _hang_up(self) -> None:
        if self._over or self._task is None:
            return
        self.gone = True
        if self._task is not asyncio.current_task():  # that one is told by the message
            self._task.cancel()
