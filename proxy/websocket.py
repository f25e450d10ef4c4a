"""The life of an exchange over WebSocket, told once, from top to bottom.

meet    id, clock                                  no await
shape   the handshake becomes a call, as a request does; the client's key is checked here, wherever it stands
admit   a slot in the guard, or 503 at once
open    the upstream's session begins, and only then the client's
relay   messages pass both ways, whole and in order, until one side closes; then the other is closed likewise, and
        has a time for what it has not read
settle  both are closed, slot freed, one entry in the ledger, whatever happened
"""

import asyncio

from starlette.types import Receive, Scope, Send

from proxy.access import Access
from proxy.downstream_websocket import WebSocketDownstream
from proxy.errors import Pairs, UpgradeRequired, UpstreamUnreachable
from proxy.exchange import ABNORMAL, Call, Close, Exchange
from proxy.gateway import CUT_OFF, GONE, let_go_of_frames, meet, note, read, understood
from proxy.guard import AnyGuard, AnyTraffic
from proxy.handshake import KEY_ITEM, PLAIN, split_query_keys
from proxy.headers import first
from proxy.ledger import Ledger
from proxy.routes import Relay
from proxy.session import Session
from proxy.settings import Settings
from proxy.upstream_websocket import Refused, Remote, WebSocketUpstream
from proxy.veil import Veil


class WebSockets:
    """An ASGI endpoint that takes exchanges over WebSocket through their stages."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        relay: Relay,
        upstream: WebSocketUpstream,
        *,
        guard: AnyGuard,
        traffic: AnyTraffic,
        veil: Veil,
        ledger: Ledger,
    ) -> None:
        self._spoken = settings.websockets
        self._checked = bool(settings.client_keys)
        self._upstream_key = settings.openai_api_key.encode() if settings.openai_api_key else None
        self._access = access
        self._relay = relay
        self._upstream = upstream
        self._guard = guard
        self._traffic = traffic
        self._veil = veil
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one session from its handshake to its end. Every failure meets here."""
        downstream = WebSocketDownstream(scope, receive, send)
        exchange, session = meet(downstream, "websocket"), Session()
        self._traffic.enter()
        try:
            self._guard.check()
            call, subprotocols = await self._shape(exchange, downstream)
            with self._guard:
                await self._pass(exchange, session, call, subprotocols, downstream)
        except Refused as refusal:
            let_go_of_frames(refusal)
            exchange.status, exchange.result = refusal.status, "upstream_api_error"
            await downstream.answer(exchange, refusal.status, refusal.headers, refusal.body)
            exchange.first_byte = exchange.elapsed()
        except Exception as problem:
            failure = understood(exchange, problem)
            note(exchange, failure, started=downstream.accepted)
            await downstream.refuse(exchange, failure)
        except asyncio.CancelledError:
            note(exchange, GONE if downstream.gone else CUT_OFF, started=downstream.accepted)
            if not downstream.gone:  # then it is the server that stops, and that has to know
                if not downstream.accepted:
                    await downstream.refuse(exchange, CUT_OFF)
                raise
        finally:
            self._traffic.leave()
            settle(exchange, session)
            self._ledger.enter(exchange)

    async def _pass(
        self,
        exchange: Exchange,
        session: Session,
        call: Call,
        subprotocols: list[bytes],
        downstream: WebSocketDownstream,
    ) -> None:
        async with await self._open(exchange, call, subprotocols) as remote:
            await downstream.accept(exchange, public(remote.subprotocol), self._veil.over_head(remote.headers))
            exchange.status, exchange.first_byte = 101, exchange.elapsed()
            await relay(downstream, remote, session, self._veil)
            exchange.result = "success"

    async def _open(self, exchange: Exchange, call: Call, subprotocols: list[bytes]) -> Remote:
        """Open the upstream's session. Raises `Refused`, with keys masked, or `Failure`."""
        called = exchange.elapsed()
        try:
            remote = await self._upstream.open(call, subprotocols)
        except Refused as refusal:
            note_answer(exchange, refusal.headers, called)
            raise Refused(refusal.status, *self._veil.over_whole(refusal.headers, refusal.body)) from None
        note_answer(exchange, remote.headers, called)
        return remote

    async def _shape(self, exchange: Exchange, downstream: WebSocketDownstream) -> tuple[Call, list[bytes]]:
        """Return the call and the subprotocols that go with it. Raises `Failure`."""
        if not self._spoken:
            raise UpgradeRequired("WebSocket is not spoken here", headers=PLAIN)
        shown = [item[len(KEY_ITEM) :] for item in downstream.subprotocols if item.startswith(KEY_ITEM)]
        if self._checked:
            downstream.target, in_query = split_query_keys(downstream.target)
            shown += in_query
        # From here on a key is a key, wherever it was shown.
        downstream.headers += [(b"x-api-key", key) for key in shown]
        call = await self._relay.shape(exchange, downstream)
        crossing = (self._crossing(item) for item in downstream.subprotocols)
        return call, list(dict.fromkeys(item for item in crossing if item is not None))

    def _crossing(self, item: bytes) -> bytes | None:
        """Return what goes upstream in the place of a subprotocol that the client offers."""
        if not item.startswith(KEY_ITEM):
            return item
        if self._upstream_key is not None:
            return KEY_ITEM + self._upstream_key
        return None if self._access.is_client_key(item[len(KEY_ITEM) :]) else item


