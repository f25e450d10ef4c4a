"""The operator's pages as a stage: the upstream says what a test sets, and the history is written by hand."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import pages
from proxy.console import PROBES, Limited, operator_pages
from proxy.history import History
from proxy.overview import InFlight
from proxy.recall import Recall
from proxy.settings import Settings
from tests.peers import Heard, Peer, request

if TYPE_CHECKING:
    from tests.conftest import Running

TOKEN = "the-access-token-of-a-test"
BEARER = (b"Authorization", b"Bearer " + TOKEN.encode())


@dataclass(slots=True, kw_only=True)
class Desk:
    """The operator's pages, served; what they show is written by hand, and what the upstream says is set."""

    settings: Settings
    file: Path
    upstream: Any = 200
    asked: int = 0
    in_flight: InFlight = field(default_factory=lambda: InFlight(2, 9))
    history: History = field(init=False)
    proxy: "Running" = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.file, days=30)
        self.history.write([])

    def application(self) -> ASGIApp:
        at = operator_pages(
            self.settings, Recall(self.file), lambda: b"a_metric 1\n", self.ask_upstream, lambda: self.in_flight
        )
        at[b"/health"] = Limited(pages.health(), PROBES)
        return front(at)

    async def ask_upstream(self) -> tuple[int, float]:
        self.asked += 1
        await asyncio.sleep(0.01)
        if isinstance(self.upstream, Exception):
            raise self.upstream
        return self.upstream, 0.1234

    async def get(self, target: bytes, *headers: tuple[bytes, bytes], method: str = "GET") -> Heard:
        client = await self.proxy.connect()
        await client.say(request(method, target, list(headers)))
        return await client.hear(bodiless=method == "HEAD")

    async def post(self, target: bytes, body: bytes, *headers: tuple[bytes, bytes]) -> Heard:
        client = await self.proxy.connect()
        content = (b"Content-Type", b"application/x-www-form-urlencoded")
        await client.say(request("POST", target, [content, *headers], body))
        return await client.hear()

    async def stream(self, target: bytes, *headers: tuple[bytes, bytes]) -> Peer:
        """A client that has heard the head of a live stream."""
        client = await self.proxy.connect()
        await client.say(request("GET", target, [BEARER, *headers]))
        assert (await client.head()).status == 200
        return client


def front(at: dict[bytes, ASGIApp]) -> ASGIApp:
    """An application of these pages and no others."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await at[scope["raw_path"]](scope, receive, send)

    return app
