"""The application: builds each object once and wires them."""

import gc

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import pages
from proxy.access import Access
from proxy.convenience import Convenience
from proxy.cors import Cors
from proxy.gateway import Gateway
from proxy.guard import Guard, share
from proxy.routes import Relay
from proxy.settings import Settings
from proxy.upstream import Upstream
from proxy.veil import Veil

# Exchanges at once, where no bound for all together is set.
MOST_RELAYED = 1024
MOST_SHAPED = 32


class Front:
    """Sends a request to what is at its path, or below it, and any other to the relay.

    Paths are compared as they were sent: a page's path in another spelling is not that page, and is relayed.
    """

    def __init__(
        self, *, at: dict[bytes, ASGIApp], below: tuple[bytes, ASGIApp], relay: ASGIApp, upstream: Upstream
    ) -> None:
        self._at = at
        self._prefix, self._below = below
        self._relay = relay
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, by path."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        path: bytes = scope["raw_path"]
        app = self._at.get(path) or (self._below if path.startswith(self._prefix) else self._relay)
        await app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        spare_the_collector()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._upstream.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def spare_the_collector() -> None:
    """Let the garbage collector forget what lives as long as the process, and come rarely.

    An exchange leaves no cycle behind, so that there is little to find; at the default threshold, looking for it took
    6 % of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> ASGIApp:
    """Return the ASGI application for these settings.

    `transport` is used instead of our own. Nothing is read, resolved or opened before the first request.
    """
    upstream = Upstream(settings, transport)
    access = Access(settings)
    relay = Relay(settings, access)
    convenience = Convenience(settings, access, relay)
    veil = Veil(settings.secrets)
    total = settings.max_parallel
    relayed = Guard(share(total or MOST_RELAYED, settings.workers))
    shaped = relayed if total else Guard(share(MOST_SHAPED, settings.workers))
    ours = Gateway(convenience, upstream, shaped, veil)
    front = Front(
        at={b"/": pages.welcome(settings), b"/health": pages.health(), **dict.fromkeys(convenience.paths, ours)},
        below=(convenience.prefix, ours),
        relay=Gateway(relay, upstream, relayed, veil),
        upstream=upstream,
    )
    return Cors(front, settings.cors_origins)
