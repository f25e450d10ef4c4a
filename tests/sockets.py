"""The two ends of a WebSocket around the proxy, over the `websockets` library: a server to play by hand, clients."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.conftest import Running
from tests.peers import PATIENCE

End = ClientConnection | ServerConnection


class Far:
    """An upstream that speaks WebSocket. A test takes each session from `accept`; `answers` stands for one instead."""

    def __init__(self) -> None:
        self.heard: list[Request] = []
        self.answers: Response | None = None
        self.chooses: Subprotocol | None = None
        self.sessions: asyncio.Queue[ServerConnection] = asyncio.Queue()

    @asynccontextmanager
    async def listening(self, **options: Any) -> AsyncIterator[Self]:
        async with serve(
            self._keep,
            "127.0.0.1",
            0,
            process_request=self._hear,
            select_subprotocol=lambda *_: self.chooses,
            compression=None,
            max_size=None,
            max_queue=1,
            ping_interval=None,
            **options,
        ) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            yield self

    async def accept(self) -> ServerConnection:
        async with asyncio.timeout(PATIENCE):
            return await self.sessions.get()

    def _hear(self, _: ServerConnection, request: Request) -> Response | None:
        self.heard.append(request)
        return self.answers

    async def _keep(self, session: ServerConnection) -> None:
        self.sessions.put_nowait(session)
        await session.wait_closed()


def dial(proxy: Running, target: str = "/v1/realtime", key: str | None = None, **options: Any) -> connect:
    """A client of the proxy; `key` goes into Authorization."""
    headers = [*options.pop("headers", []), *([("Authorization", f"Bearer {key}")] if key else [])]
    options = {
        "compression": None,
        "max_size": None,
        "max_queue": 1,
        "ping_interval": None,
        "open_timeout": PATIENCE,
        **options,
    }
    return connect(f"ws://127.0.0.1:{proxy.port}{target}", proxy=None, additional_headers=headers, **options)


@asynccontextmanager
async def session(proxy: Running, far: Far, **options: Any) -> AsyncIterator[tuple[ClientConnection, ServerConnection]]:
    """A session through the proxy, by its two ends."""
    async with dial(proxy, **options) as client:
        there = await far.accept()
        try:
            yield client, there
        except BaseException:  # a closing handshake waits for ever where one side does not read
            client.transport.abort()
            there.transport.abort()
            raise


async def hear(end: End) -> str | bytes:
    async with asyncio.timeout(PATIENCE):
        return await end.recv()


async def ended(end: End) -> tuple[int, str]:
    """Code and reason with which the other side ended the session; what it still says is dropped."""
    async with asyncio.timeout(PATIENCE):
        try:
            while True:
                await end.recv()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


async def fill(end: End, message: bytes, *, most: int, silence: float = 0.5) -> int:
    """Say a message again and again until it is not taken any more; return how often it was. The last is under way."""
    for count in range(most):
        try:
            async with asyncio.timeout(silence):
                await end.send(message)
        except TimeoutError:
            return count + 1
    return most


def fields(response: Request | Response, name: str) -> Sequence[str]:
    return response.headers.get_all(name)


async def settled() -> None:
    """Wait until the proxy has done with all sessions."""
    tasks = [task for task in asyncio.all_tasks() if "run_asgi" in repr(task)]
    if tasks:
        await asyncio.wait(tasks, timeout=PATIENCE)
