"""Where every failure meets: what nobody foresaw is told to the log, and to the client only that it happened."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from starlette.types import Message

from proxy.app import relay_app
from proxy.entry import Facts
from proxy.errors import Forbidden, Pairs
from proxy.exchange import Request
from proxy.gateway import MOST_OF_A_PATH, let_go_of_frames, meet
from proxy.recall import Recall
from tests.conftest import CLIENT_KEY, SWAP, SettingsOf, Start
from tests.peers import Heard, Peer, Upstream, answer, chunked, request

SECRET = "sk-secret-in-an-exception"


class Broken(httpx.AsyncBaseTransport):
    """A transport with a defect: it fails in a way that no transport should, before the head or after it."""

    def __init__(self, *, after_the_head: bool) -> None:
        self._after_the_head = after_the_head

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._after_the_head:
            raise ZeroDivisionError(SECRET)
        return httpx.Response(200, stream=BreaksOff())


class BreaksOff(httpx.AsyncByteStream):
    async def __aiter__(self):  # type: ignore[no-untyped-def]
        yield b"half"
        raise ZeroDivisionError(SECRET)


async def ask(app: object, headers: Pairs | None = None) -> list[Message]:
    """All that an application sends on one GET, by hand."""
    sent: list[Message] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/models",
        "raw_path": b"/v1/models",
        "target": b"/v1/models",
        "query_string": b"",
        "headers": headers or [],
        "fields": dict(headers or []),
        "line": Present(),
        "sink": Gathered(sent),
        "client": None,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[operator]
    return sent


async def test_what_nobody_foresaw_is_a_500_with_its_traceback_in_the_log_alone(
    settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
) -> None:
    start, body = await ask(relay_app(settings_of(), Broken(after_the_head=False)))
    error = json.loads(body["body"])["error"]
    assert (start["status"], error["code"], error["type"]) == (500, "OPENAI_PROXY_INTERNAL", "internal_error")
    assert SECRET not in body["body"].decode()
    assert "ZeroDivisionError" in caplog.text


async def test_what_nobody_foresaw_in_a_stream_leaves_it_torn(settings_of: SettingsOf) -> None:
    sent = await ask(relay_app(settings_of(), Broken(after_the_head=True)))
    assert [message.get("body") for message in sent] == [None, b"half"]
    assert sent[-1]["more_body"]


async def test_a_client_of_unknown_address_is_served_all_the_same(settings_of: SettingsOf) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=request.headers, stream=Nothing()))
    start, *_ = await ask(relay_app(settings_of(PROXY_FORWARDED="append"), transport))
    assert start["status"] == 200
    assert b"x-forwarded-for" not in dict(start["headers"])


class Nothing(httpx.AsyncByteStream):
    async def __aiter__(self):  # type: ignore[no-untyped-def]
        return
        yield


# ---- what the ledger says of each


CHAT = request("POST", b"/v1/chat/completions?secret=in-the-query", [(b"X-API-Key", CLIENT_KEY.encode())], b'{"a": 1}')
USED = b'{"model": "gpt-4o", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}'
JSON = [(b"Content-Type", b"application/json"), (b"X-Request-Id", b"req_1")]
EVENTS = (
    b'data: {"model": "m", "usage": null}\n\ndata: {"model": "m", "usage": {"prompt_tokens": 1}}\n\ndata: [DONE]\n\n'
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


Play = Callable[[Peer, Upstream], Awaitable[None]]


async def told_of(start: Start, history: Path, play: Play, upstream: Upstream, **settings: str) -> Facts:
    """The one entry that a play leaves in the ledger."""
    async with start(**SWAP, PROXY_HISTORY=str(history), **settings) as proxy:
        client = await proxy.connect()
        await play(client, upstream)
    (entry,) = Recall(history).newest()
    assert entry["id"]
    assert "in-the-query" not in str(entry)
    assert CLIENT_KEY not in str(entry)
    return entry


def saying(said: bytes, back: bytes | None = None) -> Play:
    async def play(client: Peer, upstream: Upstream) -> None:
        if back is not None:
            upstream.says(back)
        await client.say(said)
        await client.hear()

    return play


async def streaming(client: Peer, upstream: Upstream) -> None:
    upstream.says(STREAM + chunked(EVENTS[:50], EVENTS[50:], b""))
    await client.say(CHAT)
    await client.hear()


async def hanging_up(client: Peer, upstream: Upstream) -> None:
    await client.say(CHAT)
    there = await upstream.accept()
    await there.hear()
    client.abort()
    assert await there.rest() == b""


async def hanging_up_in_the_midst(client: Peer, upstream: Upstream) -> None:
    await client.say(CHAT)
    there = await upstream.accept()
    await there.hear()
    await there.say(STREAM + chunked(b"12345"))
    await client.until(b"12345")
    client.abort()
    assert await there.rest() == b""


async def breaking_off(client: Peer, upstream: Upstream) -> None:
    await client.say(CHAT)
    there = await upstream.accept()
    await there.hear()
    await there.say(STREAM + chunked(b"12345"))
    await client.until(b"12345")
    there.abort()
    await client.rest()


async def silent(client: Peer, upstream: Upstream) -> None:
    await client.say(CHAT)
    await upstream.accept()
    await client.hear()


async def hanging_up_before_another_try(client: Peer, upstream: Upstream) -> None:
    await client.say(request("GET", b"/openai2/resp_1", [(b"X-API-Key", CLIENT_KEY.encode())]))
    there = await upstream.accept()
    await there.head()
    await there.say(answer(503, [(b"Retry-After", b"60")]))
    await asyncio.sleep(0.1)
    client.abort()


async def silent_in_the_midst(client: Peer, upstream: Upstream) -> None:
    await client.say(CHAT)
    there = await upstream.accept()
    await there.hear()
    await there.say(STREAM + chunked(b"12345"))
    await client.rest()


async def silent_in_what_is_read_whole(client: Peer, upstream: Upstream) -> None:
    prompt = {"prompt": "?", "security_key": CLIENT_KEY}
    await client.say(request("POST", b"/chatgpt", body=json.dumps(prompt).encode()))
    there = await upstream.accept()
    await there.hear()
    await there.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    error = json.loads((await client.hear()).body)["error"]
    assert (error["code"], error["message"]) == ("OPENAI_PROXY_TIMEOUT", SILENT)


SILENT = "Timeout while waiting for the upstream's response to go on"
ASKED = b'{"model": "err-429", "messages": [{"role": "user", "content": "?"}]}'
FORM = [(b"X-API-Key", CLIENT_KEY.encode()), (b"Content-Type", b"multipart/form-data; boundary=b")]
FORM_BODY = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-9\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
)
SOON = {"OPENAI_PROXY_UPSTREAM_TIMEOUT_MS": "100"}
GOOD = {"result": "success", "status": 200, "route": "relay", "method": "POST", "path": "/v1/chat/completions"}
TOLD: dict[str, tuple[Play, dict[str, str], dict[str, object]]] = {
    "a success": (
        saying(CHAT, answer(200, [*JSON, (b"X-Request-Id", b"req_2")], USED)),
        {},
        {
            **GOOD,
            **{"bytes_in": 8, "bytes_out": len(USED), "key": "key-1", "upstream_id": "req_1", "model": "gpt-4o"},
            **{"tokens": {"input": 3, "output": 4, "total": 7}, "stream": False, "retries": 0, "timeout": 600.0},
            **{"timeout_source": "default", "overloaded": False, "cancelled": False},
        },
    ),
    "a stream": (
        streaming,
        {},
        {**GOOD, "stream": True, "model": "m", "tokens": {"input": 1}, "bytes_out": len(EVENTS)},
    ),
    "a stream that ends with an error": (
        saying(
            CHAT, STREAM + chunked(b'data: {"model": "m"}\n\n', b'data: {"error": {"message": "overloaded"}}\n\n', b"")
        ),
        {},
        {
            **{"status": 200, "result": "upstream_api_error", "cancelled": False, "stream": True},
            **{"failure": "The upstream ended its stream with an error"},
        },
    ),
    "an error of the upstream": (
        saying(CHAT, answer(429, JSON)),
        {},
        {**GOOD, "status": 429, "result": "upstream_api_error"},
    ),
    "no key": (saying(request("POST", body=b"{}")), {}, {"status": 401, "result": "forbidden"}),
    "no security key": (
        saying(request("POST", b"/openai", body=b"{}")),
        {},
        {"status": 403, "result": "forbidden", "route": "openai"},
    ),
    "a method that a route of ours does not take": (
        saying(request("DELETE", b"/chatgpt")),
        {},
        {"status": 405, "result": "validation_error", "route": "convenience"},
    ),
    "a bad request": (
        saying(request("POST", b"/chatgpt", [(b"X-API-Key", CLIENT_KEY.encode())], b"{}")),
        {},
        {"status": 400, "result": "validation_error", "route": "chatgpt", "failure": "prompt: it is missing"},
    ),
    "a time limit of the caller": (
        saying(
            request(
                "POST",
                b"/openai2",
                [(b"X-Request-Id", b"mine"), (b"X-API-Key", CLIENT_KEY.encode())],
                b'{"timeout": 1000000000}',
            ),
            answer(200, JSON, b'{"model": "o3", "usage": {"input_tokens": 5}}'),
        ),
        {},
        {
            **{"timeout": 900.0, "timeout_source": "clamped", "route": "openai2", "incoming_id": "mine"},
            **{"model": "o3", "tokens": {"input": 5}},
        },
    ),
    "a model that was asked for and is not named in the answer": (
        saying(request("POST", b"/openai", [(b"X-API-Key", CLIENT_KEY.encode())], ASKED), answer(429, JSON)),
        {},
        {"status": 429, "route": "openai", "model": "err-429"},
    ),
    "a model that was asked for in what is refused": (
        saying(
            request("POST", b"/openai", [(b"X-API-Key", CLIENT_KEY.encode())], b'{"stream": true, "model": "gpt-4o"}')
        ),
        {},
        {"status": 400, "route": "openai", "model": "gpt-4o"},
    ),
    "a model that is asked for where the caller names none": (
        saying(request("POST", b"/chatgpt", [(b"X-API-Key", CLIENT_KEY.encode())], b'{"prompt": "?"}'), answer(429)),
        {"DEFAULT_MODEL": "gpt-9"},
        {"status": 429, "route": "chatgpt", "model": "gpt-9"},
    ),
    "a model that answers for another": (
        saying(request("POST", b"/openai", [(b"X-API-Key", CLIENT_KEY.encode())], ASKED), answer(200, JSON, USED)),
        {},
        {"status": 200, "route": "openai", "model": "gpt-4o"},
    ),
    "the model of a form": (
        saying(request("POST", b"/openai/audio/transcriptions", FORM, FORM_BODY), answer(200, JSON, b'{"text": "a"}')),
        {},
        {"status": 200, "route": "transcriptions", "model": "whisper-9"},
    ),
    "nobody there": (
        saying(CHAT),
        {"OXY_TARGET": "http://127.0.0.1:9"},
        {"status": 502, "result": "upstream_transport", "failure": "Could not connect to the upstream"},
    ),
    "a silent upstream": (
        silent,
        SOON,
        {"status": 504, "result": "upstream_timeout", "timed_out": "head", "timeout": 0.1},
    ),
    "a stream that falls silent": (
        silent_in_the_midst,
        SOON,
        {"status": 200, "result": "upstream_timeout", "timed_out": "idle", "bytes_out": 5, "failure": SILENT},
    ),
    "an answer that is read whole and falls silent": (
        silent_in_what_is_read_whole,
        SOON,
        {"status": 504, "route": "chatgpt", "result": "upstream_timeout", "timed_out": "idle", "failure": SILENT},
    ),
    "a stream that breaks off": (breaking_off, {}, {"status": 200, "result": "upstream_transport", "bytes_out": 5}),
    "a client that hangs up": (hanging_up, {}, {"status": 499, "result": "client_cancelled", "cancelled": True}),
    "a client that hangs up before another try": (
        hanging_up_before_another_try,
        {},
        {"status": 499, "result": "client_cancelled", "retries": 0},
    ),
    "a client that hangs up in a stream": (
        hanging_up_in_the_midst,
        {},
        {"status": 200, "result": "client_cancelled", "cancelled": True, "bytes_out": 5},
    ),
}


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize("name", TOLD)
async def test_the_ledger_tells_how_it_ended(start: Start, upstream: Upstream, history: Path, name: str) -> None:
    play, settings, expected = TOLD[name]
    entry = await told_of(start, history, play, upstream, **settings)
    assert {fact: entry.get(fact) for fact in expected} == expected
    if entry["status"] == 200:
        assert 0 < entry["upstream_wait"] <= entry["first_byte"] <= entry["duration"]


def test_what_strangers_chose_is_cut_before_it_waits_to_be_written_down() -> None:
    long = SimpleNamespace(method="GET", target=b"/" + b"x" * 30_000 + b"?y", fields={b"x-request-id": b"z" * 60_000})
    exchange = meet(cast(Request, long))
    assert (exchange.path, exchange.incoming_id) == ("/" + "x" * (MOST_OF_A_PATH - 1), None)


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_the_bytes_of_a_refusal_are_counted(start: Start, upstream: Upstream, history: Path, method: str) -> None:
    async def play(client: Peer, upstream: Upstream) -> None:
        await client.say(request(method))
        heard.append(await client.hear(bodiless=method == "HEAD"))

    heard: list[Heard] = []
    entry = await told_of(start, history, play, upstream)
    assert (entry["status"], entry["bytes_out"]) == (401, len(heard[0].body))
    assert (entry["bytes_out"] > 0) == (method == "POST")


UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: h\r\nX-API-Key: %b\r\nX-Request-Id: mine\r\n" % CLIENT_KEY.encode()


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(
    ("sent", "then", "settings", "status"),
    [
        (b"Content-Length: 9\r\n\r\nstalls", b"", {"PROXY_CLIENT_TIMEOUT_MS": "100"}, 408),
        (b"Content-Length: 900000\r\n\r\nstalls", b"", {"PROXY_CLIENT_TIMEOUT_MS": "100"}, 408),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n", b"no chunk\r\n", {}, 400),
    ],
    ids=["short", "long", "malformed"],
)
async def test_a_refusal_that_the_server_itself_says_is_the_one_in_the_ledger(
    start: Start, upstream: Upstream, history: Path, sent: bytes, then: bytes, settings: dict[str, str], status: int
) -> None:
    async def play(client: Peer, upstream: Upstream) -> None:
        await client.say(UPLOAD + sent)
        if then:
            await (await upstream.accept()).until(b"whole")
        await client.say(then)
        heard.append(await client.hear())

    heard: list[Heard] = []
    entry = await told_of(start, history, play, upstream, **settings)
    (back,) = heard
    error = json.loads(back.body)["error"]
    assert (back.status, entry["status"], entry["result"]) == (status, status, "validation_error")
    assert entry["failure"] == error["message"]
    assert entry["id"] == error["requestId"] == (back.get(b"x-proxy-request-id") or b"").decode()
    assert entry["incoming_id"] == error["incomingRequestId"] == (back.get(b"x-incoming-request-id") or b"").decode()
    assert (entry["bytes_out"], entry["cancelled"]) == (len(back.body), False)


LATE = 0.1  # seconds


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_the_first_piece_of_a_stream_has_its_own_time(start: Start, upstream: Upstream, history: Path) -> None:
    async def play(client: Peer, upstream: Upstream) -> None:
        await client.say(CHAT)
        there = await upstream.accept()
        await there.hear()
        await there.say(STREAM)
        await client.head()
        await asyncio.sleep(LATE)
        await there.say(chunked(b"data: {}\n\n", b""))
        await client.until(b"0\r\n\r\n")

    entry = await told_of(start, history, play, upstream)
    assert entry["first_chunk"] - entry["first_byte"] > LATE / 2


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_what_a_client_or_the_upstream_takes_is_none_of_the_proxys_own_time(
    start: Start, upstream: Upstream, history: Path
) -> None:
    async def play(client: Peer, upstream: Upstream) -> None:
        said = request("POST", b"/chatgpt", [(b"X-API-Key", CLIENT_KEY.encode())], b'{"prompt": "p"}')
        await client.say(said[:-1])
        await asyncio.sleep(LATE)
        await client.say(said[-1:])
        there = await upstream.accept()
        await there.hear()
        answered = answer(200, JSON, b'{"choices": [{"message": {"content": "c"}}]}')
        await there.say(answered[:-1])
        await asyncio.sleep(LATE)
        await there.say(answered[-1:])
        timings.append(dict((await client.hear()).headers)[b"server-timing"])

    timings: list[bytes] = []
    entry = await told_of(start, history, play, upstream, PROXY_SERVER_TIMING="1")
    assert min(entry["client_wait"], entry["upstream_wait"]) > LATE / 2
    proxy, theirs = (float(said.partition(b"=")[2]) for said in timings[0].split(b", "))
    assert theirs > LATE * 500
    assert proxy < LATE * 500


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_an_answer_told_anew_counts_what_the_upstream_said(
    start: Start, upstream: Upstream, history: Path
) -> None:
    said = request("POST", b"/chatgpt", [(b"X-API-Key", CLIENT_KEY.encode())], b'{"prompt": "p"}')
    completion = b'{"choices": [{"message": {"content": "c"}}], ' + USED[1:]
    entry = await told_of(start, history, saying(said, answer(200, JSON, completion)), upstream)
    assert (entry["model"], entry["tokens"]) == ("gpt-4o", {"input": 3, "output": 4, "total": 7})


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_an_answer_that_is_told_again_is_not_counted_again(
    start: Start, upstream: Upstream, history: Path
) -> None:
    update = request("POST", b"/v1/chat/completions/chatcmpl-1", [(b"X-API-Key", CLIENT_KEY.encode())], b"{}")
    entry = await told_of(start, history, saying(update, answer(200, JSON, USED)), upstream)
    assert (entry["status"], entry.get("tokens")) == (200, None)


@pytest.mark.parametrize(("missing", "tokens"), [(0, {"input": 3}), (1, None)], ids=["whole", "torn"])
async def test_the_end_of_a_long_answer_is_believed_if_it_was_its_end(
    start: Start, upstream: Upstream, history: Path, missing: int, tokens: Facts | None
) -> None:
    body = b'{"model": "gpt-4o", "data": "' + 40_000 * b"x" + b'", "usage": {"prompt_tokens": 3}}'

    async def play(client: Peer, upstream: Upstream) -> None:
        await client.say(CHAT)
        there = await upstream.accept()
        await there.hear()
        await there.say(answer(200, JSON, body + missing * b" ").removesuffix(b" "))
        await client.until(body)
        if missing:
            there.abort()
            await client.rest()

    entry = await told_of(start, history, play, upstream)
    assert (entry["model"], entry.get("tokens")) == ("gpt-4o", tokens)


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_what_is_only_fetched_again_is_not_counted_again(start: Start, upstream: Upstream, history: Path) -> None:
    said = request("GET", b"/v1/responses/1", [(b"X-API-Key", CLIENT_KEY.encode())])
    assert "tokens" not in await told_of(start, history, saying(said, answer(200, JSON, USED)), upstream)


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_a_refusal_for_want_of_a_slot_is_an_overload(start: Start, upstream: Upstream, history: Path) -> None:
    async with start(**SWAP, PROXY_HISTORY=str(history), OPENAI_PROXY_MAX_PARALLEL_REQUESTS="1") as proxy:
        busy, refused = await proxy.connect(), await proxy.connect()
        await busy.say(CHAT)
        await (await upstream.accept()).hear()
        await refused.say(CHAT)
        assert (await refused.hear()).status == 503
    overloads = [entry for entry in Recall(history).newest() if entry["overloaded"]]
    assert [(entry["status"], entry["result"]) for entry in overloads] == [(503, "proxy_overloaded")]


@pytest.mark.parametrize(("wanted", "told"), [("1", True), ("0", False)])
async def test_how_long_it_took_is_told_where_it_is_wanted(
    start: Start, upstream: Upstream, wanted: str, told: bool
) -> None:
    upstream.says(answer(headers=[(b"Server-Timing", b"model;dur=5")]))
    async with start(PROXY_SERVER_TIMING=wanted) as proxy:
        client = await proxy.connect()
        await client.say(request())
        theirs, *ours = (await client.hear()).all(b"server-timing")
    assert theirs == b"model;dur=5"
    assert bool(ours) == told
    assert all(re.fullmatch(rb"proxy;dur=\d+\.\d{3}, upstream;dur=\d+\.\d{3}", value) for value in ours)


class Present:
    """The line of a client that is there."""

    gone = False


class Gathered:
    """A sink that notes what is pushed as if it had been sent."""

    def __init__(self, sent: list[Message]) -> None:
        self._sent = sent

    def push(self, piece: bytes) -> bool:
        self._sent.append({"type": "http.response.body", "body": piece, "more_body": True})
        return False

    async def drain(self) -> None:
        """Return at once."""


def fail(within: Exception, problem: Exception, cause: Exception | None) -> None:
    try:
        raise within
    except type(within):
        raise problem from cause


def test_no_frame_is_kept_by_a_failure_nor_by_what_it_came_from() -> None:
    chain = (Forbidden("no"), KeyError(), ArithmeticError(), LookupError())
    failure, context, cause, its_context = chain
    with pytest.raises(ArithmeticError):
        fail(its_context, cause, None)
    with pytest.raises(Forbidden):
        fail(context, failure, cause)
    assert all(one.__traceback__ for one in chain)
    let_go_of_frames(failure)
    assert not any(one.__traceback__ for one in chain)
