"""The exchange on somebody else's ASGI server: what it is told there, and how it hears of a hang-up.

That the relay keeps its promises there is in test_relay, test_downstream and others, by the way `pure`. Here are the
requests that such a server lets through, and the order of what it says, by hand.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config, HTTPProtocolType
from uvicorn.server import ServerState

from proxy.app import create_app
from proxy.downstream_websocket import WebSocketDownstream
from proxy.plain import Line, Plain
from proxy.protocol import HttpProtocol
from proxy.pure import PureProtocol
from proxy.request import MAX_FIELDS, MAX_HEAD, MAX_TARGET
from proxy.server import configure
from tests.conftest import SettingsOf, running
from tests.desk import BEARER, TOKEN
from tests.peers import PATIENCE, Pairs, Peer, Upstream, chunked, request
from tests.sockets import Far, ended, hear, session

on_h11 = pytest.mark.parametrize("way", ["pure"], indirect=True)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE: Message = {"type": "http.request", "body": b"piece", "more_body": True}
END: Message = {"type": "http.request", "body": b"end"}
DISCONNECT: Message = {"type": "http.disconnect"}
NO_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}
ANSWER: Message = {"type": "http.response.body", "body": b"answer"}
BOTH = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"

App = Callable[[Scope, Receive, Send], Any]


def scope_of(**changes: object) -> Scope:
    pairs: Pairs = [(b"host", b"h"), (b"x-a", b"first"), (b"x-a", b"second")]
    plain = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "raw_path": b"/v1/%2F",
        "query_string": b"a=%2B",
        "headers": pairs,
    }
    return {**plain, **changes}


def with_body(**changes: object) -> Scope:
    return scope_of(headers=[(b"host", b"h"), (b"transfer-encoding", b"chunked")], **changes)


class Server:
    """A server in a test's hands: what it says comes from `says`, what it was told is in `sent`."""

    def __init__(self, *says: Message) -> None:
        self.says: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.readers = 0
        for message in says:
            self.says.put_nowait(message)

    async def receive(self) -> Message:
        self.readers += 1
        assert self.readers == 1, "two at once read what the server says"
        try:
            return await self.says.get()
        finally:
            self.readers -= 1

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def serve(self, app: App, scope: Scope) -> None:
        async with asyncio.timeout(PATIENCE):
            await Plain(app)(scope, self.receive, self.send)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_the_exchange_is_told_what_our_own_server_would_tell_it() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    await Server().serve(app, scope_of())
    assert scopes[0]["target"] == b"/v1/%2F?a=%2B"
    assert scopes[0]["fields"] == {b"host": b"h", b"x-a": b"first"}
    assert scopes[0]["line"].gone is False
    assert scopes[0]["line"].stopping is False
    assert scopes[0]["client"] is None  # a server need not know it


@pytest.mark.parametrize("client", [{}, {"client": None}], ids=["not told", "told to be none"])
async def test_a_session_is_told_the_same_and_has_no_address_where_the_server_knows_none(
    client: dict[str, None],
) -> None:
    sessions: list[WebSocketDownstream] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        sessions.append(WebSocketDownstream(scope, receive, send))

    await Server().serve(app, scope_of(type="websocket", **client))
    assert sessions[0].client_address is None
    assert sessions[0].target == b"/v1/%2F?a=%2B"
    assert sessions[0].fields == {b"host": b"h", b"x-a": b"first"}
    assert sessions[0].gone is False


@pytest.mark.parametrize("query", [b"", b"a=b"])
async def test_a_path_under_which_it_is_mounted_is_taken_off(query: bytes) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    await Server().serve(app, scope_of(root_path="/oxy", raw_path=b"/oxy/v1/models", query_string=query))
    assert scopes[0]["target"] == b"/v1/models" + (b"?" + query if query else b"")
    assert scopes[0]["raw_path"] == b"/v1/models"


