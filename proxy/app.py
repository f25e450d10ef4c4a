"""The application: builds each object once and wires them."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import pages
from proxy.access import Access
from proxy.cors import Cors
from proxy.gateway import Gateway
from proxy.plain import Plain
from proxy.routes import Relay
from proxy.settings import Settings
from proxy.upstream import Upstream


class Front:
    """Sends a request to the page of its path, and any other to the gateway.

    Paths are compared as they were sent: a page's path in another spelling is not that page, and is relayed.
    """

    def __init__(self, pages: dict[bytes, ASGIApp], gateway: ASGIApp, lifespan: ASGIApp) -> None:
        self._pages = pages
        self._gateway = gateway
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, by path."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        await self._pages.get(scope["raw_path"], self._gateway)(scope, receive, send)


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
    upstream = Upstream(settings, transport)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        spare_the_collector()
        yield
        await upstream.aclose()

    front = Front(
        pages={b"/": pages.welcome(settings), b"/health": pages.health()},
        gateway=Gateway(Relay(settings, Access(settings)), upstream),
        lifespan=Router(lifespan=lifespan),
    )
    return Cors(front, settings.cors_origins)
