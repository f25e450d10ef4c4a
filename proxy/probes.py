"""What `oxy check` looks at, from a name to the last event of a stream.

A probe goes the way that calls go (`dial`, `Upstream`), so that what it finds is what calls will find. It returns what
it saw, or raises `Trouble`, which also says what to do. What others wrote is never repeated: it may hold a key.
"""

import asyncio
import concurrent.futures
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import cast

from proxy import __version__
from proxy.dial import reach
from proxy.errors import Failure, Pairs
from proxy.exchange import Answer, Call, Exchange, new_id
from proxy.headers import first
from proxy.settings import Settings
from proxy.tunnel import NoTunnel, way_out
from proxy.upstream import Upstream, translated, trust
from proxy.verdicts import (
    BUFFERED,
    CUT,
    SLOW,
    TOO_FEW,
    UNREACHED,
    Trouble,
    of_deployment,
    of_proxy,
    of_status,
    of_tcp,
    of_tls,
    of_version,
)
from proxy.whole import Whole

SLOW_HEAD = 5.0  # seconds that a list of models should not take
GAP = 0.002  # seconds between pieces that did not come together
FEWEST = 6  # events that tell something
TOKENS = 24
MOST_HEARD = 256 * 1024  # bytes of an answer that are looked at
OURS = b"x-proxy-request-id"  # every answer of an Oxy carries it, relayed ones included
AGENT = f"oxy/{__version__}".encode()
MODELS = b"/v1/models"
PROMPT = "Count from one to twelve, in words."


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of the check: its name, what looks, and for how long at most. Where it fails, `needed` ends the rest."""

    name: str
    look: Callable[[], Awaitable[str]]
    patience: float = 5.0
    needed: bool = True


class Timed:
    """An answer, and when each of its pieces came."""

    def __init__(self, answer: Answer) -> None:
        self.status, self.headers = answer.status, answer.headers
        self.text = b""
        self.came: list[float] = []

    def push(self, piece: bytes) -> bool:
        """Note a piece."""
        if not piece:
            return True
        self.came.append(time.perf_counter())
        self.text += piece[: max(0, MOST_HEARD - len(self.text))]
        return True

    async def drain(self) -> None:
        """Be ready at once."""

    @property
    def groups(self) -> int:
        """How many times something came that had not come together with what was before it."""
        return sum(later - earlier > GAP for earlier, later in zip(self.came, self.came[1:], strict=False)) + 1


class Place:
    """Where calls go: the target, or what stands before the proxy.

    `key` names the setting whose key the `credentials` show. A `signed` call is to be let in; any other one is to be
    asked for a key by the API. What is `ours` has an Oxy behind it. `models` is where the API lists them.
    """

    def __init__(
        self, settings: Settings, credentials: Pairs, *, key: str, signed: bool, ours: bool, models: bytes = MODELS
    ) -> None:
        self.target = settings.target
        self._models = models
        deploys = settings.azure == "deployments"
        self._version = settings.azure_version if deploys else None
        self._deployments = settings.azure_deployments if deploys and signed else ()
        self._upstream = Upstream(settings)
        self._trust = trust(settings.target, settings.upstream_ca)
        self._direct, self._by_tunnel = settings.outbound_proxy is None, settings.by_tunnel
        self._dial = way_out(settings.outbound_proxy)
        self._credentials = credentials
        self._key = key
        self._signed = signed
        self._ours = ours
        self._wait = 0.0

    async def aclose(self) -> None:
        """Close all connections."""
        await self._upstream.aclose()

    def steps(self, *, stream: str | None, silence: float | None) -> Iterator[Step]:
        """Yield what is to be looked at; `stream` is the model to ask for one, `silence` the seconds to keep in one."""
        # There may be no way to the host but the outbound proxy's; of one without tunnels the API's line tells enough.
        if self._direct and not is_address(self.target.host):
            yield Step(name="dns", look=self.dns)
        if self._direct:
            yield Step(name="tcp", look=self.tcp)
        if self._by_tunnel:
            yield Step(name="proxy", look=self.proxy)
        if self._by_tunnel or (self._direct and self.target.scheme == "https"):
            yield Step(name="tls", look=self.tls)
        yield Step(name="key", look=self.api, patience=10.0)
        yield Step(name="head", look=self.head, needed=False)
        for model, deployment in self._deployments:
            yield Step(name="azure", look=partial(self.deployment, model, deployment), needed=False)
        if stream is not None:
            yield Step(name="stream", look=lambda: self.stream(stream), patience=15.0)
        if silence is not None:
            yield Step(name="idle", look=lambda: self.idle(silence), patience=silence + 5.0)

    async def dns(self) -> str:
        """Resolve the name."""
        try:
            found = await resolve(self.target.host, self.target.port)
        except OSError:
            raise Trouble(
                f"{self.target.host} has no address",
                "Look for a slip in the name, and at this machine's resolver; behind a firewall set HTTPS_PROXY.",
            ) from None
        return f"{self.target.host} is {', '.join(found[:3])}"

    async def tcp(self) -> str:
        """Connect."""
        began = time.perf_counter()
        try:
            sock = await reach(asyncio.get_running_loop(), self.target.host, self.target.port)
        except OSError as problem:
            raise of_tcp(problem, self.target) from None
        with sock:
            peer = sock.getpeername()[0]
        return f"{peer} port {self.target.port} in {took(began)}"

    async def proxy(self) -> str:
        """Let the outbound proxy open a tunnel, as for a call."""
        began, address = time.perf_counter(), (self.target.host, self.target.port)
        try:
            opened = await self._dial(asyncio.get_running_loop(), Opened, address, None)
        except NoTunnel as refusal:
            raise of_proxy(str(refusal), self.target) from None
        except OSError as problem:
            reason = (problem.strerror or "no route").lower()
            raise Trouble(f"the outbound proxy cannot be reached: {reason}", UNREACHED) from None
        opened.transport.abort()
        return f"a way to {self.target.host} port {self.target.port} in {took(began)}"

    async def tls(self) -> str:
        """Shake hands, as a call would."""
        began, address = time.perf_counter(), (self.target.host, self.target.port)
        try:
            secured = await self._dial(asyncio.get_running_loop(), Secured, address, self._trust)
        except NoTunnel as refusal:  # it opened one before
            raise of_proxy(str(refusal), self.target) from None
        except OSError as problem:  # ssl.SSLError is one
            raise of_tls(problem, self.target) from None
        secured.transport.abort()
        return f"{secured.version} in {took(began)}, certificate until {secured.until}"

    async def api(self) -> str:
        """Ask for the list of models, which costs nothing."""
        began = time.perf_counter()
        heard = await self._ask("GET", self._models)
        self._wait = heard.came[0] - began
        if self._version and heard.status in (400, 404):
            raise of_version(heard.status, self._version)
        if trouble := of_status(heard.status, heard.text, key=self._key, ours=self._ours, signed=self._signed):
            raise trouble
        if heard.status == 401:
            return "the API answers, and asks for a key: clients bring their own"
        if not is_json(heard.text):
            raise Trouble(
                "200, but what came is no list of models",
                "Something else than the API answers here: a sign-in page of this network, or another server.",
            )
        said = f"{self._key} is accepted" if self._credentials else "the API answers, and asks for no key"
        return f"{said}, api-version {self._version} is known" if self._version else said

    async def head(self) -> str:
        """Judge how long that took."""
        said = f"{self._wait * 1000:.0f} ms to the head of that answer"
        if self._wait > SLOW_HEAD:
            raise Trouble(said, SLOW)
        return said

    async def deployment(self, model: str, deployment: str) -> str:
        """See whether a deployment is there: asked for nothing, it refuses without a cost."""
        heard = await self._ask("POST", b"/v1/chat/completions", json.dumps({"model": model}).encode())
        if heard.status == 404:
            raise of_deployment(model, deployment)
        if heard.status != 400 and (
            trouble := of_status(heard.status, heard.text, key=self._key, ours=False, signed=True)
        ):
            raise trouble
        return f"{model} is deployed as {deployment}"

    async def stream(self, model: str) -> str:
        """Let something be streamed, and see whether it comes as it is written."""
        if not self._signed:
            raise Trouble("there is no key to ask for it with", "Clients bring their own: set OPENAI_API_KEY for this.")
        heard = await self._ask("POST", b"/v1/chat/completions", wish(model))
        if trouble := of_status(heard.status, heard.text, key=self._key, ours=self._ours, signed=True, model=model):
            raise trouble
        events, groups = heard.text.count(b"data:"), heard.groups
        if events < FEWEST:
            raise Trouble(f"{events} events are too few to tell", TOO_FEW)
        said = f"{events} events came in {groups} pieces over {heard.came[-1] - heard.came[0]:.2f} s"
        if groups * 3 < events:
            raise Trouble(said, BUFFERED)
        return said

    async def idle(self, seconds: float) -> str:
        """Let a stream be silent, and see whether it is cut."""
        began = time.perf_counter()
        try:
            heard = await self._ask("POST", b"/v1/chat/completions", wish(f"pause-{seconds:.0f}"))
        except Trouble:
            raise Trouble(f"a stream was cut {took(began)} after it was asked for", CUT) from None
        if b"[DONE]" not in heard.text:
            raise Trouble(f"a stream ended {took(began)} after it was asked for, without its end", CUT)
        return f"a stream goes on after {seconds:.0f} s in which nothing came"

    async def _ask(self, method: str, target: bytes, body: bytes | None = None) -> Timed:
        headers = [(b"user-agent", AGENT), *self._credentials]
        if body is not None:
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        call = Call(method=method, target=target, headers=headers, body=Whole(body) if body is not None else None)
        exchange = Exchange(id=new_id(), method=method, path=target.decode())
        try:
            answer = await self._upstream.open(exchange, call)
            heard = Timed(answer)
            heard.came.append(time.perf_counter())
            try:
                if not answer.complete:
                    await answer.pour(heard)
                heard.push(answer.take())
            finally:
                await answer.close()
        except Exception as problem:
            failure = problem if isinstance(problem, Failure) else translated(problem)
            if failure is None:
                raise
            raise Trouble(
                f"no answer: {failure}", "Try again; if it stays so, something on the way breaks it."
            ) from None
        if self._ours and first(heard.headers, OURS) is None:
            raise Trouble(
                f"{heard.status}, and not from an Oxy: the answer has no X-Proxy-Request-Id",
                "What stands at this address answers by itself. Let it pass everything on to Oxy's address and port.",
            )
        return heard


class Opened(asyncio.Protocol):
    """A connection that is there."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what ends it."""
        self.transport = cast(asyncio.Transport, transport)


