"""The server and its command line: real processes, started, told to stop and read as an operator does it."""

import asyncio
import http.client
import json
import logging
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Self, cast

import psutil
import pytest
from websockets.utils import accept_key

from proxy import __version__
from proxy.__main__ import OPTIONS, invitation, main
from proxy.dial import KEEP_ALIVE
from proxy.protocol import HttpProtocol
from proxy.server import (
    CannotListen,
    OnlyNews,
    OnlyServer,
    announce,
    application,
    configure,
    end_with,
    listen,
    local_url,
    make_room,
    serve,
    to_stderr,
)
from proxy.settings import Settings
from proxy.tally import place
from proxy.values import target
from proxy.workers import STOPS
from proxy.workspace import remove_abandoned
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, SettingsOf, Start
from tests.desk import BEARER, TOKEN
from tests.peers import Peer, Upstream, answer, chunked, connect, free_port, request
from tests.sockets import OFFER, SWITCHING
from tests.test_dial import found as new_authority
from tests.test_lines import fill
from tests.test_metrics import ENDED, samples, series

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "proxy"]
PATIENCE = 30  # seconds; a process takes its time to start on a machine that is busy with other tests
SOON = 8  # seconds; the supervisor waits 15 for a sign of life
NOBODY = "http://127.0.0.1:9"  # a target that no test here calls
LISTENER = str(Path(__file__).with_name("listener.pem"))  # a certificate for localhost, and its key
UNKNOWN = ".".join(["x" * 60] * 5)  # a name beyond 253 characters: refused without asking a resolver
USED = b'{"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}'
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NEEDS_IPV6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="there is no IPv6 here")


class Process:
    """A proxy on a free port of loopback, in a process of its own, that writes to two files.

    `elsewhere` is where it reads and writes instead, as a shell is told.
    """

    def __init__(self, folder: Path, arguments: tuple[str, ...], environ: dict[str, str], elsewhere: str = "") -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        shell = ["sh", "-c", f'exec "$@" {elsewhere}', "sh"]
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [*shell, *COMMAND, "--host", "127.0.0.1", "--port", "0", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # so that its workers can be signalled, and in the end be killed, with it
            )

    def listening(self) -> Self:
        """Wait until it has said where it listens."""
        for _ in polls():
            if found := re.search(r"listens on https?://\S+:(\d+)", self.errors):
                self.port = int(found[1])
                return self
            assert self._process.poll() is None, self.errors
        raise AssertionError(f"it does not listen: {self.errors}")

    def answering(self, port: int) -> Self:
        """Wait until it answers where it cannot say that it listens."""
        self.port = port
        for _ in polls():
            assert self._process.poll() is None, "it has ended"
            with suppress(ConnectionRefusedError):
                assert self.health().status == 200
                return self
        raise AssertionError("it does not answer")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        return self._err.read_text()

    @property
    def news(self) -> list[str]:
        """What it wrote to stderr beside the three lines of a start."""
        return [line for line in self.errors.splitlines() if not re.match(r"[-0-9]+T[:.0-9]+Z INFO ", line)]

    @property
    def workers(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self._process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def health(self) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/health")
            return connection.getresponse()
        finally:
            connection.close()

    def tell(self, number: signal.Signals, *, all_of_it: bool = False) -> None:
        """Send a signal: to the process, or as a terminal does to its workers as well."""
        (os.killpg if all_of_it else os.kill)(self._process.pid, number)

    def status(self) -> int:
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        if self._process.poll() is None:
            self.tell(signal.SIGKILL, all_of_it=True)
            self._process.wait(PATIENCE)


Run = Callable[..., Process]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a process with these arguments and these names in its environment; none outlives its test."""
    started: list[Process] = []

    def run(*arguments: str, **environ: str) -> Process:
        started.append(Process(tmp_path, arguments, environ))
        return started[-1].listening()

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def run_elsewhere(tmp_path: Path) -> Iterator[Run]:
    """The same for one whose stderr is redirected, as its first argument says."""
    started: list[Process] = []

    def run_elsewhere(elsewhere: str, *arguments: str, **environ: str) -> Process:
        port = free_port()
        started.append(Process(tmp_path, (*arguments, "--port", str(port)), environ, elsewhere))
        return started[-1].answering(port)

    yield run_elsewhere
    for process in started:
        process.kill()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """An upstream that a test plays by hand, without a loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Path]:
    """A named pipe that is full, and that nobody reads."""
    path = tmp_path / "unread"
    os.mkfifo(path)
    both_ends = os.open(path, os.O_RDWR)
    fill(both_ends)
    yield path
    os.close(both_ends)


