"""The server: the one file that knows uvicorn. It listens, serves, and ends with status 0 when it is told to stop."""

import asyncio
import logging
import signal
import socket
from functools import partial
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from proxy import __version__, native
from proxy.app import create_app, relay_app
from proxy.settings import Settings

BACKLOG = 2048
ALL_INTERFACES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # and where this machine finds itself on them
MODES = {
    "transparent": "transparent: nothing is checked, each client's own key goes on untouched",
    "swap": "swap: client keys are checked and replaced by the server's key",
    "guarded": "guarded: client keys are checked and removed, each client's own Authorization goes on",
    "open": "open: NOBODY IS ASKED FOR A KEY; whoever reaches the port spends the server's (PROXY_OPEN=1)",
}

OLD_NEWS = ("returned without completing response", "Unsupported upgrade request", "No supported WebSocket library")

log = logging.getLogger("oxy")


class CannotListen(Exception):
    """The address is taken or not ours; the message says what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise `CannotListen` if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as problem:
        reason = (problem.strerror or str(problem)).partition(" (while")[0].lower()
        raise CannotListen(
            f"cannot listen on {host} port {port}: {reason}. Choose another with --host and --port "
            "(OXY_HOST, OXY_PORT), or stop what uses it"
        ) from problem
    # Accepted connections inherit it. asyncio sets it only on sockets that name TCP as their protocol.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def protocol_class() -> type[asyncio.Protocol]:
    """Return what speaks with clients: our own protocol, or one in Python where httptools is missing."""
    if native.has_llhttp():
        from proxy.protocol import HttpProtocol

        return HttpProtocol
    from proxy.pure import PureProtocol

    return PureProtocol


def configure(settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration for an application with these settings."""
    return uvicorn.Config(
        partial(relay_app if native.has_llhttp() else create_app, settings),
        factory=True,
        http=protocol_class(),
        ws="none",
        lifespan="on",
        workers=settings.workers,
        proxy_headers=False,  # who is the client is decided by the connection, never by a header
        server_header=False,  # the upstream's `server` and `date` pass
        date_header=False,
        access_log=False,
        log_config=logging_config(),
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # the loop takes fractions
        timeout_graceful_shutdown=settings.shutdown_grace,  # type: ignore[arg-type]
    )


def serve(settings: Settings, sock: socket.socket) -> None:
    """Serve on that socket until SIGTERM or SIGINT; then let what runs finish, and exit with status 0."""
    config = configure(settings)
    if settings.workers > 1:
        run = Workers(config, sockets=[sock]).run  # hears signals from here on
    else:
        server = uvicorn.Server(config)
        # uvicorn raises the signal that ended it once more, for the handler that was there before: its own, so that
        # an ordered stop is status 0 and not -15, also where it is ordered before the server is up.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)
        run = partial(server.run, sockets=[sock])
    announce(settings, sock)
    run()


class Workers(Multiprocess):
    """uvicorn's supervisor of several processes, which leave Ctrl-C to it until they are up.

    A terminal sends SIGINT to all of them. One that was still importing would end with a traceback, and the supervisor
    would wait five seconds for its sign of life.
    """

    def init_processes(self) -> None:
        """Start the workers."""
        ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a process inherits this one, and no other handler
        super().init_processes()
        signal.signal(signal.SIGINT, ours)


def announce(settings: Settings, sock: socket.socket) -> None:
    """Write down at start what an operator wants to see at a glance, without a secret."""
    host, port = sock.getsockname()[:2]
    everywhere = ", reachable on all interfaces of this machine" if host in ALL_INTERFACES else ""
    log.info("oxy %s listens on %s%s", __version__, url(host, port), everywhere)
    log.info("target %s, workers %s", settings.target, settings.workers)
    log.info("mode %s", MODES[settings.mode])
    for note in settings.notes:
        log.warning(note)


def local_url(sock: socket.socket) -> str:
    """Return the URL under which this machine reaches what listens on that socket."""
    host, port = sock.getsockname()[:2]
    return url(ALL_INTERFACES.get(host, host), port)


def url(host: str, port: int) -> str:
    """Return the URL of a host, IPv6 in brackets, and a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class OnlyNews(logging.Filter):
    """Drops what uvicorn says of an answer left torn on purpose, and its advice to install a WebSocket library.

    Of exchanges that outlast the grace time it drops the tracebacks; that some were cancelled is written all the same.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written."""
        cut_off = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
        return not cut_off and not any(words in str(record.msg) for words in OLD_NEWS)


def logging_config() -> dict[str, Any]:
    """Return what `logging.config.dictConfig` takes; each worker process applies it anew."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"only-news": {"()": OnlyNews}},
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["only-news"]},
        },
        "loggers": {
            "oxy": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
            "uvicorn": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        },
    }
