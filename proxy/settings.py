"""Settings: read once, before the port opens; frozen from then on.

Precedence, strongest first: the command line, the environment, `.env.local`, `.env`, the default. An empty value counts
as unset (compose files pass those). All complaints come at once, in the operator's words and without a secret.
"""

import ipaddress
import socket
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment as bypassed  # type: ignore[attr-defined]  # typeshed lacks it

from proxy import native, values
from proxy.layers import Layers
from proxy.values import Azure, Forwarded, LogFormat, Target, Transport, UpstreamAuth

DEFAULT_TARGET = "https://api.openai.com"
ENTRA_SCOPE = "https://cognitiveservices.azure.com/.default"

Mode = Literal["transparent", "swap", "guarded", "open"]
NOTHING: tuple[str, ...] = ()
NO_PAIRS: tuple[tuple[str, str], ...] = ()


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
    key_names: tuple[str, ...] = ()
    open: bool = False
    endpoints: tuple[str, ...] = ()
    forwarded: Forwarded = "drop"
    cors_origins: tuple[str, ...] = ("*",)
    connect_timeout: float = 30.0
    upstream_timeout: float = 600.0
    upstream_max_timeout: float = 900.0
    max_parallel: int | None = None
    default_model: str = "gpt-4o-mini"
    max_body: int = 64 * values.MEGABYTE
    keep_alive: float = 900.0
    head_timeout: float = 30.0
    client_timeout: float = 300.0
    shutdown_grace: float = 30.0
    transport: Transport = "auto"
    http2: bool = False
    azure: Azure = "off"
    azure_version: str | None = None
    azure_deployments: tuple[tuple[str, str], ...] = ()
    upstream_auth: UpstreamAuth = "auto"
    entra_scope: str = ENTRA_SCOPE
    outbound_proxy: str | None = field(default=None, repr=False)  # it may hold a password
    server_timing: bool = False
    include_usage: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    upstream_ca: Path | None = None
    log_format: LogFormat = "json"
    history: Path | None = None
    history_days: int = 30
    websockets: bool = True
    websocket_max: int = 64 * values.MEGABYTE
    access_token: str | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def way(self) -> Literal["fast", "httpx"]:
        """Which way calls take: our own pool, unless it is not made for what is wanted, or another is asked for."""
        if self.transport == "auto":
            return "fast" if self.can_be_fast and native.has_llhttp() else "httpx"
        return self.transport

    @property
    def can_be_fast(self) -> bool:
        """Whether our own pool can do it: HTTP/1.1, straight to the target or by a tunnel."""
        return not self.http2 and (self.outbound_proxy is None or self.by_tunnel)

    @property
    def by_tunnel(self) -> bool:
        """Whether there is an outbound proxy of the usual kind: plain HTTP to it, TLS with the target inside."""
        return self.target.scheme == "https" and urlsplit(self.outbound_proxy or "").scheme == "http"

    @property
    def secrets(self) -> tuple[str, ...]:
        """All that nobody may read."""
        return (*self.client_keys, *(key for key in (self.openai_api_key, self.access_token) if key))

    def changed(self) -> Iterator[str]:
        """Yield the settings that are not at their defaults, as `name=value`; of a secret only that there is one."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default and one.name not in ("target", "notes"):
                yield f"{one.name}={value}" if one.repr else f"{one.name} set"

    @property
    def mode(self) -> Mode:
        """Which of the four ways of access is in force; it follows from which keys are set."""
        has_key = self.openai_api_key is not None or self.upstream_auth == "entra"
        if self.client_keys:
            return "swap" if has_key else "guarded"
        return "open" if has_key else "transparent"

    @property
    def key_field(self) -> bytes:
        """The field that carries the upstream's key."""
        # Under `entra` there is one too: that which a convenience request brings along.
        azure = self.upstream_auth in ("auto", "entra") and self.target.is_azure
        return b"api-key" if azure or self.upstream_auth == "api-key" else b"authorization"


def load(environ: Mapping[str, str], folder: Path | None) -> Settings:
    """Read the settings from `environ` and from `.env.local` and `.env` in `folder`, if one is given.

    Options of the command line are laid over `environ` by the caller. Raises `BadSettings` with every complaint.
    """
    layers = Layers(environ, folder)
    settings = chosen(layers)
    settings = replace(settings, outbound_proxy=outbound_proxy(layers, settings.target))
    settings = replace(settings, notes=tuple(layers.notes()))  # by now all names have been asked for
    usable([*layers.complaints, *contradictions(settings, layers.refused)])
    return settings