def polls(patience: float = PATIENCE) -> Iterator[None]:
    """Yield now and then for as long as a test is ready to wait."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        yield
        time.sleep(0.02)


def until(sock: socket.socket, marker: bytes) -> bytes:
    heard = b""
    while marker not in heard:
        piece = sock.recv(65536)
        assert piece, heard
        heard += piece
    return heard


def rest(sock: socket.socket) -> bytes:
    heard = b""
    while piece := sock.recv(65536):
        heard += piece
    return heard


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it closed in the midst of this: the next is refused
        return False
    return False


Ends = tuple[socket.socket, socket.socket]


@contextmanager
def calling(process: Process, listener: socket.socket, *headers: tuple[bytes, bytes]) -> Iterator[Ends]:
    """A client and its upstream, which has heard the call and said nothing yet."""
    with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as client:
        client.sendall(request(headers=headers))
        there, _ = listener.accept()
        with there:
            until(there, b"\r\n\r\n")
            yield client, there


@contextmanager
def streaming(process: Process, listener: socket.socket) -> Iterator[Ends]:
    """A client and its upstream in the midst of a stream."""
    with calling(process, listener) as (client, there):
        there.sendall(HEAD + chunked(b"one"))
        until(client, b"one\r\n")
        yield client, there


@contextmanager
def draining(process: Process, listener: socket.socket, number: signal.Signals) -> Iterator[Ends]:
    """The same when the order to stop has come."""
    with streaming(process, listener) as (client, there):
        process.tell(number)
        assert any(refuses(process.port) for _ in polls()), "it still accepts"
        yield client, there


@pytest.mark.untraced
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_a_temporary_folder_it_serves_and_says_so(
    run: Run, listener: socket.socket, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import tempfile\ntempfile._candidate_tempdir_list = list\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    process = run("--workers", workers, "--target", local_url(listener), PYTHONPATH=path)
    with streaming(process, listener) as (client, there):
        there.sendall(chunked(b"two", b""))
        until(client, b"0\r\n\r\n")
    process.tell(signal.SIGTERM)
    assert process.status() == 0
    assert " WARNING no temporary folder (" in process.news[0]


# ---- TLS


@pytest.mark.untraced
@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_a_certificate_it_speaks_tls_and_nothing_else(
    run: Run, listener: socket.socket, tmp_path: Path, workers: str
) -> None:
    certificate, marker, key = Path(LISTENER).read_text().partition("-----BEGIN PRIVATE")
    (tmp_path / "oxy.pem").write_text(certificate)
    (tmp_path / "oxy.key").write_text(marker + key)
    options = ("--tls-cert", "oxy.pem", "--tls-key", "oxy.key", "--workers", workers)
    process = run("--target", local_url(listener), *options)
    assert f"https://127.0.0.1:{process.port}" in process.errors
    context = ssl.create_default_context(cafile=LISTENER)
    plain = socket.create_connection(("127.0.0.1", process.port), PATIENCE)
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(request())
        there, _ = listener.accept()
        with there:
            until(there, b"\r\n\r\n")
            there.sendall(HEAD + chunked(b"one", b""))
            assert until(client, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
    with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as client:
        client.sendall(request())
        assert rest(client) == b""
    process.tell(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.untraced
def test_over_tls_too_nobody_waits_at_the_end_for_a_client_that_has_its_answer(
    run: Run, listener: socket.socket
) -> None:
    tls = ("--tls-cert", LISTENER, "--tls-key", LISTENER)
    process = run("--target", local_url(listener), *tls, PROXY_SHUTDOWN_GRACE_MS="5000")
    context = ssl.create_default_context(cafile=LISTENER)
    plain = socket.create_connection(("127.0.0.1", process.port), PATIENCE)
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(request())
        there, _ = listener.accept()
        with there:
            until(there, b"\r\n\r\n")
            process.tell(signal.SIGTERM)
            assert any(refuses(process.port) for _ in polls())
            there.sendall(HEAD + chunked(b"one", b""))
            assert until(client, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert process.status() == 0  # while the client keeps the connection, and does not look at it
    assert process.news == []


@pytest.mark.untraced
@pytest.mark.parametrize(
    "answered",
    [b"\x88\x02\x03\xe8", b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nno!", b""],
    ids=["a close", "a refusal", "nothing"],
)
def test_over_tls_too_nobody_waits_at_the_end_for_a_client_that_leaves_its_websocket_open(
    run: Run, listener: socket.socket, answered: bytes
) -> None:
    tls = ("--tls-cert", LISTENER, "--tls-key", LISTENER)
    process = run("--target", local_url(listener), *tls, PROXY_SHUTDOWN_GRACE_MS="5000")
    context = ssl.create_default_context(cafile=LISTENER)
    plain = socket.create_connection(("127.0.0.1", process.port), PATIENCE)
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(request(headers=OFFER))
        there, _ = listener.accept()
        with there:
            head = until(there, b"\r\n\r\n")
            if answered.startswith(b"\x88"):
                [nonce] = re.findall(rb"(?i)sec-websocket-key: (\S+)", head)
                there.sendall(SWITCHING % accept_key(nonce.decode()).encode())
            if answered:
                there.sendall(answered)
                until(client, answered[-3:])
            process.tell(signal.SIGTERM)
            if not answered:
                until(client, b"HTTP/1.1 503")
            assert process.status() == 0  # while the client keeps the connection, and does not look at it
    assert process.news == []


@pytest.mark.untraced
def test_workers_that_are_replaced_show_the_certificate_that_is_there_by_then(run: Run, tmp_path: Path) -> None:
    shown, renewed = tmp_path / "oxy.pem", new_authority(tmp_path)
    shown.write_text(Path(LISTENER).read_text())
    process = run("--tls-cert", "oxy.pem", "--tls-key", "oxy.pem", "--workers", "2", "--target", NOBODY)
    old = ssl.get_server_certificate(("127.0.0.1", process.port))
    process.tell(signal.SIGHUP)  # behind it both serve; before, one may still be reading the files
    assert any(" SIGHUP: all 2 workers are new" in process.errors for _ in polls())
    shown.write_text(renewed.server.read_text())
    process.tell(signal.SIGHUP)
    assert any(process.errors.count(" SIGHUP: all 2 workers are new") == 2 for _ in polls())
    assert any(ssl.get_server_certificate(("127.0.0.1", process.port)) != old for _ in polls()), "nobody looked"
    shown.write_text("no certificate")
    process.tell(signal.SIGHUP)
    assert any(" did not begin to serve; the old ones from " in process.errors for _ in polls())
    assert "PROXY_TLS_CERT and PROXY_TLS_KEY cannot be read by now" in process.errors
    assert "Traceback" not in process.errors
    assert ssl.get_server_certificate(("127.0.0.1", process.port)) != old


# ---- an ordered stop


@pytest.mark.parametrize(
    "number", [*(pytest.param(number, marks=pytest.mark.untraced) for number in sorted(STOPS)), signal.SIGHUP]
)
def test_a_running_stream_finishes_after_the_order_to_stop(
    run: Run, listener: socket.socket, number: signal.Signals
) -> None:
    # A single process has nobody to replace it at SIGHUP.
    process = run("--target", local_url(listener))
    with draining(process, listener, number) as (client, there):
        there.sendall(chunked(b"two", b""))
        assert rest(client) == chunked(b"two", b"")
    assert process.status() == 0
    assert process.news == []


def test_a_stream_that_outlasts_the_grace_time_is_cut_off(run: Run, listener: socket.socket) -> None:
    process = run("--target", local_url(listener), PROXY_SHUTDOWN_GRACE_MS="100")
    with streaming(process, listener) as (client, _):
        process.tell(signal.SIGTERM)
        assert process.status() == 0
        assert rest(client) == b"", "it ended what broke"
    (line,) = process.news
    assert line.endswith("Cancel 1 running task(s), timeout graceful shutdown exceeded")


@pytest.mark.untraced
def test_who_is_cut_off_before_the_head_hears_the_id_of_the_line(run: Run, listener: socket.socket) -> None:
    process = run("--target", local_url(listener), PROXY_SHUTDOWN_GRACE_MS="100")
    with calling(process, listener, (b"X-Request-Id", b"mine")) as (client, _):
        process.tell(signal.SIGTERM)
        head, _, body = rest(client).partition(b"\r\n\r\n")
    assert process.status() == 0
    error, line = json.loads(body)["error"], json.loads(process.output)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in head
    assert (error["code"], "stopping" in error["message"]) == ("OPENAI_PROXY_OVERLOADED", True)
    assert (line["status"], line["id"], line["incoming_id"]) == (503, error["requestId"], "mine")
    assert (line["result"], line["overloaded"], line["bytes_out"]) == ("proxy_overloaded", False, len(body))
    assert error["incomingRequestId"] == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.untraced)])
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.untraced), "2"])
def test_a_second_order_to_stop_ends_it_at_once(
    run: Run, listener: socket.socket, number: signal.Signals, workers: str
) -> None:
    process = run("--target", local_url(listener), PROXY_WORKERS=workers)
    with draining(process, listener, number) as (client, _):
        process.tell(number)
        assert process.status() == 0
        assert rest(client) == b"", "it ended what broke"
    (line,) = process.news
    assert line.endswith(" WARNING told to stop again: what runs is cut off, 1 in all")
    entry = json.loads(process.output)
    assert (entry["status"], entry["result"], entry["bytes_out"]) == (200, "proxy_overloaded", 3)


@pytest.mark.untraced
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_two_orders_to_stop_that_come_together_are_two(
    run: Run, listener: socket.socket, second: signal.Signals
) -> None:
    process = run("--target", local_url(listener), PROXY_WORKERS="2")
    with calling(process, listener) as (client, _):
        process.tell(signal.SIGTERM)
        time.sleep(0.5)  # else the kernel, or a busy interpreter, makes one of two that are alike
        process.tell(second)
        assert process.status() == 0, "it took the time that running answers have"
        assert b" 503 " in rest(client)
    assert json.loads(process.output)["result"] == "proxy_overloaded"


@pytest.mark.untraced
def test_while_it_drains_it_says_so_to_those_who_are_connected(run: Run, listener: socket.socket) -> None:
    process = run("--target", local_url(listener))
    with (
        socket.create_connection(("127.0.0.1", process.port), PATIENCE) as client,
        socket.create_connection(("127.0.0.1", process.port), PATIENCE) as prober,
    ):
        client.sendall(request())
        there, _ = listener.accept()
        prober.sendall(request(target=b"/health"))
        assert b'"status":"ok"' in until(prober, b"}")
        with there:
            until(there, b"\r\n\r\n")
            process.tell(signal.SIGTERM)
            assert any(refuses(process.port) for _ in polls()), "it still accepts"
            prober.sendall(request(target=b"/health"))
            health = rest(prober)
            assert health.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in health
            assert b'"status":"draining"' in health
            there.sendall(answer(body=b"well"))
            assert rest(client).endswith(b"well")
    assert process.status() == 0
    assert process.news == []


@pytest.mark.untraced
def test_an_order_to_stop_that_comes_before_the_server_is_up_is_obeyed(run: Run) -> None:
    process = run()
    process.tell(signal.SIGTERM)
    assert process.status() == 0
    assert process.news == []


@pytest.mark.untraced
def test_two_workers_both_answer_and_stop_with_status_0(run: Run) -> None:
    process = run("--workers", "2", "--target", NOBODY, **SWAP)
    assert any(len(process.workers) == 2 for _ in polls())
    for worker in process.workers:
        worker.suspend()  # so that the other one has to answer
        assert process.health().status == 200
        worker.resume()
    workers = process.workers
    process.tell(signal.SIGTERM)
    assert process.status() == 0
    assert not any(worker.is_running() for worker in workers)
    assert process.news == []
    assert "workers 2" in process.errors
    assert "history" not in process.errors, "the folder for what workers share is nobody's choice"
    assert CLIENT_KEY not in process.errors
    assert UPSTREAM_KEY not in process.errors


@pytest.mark.untraced
def test_a_bound_is_that_of_all_workers_and_one_that_dies_gives_back_what_it_had(
    run: Run, listener: socket.socket
) -> None:
    process = run("--workers", "2", "--target", local_url(listener), OPENAI_PROXY_MAX_PARALLEL_REQUESTS="3")
    assert any(len(process.workers) == 2 for _ in polls())
    assert process.health().status == 200
    busy, other = process.workers
    other.suspend()  # so that the first takes all three
    with ExitStack() as calls:
        for _ in range(3):
            calls.enter_context(calling(process, listener))
        busy.suspend()
        other.resume()
        with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as refused:
            refused.sendall(request())
            assert until(refused, b"\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        busy.kill()
        assert any(len(set(process.workers) - {busy}) == 2 for _ in polls())
        with calling(process, listener) as (client, there):
            there.sendall(HEAD + chunked(b""))
            assert until(client, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    process.tell(signal.SIGTERM)
    assert process.status() == 0


def test_a_worker_that_dies_is_replaced_and_the_log_says_so(run: Run) -> None:
    process = run("--workers", "2", "--target", NOBODY)
    assert process.health().status == 200
    assert any(len(process.workers) == 2 for _ in polls())
    died, lives = process.workers
    died.kill()
    assert any(process.news for _ in polls()), "nobody says so"
    (line,) = process.news
    assert re.search(rf" WARNING worker {died.pid} died or hung \(status -9\); \d+ takes its place$", line)
    assert any(len(process.workers) == 2 for _ in polls())
    assert lives in process.workers
    assert process.health().status == 200
    process.tell(signal.SIGTERM)
    assert process.status() == 0
    assert process.news == [line]


def with_one_that_hangs(run: Run) -> tuple[Process, psutil.Process, psutil.Process]:
    """Two workers, of which one gives no sign of life, and is being asked for one."""
    process = run("--workers", "2", "--target", NOBODY)
    assert any(len(process.workers) == 2 for _ in polls())
    assert process.health().status == 200
    hung, other = process.workers
    hung.suspend()
    time.sleep(2)  # it is asked every half second
    return process, hung, other


@pytest.mark.untraced
def test_a_worker_that_is_killed_while_it_is_asked_for_a_sign_of_life_is_replaced_at_once(run: Run) -> None:
    process, hung, _ = with_one_that_hangs(run)
    hung.kill()
    said = f" worker {hung.pid} died or hung (status -9); "
    assert any(said in process.errors for _ in polls(SOON)), "nobody says so"


@pytest.mark.untraced
def test_orders_to_stop_are_heard_while_a_worker_gives_no_sign_of_life(run: Run) -> None:
    process, hung, other = with_one_that_hangs(run)
    process.tell(signal.SIGTERM)
    assert any(process.workers == [hung] for _ in polls(SOON)), f"{other} goes on"
    process.tell(signal.SIGTERM)
    time.sleep(0.2)  # else the kernel makes one of two
    process.tell(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.untraced
def test_workers_that_are_replaced_finish_what_they_have_and_orders_are_heard_meanwhile(
    run: Run, listener: socket.socket
) -> None:
    process = run("--workers", "2", "--target", local_url(listener))
    assert any(len(process.workers) == 2 for _ in polls())
    with streaming(process, listener) as (client, there):
        old = process.workers
        process.tell(signal.SIGHUP)
        assert any(len(set(process.workers) - set(old)) == 2 for _ in polls())
        assert any(process.health().status == 200 for _ in polls()), "one that stops may still hear of it"
        assert any(len(process.workers) == 3 for _ in polls()), "it is the one with the stream that stays"
        there.sendall(chunked(b"two"))
        until(client, b"two\r\n")
        process.tell(signal.SIGINT, all_of_it=True)  # Ctrl-C, sent to all of them, which workers do not hear
        assert any(refuses(process.port) for _ in polls(SOON)), "it still accepts"
        there.sendall(chunked(b"three", b""))
        assert rest(client) == chunked(b"three", b"")
    assert process.status() == 0
    assert process.news == []


@pytest.mark.untraced
def test_sighup_that_is_sent_to_all_processes_tears_nothing(run: Run, listener: socket.socket) -> None:
    # As `systemctl kill -s HUP oxy` does.
    process = run("--workers", "2", "--target", local_url(listener))
    assert any(len(process.workers) == 2 for _ in polls())
    with streaming(process, listener) as (client, there):
        process.tell(signal.SIGHUP, all_of_it=True)
        assert any(" SIGHUP: all 2 workers are new" in process.errors for _ in polls())
        there.sendall(chunked(b"two", b""))
        assert rest(client) == chunked(b"two", b"")
    process.tell(signal.SIGTERM)
    assert process.status() == 0
    assert "resource_tracker" not in process.errors


@pytest.mark.untraced
def test_workers_whose_supervisor_was_killed_finish_what_they_have_and_end(run: Run, listener: socket.socket) -> None:
    process = run("--workers", "2", "--target", local_url(listener))
    assert any(len(process.workers) == 2 for _ in polls())
    workers = process.workers
    try:
        with draining(process, listener, signal.SIGKILL) as (client, there):
            there.sendall(chunked(b"two", b""))
            assert rest(client) == chunked(b"two", b"")
        _, left = psutil.wait_procs(workers, PATIENCE)
        assert not left
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    assert len(process.news) == 2
    assert all(line.endswith(" WARNING the supervisor is gone: this worker stops") for line in process.news)


@pytest.mark.untraced
def test_the_folder_of_a_killed_supervisor_stays_for_as_long_as_its_workers_finish(
    run: Run, listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = run("--workers", "2", "--target", local_url(listener), TMPDIR=str(tmp_path))
    assert any(len(process.workers) == 2 for _ in polls())
    workers = process.workers
    (folder,) = tmp_path.glob("oxy-*")
    with draining(process, listener, signal.SIGKILL) as (client, there):
        remove_abandoned()
        assert folder.exists()
        there.sendall(chunked(b"two", b""))
        assert rest(client) == chunked(b"two", b"")
    _, left = psutil.wait_procs(workers, PATIENCE)
    assert not left
    assert place(folder).exists()
    remove_abandoned()
    assert not folder.exists()
    assert not place(folder).exists()


async def test_a_worker_is_told_to_stop_once_when_its_supervisor_is_gone(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[signal.Signals] = []
    told = asyncio.Event()

    def order(number: signal.Signals) -> None:
        orders.append(number)
        told.set()

    ends, its = os.pipe()
    on_windows = SimpleNamespace(
        call_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe
    )  # no `add_reader`
    monkeypatch.setattr("asyncio.get_running_loop", lambda: on_windows)
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(sentinel=ends))
    monkeypatch.setattr("signal.raise_signal", order)
    assert callable(application(settings_of(PROXY_WORKERS="2")))
    await asyncio.sleep(0.05)
    assert orders == []
    os.close(its)
    async with asyncio.timeout(PATIENCE):
        await told.wait()
    await asyncio.sleep(0.05)
    assert orders == [signal.SIGTERM]
    os.close(ends)


def test_a_worker_that_has_ended_does_not_care_for_its_supervisor() -> None:
    ends, its = os.pipe()
    before = {*threading.enumerate()}

    async def serve() -> None:
        end_with(ends)

    asyncio.run(serve())
    [watch] = {*threading.enumerate()} - before
    os.close(its)
    watch.join(PATIENCE)  # what it raises fails the test
    os.close(ends)


@pytest.mark.untraced
async def test_the_metrics_of_three_workers_add_up_to_what_was_sent(run: Run, upstream: Upstream) -> None:
    upstream.says(answer(headers=[(b"Content-Type", b"application/json")], body=USED))
    process = run("--workers", "3", "--target", upstream.url, ACCESS_TOKEN=TOKEN)
    assert any(len(process.workers) == 3 for _ in polls())
    assert process.health().status == 200
    for each in process.workers:
        others = [other for other in process.workers if other != each]
        for other in others:
            other.suspend()  # so that this one has to answer
        client = await connect(process.port)
        for _ in range(4):
            await client.say(request("POST", b"/v1/chat/completions", body=b"{}"))
            assert (await client.hear()).body == USED
        await client.close()
        for other in others:
            other.resume()
    sent = {
        series("oxy_exchanges_total", **ENDED): 12,
        series("oxy_received_bytes_total", route="relay"): 12 * len(b"{}"),
        series("oxy_sent_bytes_total", route="relay"): 12 * len(USED),
        series("oxy_tokens_total", kind="input", model="m"): 36,
        series("oxy_tokens_total", kind="output", model="m"): 48,
        series("oxy_exchange_duration_seconds_count", route="relay"): 12,
        series("oxy_exchanges_in_flight"): 0,
        series("oxy_slots", guard="relay"): 1024,
    }
    client, shown = await connect(process.port), {}
    for _ in polls():  # each worker shares its figures once a second
        await client.say(request("GET", b"/metrics", [BEARER]))
        shown = samples((await client.hear()).body)
        if shown.get(series("oxy_exchanges_total", **ENDED)) == 12:
            break
    await client.close()
    assert {name: shown.get(name) for name in sent} == sent
    process.tell(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.untraced
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_resized_terminal_is_no_second_order_to_stop(run: Run, listener: socket.socket, workers: str) -> None:
    process = run("--target", local_url(listener), PROXY_WORKERS=workers)
    with draining(process, listener, signal.SIGTERM) as (client, there):
        process.tell(signal.SIGWINCH, all_of_it=True)
        time.sleep(0.3)  # the supervisor looks ten times a second
        there.sendall(chunked(b"two", b""))
        assert rest(client) == chunked(b"two", b"")
    assert process.status() == 0
    assert process.news == []


@pytest.mark.untraced
def test_ctrl_c_stops_two_workers_in_silence(run: Run) -> None:
    process = run("--workers", "2", "--target", NOBODY)
    assert process.health().status == 200
    process.tell(signal.SIGINT, all_of_it=True)
    assert process.status() == 0
    assert process.news == []


# ---- standard streams that take nothing

ALL = "0<&- 1>&- 2>&-"


@pytest.mark.untraced
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stderr_that_nobody_reads_stops_nothing(
    run_elsewhere: Run, listener: socket.socket, unread: Path, workers: str
) -> None:
    options = ("--target", local_url(listener), "--workers", workers)
    process = run_elsewhere(f"2>{unread}", *options, PROXY_SHUTDOWN_GRACE_MS="100")
    with streaming(process, listener) as (client, _):
        process.tell(signal.SIGTERM)
        assert rest(client) == b"", "of this a worker writes a line"
    assert process.status() == 0


@pytest.mark.untraced
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stderr_on_a_full_disk_stops_nothing(run_elsewhere: Run, workers: str) -> None:
    # A Python that is told not to buffer keeps nothing that it could stumble over at its end.
    process = run_elsewhere("2>/dev/full", "--target", NOBODY, "--workers", workers, PYTHONUNBUFFERED="")
    process.tell(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.parametrize(
    ("workers", "closed"),
    [
        ("1", ALL),
        *(
            pytest.param(workers, closed, marks=pytest.mark.untraced)
            for workers, closed in (("1", "0<&- 1>&-"), ("1", "0<&- 2>&-"), ("1", "1>&- 2>&-"), ("2", ALL))
        ),
    ],
)
def test_started_without_standard_streams_it_serves_and_stops_with_status_0(
    run_elsewhere: Run, closed: str, workers: str
) -> None:
    process = run_elsewhere(closed, "--target", NOBODY, "--workers", workers)
    process.tell(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.untraced
def test_what_it_wrote_before_the_end_is_all_there_and_in_order(run: Run) -> None:
    process = run("--target", NOBODY, "--workers", "2")
    process.tell(signal.SIGTERM)
    assert process.status() == 0
    first, *_, last = process.errors.splitlines()
    assert " listens on " in first
    assert last.endswith(" INFO oxy has stopped")


# ---- the command line


def test_bad_settings_are_one_message_and_status_2(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={UPSTREAM_KEY} x\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OXY_PORT": "none", "PROXY_WORKERS": "0"}
    ended = subprocess.run(COMMAND, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "oxy: settings are not usable:\n"
        "  OXY_PORT: not a port: write a number from 0 to 65535\n"
        "  PROXY_WORKERS: write a whole number from 1 to 256\n"
        "  OPENAI_API_KEY: it holds a space or a character that cannot stand in a header\n"
    )


def test_an_unreadable_env_file_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").mkdir()
    assert main(["--port", "0"]) == 2
    assert capsys.readouterr().err == "oxy: settings are not usable:\n  .env cannot be read: Is a directory\n"


def test_a_port_in_use_is_status_1(listener: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    port = listener.getsockname()[1]
    assert main(["--host", "127.0.0.1", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"oxy: cannot listen on 127.0.0.1 port {port}: address already in use. "
        "Choose another with --host and --port (OXY_HOST, OXY_PORT), or stop what uses it\n"
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot assign requested address"),
        pytest.param("2001:db8::1", "cannot assign requested address", marks=NEEDS_IPV6),
        (UNKNOWN, "name or service not known|[a-z -]*failure in name resolution"),
    ],
    ids=["IPv4", "IPv6", "unknown name"],
)
def test_an_address_that_is_not_ours_is_status_1(host: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", host, "--port", "0"]) == 1
    told = capsys.readouterr().err
    assert re.match(rf"oxy: cannot listen on {re.escape(host)} port 0: ({reason})\. Choose another", told), told
    assert len(told.splitlines()) == 1


BAD_AND_GOOD = {
    "host": ("a b", "::1"),
    "port": ("none", "80"),
    "target": ("ftp://a", NOBODY),
    "tls-cert": ("/nowhere", LISTENER),
    "tls-key": ("/nowhere", LISTENER),
    "workers": ("0", "2"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_beats_the_environment(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = OPTIONS[option]
    bad, good = BAD_AND_GOOD[option]
    monkeypatch.setenv("PROXY_FORWARDED", "nowhere")  # so that no attempt gets to the point of serving
    monkeypatch.setenv(name, good)
    assert main([f"--{option}", bad]) == 2
    assert f"  {name}: " in capsys.readouterr().err
    monkeypatch.setenv(name, bad)
    assert main([f"--{option}", good]) == 2
    assert f"  {name}: " not in capsys.readouterr().err
    assert main([f"--{option}", ""]) == 2, "an empty option counts as unset"
    assert f"  {name}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--version"], 0, rf"oxy {re.escape(__version__)}\n"),
        (["--help"], 0, r"usage: oxy (.|\n)*"),
        (["--colour"], 2, r"usage: oxy (.|\n)*unrecognized arguments: --colour\n"),
        (["--demo", "--target", NOBODY], 2, r"usage: oxy (.|\n)*--demo brings a target of its own: .*\n"),
        (["--port"], 2, r"usage: oxy (.|\n)*expected one argument\n"),
    ],
)
def test_the_command_line_explains_itself(
    arguments: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status
    assert re.fullmatch(told, "".join(capsys.readouterr()))


def test_help_names_each_option_and_the_setting_it_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option, (name, _) in OPTIONS.items():
        assert re.search(rf"--{option} {option.upper()} (?:(?! --).)*overrides {name}\b", told)
    assert "--demo" in told


def test_the_command_and_the_module_are_the_same() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"oxy": f"{main.__module__}:{main.__name__}"}


# ---- the demo


def paragraph(text: str, beginning: str) -> str:
    """The indented lines from that beginning to the first line that is indented no more."""
    return dedent(re.search(rf"^  {beginning}.*\n(\n|  .*\n)*", text, re.MULTILINE)[0]).strip()  # type: ignore[index]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_the_curl_line_that_the_demo_prints_streams_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    # Whatever stands in the way of other proxies, the demo works as printed.
    others = {"OXY_TARGET": "ftp://nowhere", "OPENAI_API_KEY": "", "SECURITY_KEY": UPSTREAM_KEY, "PROXY_ENDPOINTS": "/"}
    others |= {"http_proxy": NOBODY, "ALL_PROXY": NOBODY, "AZURE_OPENAI_API_KEY": "another", "PROXY_AZURE": "v1"}
    others |= {"PROXY_KEY_NAMES": "alice,bob", "PROXY_HISTORY": "history.sqlite"}
    process = run("--demo", PROXY_OPEN="1", **others)
    curl = paragraph(process.output, "curl")
    asked = subprocess.run(["sh", "-c", curl], capture_output=True, timeout=PATIENCE)
    events = asked.stdout.split(b"\n\n")
    assert len([event for event in events if event.startswith(b"data: {")]) > 3
    assert events[-2:] == [b"data: [DONE]", b""]
    process.tell(signal.SIGINT)
    assert process.status() == 0
    assert process.news == []
    assert not (tmp_path / "history.sqlite").exists()


def test_the_invitation_can_be_pasted() -> None:
    text = invitation("http://127.0.0.1:18443")
    words = shlex.split(paragraph(text, "curl").replace("\\\n", ""))
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:18443/v1/chat/completions"]
    snippet = paragraph(text, "from openai")
    compile(snippet, "the snippet", "exec")
    assert 'OpenAI(base_url="http://127.0.0.1:18443/v1", api_key="' in snippet


# ---- where it listens


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        pytest.param("::1", "http://[::1]:", marks=NEEDS_IPV6),
        pytest.param("::", "http://[::1]:", marks=NEEDS_IPV6),
    ],
)
def test_what_listens_can_be_reached_under_its_url(host: str, url: str) -> None:
    with listen(host, 0) as sock:
        port = sock.getsockname()[1]
        assert local_url(sock) == f"{url}{port}"
        socket.create_connection((url[7:-1].strip("[]"), port), PATIENCE).close()


@NEEDS_IPV6
def test_all_interfaces_are_those_of_ipv4_too() -> None:
    with listen("::", 0) as sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), PATIENCE).close()


def test_a_port_that_was_just_given_back_can_be_taken_again() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        sock.accept()[0].close()  # the closing side keeps the port in TIME_WAIT
        client.close()
    listen("127.0.0.1", port).close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
def test_a_client_that_acknowledges_nothing_has_the_time_of_one_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OnlyServer, "run", lambda *_, **__: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with listen("127.0.0.1", 0) as sock:
        serve(Settings(target=target(NOBODY), client_timeout=7), sock)
        with socket.create_connection(sock.getsockname(), PATIENCE), sock.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


def test_accepted_connections_send_small_pieces_at_once() -> None:
    with (
        listen("127.0.0.1", 0) as sock,
        socket.create_connection(sock.getsockname(), PATIENCE),
        sock.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_client_that_says_nothing_is_asked_now_and_then_whether_it_is_still_there(transparent: Running) -> None:
    client = await transparent.connect()
    await client.say(request(target=b"/health"))
    await client.hear()
    (connection,) = transparent.state.connections
    accepted = cast(HttpProtocol, connection)._transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for name, value in KEEP_ALIVE:
        assert accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


def test_why_it_cannot_listen_is_chained(listener: socket.socket) -> None:
    with pytest.raises(CannotListen) as told:
        listen("127.0.0.1", listener.getsockname()[1])
    assert isinstance(told.value.__cause__, OSError)


# ---- what it writes


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "transparent: nothing is checked"),
        (SWAP, "swap: client keys are checked and replaced"),
        ({"SECURITY_KEY": CLIENT_KEY}, "guarded: client keys are checked and removed"),
        ({"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_OPEN": "1"}, "open: NOBODY IS ASKED FOR A KEY"),
    ],
    ids=["transparent", "swap", "guarded", "open"],
)
def test_the_start_up_log_names_mode_and_target_and_no_key(
    settings_of: SettingsOf, environ: dict[str, str], mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(OXY_TARGET="https://a.example:8443/v1", PROXY_WORKERS="3", **environ)
    configure(settings)
    with listen("127.0.0.1", 0) as sock:
        announce(settings, sock)
        port = sock.getsockname()[1]
    told = capsys.readouterr().err
    first, second, third, fourth = (line.partition(" INFO ")[2] for line in told.splitlines())
    assert first == f"oxy {__version__} listens on http://127.0.0.1:{port}"
    assert second == "target https://a.example:8443/v1, workers 3"
    assert third.startswith(f"mode {mode}")
    assert fourth.startswith("not at their defaults: workers=3")
    assert ("openai_api_key set" in fourth) == ("OPENAI_API_KEY" in environ)
    assert CLIENT_KEY not in told
    assert UPSTREAM_KEY not in told


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "http://0.0.0.0"),
        pytest.param("::", "http://[::]", marks=NEEDS_IPV6),
    ],
)
def test_the_start_up_log_says_that_all_interfaces_are_served(
    host: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(target=target(NOBODY))
    configure(settings)
    with listen(host, 0) as sock:
        announce(settings, sock)
        port = sock.getsockname()[1]
    line = capsys.readouterr().err.splitlines()[0]
    assert line.endswith(f"listens on {shown}:{port}, reachable on all interfaces of this machine")


def test_the_start_up_log_warns_of_names_that_are_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(target=target(NOBODY), notes=(".env: PROXY_WORKER is not a setting, 100 %s",))
    configure(settings)
    with listen("127.0.0.1", 0) as sock:
        announce(settings, sock)
    assert capsys.readouterr().err.splitlines()[-1].endswith(" WARNING .env: PROXY_WORKER is not a setting, 100 %s")


@pytest.mark.untraced
@pytest.mark.parametrize("workers", [1, 2])
def test_each_process_may_have_as_many_sockets_open_as_the_bound_takes(run: Run, workers: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        process = run("--target", NOBODY, "--workers", str(workers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.health().status == 200
    for each in process.workers or [psutil.Process(process.pid)]:
        assert each.rlimit(psutil.RLIMIT_NOFILE) == (2312, hard)
    assert process.news == []


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "2000 files open, and 1056 exchanges at once take up to 2312: .* to 900$"),
        ({"PROXY_WORKERS": "3", "OPENAI_PROXY_MAX_PARALLEL_REQUESTS": "3000"}, "2000 .* 3000 .* 6200: .* to 900$"),
        ({"OPENAI_PROXY_MAX_PARALLEL_REQUESTS": "900"}, None),
    ],
)
def test_a_machine_that_allows_too_few_open_files_is_told_of(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, told: list[str], environ: dict[str, str], said: str | None
) -> None:
    monkeypatch.setattr("proxy.server.allow", lambda needed: min(needed, 2000))
    make_room(settings_of(**environ))
    assert bool(told) == (said is not None)
    assert all(re.search(said or "", line) for line in told)


@pytest.mark.parametrize(
    ("message", "problem", "written"),
    [
        ("ASGI callable returned without completing response.", None, False),
        ("ASGI callable returned without completing handshake.", None, False),
        ("Invalid UTF-8 sequence received from client.", ValueError(), False),
        ("Exception in ASGI application\n", asyncio.CancelledError(), False),
        ("Exception in ASGI application\n", ValueError(), True),
        ("Invalid HTTP request received.", None, False),
        (OSError("not a text"), None, True),
    ],
)
def test_only_news_is_written(message: object, problem: BaseException | None, written: bool) -> None:
    exc_info = (type(problem), problem, None) if problem else None
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, message, None, exc_info)
    assert OnlyNews().filter(record) is written


def test_without_a_descriptor_stderr_is_written_as_logging_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = to_stderr()
    handler.handle(logging.makeLogRecord({"msg": "well"}))
    assert capsys.readouterr().err == "well\n"
    monkeypatch.setattr(sys, "stderr", None)
    to_stderr().handle(logging.makeLogRecord({"msg": "nobody hears this"}))


def test_what_the_loop_says_is_written_as_the_rest_is(
    settings_of: SettingsOf, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(settings_of(**SWAP))
    logging.getLogger("asyncio").error("socket.accept() has failed for %s", UPSTREAM_KEY)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" ERROR socket.accept() has failed for ***")


async def test_an_answer_left_torn_is_one_line_in_the_log(
    start: Start, upstream: Upstream, capfd: pytest.CaptureFixture[str]
) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        await there.say(HEAD, chunked(b"one"))
        await client.until(b"one\r\n")
        await there.close()
        assert await client.rest() == b""
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    assert json.loads(line)["result"] == "upstream_transport"
    assert err == ""


async def test_a_request_to_upgrade_is_relayed_in_silence(
    start: Start, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.says(answer())
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")]))
        assert (await client.hear()).status == 200
    assert capsys.readouterr().err == ""


# ---- what uvicorn is told


@pytest.mark.untraced
def test_the_server_adds_no_fields_of_its_own(run: Run) -> None:
    process = run()
    names = {name.lower() for name, _ in process.health().getheaders()}
    assert names == {"content-type", "content-length", "cache-control"}
    process.tell(signal.SIGTERM)
    assert process.status() == 0


def test_the_grace_time_is_the_chosen_one(settings_of: SettingsOf) -> None:
    assert configure(settings_of(PROXY_SHUTDOWN_GRACE_MS="1500")).timeout_graceful_shutdown == 1.5


async def test_a_client_that_hangs_up_is_heard_of_while_its_call_waits(client: Peer, upstream: Upstream) -> None:
    await client.say(request())
    there = await upstream.accept()
    await there.hear()
    client.abort()
    await there.closed()


async def test_an_idle_connection_is_closed_after_the_chosen_time(start: Start) -> None:
    async with start(PROXY_KEEP_ALIVE_MS="20") as proxy:
        client = await proxy.connect()
        await client.say(request(target=b"/health"))
        assert (await client.hear()).status == 200
        async with asyncio.timeout(3):  # uvicorn's own choice would be 5
            await client.closed()


async def test_an_idle_connection_is_kept_for_the_next_request(transparent: Running) -> None:
    client = await transparent.connect()
    for _ in range(3):
        await client.say(request(target=b"/health"))
        assert (await client.hear()).status == 200
