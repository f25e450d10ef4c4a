"""`make soak`: 200 exchanges at once with faults on both sides, against a started `oxy`; then nothing may be left.

Every answer is made of the number of its exchange, so that one lost, doubled, cut or handed to another client does not
look right. An exchange may end in an error, or torn, only where a fault was put into it.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h11
import psutil

from tests.conftest import CLIENT_KEY, OURS, SWAP
from tests.peers import PATIENCE, Heard, Peer, chunked, connect, request
from tests.test_connection import until
from tests.test_faults import OK, Judge
from tests.test_flatness import port_of

ROOT = Path(__file__).parents[2]
SLOTS = 300
UPLOAD = random.Random(0).randbytes(300_000)
TIMES = {
    "OPENAI_PROXY_UPSTREAM_TIMEOUT_MS": "5000",
    "PROXY_CLIENT_TIMEOUT_MS": "5000",
    "PROXY_HEAD_TIMEOUT_MS": "3000",
    "PROXY_SHUTDOWN_GRACE_MS": "3000",
}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="security_key"\r\n\r\n%b\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n--b--\r\n'
)
KEY = (b"X-API-Key", CLIENT_KEY.encode())
JSON = (b"Content-Type", b"application/json")
# What is asked: method, target, fields, body.
KINDS: dict[str, tuple[str, bytes, list[tuple[bytes, bytes]], bytes | None]] = {
    "get": ("GET", b"/v1/models", [KEY], None),
    "json": ("POST", b"/v1/responses", [KEY, JSON], b'{"model": "m", "input": "hello"}'),
    "sse": ("POST", b"/v1/chat/completions", [KEY, JSON], b'{"stream": true}'),
    "upload": ("POST", b"/v1/files", [KEY], UPLOAD),
    "responses": ("POST", b"/openai2", [KEY, JSON], b'{"model": "m", "input": "hello"}'),
    "retrieve": ("GET", b"/openai2/resp_1", [KEY], None),
    "embeddings": ("POST", b"/embeddings", [KEY, JSON], b'{"input": "hello"}'),
    "form": (
        "POST",
        b"/openai/audio/transcriptions",
        [(b"Content-Type", b"multipart/form-data; boundary=b")],
        FORM % (CLIENT_KEY.encode(), UPLOAD[:50_000]),
    ),
}
UPSTREAM_FAULTS = ("reset", "close", "half a head", "cut", "cut by reset", "garbage", "two lengths", "silence")
CLIENT_FAULTS = ("gone before the answer", "gone in the upload", "gone in the answer", "half a head")


def told(number: int) -> bytes:
    """What the answer to this exchange says."""
    return random.Random(number).randbytes(200) * (1 + number % 50)


class Unsteady:
    """An upstream that answers as it was asked, or has a fault. Exchanges name themselves by `X-Number`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.heard: Counter[int] = Counter()
        self.faulty: dict[int, str] = {}
        self.open: set[asyncio.StreamWriter] = set()
        self.held = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        peer = Peer(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, TimeoutError):
            while await self._answer(peer):
                pass
        writer.close()
        self.open.discard(writer)

    async def _answer(self, peer: Peer) -> bool:
        async with asyncio.timeout(None):
            start = await peer.reader.readuntil(b"\r\n\r\n")
        if b"/held" in start:
            self.held += 1
            await peer.rest()
            return False
        peer.reader._buffer[:0] = start  # type: ignore[attr-defined]  # to be read as a message
        heard = await peer.hear()
        number = int(heard.get(b"x-number") or b"-1")
        self.heard[number] += 1
        if number >= 0 and random.random() < self.rate:
            self.faulty[number] = random.choice(UPSTREAM_FAULTS)
            return await self._fault(peer, self.faulty[number], number)
        await peer.dribble(*self._said(heard, number))
        return True

    def _said(self, heard: Heard, number: int) -> list[bytes]:
        body = told(number)
        if heard.target == b"/v1/files":
            body += hashlib.sha256(heard.body).digest()
        if b"x-sse" not in dict(heard.headers):
            return [OK + b"Content-Length: %d\r\n\r\n" % len(body), body]
        return [OK + b"Transfer-Encoding: chunked\r\n\r\n", *(chunked(piece) for piece in parts(body)), chunked(b"")]

    async def _fault(self, peer: Peer, fault: str, number: int) -> bool:
        body = told(number)
        half = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2]
        said = {
            "half a head": OK + b"Content-Le",
            "cut": half,
            "cut by reset": half,
            "garbage": b"\0garbage\r\n\r\n",
            "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        }.get(fault, b"")
        await peer.say(said)
        if fault == "silence":
            await peer.rest()
        elif "reset" in fault:
            peer.abort()
        return False


def parts(body: bytes) -> list[bytes]:
    return [body[at : at + 500] for at in range(0, len(body), 500)]


class Load:
    """The clients, and what became of their exchanges."""

    def __init__(self, port: int, upstream: Unsteady, clients: int) -> None:
        self.port = port
        self.clients = clients
        self.upstream = upstream
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._number = 0

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(end) for _ in range(self.clients)))

    async def _client(self, end: float) -> None:
        peer: Peer | None = None
        while time.monotonic() < end:
            peer = peer or await connect(self.port)
            self._number += 1
            kept = await self._exchange(peer, self._number, random.choice(sorted(KINDS)))
            if not kept:
                peer.writer.transport.abort()
                peer = None
        if peer is not None:
            peer.writer.close()

    async def _exchange(self, peer: Peer, number: int, kind: str) -> bool:
        """Play one exchange; return whether its connection can be used again."""
        fault = random.choice(CLIENT_FAULTS) if random.random() < self.upstream.rate else None
        method, target, fields, body = KINDS[kind]
        named = [*fields, (b"X-Number", b"%d" % number), *([(b"X-SSE", b"1")] if kind == "sse" else [])]
        said = request(method, target, named, body)
        judge = Judge(peer)
        try:
            if fault is None:
                await peer.say(said)
                await judge.hear()
            else:
                await self._break(peer, judge, fault, said)
        except (ConnectionError, TimeoutError, h11.RemoteProtocolError) as problem:
            if isinstance(problem, TimeoutError):
                self.wrong.append(f"{kind} {number}: nothing for {PATIENCE} s")
        if fault is not None:
            self.seen[f"client {fault}"] += 1
            return False
        self._check(judge, number, kind)
        return judge.whole and judge.status == 200

    async def _break(self, peer: Peer, judge: Judge, fault: str, said: bytes) -> None:
        head = said.index(b"\r\n\r\n") + 4
        if fault == "half a head":
            await peer.say(said[: random.randrange(1, head)])
        elif fault == "gone in the upload":
            await peer.say(said[: random.randrange(head, len(said) + 1)])
        else:
            await peer.say(said)
        if fault == "gone in the answer":
            await peer.until(b"\r\n")
        await asyncio.sleep(random.random() / 10)
        if random.random() < 0.5:
            peer.abort()

    def _check(self, judge: Judge, number: int, kind: str) -> None:
        faulty = self.upstream.faulty.get(number)
        heard = self.upstream.heard[number]
        right = told(number) + (hashlib.sha256(UPLOAD).digest() if kind == "upload" else b"")
        if judge.whole and judge.status == 200:
            outcome = "right" if judge.body == right else "WRONG"
        else:
            outcome = str(judge.status) if judge.whole else "torn"
        self.seen[outcome if faulty is None else f"{outcome} after a fault"] += 1
        most = {"get": 2, "retrieve": 6}.get(kind, 1)
        if outcome == "WRONG" or (faulty is None and outcome != "right") or heard > most:
            self.wrong.append(f"{kind} {number}: {outcome}, fault {faulty}, heard {heard} times, {judge.body[:200]!r}")


