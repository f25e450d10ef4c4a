"""The life of an exchange, told once, from top to bottom.

meet    id, clock                                  no await
shape   the route makes a call of the request; the client's key is checked here
open    the call goes to the upstream, its body as it streams in; the client's hang-up is watched from here on
relay   the answer goes back: head, then each chunk as it comes
settle  connection back to the pool or closed, whatever happened
"""

import logging

from starlette.types import Receive, Scope, Send

from proxy.downstream import Downstream
from proxy.errors import Failure, Unforeseen
from proxy.exchange import Exchange, new_id
from proxy.routes import Route
from proxy.upstream import BORDER, Upstream

log = logging.getLogger("oxy")


class Gateway:
    """An ASGI endpoint that takes exchanges of one route through their stages."""

    def __init__(self, route: Route, upstream: Upstream) -> None:
        self._route = route
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request to the upstream and its answer back. Every failure meets here."""
        downstream = Downstream(scope, receive, send)
        exchange = meet(downstream)
        try:
            call = self._route.shape(downstream)
            with downstream.watch(), BORDER:
                answer = await self._upstream.open(call)
                try:
                    await downstream.relay(exchange, answer)
                finally:
                    await answer.close()
        except Failure as failure:
            self._note(exchange, failure)
            await downstream.refuse(exchange, failure)
        except Exception:
            log.exception("exchange %s broke: %s %s", exchange.id, exchange.method, exchange.path)
            await downstream.refuse(exchange, Unforeseen("Something went wrong in the proxy; its log says more"))

    def _note(self, exchange: Exchange, failure: Failure) -> None:
        if failure.status >= 500:
            log.warning("exchange %s failed with %s: %s (%s)", exchange.id, failure.status, failure, failure.detail)


def meet(downstream: Downstream) -> Exchange:
    """Begin the record of an exchange."""
    incoming_id = downstream.fields.get(b"x-request-id")
    return Exchange(
        id=new_id(),
        method=downstream.method,
        path=downstream.target.partition(b"?")[0].decode("latin-1"),
        incoming_id=incoming_id.decode("latin-1") if incoming_id is not None else None,
    )
