"""The application: builds each object once and wires them."""

import gc
import logging
import os
from functools import partial
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import pages
from proxy.access import Access
from proxy.books import Books
from proxy.console import PROBES, Limited, operator_pages
from proxy.convenience import Convenience
from proxy.cors import Cors
from proxy.gateway import Gateway
from proxy.guard import AnyGuard, AnyTraffic, Budget, Guard, SharedGuard, SharedTraffic, Traffic, share
from proxy.include_usage import IncludeUsage
from proxy.metrics import Metrics, Reading
from proxy.overview import InFlight
from proxy.plain import Plain
from proxy.probe import Probe
from proxy.recall import Recall
from proxy.routes import Relay, Route
from proxy.settings import Settings
from proxy.tally import IN_FLIGHT, MOST, RELAYED, SHAPED, VARIABLE, Tally
from proxy.upstream import Upstream
from proxy.upstream_websocket import WebSocketUpstream
from proxy.values import MEGABYTE
from proxy.veil import Veil
from proxy.websocket import WebSockets

# Exchanges at once, where no bound for all together is set.
MOST_RELAYED = 1024
MOST_SHAPED = 32
MOST_LOOKED_INTO = 512 * MEGABYTE  # of bodies at once in all workers, for PROXY_INCLUDE_USAGE

NOWHERE = Path(os.devnull)  # a history that is none, and the pages say so

log = logging.getLogger("oxy")


class Front:
    """Sends a request to what is at its path, or below it, and any other to the relay.

    Paths are compared as they were sent: a page's path in another spelling is not that page, and is relayed.
    """

    def __init__(
        self,
        *,
        at: dict[bytes, ASGIApp],
        below: tuple[bytes, ASGIApp],
        relay: ASGIApp,
        websockets: ASGIApp,
        upstream: Upstream,
        books: Books,
    ) -> None:
        self._at = at
        self._prefix, self._below = below
        self._relay = relay
        self._websockets = websockets
        self._upstream = upstream
        self._books = books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, by path."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket":
            await self._websockets(scope, receive, send)
            return
        path: bytes = scope["raw_path"]
        app = self._at.get(path) or (self._below if path.startswith(self._prefix) else self._relay)
        await app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._books.open()
        spare_the_collector()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._upstream.aclose()
        await self._books.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def readings(upstream: Upstream, traffic: AnyTraffic, relayed: AnyGuard, shaped: AnyGuard) -> list[Reading]:
    """Return what is read whenever somebody asks for it."""
    guards = {"relay": relayed, "convenience": shaped} if shaped is not relayed else {"all": relayed}
    found = [
        Reading(gauge="oxy_exchanges_in_flight", read=lambda: traffic.now),
        Reading(gauge="oxy_exchanges_in_flight_max", read=lambda: traffic.most),
        Reading(gauge="oxy_upstream_connections_open", read=lambda: upstream.connections[0]),
        Reading(gauge="oxy_upstream_connections_idle", read=lambda: upstream.connections[1]),
    ]
    for name, guard in guards.items():
        found.append(Reading(gauge="oxy_slots", read=partial(getattr, guard, "limit"), guard=name))
        found.append(Reading(gauge="oxy_slots_taken", read=partial(getattr, guard, "busy"), guard=name))
    return found


def common_tally() -> Tally | None:
    """Return what the workers count in together, None where there is none, or it was taken away."""
    try:
        return Tally(Path(os.environ[VARIABLE]))
    except (KeyError, OSError):
        log.warning("the workers have no memory in common: each has its share of the bounds to itself")
        return None


def bounds(settings: Settings) -> tuple[AnyTraffic, AnyGuard, AnyGuard]:
    """Return what counts the exchanges in flight, and the bounds on those that are relayed and on all others.

    Workers have them together, where they meet; each has its share of a bound where they do not.
    """
    total, workers = settings.max_parallel, settings.workers
    most_relayed, most_shaped = total or MOST_RELAYED, total or MOST_SHAPED
    if workers > 1 and (tally := common_tally()) is not None:
        together = SharedGuard(most_relayed, tally.column(RELAYED))
        traffic = SharedTraffic(tally.column(IN_FLIGHT), tally.column(MOST))
        return traffic, together, together if total else SharedGuard(most_shaped, tally.column(SHAPED))
    relayed = Guard(share(most_relayed, workers))
    return Traffic(), relayed, relayed if total else Guard(share(most_shaped, workers))


def under_way(metrics: Metrics) -> InFlight:
    """Return how many exchanges are in flight in all workers, and the most that there were at once."""
    now, most = metrics.totals("oxy_exchanges_in_flight", "oxy_exchanges_in_flight_max")
    return InFlight(int(now), int(most))


def spare_the_collector() -> None:
    """Let the garbage collector forget what lives as long as the process, and come rarely.

    An exchange leaves no cycle behind, so that there is little to find; at the default threshold, looking for it took
    6 % of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> ASGIApp:
    """Return the application for these settings, for any ASGI server.

    `transport` is used instead of our own. Nothing is read, resolved or opened before the first request.
    """
    return Plain(relay_app(settings, transport))


def relay_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> ASGIApp:
    """Return the same for our own server protocol, which says more than ASGI does (see `downstream`)."""
    veil = Veil(settings.secrets)
    upstream = Upstream(settings, transport, tell=veil.know)
    access = Access(settings)
    relay = Relay(settings, access)
    convenience = Convenience(settings, access, relay)
    traffic, relayed, shaped = bounds(settings)
    books = Books(settings, readings(upstream, traffic, relayed, shaped))
    gateway = partial(
        Gateway, upstream=upstream, traffic=traffic, veil=veil, ledger=books.ledger, timing=settings.server_timing
    )
    relaying: Route = relay
    if settings.include_usage:
        room = share(MOST_LOOKED_INTO, settings.workers)
        relaying = IncludeUsage(relay, limit=min(settings.max_body, room), budget=Budget(room))
    ours = gateway(convenience, guard=shaped, name="convenience")
    front = Front(
        at={
            b"/": pages.welcome(settings),
            b"/health": Limited(pages.health(), PROBES),
            **operator_pages(
                settings,
                Recall(settings.history or NOWHERE),
                books.metrics.exposition,
                Probe(upstream, access),
                partial(under_way, books.metrics),
            ),
            **dict.fromkeys(convenience.paths, ours),
        },
        below=(convenience.prefix, ours),
        relay=gateway(relaying, guard=relayed),
        websockets=WebSockets(
            settings,
            access,
            relay,
            WebSocketUpstream(settings, upstream),
            guard=relayed,
            traffic=traffic,
            veil=veil,
            ledger=books.ledger,
        ),
        upstream=upstream,
        books=books,
    )
    return Cors(front, settings.cors_origins)
