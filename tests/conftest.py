"""The stage: an upstream on loopback, the proxy before it on our own server, a client with a socket."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import hypothesis
import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from proxy import demo
from proxy.demo import start_demo
from proxy.guard import Budget, Guard
from proxy.heads import Head, Heads
from proxy.server import configure, listen
from proxy.settings import Settings, load
from proxy.upstream import Upstream as FarBank
from tests.desk import TOKEN, Desk
from tests.peers import PATIENCE, Peer, Upstream, connect
from tests.tracing import import_all, is_untraced, traced, untraced

CLIENT_KEY = "client-key-of-a-test"
UPSTREAM_KEY = "sk-upstream-key-of-a-test"
SWAP = {"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_X_API_KEY": CLIENT_KEY}
OURS = (
    *("OXY_", "PROXY_", "OPENAI_", "SECURITY_KEY", "DEFAULT_MODEL", "AZURE_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)

hypothesis.settings.register_profile(
    "here",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a busy machine is no failure
    phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},  # it traces every line: minutes, over sockets
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("here")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the loop that the proxy runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What is measured of an import is that of our own rooms; what tests import besides takes longer than they do."""
    import_all()
    with untraced():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """What pytest does around a test takes longer than many a test does; it is none of ours, and not traced."""
    with untraced():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with untraced() if is_untraced(item) else nullcontext():
        return (yield)


# Within all others, so that next to nothing but the fixture, the test and what ends a fixture is traced.


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    with traced():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    with traced():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with traced():
        return (yield)


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stays empty. To make and remove one for each test takes longer than many a test."""
    return tmp_path_factory.mktemp("nowhere")


@pytest.fixture(autouse=True)
def clean_room(monkeypatch: pytest.MonkeyPatch, nowhere: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """No setting of the machine, and no `.env` of the folder that the tests were started in, reaches a test."""
    for name in os.environ:
        if name.upper().startswith(OURS):
            monkeypatch.delenv(name)
    own = "tmp_path" in request.fixturenames
    monkeypatch.chdir(request.getfixturevalue("tmp_path") if own else nowhere)
    yield
    left = [*nowhere.iterdir()]
    for file in left:
        file.unlink()
    assert not left, "what a test writes belongs in its tmp_path"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the proxy says in its log during the test; `configure` may have taken its logger out of caplog's reach."""
    messages: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("oxy"), "handlers", [handler])
    return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A proxy that listens."""

    port: int
    settings: Settings
    clients: list[Peer] = field(default_factory=list)
    state: ServerState = field(default_factory=ServerState)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> Peer:
        self.clients.append(await connect(self.port))
        return self.clients[-1]

    def stop(self) -> None:
        """Tell each connection to close after what is under way, as the server does when it is told to stop."""
        for connection in list(self.state.connections):
            connection.shutdown()


@contextmanager
def noting(*kinds: type) -> Iterator[list[Any]]:
    """Yield a list of all that is made of these kinds meanwhile."""
    made: list[Any] = []

    def noted(init: Callable[..., None]) -> Callable[..., None]:
        def __init__(self: object, *given: object, **named: object) -> None:
            init(self, *given, **named)
            made.append(self)

        return __init__

    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__init__", noted(kind.__init__))  # type: ignore[misc]
        yield made


def not_given_back(made: list[Any]) -> list[object]:
    """What is still taken of bounds, and each upstream with a connection that is in use."""
    busy = [thing for thing in made if isinstance(thing, FarBank) and thing.connections[0] > thing.connections[1]]
    return [*busy, *(thing for thing in made if getattr(thing, "held", 0) or getattr(thing, "busy", 0))]


@asynccontextmanager
async def running(
    settings: Settings, app: ASGIApp | None = None, *, config: uvicorn.Config | None = None
) -> AsyncIterator[Running]:
    """Serve these settings in this loop, with the configuration that the command line uses; or a part of the whole."""
    config = config or configure(settings)
    if app is not None:
        config.app = lambda: app
    with noting(Budget, Guard, FarBank) as made:
        config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    lifespan = config.lifespan_class(config)
    await lifespan.startup()
    sock = listen("127.0.0.1", 0)

    def protocol() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=state, app_state=lifespan.state, _loop=loop
        )
        return made

    server = await loop.create_server(protocol, sock=sock)
    started = Running(port=sock.getsockname()[1], settings=settings, state=state)
    try:
        yield started
    finally:
        server.close()
        for client in started.clients:
            client.writer.transport.abort()
        if state.tasks:
            _, hanging = await asyncio.wait(state.tasks, timeout=PATIENCE)
            assert not hanging, "an exchange outlived its client"
        for _ in range(5):  # turns, in which what was cancelled ends
            await asyncio.sleep(0)
        assert not_given_back(made) == []
        await lifespan.shutdown()


Start = Callable[..., AbstractAsyncContextManager[Running]]
SettingsOf = Callable[..., Settings]


@pytest.fixture
def settings_of() -> SettingsOf:
    """Read settings from the given names as from the environment, and from nothing else."""

    def settings_of(**environ: str) -> Settings:
        return load(environ, None)

    return settings_of


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().listening() as listening:
        yield listening


WAYS = ["fast", "httpx", "pure"]


@contextmanager
def going(way: str) -> Iterator[str]:
    """Let calls take that way from here on, and yield its setting. `pure`: as in a Python without httptools."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "pure":
            patch.setattr("proxy.native.has_llhttp", lambda: False)
        yield "auto" if way == "pure" else way