def history(environ: Mapping[str, str], folder: Path | None) -> Path | None:
    """Return the file of the history alone, be the other settings as they may. Raises `BadSettings`."""
    layers = Layers(environ, folder)
    found = layers.take("PROXY_HISTORY", Path, None)
    usable(layers.complaints)
    return found


def usable(complaints: Sequence[str]) -> None:
    """Raise `BadSettings` with the complaints, if there are any."""
    if complaints:
        raise BadSettings("settings are not usable:\n" + "\n".join(f"  {complaint}" for complaint in complaints))


def chosen(layers: Layers) -> Settings:
    """Return what was chosen, each for itself."""
    take = layers.take
    default_timeout = take("OPENAI_PROXY_UPSTREAM_TIMEOUT_MS", values.milliseconds, 600.0)
    longest = take("OPENAI_PROXY_UPSTREAM_MAX_TIMEOUT_MS", values.milliseconds, 900.0)
    return Settings(
        target=layers.one_of("OXY_TARGET", "OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT", parse=values.target)
        or values.target(DEFAULT_TARGET),
        host=take("OXY_HOST", values.address, "0.0.0.0"),
        port=take("OXY_PORT", values.port, 18443),
        workers=take("PROXY_WORKERS", partial(values.at_least_one, most=values.MOST_WORKERS), 1),
        hop_header_prefixes=take("OXY_HOP_HEADER_PREFIX", values.prefixes, NOTHING),
        openai_api_key=layers.one_of("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", parse=values.key),
        openai_project=take("OPENAI_PROJECT_KEY", values.key, None),
        openai_organization=take("OPENAI_ORGANIZATION", values.key, None),
        # Any text: a convenience request may carry a client key in its JSON.
        client_keys=take("PROXY_X_API_KEY", values.listed, NOTHING) + take("SECURITY_KEY", values.listed, NOTHING),
        key_names=take("PROXY_KEY_NAMES", values.names, NOTHING),
        open=take("PROXY_OPEN", values.switch, False),
        endpoints=take("PROXY_ENDPOINTS", values.patterns, NOTHING),
        forwarded=take("PROXY_FORWARDED", values.forwarded, "drop"),
        cors_origins=take("PROXY_CORS_ORIGINS", values.origins, ("*",)),
        connect_timeout=take("OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS", values.milliseconds, 30.0),
        upstream_timeout=default_timeout,
        upstream_max_timeout=max(default_timeout, longest),  # one below the default is raised to it
        max_parallel=take("OPENAI_PROXY_MAX_PARALLEL_REQUESTS", values.at_least_one, None),
        default_model=take("DEFAULT_MODEL", str, "gpt-4o-mini"),
        max_body=take("PROXY_MAX_BODY_MB", values.megabytes, 64 * values.MEGABYTE),
        keep_alive=take("PROXY_KEEP_ALIVE_MS", values.milliseconds, 900.0),
        head_timeout=take("PROXY_HEAD_TIMEOUT_MS", values.milliseconds, 30.0),
        client_timeout=take("PROXY_CLIENT_TIMEOUT_MS", values.milliseconds, 300.0),
        shutdown_grace=take("PROXY_SHUTDOWN_GRACE_MS", values.milliseconds, 30.0),
        websockets=take("PROXY_WEBSOCKETS", values.switch, True),
        websocket_max=take("PROXY_WEBSOCKET_MAX_MB", values.megabytes, 64 * values.MEGABYTE),
        transport=take("OXY_TRANSPORT", values.transport, "auto"),
        http2=take("OXY_HTTP2", values.http2, False),
        server_timing=take("PROXY_SERVER_TIMING", values.switch, False),
        include_usage=take("PROXY_INCLUDE_USAGE", values.switch, False),
        tls_cert=take("PROXY_TLS_CERT", values.certificate, None),
        tls_key=take("PROXY_TLS_KEY", values.readable, None),
        upstream_ca=take("PROXY_UPSTREAM_CA", values.authorities, None),
        log_format=take("PROXY_LOG_FORMAT", values.log_format, "json"),
        history=take("PROXY_HISTORY", Path, None),
        history_days=take("PROXY_HISTORY_DAYS", values.at_least_one, 30),
        azure=take("PROXY_AZURE", values.azure, "off"),
        azure_version=take("OPENAI_API_VERSION", values.key, None),
        azure_deployments=take("PROXY_AZURE_DEPLOYMENTS", values.pairs, NO_PAIRS),
        upstream_auth=take("PROXY_UPSTREAM_AUTH", values.upstream_auth, "auto"),
        entra_scope=take("PROXY_ENTRA_SCOPE", values.key, ENTRA_SCOPE),
        access_token=take("ACCESS_TOKEN", values.key, None),
    )