def note_answer(exchange: Exchange, headers: Pairs, called: float) -> None:
    """Write down the upstream's answer to a handshake, whichever it is."""
    exchange.upstream_wait = exchange.elapsed() - called
    exchange.upstream_id = read(first(headers, b"x-request-id"))


def settle(exchange: Exchange, session: Session) -> None:
    """Write down what a session was."""
    exchange.duration = exchange.elapsed()
    exchange.stream = True
    exchange.bytes_in, exchange.messages_in = session.sent.size, session.sent.messages
    exchange.bytes_out += session.heard.size  # to those of a refusal, if it was one
    exchange.messages_out = session.heard.messages
    exchange.close_code = session.close_code
    exchange.usage, exchange.model = dict(session.usage) or None, session.model


def public(subprotocol: str | None) -> str | None:
    """Return the upstream's choice as the client may hear it."""
    return None if subprotocol is None or subprotocol.encode("latin-1").startswith(KEY_ITEM) else subprotocol


async def relay(downstream: WebSocketDownstream, remote: Remote, session: Session, veil: Veil) -> None:
    """Pass messages both ways until the upstream's session is over; what the client says runs beside it.

    Raises `Failure` where that ended without a close: then it broke.
    """
    sending = asyncio.create_task(send_on(downstream, remote, session))
    letting_go = (let_upstream_go(downstream, remote), let_client_go(downstream, remote))
    beside = [sending, *map(asyncio.create_task, letting_go)]
    try:
        async for message in remote.messages():
            session.heard.count(message)
            if isinstance(message, str):
                session.learn(message)
            await downstream.send(message)
        if downstream.over.is_set():
            await sending  # nobody is there to wait for, and it hears how the client ended
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
    if not sending.cancelled():
        sending.result()  # whatever broke there is to be known
    closing = downstream.closing or remote.closing
    session.close_code = closing.code
    if not closing.said:
        raise downstream.fault or UpstreamUnreachable(closing.reason)
    await downstream.close(Close(closing.code, veil.mask(closing.reason.encode()).decode()))


async def send_on(downstream: WebSocketDownstream, remote: Remote, session: Session) -> None:
    """Pass on what the client says until it closes, then close the upstream's session, which ends the exchange."""
    closing = Close(ABNORMAL)
    try:
        async for message in downstream.messages():
            session.sent.count(message)
            await remote.send(message)
        closing = downstream.closing or closing
    finally:
        await remote.close(closing)


async def let_upstream_go(downstream: WebSocketDownstream, remote: Remote) -> None:
    """See that an upstream that does not read, or not answer a close, keeps no session that the client has left."""
    await downstream.over.wait()
    await remote.break_off()


async def let_client_go(downstream: WebSocketDownstream, remote: Remote) -> None:
    """See that a client that does not read keeps no session that the upstream has left."""
    await remote.lost()
    downstream.let_go()
