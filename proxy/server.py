"""The server: uvicorn with our settings and protocols. It listens, serves, and ends with status 0 when told to stop."""

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from threading import Thread
from types import FrameType
from typing import Any

import uvicorn

from proxy import __version__, native
from proxy.app import MOST_RELAYED, MOST_SHAPED, create_app, relay_app
from proxy.dial import give_up_after, prepare
from proxy.heads import Heads
from proxy.lines import News
from proxy.openfiles import allow
from proxy.redaction import RedactedFormatter, Redaction
from proxy.settings import Settings
from proxy.upgrade import PING_INTERVAL, WebSocketProtocol
from proxy.workers import STOPS, Server, Workers
from proxy.workspace import stay, workspace

BACKLOG = 2048
RESERVE = 200  # open files besides those of exchanges: idle connections, logs, the history
ALL_INTERFACES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # and where this machine finds itself on them
MODES = {
    "transparent": "transparent: nothing is checked, each client's own key goes on untouched",
    "swap": "swap: client keys are checked and replaced by the server's key",
    "guarded": "guarded: client keys are checked and removed, each client's own Authorization goes on",
    "open": "open: NOBODY IS ASKED FOR A KEY; whoever reaches the port spends the server's (PROXY_OPEN=1)",
}

OLD_NEWS = ("returned without completing", "Invalid UTF-8 sequence", "Invalid HTTP request")

log = logging.getLogger("oxy")


class CannotListen(Exception):
    """The address is taken or not ours; the message says what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise `CannotListen` if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()  # else IPv4 would find nobody on "all interfaces"
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as problem:
        reason = (problem.strerror or str(problem)).partition(" (while")[0].lower()
        raise CannotListen(
            f"cannot listen on {host} port {port}: {reason}. Choose another with --host and --port "
            "(OXY_HOST, OXY_PORT), or stop what uses it"
        ) from problem
    # Accepted connections inherit these options: signs of life, by which alone a client that vanished is noticed while
    # its call waits, and no delay, which asyncio sets only where a socket names TCP as its protocol.
    prepare(sock)
    return sock


def speaking(settings: Settings) -> Callable[..., asyncio.Protocol]:
    """Return what makes a protocol for each client: our own, or one in Python where httptools is missing."""
    if not native.has_llhttp():
        from proxy.pure import PureProtocol

        return partial(PureProtocol, head_timeout=settings.head_timeout)
    from proxy.protocol import HttpProtocol

    return partial(
        HttpProtocol, heads=Heads(), head_timeout=settings.head_timeout, client_timeout=settings.client_timeout
    )


def application(settings: Settings) -> Any:
    """Return what a process serves. Called in its loop."""
    if settings.workers > 1 and (supervisor := multiprocessing.parent_process()) is not None:
        end_with(supervisor.sentinel)
        stay()
    return relay_app(settings) if native.has_llhttp() else create_app(settings)


def end_with(supervisor: int) -> None:
    """Stop when this says that the supervisor is gone: a worker that stayed would hold the port for ever.

    It is waited for in a thread: on Windows it is no descriptor, and no loop takes it.
    """
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.warning("the supervisor is gone: this worker stops")
        signal.raise_signal(signal.SIGTERM)

    def watch() -> None:
        wait([supervisor])
        with suppress(RuntimeError):  # the loop has ended, and this process is about to
            loop.call_soon_threadsafe(stop)

    Thread(target=watch, name="oxy-supervisor", daemon=True).start()


def configure(settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration for an application with these settings."""
    return uvicorn.Config(
        partial(application, settings),
        factory=True,
        http=speaking(settings),  # type: ignore[arg-type]  # called as the class would be
        ws=WebSocketProtocol,
        ws_max_size=settings.websocket_max,
        ws_ping_interval=PING_INTERVAL,
        ws_ping_timeout=None,  # whoever reads slowly answers late, and is not to be cut off
        ws_per_message_deflate=False,  # see docs/design.md
        lifespan="on",
        workers=settings.workers,
        timeout_worker_healthcheck=15,  # seconds: on a busy machine a worker may take more than uvicorn's 5 to start
        proxy_headers=False,  # who is the client is decided by the connection, never by a header
        server_header=False,  # the upstream's `server` and `date` pass
        date_header=False,
        access_log=False,
        log_config=logging_config(settings),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # the loop takes fractions
        timeout_graceful_shutdown=settings.shutdown_grace,  # type: ignore[arg-type]
    )


def serve(settings: Settings, sock: socket.socket) -> None:
    """Serve on that socket until SIGTERM or SIGINT; then let what runs finish, and exit with status 0."""
    with workspace(settings) as equipped:
        _serve(equipped, sock, partial(announce, replace(settings, notes=equipped.notes), sock))
    log.info("oxy has stopped")


