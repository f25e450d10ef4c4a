"""A client's connection where httptools is missing: uvicorn's protocol in Python, on h11.

It tells one thing more than uvicorn's, `target`: in ASGI's path and query `/v1/models?` and `/v1/models` look alike.
"""

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from proxy.request import MAX_HEAD, MAX_TARGET


class Connection(h11.Connection):
    """Keeps the target of the latest request: the next one is not parsed before this one has its answer."""

    target = b""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what came next."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.target = event.target
        return event


class PureProtocol(H11Protocol):
    """One connection of a client."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = self._requests = Connection(h11.SERVER, MAX_TARGET + MAX_HEAD)
        self.app = self._tell_target

    async def _tell_target(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.config.loaded_app({**scope, "target": self._requests.target}, receive, send)