def ways(*names: str) -> Callable[..., Iterator[str]]:
    """Return the fixture `way`: each of these ways; whoever looks from outside must not be able to tell them apart."""

    @pytest.fixture(params=names)
    def way(request: pytest.FixtureRequest) -> Iterator[str]:
        with going(request.param) as setting:
            yield setting

    return way


# A module that holds up the promises has the third one too: `way = ways(*WAYS)`.
way = ways("fast", "httpx")

# For what no other server than ours does: see "Any ASGI server" in docs/one-file.md.
our_protocol = pytest.mark.parametrize("way", ["fast", "httpx"], indirect=True)


@pytest.fixture
def start(upstream: Upstream, way: str) -> Start:
    """Start a proxy before the upstream with the given settings (names as in the environment)."""

    def start(**environ: str) -> AbstractAsyncContextManager[Running]:
        return running(load({"OXY_TARGET": upstream.url, "OXY_TRANSPORT": way, **environ}, None))

    return start


@pytest.fixture(scope="session")
def demo_proxy() -> Iterator[Running]:
    """A proxy in swap mode before the demo, in a thread of its own: for clients that block."""
    environ = {
        "OXY_TARGET": start_demo(pace=0),
        "OPENAI_API_KEY": demo.UPSTREAM_KEY,
        "PROXY_X_API_KEY": demo.CLIENT_KEY,
    }
    settings = load(environ, Path("nowhere"))
    server, sock = uvicorn.Server(configure(settings)), listen("127.0.0.1", 0)
    thread = Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    yield Running(port=sock.getsockname()[1], settings=settings)
    server.should_exit = True
    thread.join(PATIENCE)


@pytest.fixture
def past(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts of the heads that went past the parser."""
    found: list[bytes] = []
    known = Heads.known

    def noted(heads: Heads, text: bytes) -> Head | None:
        head = known(heads, text)
        if head is not None:
            found.append(text)
        return head

    monkeypatch.setattr(Heads, "known", noted)
    return found


@pytest.fixture
async def proxy(start: Start) -> AsyncIterator[Running]:
    """A proxy in swap mode."""
    async with start(**SWAP) as proxy:
        yield proxy


@pytest.fixture
async def transparent(start: Start) -> AsyncIterator[Running]:
    """A proxy without any key."""
    async with start() as proxy:
        yield proxy


@pytest.fixture
async def client(transparent: Running) -> Peer:
    """A client of the transparent proxy."""
    return await transparent.connect()


@asynccontextmanager
async def desk_of(settings: Settings, file: Path) -> AsyncIterator[Desk]:
    """Serve the operator's pages with these settings, and a history in that file."""
    desk = Desk(settings=settings, file=file)
    async with running(settings, desk.application()) as proxy:
        desk.proxy = proxy
        yield desk
    desk.history.close(0)


@pytest.fixture
async def desk(settings_of: SettingsOf, tmp_path: Path) -> AsyncIterator[Desk]:
    """The operator's pages, behind a token."""
    async with desk_of(settings_of(ACCESS_TOKEN=TOKEN), tmp_path / "history.sqlite") as desk:
        yield desk
