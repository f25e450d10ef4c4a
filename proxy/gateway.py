"""The life of an exchange, told once, from top to bottom.

meet    id, clock                                  no await
shape   the route makes a call of the request; the client's key is checked here
admit   a slot in the guard, or 503 at once
open    the call goes to the upstream, its body as it streams in
relay   the answer goes back: head, then each chunk as it comes
settle  connection back to the pool or closed, slot freed, one entry in the ledger, whatever happened

A client's hang-up is heard at any moment, and cancels the task.
"""

import asyncio
import logging

from starlette.types import Receive, Scope, Send

from proxy.codings import is_identity
from proxy.downstream import Downstream
from proxy.errors import DownstreamClosed, Failure, Overloaded, Stopping, Unforeseen
from proxy.exchange import LONGEST_ID, Call, Exchange, Request, new_id
from proxy.guard import AnyGuard, AnyTraffic
from proxy.headers import by_name
from proxy.include_usage import WithoutUsage
from proxy.ledger import Ledger
from proxy.retold import retold
from proxy.routes import Route
from proxy.tap import Tap
from proxy.upstream import Upstream, translated
from proxy.usage import is_counted
from proxy.veil import Veil

GONE = DownstreamClosed("the client hung up")
CUT_OFF = Stopping("The proxy is stopping, and this was cut off; try again in a moment")
MOST_OF_A_PATH = 4096  # bytes that are kept of one, twice of what is written down
TIMED_OUT = {"ConnectTimeout": "connect", "PoolTimeout": "connect", "WriteTimeout": "idle"}

log = logging.getLogger("oxy")


class Gateway:
    """An ASGI endpoint that takes exchanges of one route, or of several under one `name`, through their stages."""

    def __init__(
        self,
        route: Route,
        upstream: Upstream,
        *,
        guard: AnyGuard,
        traffic: AnyTraffic,
        veil: Veil,
        ledger: Ledger,
        name: str = "relay",
        timing: bool = False,
    ) -> None:
        self._route = route
        self._name = name
        self._upstream = upstream
        self._guard = guard
        self._traffic = traffic
        self._veil = veil
        self._ledger = ledger
        self._timing = timing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request to the upstream and its answer back. Every failure meets here."""
        downstream = Downstream(scope, receive, send)
        exchange = meet(downstream, self._name)
        downstream.bears(exchange)
        self._traffic.enter()
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
            failure = understood(exchange, problem)
            note(exchange, failure, started=downstream.started)
            await downstream.refuse(exchange, failure)
        except asyncio.CancelledError:
            failure = downstream.refused or (GONE if downstream.gone else CUT_OFF)
            note(exchange, failure, started=downstream.started)
            await downstream.refuse(exchange, failure)  # silent where the server has said it in our place
            if not downstream.gone:  # then it is the server that stops, and that has to know
                raise
        finally:
            self._traffic.leave()
            if downstream.upload is not None:
                exchange.bytes_in = downstream.upload.size
            exchange.duration = exchange.elapsed()
            self._ledger.enter(exchange)

    async def _pass(self, exchange: Exchange, call: Call, downstream: Downstream) -> None:
        if downstream.upload is not None:
            exchange.client_wait = downstream.upload.waited or None
        called = exchange.elapsed()
        answer = await self._upstream.open(exchange, call)
        exchange.upstream_wait = exchange.elapsed() - called
        fields = by_name(answer.headers)
        tap = Tap(fields)
        try:
            exchange.upstream_id = read(fields.get(b"x-request-id"))
            exchange.stream = tap.streams
            answer.headers = self._veil.over_head(answer.headers)
            if answer.status >= 400:
                answer = await self._veil.over_body(answer)
            hearing = tap
            if call.retell is not None:
                answer, hearing = await retold(answer, call.retell, tap.hear), Tap({})
                exchange.upstream_wait = exchange.elapsed() - called
            elif exchange.usage_added and tap.streams and is_identity(fields.get(b"content-encoding", b"")):
                answer, hearing = WithoutUsage(answer, tap.hear), Tap({})
            if self._timing:
                answer.headers = [*answer.headers, server_timing(exchange)]
            await downstream.relay(exchange, answer, hearing)
            exchange.result = "success" if answer.status < 400 else "upstream_api_error"
        finally:
            await answer.close()
            if is_counted(call.method, call.target):
                tap.end(complete=answer.complete)
                exchange.heard = tap


def server_timing(exchange: Exchange) -> tuple[bytes, bytes]:
    """Return the field that tells a client, in milliseconds, how long it waited for whom (w3.org/TR/server-timing)."""
    upstream = exchange.upstream_wait or 0.0
    proxy = exchange.elapsed() - (exchange.client_wait or 0.0) - upstream
    return (b"server-timing", b"proxy;dur=%.3f, upstream;dur=%.3f" % (proxy * 1000, upstream * 1000))


def understood(exchange: Exchange, problem: Exception) -> Failure:
    """Return what went wrong as a failure, and write down what an operator has to know of it."""
    failure = problem if isinstance(problem, Failure) else translated(problem, begun=exchange.answered)
    if failure is None:
        log.error("exchange %s broke: %s %s", exchange.id, exchange.method, exchange.path, exc_info=problem)
        failure = Unforeseen("Something went wrong in the proxy; its log says more")
    let_go_of_frames(problem)
    return failure


def let_go_of_frames(problem: BaseException) -> None:
    """Take the tracebacks from an exception and from those that it came from.

    Whoever keeps a failure in a variable is in its traceback. The collector, which comes rarely, would have to find
    that cycle, and with it all that its frames hold, up to the body of a client without a key.
    """
    problem.__traceback__ = None
    for link in (problem.__cause__, problem.__context__):
        if link is not None and link.__traceback__ is not None:
            let_go_of_frames(link)


def note(exchange: Exchange, failure: Failure, *, started: bool) -> None:
    """Write down how an exchange failed; its status stays what the client has heard of it."""
    if not started:
        exchange.status = failure.status
    exchange.result = failure.result
    exchange.failure, exchange.detail = str(failure), failure.detail or None
    exchange.cancelled = failure.result == "client_cancelled"
    exchange.overloaded = isinstance(failure, Overloaded)
    if failure.result == "upstream_timeout":
        exchange.timed_out = TIMED_OUT.get(failure.detail, "idle" if exchange.answered else "head")


def meet(downstream: Request, route: str = "relay") -> Exchange:
    """Begin the record of an exchange, under this name until a route knows a better one.

    Many may wait to be written down, those of strangers too: what they chose is cut, and what is no id goes.
    """
    incoming_id = downstream.fields.get(b"x-request-id")
    if incoming_id is not None and len(incoming_id) > LONGEST_ID:
        incoming_id = None
    return Exchange(
        id=new_id(),
        method=downstream.method,
        path=downstream.target.partition(b"?")[0][:MOST_OF_A_PATH].decode("latin-1"),
        incoming_id=read(incoming_id),
        route=route,
    )


def read(value: bytes | None) -> str | None:
    """Return a field's value as text."""
    return value.decode("latin-1") if value is not None else None