def _serve(settings: Settings, sock: socket.socket, say: Callable[[], None]) -> None:
    config = configure(settings)
    give_up_after(sock, settings.client_timeout)  # who is accepted inherits it
    if settings.workers > 1:
        run = Workers(config, sockets=[sock]).run  # hears signals from here on
    else:
        server = OnlyServer(config)
        signal.signal(getattr(signal, "SIGHUP", signal.SIGTERM), server.hang_up)  # Windows has none
        # uvicorn raises the signal that ended it once more, for the handler that was there before: its own, so that
        # an ordered stop is status 0 and not -15, also where it is ordered before the server is up.
        for number in STOPS:
            signal.signal(number, server.handle_exit)
        run = partial(server.run, sockets=[sock])
    say()
    make_room(settings)  # before workers are started, which inherit it
    run()


def make_room(settings: Settings) -> None:
    """Let each process have two sockets open for each exchange of the bound; say where it may not.

    The bound is one for all processes, and any of them may happen to have all of it.
    """
    most = settings.max_parallel or MOST_RELAYED + MOST_SHAPED
    needed = 2 * most + RESERVE
    if (allowed := allow(needed)) < needed:
        log.warning(
            "a process may have %s files open, and %s exchanges at once take up to %s: raise the hard limit "
            "(ulimit -Hn, LimitNOFILE), or set OPENAI_PROXY_MAX_PARALLEL_REQUESTS to %s",
            *(allowed, most, needed, max(1, (allowed - RESERVE) // 2)),
        )


@contextmanager
def serving(settings: Settings, sock: socket.socket) -> Iterator[None]:
    """Serve from a thread for as long as the block lasts, without a line of the log on stdout."""
    config = configure(replace(settings, shutdown_grace=0.5))
    config.loop = "asyncio"  # uvloop's may hang in `close` where another loop of this process holds the other ends
    server = Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    with redirect_stdout(None):
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


class OnlyServer(Server):
    """The server of a single process, which ends at once when it is told to stop a second time, whichever way."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    def hang_up(self, *_: object) -> None:
        """Take SIGHUP: nobody can take the place of a single process, so that it stops, as by the first order."""
        self.should_exit = True


def announce(settings: Settings, sock: socket.socket) -> None:
    """Write down at start what an operator wants to see at a glance, without a secret."""
    host, port = sock.getsockname()[:2]
    everywhere = ", reachable on all interfaces of this machine" if host in ALL_INTERFACES else ""
    log.info("oxy %s listens on %s%s", __version__, url(host, port, tls=settings.tls_cert is not None), everywhere)
    log.info("target %s, workers %s", settings.target, settings.workers)
    log.info("mode %s", MODES[settings.mode])
    if chosen := ", ".join(settings.changed()):
        log.info("not at their defaults: %s", chosen)
    for note in settings.notes:
        log.warning(note)


def local_url(sock: socket.socket, *, tls: bool = False) -> str:
    """Return the URL under which this machine reaches what listens on that socket."""
    host, port = sock.getsockname()[:2]
    return url(ALL_INTERFACES.get(host, host), port, tls=tls)


def url(host: str, port: int, *, tls: bool) -> str:
    """Return the URL of a host, IPv6 in brackets, and a port."""
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class OnlyNews(logging.Filter):
    """Drops what uvicorn says of an answer left torn or a session refused on purpose, and of what is malformed.

    Of exchanges that outlast the grace time it drops the tracebacks; that some were cancelled is written all the same.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written."""
        cut_off = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
        return not cut_off and not any(words in str(record.msg) for words in OLD_NEWS)


def logging_config(settings: Settings) -> dict[str, Any]:
    """Return what `logging.config.dictConfig` takes; each worker process applies it anew. No secret passes it."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"only-news": {"()": OnlyNews}},
        "formatters": {
            "line": {
                "()": RedactedFormatter,
                ".": {"redact": Redaction(settings.secrets)},
                "fmt": "%(asctime)s %(levelname)s %(message)s",
            }
        },
        "handlers": {
            "stderr": {"()": to_stderr, "formatter": "line", "filters": ["only-news"]},
        },
        "loggers": {
            "oxy": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
            "uvicorn": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
            "asyncio": {"level": "WARNING", "handlers": ["stderr"]},  # else `logging` itself writes it, and waits
        },
    }


def to_stderr() -> logging.Handler:
    """Return what writes to standard error: as `logging` does where that is closed, or is none of the system's."""
    try:
        return News(sys.stderr)
    except (AttributeError, OSError):
        return logging.StreamHandler()
