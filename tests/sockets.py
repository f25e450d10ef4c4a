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
from websockets.utils import accept_key

from tests.conftest import Running
from tests.peers import PATIENCE, Peer, Upstream, request

OFFER = [
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
]
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)

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


async def raw_session(proxy: Running, upstream: Upstream) -> tuple[Peer, Peer]:
    """A session through the proxy by its two raw ends, which answer nothing by themselves."""
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    there = await upstream.accept()
    nonce = (await there.head()).get(b"sec-websocket-key") or b""
    await there.say(SWITCHING % accept_key(nonce.decode()).encode())
    assert (await client.head()).status == 101
    return client, there


def binary(message: bytes) -> bytes:
    """A message as a client frames it, under a mask that changes nothing."""
    return b"\x82\xff%b\0\0\0\0%b" % (len(message).to_bytes(8, "big"), message)


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


def proxy_protocols() -> list[Any]:
    """The connections that speak WebSocket, by the tasks of their sessions."""
    frames = [task.get_coro().cr_frame for task in asyncio.all_tasks() if "run_asgi" in repr(task)]  # type: ignore[union-attr]
    return [frame.f_locals["self"] for frame in frames]