class Secured(Opened):
    """A connection whose handshake is over: what was agreed upon."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what there is to tell."""
        super().connection_made(transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self.version = tls.version()
        ends = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
        self.until = datetime.fromtimestamp(ends, UTC).date().isoformat()


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Raises `OSError`.

    The system's resolver cannot be interrupted. In a thread that nobody waits for, it does not keep the program either.
    """
    found: concurrent.futures.Future[list[str]] = concurrent.futures.Future()
    found.set_running_or_notify_cancel()  # whoever gives up does not make the thread fail

    def look() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as problem:
            found.set_exception(problem)
        else:
            found.set_result([str(info[4][0]) for info in infos])

    threading.Thread(target=look, daemon=True).start()
    return await asyncio.wrap_future(found)


def is_address(host: str) -> bool:
    """Tell whether a host is given by its address."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_json(text: bytes) -> bool:
    """Tell whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def wish(model: str) -> bytes:
    """Return the request for a short stream."""
    messages = [{"role": "user", "content": PROMPT}]
    facts = {"model": model, "stream": True, "max_completion_tokens": TOKENS, "messages": messages}
    return json.dumps(facts).encode()


def took(began: float) -> str:
    """Return how long it has been since then."""
    return f"{(time.perf_counter() - began) * 1000:.0f} ms"