async def test_what_is_no_http_request_passes_as_it_is() -> None:
    heard: list[tuple[Scope, Receive, Send]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((scope, receive, send))

    server = Server()
    receive, send = server.receive, server.send
    await Plain(app)({"type": "lifespan"}, receive, send)
    assert heard == [({"type": "lifespan"}, receive, send)]


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (scope_of(method="CONNECT"), 400),
        (scope_of(raw_path=b"elsewhere.example/v1"), 400),
        (scope_of(http_version="2"), 400),
        (scope_of(headers=[]), 400),
        (scope_of(headers=[(b"host", b"h"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked")]), 400),
        (scope_of(headers=[(b"host", b"h"), (b"content-length", b"1" * 5000)]), 400),
        (scope_of(headers=[(b"host", b"h"), (b"content-length", b"-1")]), 400),
        (scope_of(headers=[(b"host", b"h"), (b"transfer-encoding", b"gzip")]), 501),
        (scope_of(raw_path=b"/" + b"x" * MAX_TARGET), 414),
        (scope_of(headers=[(b"host", b"h"), (b"x", b"x" * MAX_HEAD)]), 431),
        (scope_of(headers=[(b"host", b"h"), *[(b"x", b"x")] * MAX_FIELDS]), 431),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
async def test_what_our_own_server_would_refuse_is_refused(scope: Scope, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it got through")

    server = Server()
    await server.serve(app, scope)
    start, body = server.sent
    assert start["status"] == status
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "OPENAI_PROXY_BAD_REQUEST"


@on_h11
@pytest.mark.parametrize("said", [BOTH, b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: h\r\n\r\n"])
async def test_what_h11_lets_through_goes_nowhere(client: Peer, upstream: Upstream, said: bytes) -> None:
    await client.say(said)
    refused = await client.hear()
    assert (refused.status, refused.get(b"connection")) == (400, b"close")
    assert json.loads(refused.body)["error"]["requestId"] == (refused.get(b"x-proxy-request-id") or b"").decode()
    assert upstream.accepted == 0


async def test_a_body_arrives_as_it_comes_and_then_a_hang_up_is_waited_for() -> None:
    heard: list[Message] = []
    waiting: list[asyncio.Future[Message]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])
        waiting.append(asyncio.ensure_future(receive()))
        await asyncio.sleep(0)
        assert not waiting[0].done()
        server.says.put_nowait(DISCONNECT)
        await forever()

    server = Server(PIECE, END)
    await server.serve(app, with_body())
    assert [*heard, await waiting[0]] == [PIECE, END, DISCONNECT]


async def test_a_request_without_a_body_has_an_empty_one() -> None:
    heard: list[Message] = []
    waiting: list[asyncio.Future[Message]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())
        waiting.append(asyncio.ensure_future(receive()))
        server.says.put_nowait(DISCONNECT)
        await forever()

    server = Server(NO_BODY)
    await server.serve(app, scope_of())
    assert [*heard, await waiting[0]] == [NO_BODY, DISCONNECT]


@pytest.mark.parametrize(("scope", "says"), [(scope_of(), NO_BODY), (with_body(), END)], ids=["no body", "body"])
async def test_a_hang_up_cancels_the_exchange(scope: Scope, says: Message) -> None:
    lines: list[Line] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        lines.append(scope["line"])
        await receive()
        server.says.put_nowait(DISCONNECT)
        await forever()

    server = Server(says)
    await server.serve(app, scope)
    assert lines[0].gone


async def test_a_hang_up_in_the_upload_is_told_to_the_one_who_reads_and_cancels_any_other() -> None:
    heard = []

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])
        await asyncio.sleep(0)
        heard.append(scope["line"].gone)

    async def lets_read(scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.ensure_future(reads(scope, receive, send))
        await forever()
        await reading

    await Server(PIECE, DISCONNECT).serve(reads, with_body())
    await Server(PIECE, DISCONNECT).serve(lets_read, with_body())
    await asyncio.sleep(0)
    assert heard == [PIECE, DISCONNECT, True] * 2


async def test_a_hang_up_in_the_form_of_a_page_is_no_fault_of_ours(settings_of: SettingsOf) -> None:
    server = Server(PIECE, DISCONNECT)
    form = with_body(method="POST", path="/log", raw_path=b"/log", client=("127.0.0.1", 1))
    await create_app(settings_of(ACCESS_TOKEN="a-token-of-this-test"))(form, server.receive, server.send)
    assert server.sent == []


async def test_a_disconnect_after_the_answer_is_no_hang_up() -> None:
    ended: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(ANSWER)
        server.says.put_nowait(DISCONNECT)
        await asyncio.sleep(0.01)  # what is left to settle
        ended.append(scope["line"].gone)

    server = Server(NO_BODY)
    await server.serve(app, scope_of())
    assert ended == [False]


async def test_a_server_that_stops_is_no_hang_up() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await forever()

    exchange = asyncio.ensure_future(Server(NO_BODY).serve(app, scope_of()))
    await asyncio.sleep(0)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange


async def test_nothing_listens_when_the_exchange_is_over() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    before = asyncio.all_tasks()
    await Server(NO_BODY).serve(app, scope_of())
    await Server(END).serve(app, with_body())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_what_is_pushed_goes_out_with_the_next_drain() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert not scope["sink"].push(b"one")
        assert not scope["sink"].push(b"two")
        await scope["sink"].drain()
        await send(ANSWER)

    server = Server(NO_BODY)
    await server.serve(app, scope_of())
    assert server.sent == [{"type": "http.response.body", "body": b"onetwo", "more_body": True}, ANSWER]


@pytest.mark.parametrize("transport", ["fast", "httpx"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_under_uvicorn_as_it_comes_it_streams_and_hears_a_hang_up(
    settings_of: SettingsOf, upstream: Upstream, transport: str, http: HTTPProtocolType
) -> None:
    settings = settings_of(OXY_TARGET=upstream.url, OXY_TRANSPORT=transport)
    async with running(settings, config=Config(create_app(settings), http=http, log_config=None)) as proxy:
        client = await proxy.connect()
        await client.say(request("POST", body=b"{}"))
        there = await upstream.accept()
        assert (await there.hear()).body == b"{}"
        await there.say(HEAD)
        await client.head()
        for event in (b"one", b"two"):
            await there.say(chunked(event))
            assert await client.chunk() == event
        client.abort()
        await there.closed()


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_under_uvicorn_as_it_comes_a_304_is_whole_whatever_length_it_states(
    settings_of: SettingsOf, upstream: Upstream, http: HTTPProtocolType
) -> None:
    upstream.says(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\nETag: a\r\n\r\n")
    settings = settings_of(OXY_TARGET=upstream.url)
    async with running(settings, config=Config(create_app(settings), http=http, log_config=None)) as proxy:
        client = await proxy.connect()
        for _ in range(2):
            await client.say(request())
            heard = await client.hear()
            assert (heard.status, heard.get(b"etag")) == (304, b"a")


@pytest.mark.parametrize(("named", "status"), [(True, 200), (False, 503)])
async def test_under_uvicorn_as_it_comes_the_log_is_the_history_that_the_settings_name(
    settings_of: SettingsOf, tmp_path: Path, named: bool, status: int
) -> None:
    history = str(tmp_path / "history.sqlite") if named else ""
    settings = settings_of(ACCESS_TOKEN=TOKEN, PROXY_HISTORY=history)
    async with running(settings, config=Config(create_app(settings), log_config=None)) as proxy:
        client = await proxy.connect()
        heard = None
        for _ in range(40):  # the file is there a moment after the start, and a page is to be had 60 times a minute
            await client.say(request("GET", b"/log", [BEARER]))
            if (heard := (await client.hear()).status) == status:
                break
            await asyncio.sleep(0.25)
        assert heard == status


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_under_uvicorn_as_it_comes_a_session_passes_and_ends_with_its_client(
    settings_of: SettingsOf, http: HTTPProtocolType
) -> None:
    async with Far().listening() as far:
        settings = settings_of(OXY_TARGET=far.url)
        config = Config(create_app(settings), http=http, ws="websockets-sansio", log_config=None)
        async with (
            running(settings, config=config) as proxy,
            session(proxy, far, target="/v1/realtime?a=%2F") as (client, there),
        ):
            assert far.heard[0].path == "/v1/realtime?a=%2F"
            await client.send("up")
            assert await hear(there) == "up"
            await there.send(b"down")
            assert await hear(client) == b"down"
            await client.close(4001, "enough")
            assert await ended(there) == (4001, "enough")


@pytest.mark.parametrize(("there", "protocol"), [(True, HttpProtocol), (False, PureProtocol)])
async def test_our_protocol_serves_where_httptools_is(
    monkeypatch: pytest.MonkeyPatch, settings_of: SettingsOf, there: bool, protocol: type
) -> None:
    monkeypatch.setattr("proxy.native.has_llhttp", lambda: there)
    config = configure(settings_of())
    config.load()
    made = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]
    assert isinstance(made, protocol)
    assert isinstance(config.loaded_app, Plain) is not there
