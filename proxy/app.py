"""The application: builds each object once and wires them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from proxy import pages
from proxy.access import Access
from proxy.cors import Cors
from proxy.gateway import Gateway
from proxy.routes import Relay
from proxy.settings import Settings
from proxy.upstream import Upstream


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> ASGIApp:
    """Return the ASGI application for these settings.

    `transport` stands in for the network, in tests. Nothing is read, resolved or opened before the first request.
    """
    upstream = Upstream(settings, transport)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        await upstream.aclose()

    router = Router(
        routes=[Route("/", pages.welcome(settings)), Route("/health", pages.health())],
        default=Gateway(Relay(settings, Access(settings)), upstream),
        redirect_slashes=False,
        lifespan=lifespan,
    )
    return Cors(router, settings.cors_origins)
