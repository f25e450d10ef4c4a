"""Memory stays flat and a slow reader slows the writer, in both directions, seen on the proxy as a process of its own.

The slow party first does nothing, until the fast one is stuck; then it reads in bursts. What came is compared with what
was sent: a pattern whose length is a prime, so that nothing lost, doubled or moved would look right.
"""

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import proxy
from tests.conftest import OURS
from tests.peers import PATIENCE, Pairs, answer, chunked, request

MEGABYTE = 2**20
SIZES = {"fast": 300 * MEGABYTE, "httpx": 100 * MEGABYTE, "pure": 100 * MEGABYTE}  # the first is everybody's way
GROWTH = 32 * MEGABYTE  # of resident memory
HELD = 24 * MEGABYTE  # what may be under way towards one who does not read; most of it is in the kernel
BUFFER = 256 * 1024  # of our own sockets
BURST = 8 * MEGABYTE
SILENCE = 0.5  # seconds without a byte taken: the writer is stuck
PATTERN = random.Random(0).randbytes(1_000_003)
TWICE = PATTERN * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A proxy that runs by itself, and the socket that listens where it sends its calls."""

    port: int
    process: psutil.Process
    listener: socket.socket
    size: int

    def connect(self) -> socket.socket:
        client = socket.socket()
        narrow(client)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        return client

    def accept(self) -> socket.socket:
        there, _ = self.listener.accept()
        there.settimeout(PATIENCE)
        return there

    def resident(self) -> int:
        return int(self.process.memory_info().rss)


@pytest.fixture(scope="module", params=SIZES)
def stage(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stage]:
    with socket.socket() as listener:
        narrow(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(PATIENCE)
        clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)}
        ours = {
            "OXY_HOST": "127.0.0.1",
            "OXY_TARGET": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "OXY_TRANSPORT": request.param,
            "PROXY_SHUTDOWN_GRACE_MS": "1000",  # after a failure
            "PYTHONPATH": str(Path(proxy.__file__).parents[1]),
        }
        command = [sys.executable, "-m", "proxy", "--port", "0"]
        folder = tmp_path_factory.mktemp("nowhere")
        if request.param == "pure":
            ours |= {"OXY_TRANSPORT": "auto", "PYTHONPATH": f"{hiding(folder)}:{ours['PYTHONPATH']}"}
        with subprocess.Popen(command, cwd=folder, env=clean | ours, stderr=subprocess.PIPE, text=True) as process:
            try:
                stage = Stage(
                    port=port_of(process),
                    process=psutil.Process(process.pid),
                    listener=listener,
                    size=SIZES[request.param],
                )
                warm_up(stage)
                yield stage
            finally:
                process.terminate()


def hiding(folder: Path) -> Path:
    """Return a folder that hides the compiled speed-ups from a Python that looks there first."""
    for name in ("httptools", "uvloop"):
        (folder / f"{name}.py").write_text("raise ImportError")
    return folder


def narrow(sock: socket.socket) -> None:
    """Keep little in the kernel; what a listener has, the connections that it accepts have too."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"listens on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError(f"the proxy did not start: {''.join(said)}")


def warm_up(stage: Stage) -> None:
    """What the first exchange takes, every process takes once."""
    with stage.connect() as client:
        client.sendall(request("POST", body=b"{}"))
        with stage.accept() as there:
            head(there)
            there.recv(2, socket.MSG_WAITALL)
            there.sendall(answer())
        head(client)


def head(sock: socket.socket) -> bytes:
    """A message up to its body, and not a byte more."""
    with sock.makefile("rb", buffering=0) as lines:
        return b"".join(iter(lines.readline, b"\r\n"))


def fill(sock: socket.socket, size: int) -> int:
    """Pour the pattern into the socket until it takes no more; return how much it took."""
    taken = 0
    sock.settimeout(SILENCE)
    try:
        while taken < size:
            start = taken % len(PATTERN)
            taken += sock.send(TWICE[start : start + 64 * 1024])
    except TimeoutError:
        pass
    sock.settimeout(PATIENCE)
    return taken


def pour(sock: socket.socket, taken: int, size: int) -> None:
    """Pour in the rest."""
    while taken < size:
        start = taken % len(PATTERN)
        piece = TWICE[start : start + min(MEGABYTE, len(PATTERN), size - taken)]
        sock.sendall(piece)
        taken += len(piece)


def drain(sock: socket.socket, stage: Stage) -> int:
    """Read all in bursts; return the most memory that the proxy had meanwhile."""
    heard, most = 0, stage.resident()
    while heard < stage.size:
        piece = sock.recv(BUFFER)
        start = heard % len(PATTERN)
        if not piece or piece != TWICE[start : start + len(piece)]:  # an assert would explain it, byte by byte
            pytest.fail(f"after {heard} bytes came others, or none")
        heard += len(piece)
        if heard % BURST < len(piece):
            most = max(most, stage.resident())
            time.sleep(0.005)
    return most


def test_a_slow_reader_slows_the_upstream_and_costs_no_memory(stage: Stage) -> None:
    before = stage.resident()
    with stage.connect() as client, ThreadPoolExecutor() as pool:
        client.sendall(request("GET", b"/v1/files/file-1/content"))
        with stage.accept() as there:
            head(there)
            there.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % stage.size)
            taken = fill(there, stage.size)
            assert taken < HELD
            pouring = pool.submit(pour, there, taken, stage.size)
            assert b"content-length: %d\r\n" % stage.size in head(client)
            assert drain(client, stage) - before < GROWTH
            pouring.result(PATIENCE)


