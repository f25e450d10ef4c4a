"""Who is measured: how each contestant is started, what it must not be asked, and which version it is."""

import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
UPSTREAM_KEY = "sk-upstream"  # bench/wire knows it too: the mock upstream refuses any other
CLIENT_KEY = "sk-client-key-of-the-benchmark"
OWN_PYTHON = BENCH / ".venv" / "bin" / "python"
PORTKEY = BENCH / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a contestant stands: the port it is to listen on, the upstream behind it, a directory of its own."""

    port: int
    upstream: int
    tls: bool
    pem: Path
    directory: Path
    python: Path
    scenario: str

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def target(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.upstream}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A command with the environment that it gets beside the bare one."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = BENCH

    def environment(self, place: Place) -> dict[str, str]:
        """Nothing of the caller's settings: neither keys nor outbound proxies may leak into what is measured."""
        bare = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        trust = {"SSL_CERT_FILE": str(place.pem)} if place.tls else {}
        return bare | {"OPENAI_API_KEY": UPSTREAM_KEY} | trust | self.env


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One proxy, or none at all: without `start` the load goes straight to the upstream."""

    name: str
    title: str
    start: Callable[[Place], Start] | None
    version: Callable[[Path], str]
    missing: Callable[[Path], str] = lambda python: ""  # why it cannot run here, or nothing
    extra: bool = False  # only with --all
    lenient: bool = False  # it parses and re-serialises, so its answers are not the upstream's bytes
    health: str = ""  # path that answers without asking the upstream
    patience: int = 20  # seconds until it has to answer
    load: Callable[[Place], list[str]] = lambda place: []  # more flags for the load generator
    skips: frozenset[str] = frozenset()  # scenarios that it has no way to run


def _oxy(transport: str) -> Callable[[Place], Start]:
    def start(place: Place) -> Start:
        command = [str(place.python), "-m", "proxy", "--port", str(place.port), "--target", place.target]
        env = {"PROXY_X_API_KEY": CLIENT_KEY}
        if transport:
            env["OXY_TRANSPORT"] = transport
        if place.scenario == "sse-2000-slow":
            env["OPENAI_PROXY_MAX_PARALLEL_REQUESTS"] = "4096"  # by default no more than 1,024 at once are let in
        return Start(command=command, env=env, cwd=ROOT)

    return start


def _plain(place: Place) -> Start:
    command = [str(place.python), "-m", "uvicorn", "plain_proxy:app", "--port", str(place.port)]
    return Start(command=[*command, "--no-access-log", "--log-level", "warning"], env={"TARGET": place.target})


def _floor(place: Place) -> Start:
    return Start(command=[str(place.python), "floor.py", str(place.port), str(place.upstream)])


def _go(**env: str) -> Callable[[Place], Start]:
    def start(place: Place) -> Start:
        command = [str(BENCH / "bin" / "reverseproxy"), f"127.0.0.1:{place.port}", place.target]
        return Start(command=command, env={"GOMAXPROCS": "1"} | env)

    return start


def _go_version(python: Path) -> str:
    return said(BENCH / ".venv" / "bin" / "go", "version").removeprefix("go version ") or "built before"


def _nginx(place: Place) -> Start:
    config = _write(place, "nginx.conf", scheme=place.scheme)
    return Start(command=["nginx", "-e", "stderr", "-p", str(place.directory), "-c", str(config)])


def _haproxy(place: Place) -> Start:
    tls = f"ssl verify required ca-file {place.pem} verifyhost localhost sni str(localhost)" if place.tls else ""
    return Start(command=["haproxy", "-db", "-q", "-f", str(_write(place, "haproxy.cfg", tls=tls))])


def _litellm(place: Place) -> Start:
    config = _write(place, "litellm.yaml", target=place.target)
    command = [str(OWN_PYTHON.with_name("litellm")), "--config", str(config), "--host", "127.0.0.1"]
    return Start(
        command=[*command, "--port", str(place.port)],
        env={"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_MASTER_KEY": CLIENT_KEY},
    )


def _portkey(place: Place) -> Start:
    env = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    if place.tls:
        env["NODE_EXTRA_CA_CERTS"] = str(place.pem)
    return Start(command=["node", str(PORTKEY), f"--port={place.port}", "--headless"], env=env)


def _portkey_load(place: Place) -> list[str]:
    fields = ("x-portkey-provider: openai", f"x-portkey-custom-host: {place.target}/v1")
    # It passes the caller's own Authorization on.
    return [*(f"-header={line}" for line in fields), f"-key={UPSTREAM_KEY}"]


class Template(string.Template):
    """A configuration file in which @{name} stands for what only the run knows; $ belongs to nginx."""

    delimiter = "@"


def _write(place: Place, name: str, **facts: str) -> Path:
    text = Template((BENCH / f"{name}.in").read_text())
    facts |= {"directory": str(place.directory), "pem": str(place.pem), "key": UPSTREAM_KEY}
    config = place.directory / name
    config.write_text(text.substitute(facts, port=place.port, upstream=place.upstream))
    return config


def _lacks(*paths: str | Path) -> Callable[[Path], str]:
    return lambda python: next((f"{Path(path).name} is not installed" for path in paths if not shutil.which(path)), "")


def _lacks_module(python: Path) -> str:
    return (
        "" if said(python, "-c", "import starlette, httpx, uvicorn; print('yes')") == "yes" else "no starlette + httpx"
    )


def said(*command: str | Path) -> str:
    """What a command says on stdout or else stderr, first line; nothing where it cannot be run."""
    try:
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter((ran.stdout or ran.stderr).strip().splitlines()), "") if ran.returncode == 0 else ""


def _packages(*names: str) -> Callable[[Path], str]:
    code = (
        "import sys; from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in sys.argv[1:]))"
    )

    def version(python: Path) -> str:
        runtime = said(python, "-c", "import platform; print('Python', platform.python_version())")
        return f"{said(python, '-c', code, *names)}, {runtime}"

    return version


def _oxy_version(python: Path) -> str:
    own = said(python, "-c", "import proxy; print('Oxy', proxy.__version__)")
    commit = said("git", "rev-parse", "--short", "HEAD")
    packages = _packages("uvicorn", "uvloop", "httptools", "httpx", "starlette")(python)
    return ", ".join(part for part in (own, commit and f"commit {commit}", packages) if part)


NO_FILES = frozenset({"upload-50m", "download-200m"})
STREAMS = frozenset({"sse-64-fast", "sse-500-paced", "sse-2000-slow"})

CONTESTANTS = (
    Contestant(name="direct", title="direct, no proxy", start=None, version=lambda python: "the mock upstream"),
    Contestant(name="oxy", title="Oxy", start=_oxy(""), version=_oxy_version, health="/health"),
    Contestant(name="oxy-httpx", title="Oxy on httpx", start=_oxy("httpx"), version=_oxy_version, health="/health"),
    Contestant(
        name="plain",
        title="plain Starlette + httpx",
        start=_plain,
        version=_packages("starlette", "httpx", "httpcore", "uvicorn", "uvloop", "httptools"),
        missing=_lacks_module,
    ),
    Contestant(
        name="floor",
        title="the least in Python",
        start=_floor,
        version=_packages("uvloop", "httptools"),
        missing=_lacks_module,
        extra=True,
        skips=STREAMS | NO_FILES | {"embeddings-33k", "tls-json-64", "new-connections", "start"},
    ),
    Contestant(name="go", title="Go ReverseProxy", start=_go(), version=_go_version),
    Contestant(name="go-pooled", title="Go with a BufferPool", start=_go(POOL="1"), version=_go_version),
    Contestant(
        name="nginx",
        title="nginx",
        start=_nginx,
        version=lambda python: said("nginx", "-v").removeprefix("nginx version: "),
        missing=_lacks("nginx"),
    ),
    Contestant(
        name="haproxy",
        title="HAProxy",
        start=_haproxy,
        version=lambda python: said("haproxy", "-v").partition(" - ")[0],
        missing=_lacks("haproxy"),
    ),
    Contestant(
        name="litellm",
        title="LiteLLM",
        start=_litellm,
        version=lambda python: _packages("litellm")(OWN_PYTHON),
        missing=_lacks(OWN_PYTHON.with_name("litellm")),
        extra=True,
        lenient=True,
        patience=120,
        skips=NO_FILES,
    ),
    Contestant(
        name="portkey",
        title="Portkey",
        start=_portkey,
        version=lambda python: said(
            "node",
            "-p",
            f"'gateway ' + require('{PORTKEY.parents[1]}/package.json').version + ', node ' + process.version",
        ),
        missing=lambda python: _lacks("node")(python) or ("" if PORTKEY.exists() else "the gateway is not installed"),
        extra=True,
        lenient=True,
        patience=60,
        load=_portkey_load,
    ),
)


def chosen(names: list[str], *, extras: bool) -> list[Contestant]:
    """Pick contestants by name; without names all, the extra ones only if wanted."""
    unknown = set(names) - {contestant.name for contestant in CONTESTANTS}
    if unknown:
        raise SystemExit(f"no such contestant: {', '.join(sorted(unknown))}")
    if names:
        return [contestant for contestant in CONTESTANTS if contestant.name in names]
    return [contestant for contestant in CONTESTANTS if extras or not contestant.extra]


def default_python() -> Path:
    own = ROOT / ".venv" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)
