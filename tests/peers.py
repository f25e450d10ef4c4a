"""The two raw ends of a wire: they say bytes as given and hear them as they come, so that a test is a transcript.

Neither end is clever: a message is read by the little of RFC 9112 that it takes to find its end. What a well-behaved
client or server would never do is said by hand.
"""

import asyncio
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

PATIENCE = 10  # seconds after which a wait in a test is a failure; nothing is ever timed with it

Pairs = list[tuple[bytes, bytes]]


def free_port() -> int:
    """Return a port of loopback that nobody has, and that the system gives to none of the tests that run beside."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)  # below those that are given to whoever asks for any
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A message as it came: its first line, its fields (names in lower case), its body without the framing."""

    start: bytes
    headers: Pairs
    body: bytes

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self.headers if given == name]

    def get(self, name: bytes) -> bytes | None:
        return next(iter(self.all(name)), None)


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def dribble(self, *pieces: bytes) -> None:
        """Say each piece in a write of its own; the other end may read in between."""
        for piece in pieces:
            await self.say(piece)
            await asyncio.sleep(0)

    async def until(self, marker: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(marker)

    async def rest(self) -> bytes:
        """All that comes until the other end closes; an abort of the other end counts as a close."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def head(self) -> Heard:
        start, *lines = (await self.until(b"\r\n\r\n"))[:-4].split(b"\r\n")
        pairs = (line.split(b":", 1) for line in lines)
        return Heard(start=start, headers=[(name.lower(), value.strip(b" \t")) for name, value in pairs], body=b"")

    async def hear(self, *, bodiless: bool = False) -> Heard:
        """A whole message. `bodiless`: it is the answer to a HEAD."""
        head = await self.head()
        body = b"" if bodiless else await self._body(head)
        return Heard(start=head.start, headers=head.headers, body=body)

    async def chunk(self) -> bytes:
        size = int(await self.until(b"\r\n"), 16)
        async with asyncio.timeout(PATIENCE):
            return (await self.reader.readexactly(size + 2))[:-2]

    async def _body(self, head: Heard) -> bytes:
        length = head.get(b"content-length")
        if head.get(b"transfer-encoding") is not None:
            chunks = []
            while chunk := await self.chunk():
                chunks.append(chunk)
            return b"".join(chunks)
        is_answer = head.start.startswith(b"HTTP/")
        if length is None and is_answer and head.status not in (204, 304):
            return await self.rest()
        if is_answer and head.status == 304:
            return b""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(int(length or 0))

    async def closed(self) -> None:
        """Wait until the other end has closed; whatever it still says is dropped."""
        await self.rest()

    def abort(self) -> None:
        """Reset the connection."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()


class Upstream:
    """A server on loopback. With `says` it answers every request alike and keeps what it heard; without, a test
    takes each connection from `accept` and plays the upstream by hand."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.accepted = 0
        self._answer: tuple[bytes, ...] | None = None
        self._turns: list[bytes] = []
        self._closes = False
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._all: list[Peer] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            yield self
        finally:
            server.close()
            for peer in self._all:
                peer.writer.transport.abort()

    def says(self, *pieces: bytes, closes: bool = False) -> None:
        """`closes`: the answer ends with the connection, as it must where nothing else tells its end."""
        self._answer, self._closes = pieces, closes

    def says_in_turn(self, *answers: bytes) -> None:
        """One answer for each request."""
        self._answer, self._turns = (b"",), list(answers)

    async def accept(self) -> Peer:
        async with asyncio.timeout(PATIENCE):
            return await self._peers.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.accepted += 1
        self._all.append(peer)
        if self._answer is None:
            self._peers.put_nowait(peer)
            return
        try:
            while True:
                self.heard.append(await peer.hear())
                await peer.dribble(*([self._turns.pop(0)] if self._turns else self._answer))
                if self._closes:
                    peer.writer.close()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            peer.writer.close()


class Tunnel:
    """An outbound proxy that connects to where `port` is, whatever it is asked for. It listens `at` one of its own."""

    def __init__(self, port: int, says: bytes = b"HTTP/1.1 200 Connected\r\n\r\n") -> None:
        self.port = port
        self.says = says
        self.asked: list[bytes] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.at = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.says)
        await asyncio.gather(self._pour(reader, there_writer), self._pour(there_reader, writer))

    async def _pour(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def connect(port: int) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))


def request(
    method: str = "GET",
    target: bytes = b"/v1/models",
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
) -> bytes:
    """A request as bytes; with a body, its length is stated."""
    framing = [] if body is None else [(b"Content-Length", str(len(body)).encode())]
    lines = [b"%s: %s" % pair for pair in [(b"Host", b"proxy.example"), *headers, *framing]]
    return b"\r\n".join([b"%s %s HTTP/1.1" % (method.encode(), target), *lines, b"", body or b""])


def answer(status: int = 200, headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b"{}") -> bytes:
    """An answer as bytes, its length stated."""
    lines = [b"%s: %s" % pair for pair in [*headers, (b"Content-Length", str(len(body)).encode())]]
    return b"\r\n".join([b"HTTP/1.1 %d Whatever" % status, *lines, b"", body])


def chunked(*chunks: bytes) -> bytes:
    """Chunks in their framing; the last one of a message is empty."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
