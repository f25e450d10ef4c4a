"""A client's connection, byte for byte: what is taken, what is refused and how, in which order, and how it ends.

The application is played by hand (`Stage`), or says what it heard (`echo`). Where only the order of calls decides, the
transport is a stand-in (`Wire`) and nothing is timed.
"""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from proxy import cycle, protocol
from proxy.heads import Heads
from proxy.protocol import FEW_WAITING, MAX_WAITING, HttpProtocol
from proxy.request import MAX_FIELDS, MAX_HEAD, MAX_TARGET
from proxy.server import listen
from tests.peers import PATIENCE, Heard, Pairs, Peer, chunked, connect, request

SOON = 0.05  # seconds; what a test chooses for a time that is to run out
NEVER = 3600.0
CLOSE = [(b"Connection", b"close")]
CHUNKED = b"POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """An application that is served on our protocol."""

    port: int
    state: ServerState
    clients: list[Peer] = field(default_factory=list)

    async def connect(self) -> Peer:
        self.clients.append(await connect(self.port))
        return self.clients[-1]

    async def forgotten(self) -> None:
        """Wait until no connection is left, and nothing that ran for one."""
        await until(lambda: not (self.state.connections or self.state.tasks))

    def shutdown(self) -> None:
        """What uvicorn's server does when it is told to stop."""
        for connection in list(self.state.connections):
            connection.shutdown()


@asynccontextmanager
async def serving(app: ASGIApp, *, keep_alive: float = NEVER) -> AsyncIterator[Serving]:
    config = Config(app, http=HttpProtocol, lifespan="off", log_config=None, timeout_keep_alive=cast(int, keep_alive))
    config.load()
    loop, state, sock = asyncio.get_running_loop(), ServerState(), listen("127.0.0.1", 0)
    server = await loop.create_server(
        lambda: HttpProtocol(config, state, {}, loop, heads=Heads(), **patience()), sock=sock
    )
    serving = Serving(port=sock.getsockname()[1], state=state)
    try:
        yield serving
    finally:
        server.close()
        for client in serving.clients:
            client.writer.transport.abort()
        await serving.forgotten()


class Exchange:
    """One call of the application, in a test's hands."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False  # by the client

    @property
    def target(self) -> bytes:
        target: bytes = self.scope["target"]
        return target

    async def hear(self) -> bytes | None:
        """The rest of the body; None where the client is gone before its end."""
        body, more = b"", True
        while more:
            async with asyncio.timeout(PATIENCE):
                message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            body, more = body + message["body"], message["more_body"]
        return body

    async def begin(self, status: int = 200, headers: Pairs | None = None) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers or []})

    async def say(self, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, body: bytes = b"") -> None:
        """A whole answer, and the application returns."""
        await self.begin(200, [(b"content-length", b"%d" % len(body))])
        await self.say(body, more=False)
        self.leave()

    def leave(self, problem: BaseException | None = None) -> None:
        """Let the application return, or raise that."""
        if self.end.done():
            return
        if problem is not None:
            self.end.set_exception(problem)
        else:
            self.end.set_result(None)


class Stage:
    """An application whose part a test plays: it gets each exchange as it begins."""

    def __init__(self) -> None:
        self.begun: list[Exchange] = []
        self.serving: Serving
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        self.begun.append(exchange)
        self._queue.put_nowait(exchange)
        try:
            await exchange.end
        except asyncio.CancelledError:
            exchange.ended = scope["line"].gone
            raise

    async def next(self) -> Exchange:
        async with asyncio.timeout(PATIENCE):
            return await self._queue.get()

    async def connect(self) -> Peer:
        return await self.serving.connect()


def patience() -> dict[str, float]:
    """The times that a test may have changed."""
    return {"head_timeout": protocol.HEAD_TIMEOUT, "client_timeout": protocol.CLIENT_TIMEOUT}


@asynccontextmanager
async def playing() -> AsyncIterator[Stage]:
    stage = Stage()
    async with serving(stage) as stage.serving:
        try:
            yield stage
        finally:
            for exchange in stage.begun:
                exchange.leave()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Say what was asked for, and the body that came with it."""
    exchange = Exchange(scope, receive, send)
    if (body := await exchange.hear()) is not None:
        await exchange.answer(b"%b %b %b" % (scope["method"].encode(), exchange.target, body))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with playing() as stage:
        yield stage


@pytest.fixture
async def client(stage: Stage) -> Peer:
    return await stage.connect()


@pytest.fixture
async def echoing() -> AsyncIterator[Peer]:
    """A client of `echo`."""
    async with serving(echo) as server:
        yield await server.connect()


class Wire(asyncio.Transport):
    """A transport that only writes down what it is told."""

    def __init__(self, **extra: object) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2), **extra})
        self.said = b""
        self.calls: list[str] = []
        self.unsent: Iterator[int] = iter(())  # what is still to be sent, each time that someone asks
        self.protocol: asyncio.BaseProtocol | None = None

    def write(self, piece: object) -> None:
        self.said += cast(bytes, piece)

    def writelines(self, pieces: object) -> None:
        self.said += b"".join(cast(list[bytes], pieces))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return next(self.unsent, 0)

    def can_write_eof(self) -> bool:
        return "sslcontext" not in self._extra  # type: ignore[attr-defined]  # as asyncio's and uvloop's do

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def write_eof(self) -> None:
        self.calls.append("eof")

    def is_closing(self) -> bool:
        return "close" in self.calls

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")


