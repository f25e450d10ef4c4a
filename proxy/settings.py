"""Settings: read once, before the port opens; frozen from then on.

Precedence, strongest first: the command line, the environment, `.env.local`, `.env`, the default. An empty value counts
as unset (compose files pass those). All complaints come at once, in the operator's words and without a secret.
"""

import difflib
import io
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar
from urllib.request import proxy_bypass_environment as bypassed  # type: ignore[attr-defined]  # typeshed lacks it

from dotenv.parser import Binding, parse_stream

from proxy import native, values
from proxy.values import Forwarded, Target, Transport

DEFAULT_TARGET = "https://api.openai.com"
FILES = (".env.local", ".env")  # the stronger one first
OUR_PREFIXES = ("OXY_", "PROXY_", "OPENAI_PROXY_")

Mode = Literal["transparent", "swap", "guarded", "open"]
T = TypeVar("T")
NOTHING: tuple[str, ...] = ()


class BadSettings(Exception):
    """The settings are not usable; the message lists every complaint, one to a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the operator chose. Times are seconds; keys never show in `repr`.

    `notes` are things that are no error but that the operator should read at start.
    """

    target: Target
    host: str = "0.0.0.0"  # containers and other machines reach it; the start-up log says so
    port: int = 18443
    workers: int = 1
    hop_header_prefixes: tuple[str, ...] = ()
    openai_api_key: str | None = field(default=None, repr=False)
    openai_project: str | None = None
    openai_organization: str | None = None
    client_keys: tuple[str, ...] = field(default=(), repr=False)
    open: bool = False
    endpoints: tuple[str, ...] = ()
    forwarded: Forwarded = "drop"
    cors_origins: tuple[str, ...] = ("*",)
    connect_timeout: float = 30.0
    upstream_timeout: float = 600.0
    upstream_max_timeout: float = 900.0
    keep_alive: float = 900.0
    shutdown_grace: float = 30.0
    transport: Transport = "auto"
    http2: bool = False
    outbound_proxy: str | None = field(default=None, repr=False)  # it may hold a password
    notes: tuple[str, ...] = ()

    @property
    def way(self) -> Literal["fast", "httpx"]:
        """Which way calls take: our own pool, unless it is not made for what is wanted, or another is asked for."""
        if self.transport == "auto":
            return "httpx" if self.http2 or self.outbound_proxy or not native.has_llhttp() else "fast"
        return self.transport

    @property
    def mode(self) -> Mode:
        """Which of the four ways of access is in force; it follows from which keys are set."""
        if self.client_keys:
            return "swap" if self.openai_api_key else "guarded"
        return "open" if self.openai_api_key else "transparent"


def load(environ: Mapping[str, str], folder: Path | None) -> Settings:
    """Read the settings from `environ` and from `.env.local` and `.env` in `folder`, if one is given.

    Options of the command line are laid over `environ` by the caller. Raises `BadSettings` with every complaint.
    """
    reader = Reader(environ, folder)
    take = reader.take
    default_timeout = take("OPENAI_PROXY_UPSTREAM_TIMEOUT_MS", values.milliseconds, 600.0)
    settings = Settings(
        target=take("OXY_TARGET", values.target, None)
        or take("OPENAI_BASE_URL", values.target, values.target(DEFAULT_TARGET)),
        host=take("OXY_HOST", values.address, "0.0.0.0"),
        port=take("OXY_PORT", values.port, 18443),
        workers=take("PROXY_WORKERS", values.at_least_one, 1),
        hop_header_prefixes=take("OXY_HOP_HEADER_PREFIX", values.listed, NOTHING),
        openai_api_key=take("OPENAI_API_KEY", values.key, None),
        openai_project=take("OPENAI_PROJECT_KEY", values.key, None),
        openai_organization=take("OPENAI_ORGANIZATION", values.key, None),
        # Any text: a convenience request may carry a client key in its JSON.
        client_keys=take("PROXY_X_API_KEY", values.listed, NOTHING) + take("SECURITY_KEY", values.listed, NOTHING),
        open=take("PROXY_OPEN", values.switch, False),
        endpoints=take("PROXY_ENDPOINTS", values.patterns, NOTHING),
        forwarded=take("PROXY_FORWARDED", values.forwarded, "drop"),
        cors_origins=take("PROXY_CORS_ORIGINS", values.listed, ("*",)),
        connect_timeout=take("OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS", values.milliseconds, 30.0),
        upstream_timeout=default_timeout,
        # A maximum below the default is raised to it.
        upstream_max_timeout=max(
            default_timeout, take("OPENAI_PROXY_UPSTREAM_MAX_TIMEOUT_MS", values.milliseconds, 900.0)
        ),
        keep_alive=take("PROXY_KEEP_ALIVE_MS", values.milliseconds, 900.0),
        shutdown_grace=take("PROXY_SHUTDOWN_GRACE_MS", values.milliseconds, 30.0),
        transport=take("OXY_TRANSPORT", values.transport, "auto"),
        http2=take("OXY_HTTP2", values.http2, False),
        notes=tuple(reader.notes()),
    )
    settings = replace(settings, outbound_proxy=outbound_proxy(reader, settings.target))
    complaints = [*reader.complaints, *contradictions(settings)]
    if complaints:
        raise BadSettings("settings are not usable:\n" + "\n".join(f"  {complaint}" for complaint in complaints))
    return settings


