"""The client's bank of a WebSocket: the one file that speaks ASGI's messages for it (`upgrade` adds some)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from proxy.errors import BadRequest, BodyTooLarge, DownstreamClosed, Failure, Fields, Pairs
from proxy.exchange import ABNORMAL, BROKEN, GOING_AWAY, Close, Exchange, as_answer
from proxy.handshake import offered_subprotocols, without_handshake
from proxy.headers import NO_BODY, inbound

PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009  # RFC 6455 7.4.1


class Line(Protocol):
    """The client's connection, as far as an exchange knows it."""

    gone: bool
    over: asyncio.Event

    @property
    def broke(self) -> bool: ...

    def let_go(self) -> None: ...


class WebSocketDownstream:
    """The client's side of one exchange over WebSocket. `closing` is how the client ended it, once it has.

    `fault` is what it did instead, where it did not close. `headers`, `fields` and `target` are those of the handshake,
    less what is the handshake's own.
    """

    upload = head = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._line: Line = scope["line"]
        self.accepted = False
        self.method = "GET"
        self.headers: Pairs = without_handshake(scope["headers"])
        self.fields: Fields = scope["fields"]
        self.target: bytes = scope["target"]
        self.subprotocols = offered_subprotocols(scope["headers"])
        self.closing: Close | None = None
        self.fault: Failure | None = None

    @property
    def client_address(self) -> bytes | None:
        """The address that the connection came from, if the server knows it."""
        client = self._scope["client"]
        return client[0].encode() if client else None

    @property
    def gone(self) -> bool:
        """Whether the client has hung up. One that had closed before has not."""
        return self._line.gone and self._line.broke

    @property
    def over(self) -> asyncio.Event:
        """What is set when the client has closed, is gone or was told to go, whatever of it still waits to be heard."""
        return self._line.over

    async def accept(self, exchange: Exchange, subprotocol: str | None, headers: Pairs) -> None:
        """Let the session begin."""
        self.accepted = True
        fields = without_handshake(inbound(headers)) + exchange.ids
        await self._say({"type": "websocket.accept", "subprotocol": subprotocol, "headers": fields})

    async def answer(self, exchange: Exchange, status: int, headers: Pairs, body: bytes) -> None:
        """Let no session begin: pass on this answer of the upstream's instead."""
        fields = inbound(headers)
        if status not in NO_BODY:
            fields = [pair for pair in fields if pair[0] != b"content-length"]
            fields.append((b"content-length", b"%d" % len(body)))
        await self._answer(exchange, status, fields + exchange.ids, body)

    async def refuse(self, exchange: Exchange, failure: Failure) -> None:
        """Answer with a failure, or close a session that has begun."""
        if self.accepted:
            await self.close(Close(BROKEN, str(failure)))
            return
        await self._answer(exchange, failure.status, *as_answer(failure, exchange))

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Yield what the client says until it closes; reading on is the backpressure."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.receive":
                text = message.get("text")
                yield message["bytes"] if text is None else text
            elif message["type"] == "websocket.disconnect":
                code = message["code"]
                said = not self._line.broke or code == GOING_AWAY
                self.closing = Close(code, message.get("reason") or "") if said else Close(ABNORMAL)
                self.fault = None if self.closing.said else fault_of(code)
                return

    async def send(self, message: str | bytes) -> None:
        """Pass on a message, and wait while the client reads too slowly. Silent once the client is gone."""
        kind = "text" if isinstance(message, str) else "bytes"
        await self._say({"type": "websocket.send", kind: message})

    def let_go(self) -> None:
        """Wait no more while the client reads too slowly."""
        self._line.let_go()

    async def close(self, close: Close) -> None:
        """Close. Silent once the client has."""
        await self._say({"type": "websocket.close", "code": close.sayable, "reason": close.reason})

    async def _answer(self, exchange: Exchange, status: int, fields: Pairs, body: bytes) -> None:
        exchange.bytes_out = len(body)
        await self._say({"type": "websocket.http.response.start", "status": status, "headers": fields})
        await self._say({"type": "websocket.http.response.body", "body": body})

    async def _say(self, message: Message) -> None:
        with suppress(OSError):  # that is how ASGI says that nobody hears it
            await self._send(message)


def fault_of(code: int) -> Failure:
    """Return what a client did that has not closed: by the code with which the server did, or said that it is gone."""
    if code == TOO_BIG:
        return BodyTooLarge("A message of the client is larger than the proxy takes")
    if code in (PROTOCOL_ERROR, INVALID_DATA):
        return BadRequest("The client said what is not valid WebSocket")
    return DownstreamClosed("the client hung up")