def test_a_slow_upstream_slows_the_client_and_costs_no_memory(stage: Stage) -> None:
    before = stage.resident()
    with stage.connect() as client, ThreadPoolExecutor() as pool:
        client.sendall(request("POST", b"/v1/files", [(b"Content-Length", b"%d" % stage.size)]))
        with stage.accept() as there:
            assert b"content-length: %d\r\n" % stage.size in head(there)
            taken = fill(client, stage.size)
            assert taken < HELD
            pouring = pool.submit(pour, client, taken, stage.size)
            assert drain(there, stage) - before < GROWTH
            pouring.result(PATIENCE)
            there.sendall(answer(201))
            assert head(client).startswith(b"HTTP/1.1 201 ")


FORMS = 200 * MEGABYTE
FORM = (b"Content-Type", b"multipart/form-data; boundary=cut")
FILE = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n'
KEY_BEHIND = b'\r\n--cut\r\nContent-Disposition: form-data; name="openai_api_key"\r\n\r\nsk-form'
END = b"\r\n--cut--\r\n"


def others(process: psutil.Process) -> int:
    """How many files and sockets are open, but for those of the history, which opens when it has something to keep."""
    return process.num_fds() - sum("history" in file.path for file in process.open_files())


@pytest.mark.parametrize("stage", ["fast"], indirect=True)
@pytest.mark.parametrize(
    ("fields", "tail"),
    [([], KEY_BEHIND + END), ([(b"Authorization", b"Bearer sk-form")], END)],
    ids=["spooled, the key comes last", "streamed, the key is in a header"],
)
def test_a_form_of_200_megabytes_costs_no_memory(stage: Stage, fields: Pairs, tail: bytes) -> None:
    before, files = stage.resident(), others(stage.process)
    length = (b"Content-Length", b"%d" % (len(FILE) + FORMS + len(tail)))
    with stage.connect() as client, ThreadPoolExecutor() as pool:
        client.settimeout(6 * PATIENCE)
        client.sendall(request("POST", b"/openai/audio/transcriptions", [FORM, *fields, length]) + FILE)

        def upload() -> None:
            pour(client, 0, FORMS)
            client.sendall(tail)

        pouring = pool.submit(upload)
        stage.listener.settimeout(6 * PATIENCE)  # a disk may be slow
        with stage.accept() as there:
            said = head(there)
            assert b"authorization: Bearer sk-form\r\n" in said
            most, size = stage.resident(), 0
            end = b"0\r\n\r\n" if b"transfer-encoding: chunked\r\n" in said else b"--cut--\r\n"
            last = b""
            while not last.endswith(end):
                piece = there.recv(MEGABYTE)
                assert piece
                size, last = size + len(piece), (last + piece)[-100:]
                most = max(most, stage.resident()) if size % BURST < len(piece) else most
            there.sendall(answer(headers=[(b"Connection", b"close")]))
        assert head(client).startswith(b"HTTP/1.1 200 ")
        pouring.result(PATIENCE)
    assert size > FORMS
    assert most - before < GROWTH
    deadline = time.monotonic() + PATIENCE
    while others(stage.process) > files:  # the sockets close behind the answer
        assert time.monotonic() < deadline, "a file or a socket was left open"
        time.sleep(0.01)


def test_a_thousand_events_reach_a_slow_reader_in_order(stage: Stage) -> None:
    before = stage.resident()
    events = [
        b'event: response.output_text.delta\ndata: {"sequence_number": %d}\n\n' % number for number in range(1000)
    ]
    with stage.connect() as client, ThreadPoolExecutor() as pool:
        client.sendall(request("POST", b"/v1/responses", [(b"Connection", b"close")], b'{"stream": true}'))
        with stage.accept() as there:
            head(there)
            there.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def tell() -> None:
                for event in events:
                    there.sendall(chunked(event))
                there.sendall(chunked(b""))

            telling = pool.submit(tell)
            time.sleep(SILENCE)
            assert b"transfer-encoding: chunked\r\n" in head(client).lower()
            heard = b""
            while piece := client.recv(4096):
                heard += piece
                time.sleep(0.001)
            telling.result(PATIENCE)
    assert unchunked(heard) == b"".join(events)
    assert stage.resident() - before < GROWTH


@pytest.mark.parametrize("stage", ["fast"], indirect=True)
@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: proxy.example\r\nX-Endless: ",
        b"GET /v1/models HTTP/1.1\r\nHost: proxy.example\r\nX-Endless",
        b"GET /v1/models?endless",
        b"POST /v1/files HTTP/1.1\r\nHost: proxy.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Endless: ",
        b"POST /v1/files HTTP/1.1\r\nHost: proxy.example\r\nTransfer-Encoding: chunked\r\n\r\n1;endless=",
    ],
    ids=["value", "name", "target", "trailer", "chunk extension"],
)
def test_what_has_no_end_but_is_no_body_costs_no_memory(stage: Stage, beginning: bytes) -> None:
    before = stage.resident()
    with stage.connect() as client, contextlib.ExitStack() as opened:
        client.sendall(beginning)
        if beginning.startswith(b"POST"):
            opened.enter_context(stage.accept())
        with contextlib.suppress(ConnectionError):  # refused: so it should be
            for _ in range(40):
                client.sendall(b"x" * MEGABYTE)
        assert stage.resident() - before < GROWTH


def unchunked(framed: bytes) -> bytes:
    body, size = b"", -1
    while size:
        line, _, rest = framed.partition(b"\r\n")
        size = int(line, 16)
        body, framed = body + rest[:size], rest[size + 2 :]
    return body
