"""What it takes to try an artefact: an upstream that holds its second event back, and a process that is watched."""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

PATIENCE = 30.0  # seconds
EVENTS = (b"data: one\n\n", b"data: two\n\n")
LISTENS = re.compile(r"listens on http://([\d.]+):(\d+)")
CLEAN = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


class Upstream:
    """Answers every POST with two events. It sends the second when told that the first has arrived."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.arrived = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                upstream.heard.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(EVENTS[0]), EVENTS[0]))
                upstream.arrived.wait(PATIENCE)
                self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS[1]), EVENTS[1]))

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://{}:{}".format(*self._server.server_address[:2])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Process:
    """An artefact that was started."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self._began = time.perf_counter()
        # Opened to append: who reads it must not move the place where the process writes.
        self._errors = tempfile.NamedTemporaryFile("ab")  # noqa: SIM115  it lives as long as the process
        self._connections: list[HTTPConnection] = []
        self._process = subprocess.Popen(
            command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors
        )

    @property
    def log(self) -> str:
        return Path(self._errors.name).read_text()

    @property
    def loaded(self) -> str:
        """The libraries that it has mapped; Linux alone tells."""
        return Path(f"/proc/{self._process.pid}/maps").read_text()

    @cached_property
    def address(self) -> tuple[str, int]:
        """Where it listens; it says so as soon as it does."""
        while not (told := LISTENS.search(self.log)):
            assert self._process.poll() is None, self.log
            assert time.perf_counter() - self._began < PATIENCE, self.log
            time.sleep(0.002)
        return told[1], int(told[2])

    def up(self) -> None:
        """Wait until it answers that it is alive."""
        answer = self.ask("GET", "/health")
        assert (answer.status, json.loads(answer.read())["status"]) == (200, "ok")

    def first_answer(self) -> float:
        """Wait for the end of a relayed answer; return the seconds from the start to there."""
        answer = self.ask("POST", "/v1/chat/completions", b"{}")
        assert answer.read() == b"".join(EVENTS)
        return time.perf_counter() - self._began

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> HTTPResponse:
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        self._connections.append(connection)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()

    def stream(self, upstream: Upstream, **headers: str) -> None:
        """Stream an answer through it: its first event has to arrive while the upstream holds back the second."""
        answer = self.ask("POST", "/v1/chat/completions?a=%2F", b"{}", **headers)
        assert answer.status == 200, self.log
        assert answer.read1() == EVENTS[0]
        upstream.arrived.set()
        assert answer.read() == EVENTS[1]
        path, _, body = upstream.heard[-1]
        assert (path, body) == ("/v1/chat/completions?a=%2F", b"{}")

    def shows(self, told: bytes, path: str, **headers: str) -> None:
        """Wait until a page says so: what exchanges leave behind is written soon after them."""
        while told not in (page := self.ask("GET", path, None, **headers).read()):
            assert time.perf_counter() - self._began < PATIENCE, page
            time.sleep(0.1)

    def stop(self) -> int:
        """Tell it to stop; return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        for connection in self._connections:
            connection.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()


@contextmanager
def started(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[Process]:
    """Start an artefact with this environment and no other, on a free port unless another is set."""
    process = Process(command, folder, {**CLEAN, "OXY_HOST": "127.0.0.1", "OXY_PORT": "0", **environ})
    try:
        yield process
    finally:
        process.end()


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder with its content."""
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unzip(archive: Path, folder: Path) -> None:
    """Unpack a zip together with the modes of its files."""
    with ZipFile(archive) as opened:
        for entry in opened.infolist():
            Path(opened.extract(entry, folder)).chmod(entry.external_attr >> 16)