def outbound_proxy(reader: "Reader", target: Target) -> str | None:
    """Return the proxy that a target is reached through, by the variables that most programs know, or None."""
    names = (f"{target.scheme.upper()}_PROXY", "ALL_PROXY")
    found = next((proxy for name in names if (proxy := reader.either(name, values.outbound_proxy))), None)
    exempt = reader.either("NO_PROXY", str) or ""
    if found is None or bypassed(f"{target.host}:{target.port}", {"no": exempt}):
        return None
    return found


def contradictions(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with settings that are each fine alone."""
    if settings.mode == "open" and not settings.open:
        yield (
            "OPENAI_API_KEY is set, but no client key: anyone who reaches the port could spend it. "
            "Set PROXY_X_API_KEY (or SECURITY_KEY) to what clients shall show; or OPENAI_API_KEY= (empty) to let each "
            "client's own key through; or PROXY_OPEN=1 if anyone may"
        )
    if settings.open and settings.client_keys:
        yield "PROXY_OPEN=1 asks nobody for a key, PROXY_X_API_KEY or SECURITY_KEY sets one: remove one of the two"
    if settings.openai_api_key in settings.client_keys:
        yield "a client key is the same as OPENAI_API_KEY: whoever may call would hold the key that costs money"
    if settings.transport == "fast" and (settings.http2 or settings.outbound_proxy):
        yield (
            "OXY_TRANSPORT=fast speaks HTTP/1.1 and goes straight to the target: leave it unset "
            "for OXY_HTTP2 and for HTTPS_PROXY or ALL_PROXY"
        )
    if points_at_itself(settings.target, settings.port):
        yield (
            f"the target {settings.target} is this proxy itself. OPENAI_BASE_URL is also what SDKs read: "
            "set OXY_TARGET to where calls are to go, or another OXY_PORT"
        )


def points_at_itself(target: Target, own_port: int) -> bool:
    """Tell whether a connection to `target` would reach a port of this machine that is `own_port`."""
    if target.port != own_port:
        return False
    try:
        found = socket.getaddrinfo(target.host.strip("[]"), target.port, type=socket.SOCK_DGRAM)
    except OSError:
        return False  # A name that does not resolve is the upstream's trouble, told when a call goes there.
    return any(_is_local(family, address) for family, _, _, _, address in found)


def _is_local(family: socket.AddressFamily, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address[0], 0))  # Only an address of this machine can be bound.
        except OSError:
            return False
    return True


class Reader:
    """The layers of settings, and what was wrong with them. `names` are all that were asked for."""

    def __init__(self, environ: Mapping[str, str], folder: Path | None) -> None:
        self.complaints: list[str] = []
        self.names: set[str] = set()
        self._files = {name: self._read(folder / name) for name in FILES if folder is not None}
        self._layers = (environ, *self._files.values())

    def take(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Return the strongest value of that name as `parse` understands it, else the default, with a complaint."""
        self.names.add(name)
        given = next((value for layer in self._layers if (value := layer.get(name, "").strip())), None)
        if given is None:
            return default
        try:
            if not given.isprintable():  # nor could it stand in a header or in a host name
                raise ValueError("it holds a character that cannot be printed")
            return parse(given)
        except ValueError as problem:
            self.complaints.append(f"{name}: {problem}")
            return default

    def either(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Return the value of a name that may be written in small letters too, or None."""
        found = self.take(name, parse, None) or self.take(name.lower(), parse, None)
        self.names.discard(name.lower())
        return found

    def notes(self) -> Iterator[str]:
        """Yield names in the files that look like ours and are not: a mistyped key must not pass in silence."""
        for file, given in self._files.items():
            for name in given:
                if name.startswith(OUR_PREFIXES) and name not in self.names:
                    close = difflib.get_close_matches(name, self.names, n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    yield f"{file}: {name} is not a setting{hint}"

    def _read(self, path: Path) -> Mapping[str, str]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
            self.complaints.append(f"{path.name} cannot be read: {reason}")
            return {}
        given = {}
        for binding in parse_stream(io.StringIO(text)):
            if binding.error or (binding.key is not None and binding.value is None):
                self.complaints.append(f"{path.name} line {_line(binding)}: this is not NAME=value")
            elif binding.key is not None and binding.value is not None:
                given[binding.key] = binding.value  # as written: a `$` in a key is a `$`
        return given


def _line(binding: Binding) -> int:
    """Return where a binding stands; what the parser calls its line is that of the blank ones before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