class Oxy:
    """The proxy, as a process of its own."""

    def __init__(self, target: str, way: str, folder: str) -> None:
        self.way = way
        self.log = Path(folder) / "log"
        clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)}
        bound = {"OPENAI_PROXY_MAX_PARALLEL_REQUESTS": str(SLOTS), "OXY_HOST": "127.0.0.1"}
        ours = {"OXY_TARGET": target, "OXY_TRANSPORT": way, "PYTHONPATH": str(ROOT), **SWAP, **TIMES, **bound}
        command = [sys.executable, "-m", "proxy", "--port", "0"]
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(command, cwd=folder, env=clean | ours, stderr=log)
        self.process = psutil.Process(self.popen.pid)

    async def listening(self) -> int:
        await until(lambda: "mode swap" in self.log.read_text())
        with self.log.open() as lines:
            self.popen.stderr = lines  # type: ignore[assignment]
            return port_of(self.popen)  # type: ignore[arg-type]

    def sockets(self) -> list[str]:
        """Those that are open, but for the listener: where they lead to, and their state."""
        found = self.process.net_connections("inet")
        return [f"{each.raddr} {each.status}" for each in found if each.status != psutil.CONN_LISTEN]

    def resident(self) -> float:
        return round(self.process.memory_info().rss / 2**20, 1)


