"""The life of an exchange, told once, from top to bottom.

meet    id, clock                                  no await
shape   the route makes a call of the request; the client's key is checked here
admit   a slot in the guard, or 503 at once
open    the call goes to the upstream, its body as it streams in; the client's hang-up is watched from here on
relay   the answer goes back: head, then each chunk as it comes
settle  connection back to the pool or closed, whatever happened
"""

import asyncio
import logging

from starlette.types import Receive, Scope, Send

from proxy.downstream import Downstream
from proxy.errors import Failure, Unforeseen
from proxy.exchange import Call, Exchange, new_id
from proxy.guard import Guard
from proxy.routes import Route
from proxy.upstream import Upstream, translated
from proxy.veil import Veil
from proxy.whole import retold

log = logging.getLogger("oxy")


class Gateway:
    """An ASGI endpoint that takes exchanges of one route through their stages."""

    def __init__(self, route: Route, upstream: Upstream, guard: Guard, veil: Veil) -> None:
        self._route = route
        self._upstream = upstream
        self._guard = guard
        self._veil = veil

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request to the upstream and its answer back. Every failure meets here."""
        downstream = Downstream(scope, receive, send)
        exchange = meet(downstream)
        try:
            self._guard.check()  # before a body is read for nothing
            call = await self._route.shape(exchange, downstream)
            try:
                with self._guard:
                    await self._pass(exchange, call, downstream)
            finally:
                if call.release is not None:
                    call.release()
        except Exception as problem:
            await downstream.refuse(exchange, understood(exchange, problem))
        except asyncio.CancelledError:
            if not downstream.gone:  # then it is the server that stops, and that has to know
                raise

    async def _pass(self, exchange: Exchange, call: Call, downstream: Downstream) -> None:
        answer = await self._upstream.open(exchange, call)
        try:
            self._veil.over_head(answer)
            if answer.status >= 400:
                answer = await self._veil.over_body(answer)
            if call.retell is not None:
                answer = await retold(answer, call.retell)
            await downstream.relay(exchange, answer)
        finally:
            await answer.close()


def understood(exchange: Exchange, problem: Exception) -> Failure:
    """Return what went wrong as a failure, and write down what an operator has to know of it."""
    failure = problem if isinstance(problem, Failure) else translated(problem)
    if failure is None:
        log.error("exchange %s broke: %s %s", exchange.id, exchange.method, exchange.path, exc_info=problem)
        return Unforeseen("Something went wrong in the proxy; its log says more")
    if failure.status >= 500:
        log.warning("exchange %s failed with %s: %s (%s)", exchange.id, failure.status, failure, failure.detail)
    return failure


def meet(downstream: Downstream) -> Exchange:
    """Begin the record of an exchange."""
    incoming_id = downstream.fields.get(b"x-request-id")
    return Exchange(
        id=new_id(),
        method=downstream.method,
        path=downstream.target.partition(b"?")[0].decode("latin-1"),
        incoming_id=incoming_id.decode("latin-1") if incoming_id is not None else None,
    )