def outbound_proxy(layers: Layers, target: Target) -> str | None:
    """Return the proxy that a target is reached through, by the variables that most programs know, or None."""
    names = (f"{target.scheme.upper()}_PROXY", "ALL_PROXY")
    found = next((proxy for name in names if (proxy := layers.either(name, values.outbound_proxy))), None)
    exempt = layers.either("NO_PROXY", str) or ""
    return None if found is None or exempted(target, exempt) else found


def exempted(target: Target, exempt: str) -> bool:
    """Tell whether NO_PROXY has a target in it: by its name, by a domain around it, or an address by its network."""
    if bypassed(f"{target.host}:{target.port}", {"no": exempt}):
        return True
    try:
        address = ipaddress.ip_address(target.host.strip("[]"))
    except ValueError:
        return False
    return any(address in network for network in values.networks(exempt))


def contradictions(settings: Settings, refused: Set[str]) -> Iterator[str]:
    """Yield what is wrong with settings that are each fine alone; those `refused` are not, but they are there."""
    if settings.mode == "open" and not settings.open:
        name = "OPENAI_API_KEY" if settings.openai_api_key else "PROXY_UPSTREAM_AUTH"
        yield (
            f"{name} is set, but no client key: anyone who reaches the port could spend what it opens. "
            f"Set PROXY_X_API_KEY (or SECURITY_KEY) to what clients shall show; or take {name} out, of "
            ".env too, to let each client's own key through; or PROXY_OPEN=1 if anyone may"
        )
    if settings.open and settings.client_keys:
        yield "PROXY_OPEN=1 asks nobody for a key, PROXY_X_API_KEY or SECURITY_KEY sets one: remove one of the two"
    if settings.key_names and len(settings.key_names) != len(settings.client_keys):
        yield (
            f"PROXY_KEY_NAMES has {len(settings.key_names)} names for {len(settings.client_keys)} client keys: "
            "give one for each, those of PROXY_X_API_KEY first, then those of SECURITY_KEY"
        )
    if settings.openai_api_key in settings.client_keys:
        yield "a client key is the same as OPENAI_API_KEY: whoever may call would hold the key that costs money"
    if settings.access_token and settings.access_token in (*settings.client_keys, settings.openai_api_key):
        yield "ACCESS_TOKEN is a key as well: whoever may call would see the operator's pages; take another one"
    if settings.transport == "fast" and not settings.can_be_fast:
        yield (
            "OXY_TRANSPORT=fast speaks HTTP/1.1, straight to the target or through a proxy at http:// to one at "
            "https://: leave it unset for OXY_HTTP2 and for any other HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"
        )
    if settings.azure == "deployments" and settings.azure_version is None:
        yield "PROXY_AZURE=deployments needs OPENAI_API_VERSION, such as 2024-10-21: it goes into every call's query"
    if settings.azure_deployments and settings.azure != "deployments":
        yield "PROXY_AZURE_DEPLOYMENTS is for PROXY_AZURE=deployments alone: set that, or remove it"
    if settings.azure != "off" and settings.target.path.endswith("/v1"):
        yield "PROXY_AZURE makes the paths, and the target ends in /v1 already: end it at the host, or leave that off"
    if settings.upstream_auth == "entra" and settings.openai_api_key:
        yield "PROXY_UPSTREAM_AUTH=entra takes the place of a key: remove OPENAI_API_KEY or AZURE_OPENAI_API_KEY"
    pair = {"PROXY_TLS_CERT": settings.tls_cert, "PROXY_TLS_KEY": settings.tls_key}
    if sum(value is not None or name in refused for name, value in pair.items()) == 1:
        yield "PROXY_TLS_CERT and PROXY_TLS_KEY go together: set both to listen with TLS, or none"
    if settings.tls_cert and settings.tls_key and not values.belong_together(settings.tls_cert, settings.tls_key):
        yield "PROXY_TLS_KEY is no key without a password that belongs to the certificate in PROXY_TLS_CERT"
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