async def at_rest(oxy: Oxy, load: Load) -> float:
    """Let the upstream close what is idle; return the memory in use, in MiB, once no socket is left.

    httpcore looks at what is idle only when it is asked for the next exchange, whose own connection stays.
    """
    allowed = int(oxy.way == "httpx")
    for _ in range(20):
        for writer in list(load.upstream.open):
            writer.close()
        await asyncio.sleep(0.5)
        if allowed:
            peer = await connect(load.port)
            await peer.say(request("GET", b"/v1/models", [KEY]))
            await peer.hear()
            await peer.close()
            await asyncio.sleep(0.1)
        if len(oxy.sockets()) <= allowed:
            return oxy.resident()
    raise SystemExit(f"FAILED: {oxy.sockets()} are open")


async def slots(port: int, upstream: Unsteady) -> int:
    """How many exchanges find a slot at once."""
    peers = [await connect(port) for _ in range(SLOTS + 1)]
    for peer in peers:
        await peer.say(request("GET", b"/v1/held", [KEY]))
    with contextlib.suppress(TimeoutError):
        await until(lambda: upstream.held >= SLOTS)
    await asyncio.sleep(0.5)  # for one more than there may be
    for peer in peers:
        peer.abort()
    return upstream.held


async def soak(seconds: float, way: str, rate: float, clients: int) -> int:
    upstream = Unsteady(rate)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**20)
    target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        oxy = Oxy(target, way, folder)
        try:
            load = Load(await oxy.listening(), upstream, clients)
            sizes = []
            for _ in range(6):
                await load.run(seconds / 6)
                sizes.append(await at_rest(oxy, load))
            found = await slots(load.port, upstream)
            await at_rest(oxy, load)
        finally:
            oxy.popen.send_signal(signal.SIGTERM)
            status = oxy.popen.wait(PATIENCE)
        log = oxy.log.read_text()
    faults = {
        **{f"{line}": True for line in load.wrong[:20]},
        f"{found} slots where there are {SLOTS}": found != SLOTS,
        f"memory grew: {sizes} MiB": sizes[-1] > 1.1 * sizes[1],  # a third of the time is the warm-up
        "a traceback in the log": "Traceback" in log,
        f"exit status {status}": status != 0,
    }
    figures = {"exchanges": sum(load.seen.values()), **dict(sorted(load.seen.items()))}
    print(json.dumps({"way": way, **figures, "MiB": sizes, "slots": found}, indent=2))
    for fault in (fault for fault, so in faults.items() if so):
        print("FAILED:", fault)
    if "Traceback" in log:
        print(log[log.index("Traceback") :][:3000])
    return int(any(faults.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--way", choices=["fast", "httpx"], default="fast")
    parser.add_argument("--rate", type=float, default=0.05, help="of exchanges with a fault, on each side")
    parser.add_argument(
        "--clients", type=int, default=200, help="at once; httpx's transport is too slow for more than 40"
    )
    sys.exit(asyncio.run(soak(**vars(parser.parse_args()))))