def by_hand(app: ASGIApp, wire: Wire) -> HttpProtocol:
    """A connection on that wire."""
    config = Config(app, http=HttpProtocol, lifespan="off", log_config=None)
    config.load()
    made = HttpProtocol(config, ServerState(), {}, None, heads=Heads(), **patience())
    made.connection_made(wire)
    return made


def cuts(said: bytes, size: int) -> list[bytes]:
    return [said[start : start + size] for start in range(0, len(said), size)]


def check_refusal(heard: Heard, status: int) -> str:
    """That it is a structured error of ours, the last word on its connection; return what it says."""
    assert heard.status == status
    error = json.loads(heard.body)["error"]
    assert heard.headers == [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(heard.body)).encode()),
        (b"x-proxy-request-id", error["requestId"].encode()),
        (b"x-request-id", error["requestId"].encode()),
        (b"connection", b"close"),
    ]
    assert re.fullmatch("[0-9a-f]{32}", error["requestId"])
    assert error.keys() == {"message", "type", "code", "requestId"}
    message: str = error["message"]
    return message


# ---- what is refused

FEWER = b"GET / HTTP/1.1\r\nHost: h\r\n"
REFUSED: list[tuple[str, int, bytes]] = [
    ("not valid", 400, b"nonsense\r\n\r\n"),
    ("not valid", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("not valid", 400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("not valid", 400, b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n\x16\x03"),
    ("not valid", 400, b"GET / HTTP/1.1\nHost: h\n\n"),
    ("not valid", 400, FEWER + b"A: b\r\n c\r\n\r\n"),
    ("not valid", 400, FEWER + b"A: \0\r\n\r\n"),
    ("not valid", 400, FEWER + b"A : b\r\n\r\n"),
    ("not valid", 400, b"GET /\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("not valid", 400, b"GET models HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("neither a path", 400, b"GET *models HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("not HTTP/1.1", 400, b"GET / HTTP/2.0\r\nHost: h\r\n\r\n"),
    ("not HTTP/1.1", 400, b"GET / HTTP/2.0\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
    ("not HTTP/1.1", 400, b"GET /\r\n\r\n"),
    ("one Host", 400, b"GET / HTTP/1.1\r\n\r\n"),
    ("one Host", 400, b"GET http://h/ HTTP/1.1\r\nA: b\r\n\r\n"),
    ("one Host", 400, FEWER + b"host: h\r\n\r\n"),
    ("one Host", 400, b"GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n"),
    ("no transfer codings", 400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("coding but chunked", 501, b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("coding but", 501, FEWER + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("target is too long", 414, b"GET /" + b"a" * MAX_TARGET + b" HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("too large", 431, FEWER + b"A: " + b"a" * MAX_HEAD + b"\r\n\r\n"),
    ("too large", 431, FEWER + b"".join(b"A%d: %b\r\n" % (n, b"a" * 6000) for n in range(11)) + b"\r\n"),
    ("too many", 431, FEWER + b"A: b\r\n" * MAX_FIELDS + b"\r\n"),
]


@pytest.mark.parametrize("pieces", [1, 200])
@pytest.mark.parametrize(("why", "status", "said"), REFUSED)
async def test_what_cannot_be_taken_is_refused_and_reaches_no_application(
    stage: Stage, client: Peer, why: str, status: int, said: bytes, pieces: int
) -> None:
    await client.dribble(*cuts(said, len(said) // pieces or 1))
    assert why in check_refusal(await client.hear(), status)
    assert await client.rest() == b""
    assert stage.begun == []


@pytest.mark.parametrize(("why", "status", "said"), [case for case in REFUSED if case[1] in (414, 431)])
async def test_a_head_that_began_behind_another_request_is_measured_in_full(
    echoing: Peer, why: str, status: int, said: bytes
) -> None:
    *begun, rest = cuts(said, 20_000)
    await echoing.say(request(), *begun)
    assert (await echoing.hear()).status == 200
    await echoing.say(rest)
    assert why in check_refusal(await echoing.hear(), status)


async def test_the_largest_head_that_is_meant_is_taken(stage: Stage, client: Peer) -> None:
    target = b"/".ljust(MAX_TARGET, b"a")
    fields = [(b"A%d" % n, b"") for n in range(MAX_FIELDS - 2)]
    room = MAX_HEAD - sum(map(len, (b"Hostproxy.exampleB", *(name for name, _ in fields))))
    await client.say(request(target=target, headers=[*fields, (b"B", b"b" * room)]))
    exchange = await stage.next()
    assert exchange.target == target
    assert len(exchange.scope["headers"]) == MAX_FIELDS


@pytest.mark.parametrize(
    "said",
    [b"GET /", FEWER + b"A", FEWER + b"A: ", CHUNKED + b"0\r\nA: ", CHUNKED + b"0\r\nA", CHUNKED + b"1;a="],
    ids=["target", "name", "value", "value of a trailer", "name of a trailer", "chunk extension"],
)
async def test_what_has_no_end_is_not_kept_without_end(echoing: Peer, said: bytes) -> None:
    await echoing.say(said)
    piece = b"a" * 65536
    for _ in range(64):
        await echoing.dribble(piece)
    assert (await echoing.hear()).status in (414, 431)
    await echoing.closed()


async def test_a_head_is_not_measured_with_the_body_before_it(echoing: Peer) -> None:
    pieces = [b"a" * 16000] * 20
    body = b"".join(pieces)
    await echoing.say(CHUNKED + chunked(*pieces, b"") + b"GET /next HT")
    assert (await echoing.hear()).body == b"POST /up " + body
    await echoing.say(b"TP/1.1\r\nHost: h\r\n\r\n")
    assert (await echoing.hear()).body == b"GET /next "


# ---- what is taken


@pytest.mark.parametrize(
    ("said", "path", "raw_path", "query"),
    [
        (b"/v1/models", "/v1/models", b"/v1/models", b""),
        (b"/v1/models?", "/v1/models", b"/v1/models", b""),
        (b"/v1/a%2Fb%C3%A4?a=%20&b", "/v1/a/b\xe4", b"/v1/a%2Fb%C3%A4", b"a=%20&b"),
        (b"*", "*", b"*", b""),
        (b"http://h", "/", b"/", b""),
        (b"http://h/", "/", b"/", b""),
        (b"http://h?a=/b", "/", b"/", b"a=/b"),
        (b"http://h/?a", "/", b"/", b"a"),
        (b"HTTPS://user:word@[::1]:8/v1//x?a?b", "/v1//x", b"/v1//x", b"a?b"),
        (b"other://h/v1", "/v1", b"/v1", b""),
        (b"//h/v1", "//h/v1", b"//h/v1", b""),
        (b"/http://h/v1", "/http://h/v1", b"/http://h/v1", b""),
    ],
)
async def test_a_target_is_taken_apart_whichever_form_it_has(
    stage: Stage, client: Peer, said: bytes, path: str, raw_path: bytes, query: bytes
) -> None:
    await client.dribble(b"GET ", said[:3], said[3:], b" HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
    scope = (await stage.next()).scope
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)
    assert scope["target"] == raw_path + (b"?" + query if query or said.endswith(b"?") else b"")


async def test_the_scope_tells_who_speaks_to_whom(stage: Stage, client: Peer) -> None:
    await client.say(b"\r\nGET / HTTP/1.1\r\nHOST: h\r\nX-Odd:\t a, b \t\r\nX-Odd: c\r\n\r\n")
    scope = (await stage.next()).scope
    assert scope["client"] == client.writer.get_extra_info("sockname")
    assert scope["server"] == ("127.0.0.1", stage.serving.port)
    assert (scope["type"], scope["scheme"], scope["method"], scope["http_version"]) == ("http", "http", "GET", "1.1")
    assert scope["headers"] == [(b"host", b"h"), (b"x-odd", b"a, b"), (b"x-odd", b"c")]


async def test_without_an_internet_address_or_with_tls_the_scope_says_so() -> None:
    stage = Stage()
    connection = by_hand(stage, Wire(peername="", sockname="/run/oxy.sock", sslcontext=object()))
    connection.data_received(request())
    scope = (await stage.next()).scope
    assert (scope["client"], scope["server"], scope["scheme"]) == (None, None, "https")
    connection.connection_lost(None)


async def test_trailers_are_no_fields(stage: Stage, client: Peer) -> None:
    trailers = b"Authorization: Bearer x\r\nX-Late: 1\r\n\r\n"
    await client.say(CHUNKED, chunked(b"a"), b"0\r\n", trailers, request(target=b"/next"))
    exchange = await stage.next()
    assert await exchange.hear() == b"a"
    assert exchange.scope["headers"] == [(b"host", b"h"), (b"transfer-encoding", b"chunked")]
    await exchange.answer()
    assert (await stage.next()).target == b"/next"


# ---- an offer to speak another protocol

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = b"Upgrade: websocket\r\nConnection: keep-alive,upgrade\r\nSec-WebSocket-Version: 13\r\n"
SEVERAL = b"Upgrade: websocket, other\r\nConnection: keep-alive,upgrade\r\n"
BODIES = {
    b"": b"",
    b"Content-Length: 4\r\n": b"four",
    b"Transfer-Encoding: chunked\r\n": chunked(b"fo", b"ur", b""),
}


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("framing", BODIES, ids=["no body", "length", "chunked"])
@pytest.mark.parametrize("offer", [H2C, SEVERAL], ids=["h2c", "several"])
async def test_an_offer_to_upgrade_is_the_plain_request_that_it_also_is(
    echoing: Peer, offer: bytes, framing: bytes, size: int
) -> None:
    offering = b"POST /%d HTTP/1.1\r\nHost: h\r\n" + offer + framing + b"\r\n" + BODIES[framing]
    plain = request("POST", b"/plain", body=b"{}")
    await echoing.dribble(*cuts(plain + offering % 1 + offering % 2 + plain, size))
    body = b"four" if framing else b""
    expected = [b"POST /plain {}", b"POST /1 " + body, b"POST /2 " + body, b"POST /plain {}"]
    assert [(await echoing.hear()).body for _ in expected] == expected


async def test_an_offer_and_its_body_in_two_pieces(echoing: Peer) -> None:
    await echoing.say(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n" + SEVERAL + b"\r\n")
    await asyncio.sleep(SOON)
    await echoing.say(b"four")
    assert (await echoing.hear()).body == b"POST /a four"


async def test_an_offer_leaves_the_other_fields_as_they_are(stage: Stage, client: Peer) -> None:
    await client.say(
        b"GET http://h/a%20b?c HTTP/1.1\r\nX:\r\nHost: h\r\n" + H2C + b"Connection: x\r\nx:  \xff y \r\n\r\n"
    )
    exchange = await stage.next()
    assert exchange.target == b"/a%20b?c"
    assert exchange.scope["headers"] == [
        (b"x", b""),
        (b"host", b"h"),
        (b"connection", b" HTTP2-Settings".strip()),
        (b"http2-settings", b"AAMAAABkAAQAAP__"),
        (b"connection", b"x"),
        (b"x", b"\xff y"),
    ]


async def test_an_offer_of_http_1_0_stays_http_1_0(stage: Stage, client: Peer) -> None:
    await client.say(b"GET / HTTP/1.0\r\n" + WEBSOCKET + b"\r\n")
    exchange = await stage.next()
    assert exchange.scope["http_version"] == "1.0"
    await exchange.begin()
    await exchange.say(b"plain", more=False)
    assert (await client.rest()).endswith(b"\r\n\r\nplain")


# ---- several requests at once


@pytest.mark.parametrize("offer", [b"", H2C], ids=["plain", "with an offer to upgrade"])
@pytest.mark.parametrize("end", [b"", CHUNKED + b"zz\r\n"], ids=["fine", "malformed"])
async def test_a_client_that_asks_too_much_ahead_has_to_ask_again(echoing: Peer, offer: bytes, end: bytes) -> None:
    asked = [b"GET /%d HTTP/1.1\r\nHost: h\r\n%b\r\n" % (n, offer) for n in range(1200)]
    await echoing.say(*asked, end)
    heard = [await echoing.hear() for _ in range(MAX_WAITING + 1)]
    assert [one.body for one in heard] == [b"GET /%d " % n for n in range(MAX_WAITING + 1)]
    assert heard[-1].get(b"connection") == b"close"
    assert await echoing.rest() == b""


async def test_what_a_client_asked_ahead_in_vain_may_be_malformed(stage: Stage, client: Peer) -> None:
    await client.say(request() * (MAX_WAITING + 1), CHUNKED)
    for _ in range(MAX_WAITING):
        await (await stage.next()).answer(b"fine")
        assert (await client.hear()).body == b"fine"
    last = await stage.next()
    await client.say(b"zz\r\n")
    await asyncio.sleep(SOON)
    await last.answer(b"fine")
    assert (await client.hear()).get(b"connection") == b"close"
    assert await client.rest() == b""


async def test_requests_that_wait_are_answered_in_order_each_with_its_own_body(stage: Stage, client: Peer) -> None:
    await client.say(CHUNKED, chunked(b"one", b""), request("PUT", b"/2", body=b"two"), request("PUT", b"/3", body=b""))
    for target, body in [(b"/up", b"one"), (b"/2", b"two"), (b"/3", b"")]:
        exchange = await stage.next()
        assert (exchange.target, await exchange.hear()) == (target, body)
        assert len([one for one in stage.begun if not one.end.done()]) == 1
        await exchange.answer(body)
        assert (await client.hear()).body == body


async def test_a_body_may_go_on_while_its_request_waits(stage: Stage, client: Peer) -> None:
    await client.say(request(), request("POST", b"/2", [(b"Content-Length", b"6")]) + b"one")
    first = await stage.next()
    await client.say(b"two")
    await first.answer()
    second = await stage.next()
    assert await second.hear() == b"onetwo"


async def test_a_client_is_not_read_while_many_requests_of_its_wait() -> None:
    stage, wire = Stage(), Wire()
    connection = by_hand(stage, wire)
    connection.data_received(request() * (1 + FEW_WAITING))
    assert wire.calls == []
    connection.data_received(request())
    assert wire.calls == ["pause"]
    for _ in range(2 + FEW_WAITING):
        await (await stage.next()).answer()
    assert wire.calls == ["pause", "resume"]
    connection.connection_lost(None)


async def test_a_client_that_sent_a_few_requests_ahead_is_missed_at_once(stage: Stage, client: Peer) -> None:
    await client.say(request() * (1 + FEW_WAITING))
    exchange = await stage.next()
    client.abort()
    await until(lambda: exchange.ended)
    assert len(stage.begun) == 1


async def test_nothing_that_waits_begins_once_the_client_is_gone(stage: Stage, client: Peer) -> None:
    await client.say(request(target=b"/1"), request(target=b"/2") * (1 + FEW_WAITING))
    exchange = await stage.next()
    client.abort()
    await exchange.begin()
    for _ in range(100):
        await exchange.say(b"a" * 1000)  # a client of which many requests wait is not read: its end shows in writing
        await asyncio.sleep(0)
    await stage.serving.forgotten()
    assert [one.target for one in stage.begun] == [b"/1"]


BROKEN = {"head": b"nonsense\r\n\r\n", "body": CHUNKED + b"zz\r\n", "field": b"GET / HTTP/1.1\r\n\r\n"}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "in the answer"])
async def test_what_came_before_something_malformed_is_answered_first(
    stage: Stage, client: Peer, broken: str, begun: bool
) -> None:
    await client.say(request(target=b"/1"), request(target=b"/2"))
    first = await stage.next()
    if begun:
        await first.begin()
        await first.say(b"one")
        assert (await client.head()).status == 200
        assert await client.chunk() == b"one"
    await client.say(BROKEN[broken], request(target=b"/never"))
    await asyncio.sleep(SOON)
    if not begun:
        await first.begin()
    await first.say(b"", more=False)
    first.leave()
    if not begun:
        assert (await client.head()).status == 200
    assert await client.chunk() == b""
    await (await stage.next()).answer(b"two")
    assert (await client.hear()).body == b"two"
    check_refusal(await client.hear(), 400)
    assert await client.rest() == b""
    assert [one.target for one in stage.begun] == [b"/1", b"/2"]


async def test_a_client_that_was_refused_in_its_turn_is_not_heard_any_more(stage: Stage, client: Peer) -> None:
    await client.say(request(target=b"/1"))
    first = await stage.next()
    await client.say(b"nonsense\r\n\r\n")
    for _ in range(3):
        await client.dribble(request(target=b"/never"), b"nonsense\r\n\r\n")
    await asyncio.sleep(SOON)
    await first.answer(b"one")
    assert (await client.hear()).body == b"one"
    check_refusal(await client.hear(), 400)
    assert await client.rest() == b""
    assert len(stage.begun) == 1


async def test_an_upload_that_turns_out_malformed_is_refused(stage: Stage, client: Peer) -> None:
    await client.say(CHUNKED, chunked(b"fine"))
    exchange = await stage.next()
    assert (await exchange.receive())["body"] == b"fine"
    await client.say(b"zz\r\n")
    assert await exchange.hear() is None
    check_refusal(await client.hear(), 400)
    assert await client.rest() == b""
    await exchange.begin()  # in silence
    await exchange.say(b"late", more=False)
    await until(lambda: exchange.ended)


async def test_an_upload_that_turns_out_malformed_in_its_answer_has_it_torn(stage: Stage, client: Peer) -> None:
    await client.say(CHUNKED, chunked(b"fine"))
    exchange = await stage.next()
    await exchange.begin()
    await exchange.say(b"so far")
    await client.say(b"zz\r\n")
    assert (await client.rest()).endswith(b"\r\n\r\n6\r\nso far\r\n")
    await until(lambda: exchange.ended)


async def test_an_upload_that_turns_out_malformed_after_its_answer_is_worth_no_word(stage: Stage, client: Peer) -> None:
    await client.say(CHUNKED, chunked(b"fine"))
    await (await stage.next()).answer(b"enough")
    assert (await client.hear()).body == b"enough"
    await client.say(chunked(b"fine"), b"zz\r\n")
    assert await client.rest() == b""


# ---- times


async def test_a_head_that_never_ends_is_408(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", SOON)
    client = await stage.connect()
    await client.say(b"GET / HTTP/1.1\r\nHost:")
    assert "took too long" in check_refusal(await client.hear(), 408)
    assert await client.rest() == b""


async def test_a_head_has_no_more_time_for_coming_byte_by_byte(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.2)
    client = await stage.connect()
    bytes_said = 0

    async def dribble() -> None:
        nonlocal bytes_said
        for bytes_said in count():
            await client.say(b"/" if bytes_said > 4 else b"GET /"[bytes_said : bytes_said + 1])
            await asyncio.sleep(0.02)

    dribbling = asyncio.ensure_future(dribble())
    check_refusal(await client.hear(), 408)
    dribbling.cancel()
    assert bytes_said < 40


@pytest.mark.parametrize("said", [b"", b"\r\n"], ids=["nothing", "an empty line"])
async def test_a_client_that_asks_nothing_is_let_go_without_a_word(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", SOON)
    async with serving(echo, keep_alive=SOON) as server:
        client = await server.connect()
        await client.say(said)
        assert await client.rest() == b""


async def test_an_idle_time_is_counted_from_the_last_answer_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.1)
    loop = asyncio.get_running_loop()
    async with serving(echo, keep_alive=0.2) as server:
        client = await server.connect()
        for _ in range(4):
            await client.say(request())
            assert (await client.hear()).status == 200
            await asyncio.sleep(0.07)
        await client.say(request())
        assert (await client.hear()).status == 200
        answered = loop.time()
        assert await client.rest() == b""
        assert loop.time() - answered > 0.15
        assert not server.state.connections


async def test_a_shorter_time_is_kept_where_a_longer_one_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo, keep_alive=SOON) as server:
        client = await server.connect()  # with thirty seconds to begin
        await client.say(request())
        await client.hear()
        assert await client.rest() == b""


async def test_an_exchange_may_take_longer_than_a_head_or_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", SOON)
    stage = Stage()
    async with serving(stage, keep_alive=SOON) as server:
        client = await server.connect()
        await client.say(b"POST / HTTP/1.1\r\nHost: h\r\n")
        await client.say(b"Content-Length: 2\r\n\r\n{")
        exchange = await stage.next()
        await asyncio.sleep(2 * SOON)
        await client.say(b"}")
        assert await exchange.hear() == b"{}"
        await asyncio.sleep(2 * SOON)
        await exchange.answer(b"fine")
        assert (await client.hear()).body == b"fine"


async def test_half_a_head_behind_an_exchange_has_time_until_that_is_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", SOON)
    client = await stage.connect()
    await client.say(request(), b"GET /next HTTP/1.1\r\n")
    exchange = await stage.next()
    await asyncio.sleep(2 * SOON)
    await client.say(b"Ho")
    await asyncio.sleep(2 * SOON)
    await exchange.answer(b"one")
    assert (await client.hear()).body == b"one"
    check_refusal(await client.hear(), 408)


async def test_an_upload_that_does_not_go_on_is_408(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLIENT_TIMEOUT", 0.2)
    client = await stage.connect()
    await client.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
    exchange = await stage.next()
    began = asyncio.get_running_loop().time()
    for piece in (b"a", b"b", b"c"):  # each piece has its own time
        await asyncio.sleep(0.1)
        await client.say(piece)
        assert (await exchange.receive())["body"] == piece
    assert await exchange.hear() is None
    assert asyncio.get_running_loop().time() - began >= 0.5
    assert "does not go on" in check_refusal(await client.hear(), 408)
    assert await client.rest() == b""


async def test_an_upload_may_pause_while_nobody_asks_for_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLIENT_TIMEOUT", SOON)
    client = await stage.connect()
    await client.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab")
    exchange = await stage.next()
    assert (await exchange.receive())["body"] == b"ab"
    await asyncio.sleep(3 * SOON)
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    await exchange.answer(b"early")
    await asyncio.sleep(3 * SOON)
    assert (await client.hear()).body == b"early"


async def test_an_upload_may_pause_once_its_answer_has_begun(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLIENT_TIMEOUT", SOON)
    client = await stage.connect()
    await client.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab")
    exchange = await stage.next()
    assert (await exchange.receive())["body"] == b"ab"
    hearing = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    await exchange.send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await asyncio.sleep(3 * SOON)
    await client.say(b"cd")
    assert (await hearing)["body"] == b"cd"
    await exchange.say(b"ok")
    assert (await client.hear()).body == b"ok"


async def test_a_client_that_sends_on_but_reads_nothing_is_let_go(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "CLIENT_TIMEOUT", 0.2)
    client = await stage.connect()
    await client.say(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab")
    exchange = await stage.next()
    assert (await exchange.receive())["body"] == b"ab"
    hearing = asyncio.ensure_future(exchange.receive())
    await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
    sending = asyncio.ensure_future(exchange.say(bytes(30 * 1024 * 1024)))
    await asyncio.sleep(0.1)
    await client.say(b"cd")
    assert (await hearing)["body"] == b"cd"
    await asyncio.wait_for(sending, PATIENCE)
    exchange.leave()
    await stage.serving.forgotten()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_reads_nothing_of_its_answer_is_let_go_and_one_that_reads_slowly_is_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    monkeypatch.setattr(protocol, "CLIENT_TIMEOUT", 0.2)
    client = await stage.connect()
    await client.say(request())
    exchange = await stage.next()
    size = 30 * 1024 * 1024
    await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
    sending = asyncio.ensure_future(exchange.say(bytes(size)))
    got = 0
    if reads:
        while got < size:
            got += len(await client.reader.read(1024 * 1024))
            await asyncio.sleep(0.002)
    await asyncio.wait_for(sending, PATIENCE)
    exchange.leave()
    await stage.serving.forgotten()
    assert bool(got) == reads


async def test_the_rest_of_an_upload_is_no_pause_but_what_follows_it_is() -> None:
    stage = Stage()
    async with serving(stage, keep_alive=0.15) as server:
        client = await server.connect()
        await client.say(CHUNKED)
        await (await stage.next()).answer(b"enough")
        assert (await client.hear()).body == b"enough"
        for _ in range(6):
            await client.say(chunked(b"more"))
            await asyncio.sleep(SOON)
        await client.say(chunked(b""), request(target=b"/next"))
        await (await stage.next()).answer(b"next")
        assert (await client.hear()).body == b"next"
        await client.say(CHUNKED)
        await (await stage.next()).answer(b"enough")
        assert (await client.hear()).body == b"enough"
        await client.say(chunked(b"more"))
        assert await client.rest() == b""


# ---- HTTP/1.0


@pytest.mark.parametrize("wish", [b"", b"Connection: keep-alive\r\n"], ids=["plain", "keep-alive"])
async def test_a_client_of_http_1_0_gets_one_answer_and_an_end(stage: Stage, client: Peer, wish: bytes) -> None:
    await client.say(b"GET /1 HTTP/1.0\r\n" + wish + b"\r\n", b"GET /2 HTTP/1.0\r\n\r\n")
    exchange = await stage.next()
    await exchange.begin()
    await exchange.say(b"one")
    await exchange.say(b"two", more=False)
    assert await client.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"
    exchange.leave()
    assert len(stage.begun) == 1


async def reset(client: Peer) -> bool:
    """Whether the connection breaks instead of ending."""
    async with asyncio.timeout(PATIENCE):
        try:
            await client.reader.read()
        except ConnectionResetError:
            return True
    return False


async def test_an_answer_that_only_the_connection_ends_is_not_ended_by_it_when_it_breaks(
    stage: Stage, client: Peer
) -> None:
    await client.say(b"GET / HTTP/1.0\r\n\r\n")
    exchange = await stage.next()
    await exchange.begin()
    await exchange.say(b"half")
    await client.until(b"half")
    exchange.leave()
    assert await reset(client)


async def test_nor_when_its_client_only_stops_talking(stage: Stage, client: Peer) -> None:
    await client.say(b"GET / HTTP/1.0\r\n\r\n")
    exchange = await stage.next()
    await exchange.begin()
    await exchange.say(b"half")
    await client.until(b"half")
    client.writer.write_eof()
    assert await reset(client)
    await stage.serving.forgotten()
    assert exchange.ended


# ---- clients that hang up


async def close(client: Peer) -> None:
    client.writer.close()


async def abort(client: Peer) -> None:
    client.abort()


async def stop_talking(client: Peer) -> None:
    client.writer.write_eof()
    assert not (await client.rest()).endswith(b"0\r\n\r\n")


UPLOAD = request("POST", headers=[(b"Content-Length", b"5")])


@pytest.mark.parametrize("hang_up", [close, abort, stop_talking])
@pytest.mark.parametrize(
    ("said", "begun"),
    [
        (b"", None),
        (b"GET / HT", None),
        (UPLOAD, None),
        (UPLOAD, False),
        (UPLOAD, True),
        (UPLOAD + b"fo", None),
        (request(), None),
        (request(), False),
        (request(), True),
        (request() + b"GET /next HTTP/1.1\r\nHo", True),
    ],
)
async def test_a_client_may_hang_up_at_any_moment(
    stage: Stage, client: Peer, said: bytes, begun: bool | None, hang_up: Callable[[Peer], Awaitable[None]]
) -> None:
    await client.say(said)
    asked = said.count(b"\r\n\r\n")
    exchange = await stage.next() if asked and begun is not None else None
    if exchange is not None and begun:
        await exchange.begin()
        await exchange.say(b"so far")
    await hang_up(client)
    await stage.serving.forgotten()
    for exchange in stage.begun:
        assert exchange.ended
        assert (await exchange.receive())["type"] == "http.disconnect"
        await exchange.begin()
        await exchange.say(b"to nobody", more=False)


async def test_an_application_that_is_told_nothing_more_hears_of_the_end_by_receive(stage: Stage, client: Peer) -> None:
    await client.say(request())
    exchange = await stage.next()
    assert await exchange.hear() == b""
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    client.abort()
    async with asyncio.timeout(PATIENCE):
        assert await waiting == {"type": "http.disconnect"}


async def test_a_client_that_hangs_up_before_its_exchange_has_run_gets_no_100() -> None:
    stage, wire = Stage(), Wire()
    connection = by_hand(stage, wire)
    connection.data_received(request("POST", headers=[(b"Expect", b"100-continue"), (b"Content-Length", b"2")]))
    exchange = await stage.next()
    connection.connection_lost(None)
    assert await exchange.receive() == {"type": "http.disconnect"}
    assert wire.said == b""


async def test_half_an_answer_does_not_keep_the_upstream_from_hearing_of_the_end(stage: Stage, client: Peer) -> None:
    """A client that stops talking and does not read either: what is buffered for it is not waited for."""
    await client.say(request())
    exchange = await stage.next()
    await exchange.begin()
    saying = asyncio.ensure_future(exchange.say(b"a" * 20_000_000))
    await asyncio.sleep(SOON)
    assert not saying.done()
    client.writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        await saying
    await until(lambda: exchange.ended)


# ---- the end of a connection


async def test_a_refusal_reaches_a_client_that_goes_on_uploading(stage: Stage, client: Peer) -> None:
    await client.say(b"POST / HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n")
    for _ in range(80):
        await client.dribble(b"a" * 100_000)
    check_refusal(await client.hear(), 400)
    assert await client.rest() == b""
    client.writer.close()
    await stage.serving.forgotten()


async def test_an_answer_before_the_end_of_the_last_upload_reaches_its_client(stage: Stage, client: Peer) -> None:
    await client.say(request("POST", headers=[*CLOSE, (b"Content-Length", b"8000000")]))
    await (await stage.next()).answer(b"enough")
    for _ in range(80):
        await client.dribble(b"a" * 100_000)
    assert (await client.hear()).body == b"enough"
    assert await client.rest() == b""


async def test_a_client_that_neither_ends_nor_hangs_up_is_not_heard_for_ever(
    stage: Stage, client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "LINGER", SOON)
    await client.say(b"nonsense\r\n\r\n")
    check_refusal(await client.hear(), 400)
    with pytest.raises(ConnectionError):
        await client.dribble(*[b"more"] * 1_000_000)
    await stage.serving.forgotten()


async def test_a_client_that_never_reads_is_not_waited_for_for_ever(
    stage: Stage, client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "STALL", SOON)
    monkeypatch.setattr(cycle, "LINGER", SOON)
    await client.say(request(headers=CLOSE))
    await (await stage.next()).answer(b"a" * 20_000_000)
    await stage.serving.forgotten()
    assert await reset(client)


async def test_a_client_that_reads_late_gets_all_of_the_last_answer(stage: Stage, client: Peer) -> None:
    await client.say(request(headers=CLOSE))
    await (await stage.next()).answer(b"a" * 20_000_000)
    await asyncio.sleep(SOON)
    assert len((await client.hear()).body) == 20_000_000
    assert await client.rest() == b""


async def test_a_client_that_reads_slowly_is_waited_for_as_long_as_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "STALL", 0)
    monkeypatch.setattr(cycle, "LINGER", 0)
    wire = Wire()
    connection = by_hand(echo, wire)
    wire.unsent = iter((5, 4, 4, 1, 1, 0, 0, 0))
    connection.data_received(b"nonsense\r\n\r\n")
    await until(lambda: "close" in wire.calls)
    assert wire.calls == ["resume", "eof", "close"]
    assert list(wire.unsent) == []
    assert wire.protocol is not None
    cast(asyncio.Protocol, wire.protocol).connection_lost(None)


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    """A socket that is connected, for a `Wire` that has one."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours


async def test_tls_has_no_end_of_one_side_and_nobody_waits_for_a_word_of_who_is_refused(
    ours: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "LINGER", 0)
    wire = Wire(sslcontext=object(), socket=ours)
    by_hand(echo, wire).data_received(b"nonsense\r\n\r\n")
    assert wire.calls == ["resume"]
    await until(lambda: "close" in wire.calls)
    assert ours.recv(1) == b"", "it is as if the client had hung up"
    cast(asyncio.Protocol, wire.protocol).connection_lost(None)


async def test_where_all_is_said_tls_waits_for_no_word_of_the_client(stage: Stage, ours: socket.socket) -> None:
    wire = Wire(sslcontext=object(), socket=ours)
    connection = by_hand(stage, wire)
    connection.data_received(request(headers=[(b"Connection", b"close")]))
    await (await stage.next()).answer(b"one")
    await until(lambda: "close" in wire.calls)
    assert ours.recv(1) == b"", "it is as if the client had hung up"
    assert ours.send(b"more") == 4, "what is still unsent goes out"
    connection.eof_received()
    assert {*wire.calls} == {"close"}
    connection.shutdown()
    assert connection._state.connections, "something of the answer may still be on its way"
    connection.connection_lost(None)
    assert not connection._state.connections


def test_a_connection_that_is_lost_has_no_socket_whose_descriptor_may_be_anothers_by_now() -> None:
    cycle.close(wire := Wire(sslcontext=object()))
    assert wire.calls == ["close"]


def test_without_tls_to_close_is_all_that_it_takes(ours: socket.socket) -> None:
    cycle.close(Wire(socket=ours))
    with pytest.raises(BlockingIOError):
        ours.recv(1)


async def test_a_server_that_stops_waits_for_nobody_who_is_idle_and_lets_go_of_them_after_one_more_answer(
    stage: Stage, client: Peer
) -> None:
    await client.say(request())
    await (await stage.next()).answer(b"one")
    assert (await client.hear()).status == 200
    other = await stage.connect()
    await other.say(b"GET / HTTP/1.1\r\nHo")
    await asyncio.sleep(SOON)
    stage.serving.shutdown()
    stage.serving.shutdown()
    assert not stage.serving.state.connections
    await client.say(request())
    await other.say(b"st: h\r\n\r\n")
    for peer in (client, other):
        await (await stage.next()).answer(b"two")
        back = await peer.hear()
        assert (back.body, back.get(b"connection")) == (b"two", b"close")
        assert await peer.rest() == b""
        peer.writer.close()
    await stage.serving.forgotten()


async def test_a_server_that_stops_waits_for_what_a_slow_client_has_not_read_of_its_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "LINGER", 0)
    wire = Wire()
    connection = by_hand(stage, wire)
    connection.data_received(request())
    await (await stage.next()).answer(b"one")
    await until(lambda: connection._current is None)
    wire.unsent = iter((5, 5, 5, 0, 0, 0))  # it reads nothing for a moment, then all
    connection.shutdown()
    assert connection._state.connections == {wire.protocol}
    await until(lambda: "close" in wire.calls)
    assert wire.calls == ["resume", "eof", "close"]
    cast(asyncio.Protocol, wire.protocol).connection_lost(None)
    assert not connection._state.connections


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "in the answer"])
async def test_a_server_that_stops_lets_what_runs_finish(stage: Stage, client: Peer, begun: bool) -> None:
    await client.say(request(target=b"/1"), request(target=b"/2"))
    exchange = await stage.next()
    if begun:
        await exchange.begin()
    stage.serving.shutdown()
    if not begun:
        await exchange.begin()
    await exchange.say(b"one", more=False)
    exchange.leave()
    told = b"" if begun else b"connection: close\r\n"
    assert await client.rest() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n%b\r\n3\r\none\r\n0\r\n\r\n" % told
    client.writer.close()
    await stage.serving.forgotten()
    assert [one.target for one in stage.begun] == [b"/1"], "what waits never begins"


async def test_a_connection_that_is_saying_farewell_is_no_news_to_a_server_that_stops(
    stage: Stage, client: Peer
) -> None:
    await client.say(b"nonsense\r\n\r\n")
    check_refusal(await client.hear(), 400)
    stage.serving.shutdown()
    assert await client.rest() == b""
    client.writer.close()
    await stage.serving.forgotten()


async def test_connections_are_closed_at_once_where_nothing_is_left_to_say_or_hear() -> None:
    wire = Wire()
    connection = by_hand(echo, wire)
    connection.data_received(request(headers=CLOSE))
    await until(lambda: wire.calls)
    assert wire.calls == ["close"]
    connection.connection_lost(None)
