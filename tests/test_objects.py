"""The JSON and query routes on real sockets: what the upstream hears of each request, and the client of its answer."""

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import counter, jsontext, objects
from proxy.access import Access
from proxy.aside import MOST_AT_ONCE
from proxy.errors import BadRequest, Forbidden
from proxy.own import Own
from proxy.rewrites import chat
from proxy.routes import Relay
from proxy.values import MEGABYTE
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, SettingsOf, Start
from tests.peers import PATIENCE, Heard, Pairs, Upstream, answer, chunked, request

Json = dict[str, Any]

KEY = CLIENT_KEY.encode()
SHOWN = (b"X-API-Key", KEY)
OURS = (b"authorization", b"Bearer " + UPSTREAM_KEY.encode())
GUARDED = {"PROXY_X_API_KEY": CLIENT_KEY}
OPEN = {"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_OPEN": "1"}
DEFAULTS = {"OPENAI_PROJECT_KEY": "proj-ours", "OPENAI_ORGANIZATION": "org-ours"}
PNG = "iVBORw0KGgoAAAANSUhEUg=="
COMPLETION = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"Hi \\u00fc"}}],"usage":{"n":1.0}}'

one_way = pytest.mark.parametrize("way", ["fast"])  # what is settled before a call takes its way


def said(members: Json) -> bytes:
    return json.dumps(members).encode()


def post(path: bytes, body: bytes | Json, *fields: tuple[bytes, bytes]) -> bytes:
    return request("POST", path, fields, body if isinstance(body, bytes) else said(body))


async def ask(proxy: Running, *pieces: bytes) -> Heard:
    client = await proxy.connect()
    await client.say(*pieces)
    return await client.hear()


def error(heard: Heard) -> Json:
    found: Json = json.loads(heard.body)["error"]
    assert heard.get(b"content-type") == b"application/json"
    assert found["requestId"].encode() == heard.get(b"x-proxy-request-id")
    return found


def everything(heard: Heard) -> bytes:
    return b"\n".join([heard.start, *(b": ".join(pair) for pair in heard.headers), heard.body])


# ---- what goes up

SECURED = {"security_key": CLIENT_KEY}
HELLO = [{"role": "user", "content": "Hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
INSTRUCTED = [{"role": "system", "content": "You are an AI assistant."}, {"role": "user", "content": "Hi"}]
DEFAULTED = {"model": "gpt-4o-mini", "messages": INSTRUCTED, "temperature": 1, "top_p": 1}

CALLS: list[tuple[bytes, Json, bytes, Json]] = [
    (b"/openai", {"messages": HELLO, "n": 1}, b"/v1/chat/completions", {"messages": HELLO, "n": 1}),
    (
        b"/openai",
        {"image": {"base64": PNG}, "messages": HELLO},
        b"/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}, IMAGE]}]},
    ),
    (b"/openai2", {"input": "x", "stream": True}, b"/v1/responses", {"input": "x", "stream": True}),
    (b"/openai2/compact", {"model": "m"}, b"/v1/responses/compact", {"model": "m"}),
    (b"/openai2/input_tokens", {"input": "x"}, b"/v1/responses/input_tokens", {"input": "x"}),
    (b"/openai2/resp_1/cancel", {"later": 1}, b"/v1/responses/resp_1/cancel", {"later": 1}),
    (b"/chatgpt", {"prompt": "Hi", "top_k": 5}, b"/v1/chat/completions", DEFAULTED),
    (b"/embeddings", {"input": "x"}, b"/v1/embeddings", {"input": "x", "model": "text-embedding-3-large"}),
]


@pytest.mark.parametrize(("path", "members", "target", "call"), CALLS)
async def test_each_route_calls_what_it_stands_for(
    proxy: Running, upstream: Upstream, path: bytes, members: Json, target: bytes, call: Json
) -> None:
    upstream.says(answer(body=COMPLETION))
    assert (await ask(proxy, post(path, {**members, **SECURED, "timeout": 5000}))).status == 200
    (heard,) = upstream.heard
    assert heard.start == b"POST %b HTTP/1.1" % target
    assert json.loads(heard.body) == call
    assert heard.headers[1:] == [
        OURS,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(heard.body)).encode()),
    ]


async def test_what_is_not_the_proxys_own_stays_as_it_was_written(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    body = b'{"n": 1.0e0, "big": 123456789012345678901234567890, "security_key": "%b", "u": "\\u00fc\xc3\xbc"}' % KEY
    await ask(proxy, post(b"/openai2", body))
    heard = upstream.heard[0].body
    assert heard == b'{"n":1.0e0,"big":123456789012345678901234567890,"u":"\\u00fc\xc3\xbc"}'


async def test_the_clients_fields_pass_in_their_order_and_those_about_the_body_s_bytes_do_not(
    proxy: Running, upstream: Upstream
) -> None:
    upstream.says(answer())
    kept = [
        (b"user-agent", b"test"),
        (b"x-odd", b"a"),
        (b"accept-encoding", b"gzip"),
        (b"x-odd", b"b"),
        (b"openai-beta", b"x"),
    ]
    ended = [
        (b"Content-Encoding", b"identity"),
        (b"Content-MD5", b"x"),
        (b"Digest", b"x"),
        (b"Content-Digest", b"x"),
        (b"Repr-Digest", b"x"),
        (b"Content-Type", b"text/plain"),
        (b"Connection", b"x-named"),
        (b"X-Named", b"x"),
        (b"X-Forwarded-For", b"1.2.3.4"),
        SHOWN,
    ]
    await ask(proxy, post(b"/openai2", b"{}", kept[0], *ended, *kept[1:]))
    host = (b"host", b"127.0.0.1:%d" % upstream.port)
    framed = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    assert upstream.heard[0].headers == [host, *kept, OURS, *framed]


@one_way
@pytest.mark.parametrize(
    ("settings", "field", "heard"),
    [
        ({"OXY_HOP_HEADER_PREFIX": "X-SCF-"}, (b"X-Scf-Id", b"1"), []),
        ({"PROXY_FORWARDED": "append"}, (b"X-Forwarded-For", b"1.2.3.4"), [b"1.2.3.4, 127.0.0.1"]),
        ({"PROXY_FORWARDED": "pass"}, (b"X-Forwarded-For", b"1.2.3.4"), [b"1.2.3.4"]),
    ],
)
async def test_what_ends_at_the_proxy_is_the_operators_choice_here_too(
    start: Start, upstream: Upstream, settings: dict[str, str], field: tuple[bytes, bytes], heard: list[bytes]
) -> None:
    upstream.says(answer())
    async with start(**SWAP, **settings) as proxy:
        await ask(proxy, post(b"/openai2", SECURED, field))
    assert upstream.heard[0].all(field[0].lower()) == heard


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "raw deflate"])
@one_way
async def test_a_compressed_body_is_expanded(proxy: Running, upstream: Upstream, coding: str) -> None:
    upstream.says(answer())
    plain = said({**SECURED, "input": "x" * 1000})
    packed = {"deflate": zlib.compress(plain), "raw deflate": zlib.compress(plain)[2:-4]}.get(
        coding, gzip.compress(plain)
    )
    field = (b"Content-Encoding", coding.split()[-1].encode())
    assert (await ask(proxy, post(b"/openai2", packed, field))).status == 200
    (heard,) = upstream.heard
    assert json.loads(heard.body) == {"input": "x" * 1000}
    assert heard.get(b"content-encoding") is None


async def test_a_body_in_chunks_goes_on_with_its_length(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    head = b"POST /openai2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await ask(proxy, head, chunked(b'{"a": 1, "security_', b'key": "%b"}' % KEY, b""))).status == 200
    assert (upstream.heard[0].get(b"content-length"), upstream.heard[0].body) == (b"7", b'{"a":1}')


@one_way
async def test_a_client_that_expects_100_gets_one(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    client, body = await proxy.connect(), said(SECURED)
    await client.say(
        b"POST /openai2 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.say(body)
    assert (await client.hear()).status == 200
    assert upstream.heard[0].get(b"expect") is None


# ---- the queries, and bodies that need not be there


@pytest.mark.parametrize(
    ("method", "said", "heard"),
    [
        (b"GET", b"/openai2/resp_1?OWN", b"/v1/responses/resp_1"),
        (
            b"GET",
            b"/openai2/resp%5f1?OWN&a=b;c&stream=true&a=%61&&x=",
            b"/v1/responses/resp%5f1?a=b;c&stream=true&a=%61&&x=",
        ),
        (b"GET", b"/openai2/r/input_items?limit=2&OWN&after=+", b"/v1/responses/r/input_items?limit=2&after=+"),
        (b"DELETE", b"/openai2/resp_1?a&OWN", b"/v1/responses/resp_1?a"),
    ],
)
async def test_a_querys_own_pairs_are_taken_out_and_the_rest_keeps_its_spelling(
    proxy: Running, upstream: Upstream, method: bytes, said: bytes, heard: bytes
) -> None:
    upstream.says(answer(body=b'{"deleted": true}'))
    own = b"security%%5Fkey=%b&timeout=5000&project=proj%%2d1" % KEY.replace(b"-", b"%2D")
    back = await ask(
        proxy, request(method.decode(), said.replace(b"OWN", own), [(b"Content-Type", b"application/json")])
    )
    assert (back.status, back.body) == (200, b'{"deleted": true}')
    (call,) = upstream.heard
    assert call.start == b"%b %b HTTP/1.1" % (method, heard)
    assert call.headers[1:] == [(b"openai-project", b"proj-1"), OURS]


@one_way
async def test_a_query_goes_on_beside_a_body_too(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    await ask(proxy, post(b"/openai2?include=a&security_key=%b" % KEY, b'{"a": 1}'))
    assert (upstream.heard[0].target, upstream.heard[0].body) == (b"/v1/responses?include=a", b'{"a":1}')


@pytest.mark.parametrize(
    ("path", "body", "heard"),
    [
        (b"/openai2/input_tokens", b"", b"{}"),
        (b"/openai2/input_tokens", None, b"{}"),
        (b"/openai2/input_tokens", b"{}", b"{}"),
        (b"/openai2/resp_1/cancel", b"", b""),
        (b"/openai2/resp_1/cancel", None, b""),
        (b"/openai2/resp_1/cancel", said(SECURED), b""),
    ],
)
async def test_a_body_that_may_be_left_out_may_be(
    proxy: Running, upstream: Upstream, path: bytes, body: bytes | None, heard: bytes
) -> None:
    upstream.says(answer())
    assert (await ask(proxy, request("POST", path, [SHOWN], body))).status == 200
    (call,) = upstream.heard
    assert (call.body, call.get(b"content-length")) == (heard, str(len(heard)).encode())
    assert call.get(b"content-type") == (b"application/json" if heard else None)


@one_way
async def test_a_body_where_none_is_looked_at_ends_here(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    for _ in range(2):
        await client.say(request("DELETE", b"/openai2/resp_1", [SHOWN], b'{"security_key": "x"}'))
        assert (await client.hear()).status == 200
    assert [(call.body, call.get(b"content-length")) for call in upstream.heard] == [(b"", None)] * 2


# ---- who may call

CARRIED: list[tuple[str, bytes, Pairs, Json]] = [
    ("body", b"", [], SECURED),
    ("query", b"?security_key=" + KEY, [], {}),
    ("x-api-key", b"", [SHOWN], {}),
    ("authorization", b"", [(b"Authorization", b"Bearer " + KEY)], {}),
    ("api-key", b"", [(b"api-key", KEY)], {}),
    ("wrong header", b"", [(b"X-API-Key", b"wrong")], SECURED),
    ("another's header", b"", [(b"Authorization", b"Bearer sk-of-the-client")], SECURED),
    ("wrong body", b"", [SHOWN], {"security_key": "wrong"}),
    ("wrong query", b"?security_key=wrong", [SHOWN], {}),
    ("all", b"", [SHOWN, (b"api-key", KEY), (b"Authorization", b"bearer " + KEY)], SECURED),
]


@pytest.mark.parametrize(("query", "fields", "own"), [row[1:] for row in CARRIED], ids=[row[0] for row in CARRIED])
async def test_the_key_opens_wherever_it_is_shown_and_goes_nowhere(
    proxy: Running, upstream: Upstream, query: bytes, fields: Pairs, own: Json
) -> None:
    upstream.says(answer())
    assert (await ask(proxy, post(b"/openai2" + query, {"a": 1, **own}, *fields))).status == 200
    (heard,) = upstream.heard
    assert heard.all(b"authorization") == [OURS[1]]
    assert not [secret for secret in (KEY, b"wrong", b"sk-of-the-client") if secret in everything(heard)]


def modes() -> Iterator[tuple[str, dict[str, str], Pairs, Json, Pairs]]:
    """Name, settings, the client's fields and members, and which credentials the upstream hears."""
    theirs, beta = (b"authorization", b"Bearer sk-theirs"), (b"authorization", b"Bearer sk-in-the-body")
    project, organization = (b"openai-project", b"proj-ours"), (b"openai-organization", b"org-ours")
    swap, named = {**SWAP, **DEFAULTS}, {"openai_api_key": "sk-in-the-body", "project": "p", "organization": "o"}
    three = [beta, (b"openai-project", b"p"), (b"openai-organization", b"o")]
    yield "transparent: nothing", {}, [], {}, []
    yield "transparent: their own", {}, [theirs], {}, [theirs]
    yield "transparent: api-key", {}, [(b"api-key", b"az")], {}, [(b"api-key", b"az")]
    yield "transparent: all named", {}, [theirs, (b"api-key", b"az"), (b"openai-project", b"x")], named, three
    yield "transparent: a key too many", {}, [theirs], {"security_key": "whatever"}, [theirs]
    yield "transparent: the defaults are not for them", DEFAULTS, [theirs], {}, [theirs]
    yield "swap: ours", swap, [], SECURED, [OURS, project, organization]
    yield "swap: their key without our project", swap, [], {**SECURED, "openai_api_key": "sk-in-the-body"}, [beta]
    yield "swap: all named", swap, [SHOWN], named, three
    yield "swap: a project", swap, [SHOWN], {"project": "p"}, [(b"openai-project", b"p"), OURS, organization]
    yield "swap: empty is none", swap, [SHOWN], {"project": "", "openai_api_key": None}, [OURS, project, organization]
    yield (
        "swap: a project in the header",
        *(swap, [SHOWN, (b"openai-project", b"theirs")], {}),
        [(b"openai-project", b"theirs"), OURS, organization],
    )
    yield "swap: a header's own key is none", swap, [theirs], SECURED, [OURS, project, organization]
    yield "guarded: their own", GUARDED, [theirs], SECURED, [theirs]
    yield "guarded: in the body", GUARDED, [theirs], {**SECURED, **named}, three
    yield "guarded: nothing", GUARDED, [(b"authorization", b"Bearer " + KEY)], {}, []
    yield "guarded: x-api-key", GUARDED, [SHOWN, theirs], {}, [theirs]
    yield "open: ours", {**OPEN, **DEFAULTS}, [theirs], {}, [OURS, project, organization]
    yield "open: named", OPEN, [], named, three


@pytest.mark.parametrize(
    ("settings", "fields", "members", "credentials"), [row[1:] for row in modes()], ids=[row[0] for row in modes()]
)
@one_way
async def test_which_credentials_go_on(
    start: Start, upstream: Upstream, settings: dict[str, str], fields: Pairs, members: Json, credentials: Pairs
) -> None:
    upstream.says(answer())
    async with start(**settings) as proxy:
        assert (await ask(proxy, post(b"/openai2", {**members, "a": 1}, *fields))).status == 200
    (heard,) = upstream.heard
    framing = (b"host", b"content-type", b"content-length")
    assert [pair for pair in heard.headers if pair[0] not in framing] == credentials
    assert heard.body == b'{"a":1}'


@one_way
async def test_a_listed_endpoint_is_served_by_its_route_and_others_are_not(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(**SWAP, PROXY_ENDPOINTS="/v1/embeddings") as proxy:
        assert (await ask(proxy, post(b"/embeddings", SECURED))).status == 200
        for path in (b"/openai", b"/openai2"):
            back = await ask(proxy, post(path, SECURED))
            assert (back.status, error(back)["code"]) == (404, "OPENAI_PROXY_NOT_FOUND")
        assert (await ask(proxy, request("GET", b"/openai2/resp_1", [SHOWN]))).status == 404
    assert len(upstream.heard) == 1


# ---- what is refused

ANY, CHATGPT, OPENAI = b"/openai2", b"/chatgpt", b"/openai"
GZIP = (b"Content-Encoding", b"gzip")
BAD: list[tuple[bytes, bytes, Pairs, str]] = [
    (ANY, b"", [], "The body is empty"),
    (ANY, b"\xff", [], "not UTF-8"),
    (ANY, b"security_key=x", [], "not a JSON object"),
    (ANY, b"[1]", [], "not a JSON object"),
    (ANY, b'{"a": 1', [], "not a JSON object"),
    (ANY, b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", [], "nested too deeply"),
    (ANY, b'{"a": "\\ud800"}', [], "a: it holds half of a surrogate pair"),
    (ANY, b'{"a": "\\u0000"}', [], "a: it holds a NUL"),
    (ANY, b'{"a": 1e999}', [], "a: a number in it is too large"),
    (ANY, b'{"a": NaN}', [], "a: a number in it is too large, or is none"),
    (ANY, b'{"a": 1, "a": 1}', [], "a: given twice"),
    (ANY, b'{"a": {"b": 1, "b": 1}}', [], "a: a name in it is given twice"),
    (ANY, b'{"security_key": "%b", "security_key": "%b"}' % (KEY, KEY), [], "security_key: given twice"),
    (ANY, b'{"openai_api_key": 5}', [], "openai_api_key: a string is expected"),
    (ANY, b'{"security_key": ["a"]}', [], "security_key: a string is expected"),
    (ANY, b'{"project": "a b"}', [], "project: it holds a space"),
    (ANY, b'{"organization": "a\\r\\nX: b"}', [], "organization: it holds a space"),
    (ANY + b"?project=a", b'{"project": "a"}', [], "project: given twice"),
    (ANY, b"{}", [GZIP], "The body is not gzip"),
    (ANY, gzip.compress(b"{}", mtime=0)[:-4], [GZIP], "does not end"),
    (ANY, b"{}", [(b"Content-Encoding", b"br")], "Content-Encoding"),
    (OPENAI, b'{"stream": true}', [], "stream: this route does not stream"),
    (OPENAI, b'{"stream": "yes"}', [], "stream: true or false"),
    (OPENAI, b'{"image": "http://x"}', [], "image: an object"),
    (OPENAI, b'{"image": {}}', [], "image: url or base64 is missing"),
    (OPENAI, b'{"image": {"url": 5}}', [], "image.url: a string"),
    (OPENAI, b'{"image": {"url": "x"}, "messages": "x"}', [], "messages: an array"),
    (CHATGPT, b"{}", [], "prompt: it is missing"),
    (CHATGPT, b'{"prompt": 5}', [], "prompt: a string"),
    (CHATGPT, b'{"prompt": "x", "temperature": 2.1}', [], "temperature: a number from 0 to 2"),
    (CHATGPT, b'{"prompt": "x", "top_p": "1"}', [], "top_p: a number from 0 to 1"),
    (CHATGPT, b'{"prompt": "x", "model": 5}', [], "model: a string"),
    (CHATGPT, b'{"prompt": "x", "stream": true}', [], "stream: this route does not stream"),
]


@pytest.mark.parametrize(("path", "body", "fields", "why"), BAD, ids=[f"{row[1][:30]!r}" for row in BAD])
@one_way
async def test_bad_input_is_told_to_those_who_may_call_and_goes_nowhere(
    proxy: Running,
    upstream: Upstream,
    path: bytes,
    body: bytes,
    fields: Pairs,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    back = await ask(proxy, post(path, body, SHOWN, *fields))
    found = error(back)
    assert (back.status, found["type"]) == (400, "invalid_request_error")
    assert (found["code"], why in found["message"]) == ("OPENAI_PROXY_BAD_REQUEST", True), found["message"]
    for wrong in ([], [(b"X-API-Key", b"wrong")]):
        stranger = await ask(proxy, post(path, body.replace(KEY, b"wrong"), *wrong, *fields))
        assert (stranger.status, error(stranger)["code"]) == (403, "OPENAI_PROXY_FORBIDDEN")
        assert (error(stranger)["type"], stranger.get(b"www-authenticate")) == ("forbidden", None)
    assert upstream.accepted == 0
    assert not caplog.records


@one_way
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[1]", "wrong: none could be read. The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b'{"security_key": "x", "a": 1', "wrong"),
        (b'{"security_key": "x", "a": NaN}', "wrong"),
        (b"{}", "wrong"),
    ],
)
async def test_of_a_body_a_stranger_hears_only_why_no_key_was_found_in_it(
    proxy: Running, body: bytes, said: str
) -> None:
    back = await ask(proxy, post(ANY, body))
    assert (back.status, error(back)["message"]) == (403, f"The security_key is missing or {said}")


@one_way
async def test_a_wrong_key_is_refused_wherever_it_stands(proxy: Running, upstream: Upstream) -> None:
    for wrong in ("", "wrong", CLIENT_KEY[:-1], CLIENT_KEY + "x", 5, None, [CLIENT_KEY], {"security_key": CLIENT_KEY}):
        for path in (b"/openai", b"/openai2", b"/chatgpt", b"/embeddings", b"/openai2/resp_1/cancel"):
            assert (await ask(proxy, post(path, {"prompt": "x", "security_key": wrong}))).status == 403
    for target in (b"/openai2/resp_1", b"/openai2/resp_1?security_key=wrong", b"/openai2/a/input_items?key=" + KEY):
        assert (await ask(proxy, request("GET", target))).status == 403
    assert upstream.accepted == 0


def test_a_complaint_that_is_not_said_is_what_the_refusal_came_from(settings_of: SettingsOf) -> None:
    """So that whoever takes the frames from the one takes them from the other (`gateway.let_go_of_frames`)."""
    settings = settings_of(**SWAP)
    access = Access(settings)
    shared = counter.Counter(settings, access, Relay(settings, access))
    request, complaint = cast(Any, SimpleNamespace(headers=[])), BadRequest("not JSON")
    with pytest.raises(Forbidden) as refusal:
        shared.admit(cast(Any, None), request, Own(), complaint)
    assert refusal.value.__cause__ is complaint


# ---- how much is taken


@pytest.mark.parametrize(
    ("workers", "objects", "forms", "body"), [(1, (512, 128), (4096, 1024), 64), (16, (32, 32), (256, 256), 32)]
)
def test_strangers_have_room_for_one_body_however_many_workers_share(
    settings_of: SettingsOf, workers: int, objects: tuple[int, int], forms: tuple[int, int], body: int
) -> None:
    settings = settings_of(PROXY_WORKERS=f"{workers}")
    access = Access(settings)
    shared = counter.Counter(settings, access, Relay(settings, access))
    rooms = (shared.known, shared.strangers)
    assert tuple(room.objects.limit // MEGABYTE for room in rooms) == objects
    assert tuple(room.forms.limit // MEGABYTE for room in rooms) == forms
    assert shared.max_body == body * MEGABYTE


@pytest.mark.parametrize("framing", ["length", "chunked", "gzip"])
@one_way
async def test_a_body_over_the_limit_is_413_and_the_client_reads_it(
    start: Start, upstream: Upstream, framing: str
) -> None:
    size = 2 * 2**20
    large = b'{"security_key": "%b", "a": "%b"}' % (KEY, b"x" * size)
    head = b"POST /openai2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    said = {
        "length": (head, b"Content-Length: %d\r\n\r\n" % len(large), large),
        "chunked": (head, b"Transfer-Encoding: chunked\r\n\r\n", chunked(large[:size], large[size:], b"")),
        "gzip": (post(b"/openai2", gzip.compress(large), SHOWN, GZIP, (b"Connection", b"close")),),
    }[framing]
    async with start(**SWAP, PROXY_MAX_BODY_MB="1") as proxy:
        client = await proxy.connect()
        await client.say(*said)
        back = await client.hear()
        assert (back.status, error(back)["code"]) == (413, "OPENAI_PROXY_BODY_TOO_LARGE")
        assert "1 MB" in error(back)["message"]
        assert await client.rest() == b""
    assert upstream.accepted == 0


@pytest.mark.parametrize(
    ("fields", "size", "status"), [([], 8, 200), ([], 9, 403), ([SHOWN], 9, 200)], ids=["short", "strange", "known"]
)
@one_way
async def test_a_stranger_is_not_unfolded_for_as_far_as_a_client_is(
    start: Start, upstream: Upstream, fields: Pairs, size: int, status: int
) -> None:
    upstream.says(answer())
    filling = b"x" * (size * 2**20 - 100)
    packed = gzip.compress(b'{"security_key": "%b", "a": "%b"}' % (KEY, filling))
    async with start(**SWAP) as proxy:
        back = await ask(proxy, post(b"/openai2", packed, GZIP, *fields))
    assert back.status == status
    assert status == 200 or "larger than the 8 MB" in error(back)["message"]


DECOY = b'"a":{"security_key":"wrong"},'
RIGHT = b'"security_key" : "%b",' % KEY


@one_way
@pytest.mark.parametrize(
    ("beginning", "status", "read"),
    [
        (b"", 403, False),
        (DECOY, 403, False),
        (RIGHT, 200, True),
        (DECOY + RIGHT, 200, True),
        (b'"security_key":"%b",' % KEY.replace(b"-", b"\\u002d"), 200, True),
        (b'"a":{"security_key":"\\x"},' + RIGHT, 403, True),
        (b'"a":{"security_key":"%b"},' % KEY, 403, True),
        (b'"b":[' + b'{"security_key":7},' * (counter.TRIES - 1) + b"1]," + RIGHT, 200, True),
        (b'"b":[' + b'{"security_key":7},' * counter.TRIES + b"1]," + RIGHT, 403, False),
        (b'"b":"%b",' % (b"x" * (counter.STEP - 9)) + RIGHT, 200, True),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
async def test_a_long_body_in_which_no_key_stands_is_not_read(
    start: Start,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    beginning: bytes,
    status: int,
    *,
    read: bool,
    packed: bool,
) -> None:
    readings: list[int] = []

    def noted(text: bytes, ours: Collection[str]) -> Any:
        readings.append(len(text))
        return jsontext.read(text, ours)

    monkeypatch.setattr(objects, "read", noted)
    upstream.says(answer())
    body = b'{%b"x":"%b"}' % (beginning, b"x" * MOST_AT_ONCE)
    sent, coding = (gzip.compress(body), [GZIP]) if packed else (body, [])
    async with start(**SWAP) as proxy:
        assert (await ask(proxy, post(b"/openai2", sent, *coding))).status == status
        assert readings == ([len(body)] if read else [])
        assert (await ask(proxy, post(b"/openai2", sent, SHOWN, *coding))).status == (
            400 if b"\\x" in beginning else 200
        )


@one_way
async def test_a_stranger_s_text_of_the_length_that_the_loop_reads_is_read_without_looking_for_a_key(
    start: Start, upstream: Upstream
) -> None:
    upstream.says(answer())
    escaped = b'{"security\\u005fkey": "%b", "a": "%%b"}' % KEY
    room = MOST_AT_ONCE - len(escaped) + 2
    async with start(**SWAP) as proxy:
        for more, status in ((0, 200), (1, 403)):
            for pack, coding in ((bytes, []), (gzip.compress, [GZIP])):
                body = escaped % (b"x" * (room + more))
                assert (await ask(proxy, post(b"/openai2", pack(body), *coding))).status == status


@one_way
async def test_strangers_whose_bodies_take_long_keep_nobody_waiting_whose_key_is_known(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_it, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> bool:
        at_it.set()
        assert go_on.wait(PATIENCE)
        return False

    monkeypatch.setattr(counter.Counter, "is_shown_in", slow)
    monkeypatch.setattr(counter, "MOST_STRANGERS_ASIDE", 2)
    long = {"a": "x" * MOST_AT_ONCE}
    upstream.says(answer())
    async with start(**SWAP) as proxy:
        strangers = [asyncio.ensure_future(ask(proxy, post(b"/openai2", long))) for _ in range(2)]
        try:
            await asyncio.to_thread(at_it.wait, PATIENCE)
            await asyncio.sleep(0.05)
            assert (await ask(proxy, post(b"/openai2", long))).status == 503
            assert (await ask(proxy, post(b"/openai2", {"a": 1, "security_key": CLIENT_KEY}))).status == 200
            assert (await ask(proxy, post(b"/openai2", long, SHOWN))).status == 200
        finally:
            go_on.set()
        assert [(await each).status for each in strangers] == [403, 403]


@one_way
async def test_a_body_whose_coding_is_named_identity_is_as_one_without(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    plain = b'{"security_key": "%b", "a": "%b"}' % (KEY, b"x" * (9 * 2**20))
    async with start(**SWAP) as proxy:
        assert (await ask(proxy, post(b"/openai2", plain, (b"Content-Encoding", b"Identity")))).status == 200


@one_way
async def test_while_a_large_body_is_read_others_are_served_and_it_counts_as_held(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_it, go_on = threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        at_it.set()
        assert go_on.wait(PATIENCE)
        return unfolded(*given)

    unfolded = objects.unfolded
    monkeypatch.setattr(objects, "unfolded", slow)
    monkeypatch.setattr(counter, "MOST_OF_ALL_OBJECTS", 300_000)
    large = post(b"/openai2", {"a": "x" * 200_000}, SHOWN)
    upstream.says(answer())
    async with start(**SWAP) as proxy:
        first = asyncio.ensure_future(ask(proxy, large))
        try:
            await asyncio.to_thread(at_it.wait, PATIENCE)
            assert (await ask(proxy, post(b"/openai2", {"a": "x"}, SHOWN))).status == 200
            assert (await ask(proxy, large)).status == 503
        finally:
            go_on.set()
        assert (await first).status == 200
        assert (await ask(proxy, large)).status == 200, "it still counts as held"


@one_way
@pytest.mark.parametrize(("size", "where"), [(MOST_AT_ONCE // 2, "MainThread"), (MOST_AT_ONCE, "oxy-json")])
async def test_a_long_body_is_rewritten_beside_the_loop(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, size: int, where: str
) -> None:
    written: list[str] = []
    write = jsontext.write

    def noted(members: Any) -> str:
        written.append(threading.current_thread().name)
        return write(members)

    monkeypatch.setattr(objects, "write", noted)
    upstream.says(answer())
    said = {"messages": [{"role": "user", "content": "x" * size}], "image": {"url": "https://h/i.png"}}
    async with start(**SWAP) as proxy:
        assert (await ask(proxy, post(b"/openai", said, SHOWN))).status == 200
    assert [name.partition("_")[0] for name in written] == [where]
    *_, image = json.loads(upstream.heard[0].body)["messages"][0]["content"]
    assert image == {"type": "image_url", "image_url": {"url": "https://h/i.png"}}


@one_way
async def test_a_body_over_the_limit_is_refused_by_its_length_alone(start: Start, upstream: Upstream) -> None:
    async with start(**SWAP, PROXY_MAX_BODY_MB="1") as proxy:
        head = b"POST /openai2 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        client = await proxy.connect()
        await client.say(head % (2**20 + 1))
        assert (await client.hear()).status == 413
        fitting = b'{"security_key": "%b", "a": "%%b"}' % KEY
        body = fitting % (b"x" * (2**20 - len(fitting) + 2))
        assert len(body) == 2**20
        upstream.says(answer())
        assert (await ask(proxy, post(b"/openai2", body))).status == 200


# ---- what comes back

PLAIN = [(path, members) for path, members, _, _ in CALLS]


@pytest.mark.parametrize(("path", "members"), PLAIN)
async def test_an_error_of_the_upstream_passes_as_it_is(
    proxy: Running, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, path: bytes, members: Json
) -> None:
    monkeypatch.setattr("proxy.upstream.RETRIES", 0)
    packed = gzip.compress(b'{"error": {"message": "slow down"}}')
    fields = [(b"Content-Encoding", b"gzip"), (b"Retry-After", b"7"), (b"Content-Type", b"text/odd"), (b"ETag", b"x")]
    upstream.says(answer(429, fields, packed))
    back = await ask(proxy, post(path, members, SHOWN))
    assert (back.status, back.body) == (429, packed)
    assert back.headers[:4] == [(name.lower(), value) for name, value in fields]
    assert len(upstream.heard) == 1


async def test_an_answer_streams_as_it_comes(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(post(b"/openai2", {**SECURED, "stream": True}))
    there = await upstream.accept()
    assert (await there.hear()).body == b'{"stream":true}'
    await there.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await there.say(chunked(b"data: one\n\n"))
    assert (await client.head()).get(b"content-type") == b"text/event-stream"
    assert await client.chunk() == b"data: one\n\n"
    await there.say(chunked(b"data: two\n\n", b""))
    assert await client.chunk() == b"data: two\n\n"
    assert await client.chunk() == b""


async def test_a_retrieved_response_streams_too(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(request("GET", b"/openai2/resp_1?stream=true", [SHOWN]))
    there = await upstream.accept()
    await there.hear()
    await there.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await there.say(chunked(b"data: one\n\n"))
    await client.head()
    assert await client.chunk() == b"data: one\n\n"
    await there.close()  # torn, and so it has to arrive
    assert await client.rest() == b""


async def test_a_client_that_hangs_up_ends_the_work(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(post(b"/chatgpt", {**SECURED, "prompt": "Hi"}))
    there = await upstream.accept()
    await there.hear()
    await client.close()
    await there.closed()


# ---- /chatgpt, the one answer that is made anew


@one_way
@pytest.mark.parametrize(
    ("size", "coding", "where"),
    [(0, [], "MainThread"), (MOST_AT_ONCE, [], "oxy-json"), (0, [GZIP], "oxy-json")],
    ids=["short", "long", "packed"],
)
async def test_a_long_answer_to_a_prompt_is_read_beside_the_loop(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, size: int, coding: Pairs, where: str
) -> None:
    reading: list[str] = []
    members_of = jsontext.members_of

    def noted(text: str) -> Any:
        reading.append(threading.current_thread().name)
        return members_of(text)

    monkeypatch.setattr(chat, "members_of", noted)
    monkeypatch.setattr(counter, "MOST_OF_ALL_OBJECTS", 1000)  # for what comes in, and not for what is paid for
    completion = COMPLETION + b" " * size
    upstream.says(answer(200, coding, gzip.compress(completion) if coding else completion))
    async with start(**SWAP) as proxy:
        back = await ask(proxy, post(b"/chatgpt", {"prompt": "Hi"}, SHOWN))
    assert json.loads(back.body)["text"] == "Hi ü"
    assert [name.partition("_")[0] for name in reading] == [where]


@pytest.mark.parametrize("framing", ["length", "gzip", "deflate", "chunked", "until close"])
async def test_an_answer_to_a_prompt_is_told_in_its_own_shape(proxy: Running, upstream: Upstream, framing: str) -> None:
    own = [(b"X-Request-Id", b"req_1"), (b"ETag", b"x"), (b"Content-Digest", b"x"), (b"Content-Type", b"application/x")]
    packed = {"gzip": gzip.compress(COMPLETION), "deflate": zlib.compress(COMPLETION)}.get(framing, COMPLETION)
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in own)
    if framing in ("length", "gzip", "deflate"):
        upstream.says(
            answer(200, [*own, (b"Content-Encoding", framing.replace("length", "identity").encode())], packed)
        )
    elif framing == "chunked":
        upstream.says(head + b"Transfer-Encoding: chunked\r\n\r\n", chunked(COMPLETION[:9], COMPLETION[9:], b""))
    else:
        upstream.says(head + b"\r\n", COMPLETION, closes=True)
    back = await ask(proxy, post(b"/chatgpt", {**SECURED, "prompt": "Hi"}, (b"Accept-Encoding", b"br")))
    told = json.loads(back.body)
    assert list(told) == ["id", "role", "text", "parentMessageId", "conversationId", "detail"]
    assert (told["id"], told["role"], told["text"]) == ("chatcmpl-1", "assistant", "Hi ü")
    assert len({told["id"], told["parentMessageId"], told["conversationId"]}) == 3
    assert back.body.endswith(b'"detail": %b}' % COMPLETION)
    assert [name for name, _ in back.headers] == [
        b"x-request-id",
        b"content-type",
        b"content-length",
        b"x-proxy-request-id",
    ]
    assert back.get(b"content-type") == b"application/json"
    assert upstream.heard[0].get(b"accept-encoding") is None  # what the upstream says has to be read here


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(body=b"not JSON"), "not a chat completion"),
        (answer(body=b"[]"), "not a chat completion"),
        (answer(body=b'{"choices": []}'), "not a chat completion"),
        (answer(body=b"[" * 100_000), "not a chat completion"),
        (answer(headers=[(b"Content-Encoding", b"br")]), "cannot be read"),
        (answer(headers=[GZIP]), "cannot be read"),
        (answer(headers=[GZIP], body=gzip.compress(b"x" * 200_001, mtime=0)), "cannot be read"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "ended too early"),
    ],
)
async def test_an_answer_that_is_no_completion_is_a_502(
    proxy: Running, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, said: bytes, why: str
) -> None:
    monkeypatch.setattr("proxy.retold.MOST_OF_AN_ANSWER", 200_000)
    upstream.says(said, closes=True)
    back = await ask(proxy, post(b"/chatgpt", {**SECURED, "prompt": "Hi"}))
    assert (back.status, error(back)["code"]) == (502, "OPENAI_PROXY_TRANSPORT")
    assert why in error(back)["message"]


async def test_an_endless_answer_to_a_prompt_is_given_up(
    proxy: Running, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.retold.MOST_OF_AN_ANSWER", 100_000)
    client = await proxy.connect()
    await client.say(post(b"/chatgpt", {**SECURED, "prompt": "Hi"}))
    there = await upstream.accept()
    await there.hear()
    await there.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"x" * 100_001))
    assert (await client.hear()).status == 502
    await there.closed()


@one_way
async def test_the_operator_names_the_model_that_a_prompt_goes_to(start: Start, upstream: Upstream) -> None:
    upstream.says(answer(body=COMPLETION))
    async with start(**SWAP, DEFAULT_MODEL="gpt-of-a-test") as proxy:
        await ask(proxy, post(b"/chatgpt", {**SECURED, "prompt": "Hi"}))
        await ask(proxy, post(b"/chatgpt", {**SECURED, "prompt": "Hi", "model": "theirs"}))
    assert [json.loads(heard.body)["model"] for heard in upstream.heard] == ["gpt-of-a-test", "theirs"]


# ---- how long the upstream may take

SHORT = {"OPENAI_PROXY_UPSTREAM_TIMEOUT_MS": "100"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, post(b"/openai2", {**SECURED, "timeout": 100})),
        ({}, post(b"/chatgpt", {**SECURED, "prompt": "Hi", "timeout": "100"})),
        ({}, request("GET", b"/openai2/resp_1?timeout=1e2", [SHOWN])),
        (SHORT, post(b"/embeddings", {**SECURED, "timeout": "soon"})),
        (SHORT, post(b"/openai2", b'{"security_key": "%b", "timeout": 1e999}' % CLIENT_KEY.encode())),
        (SHORT, post(b"/openai", SECURED)),
        ({**SHORT, "OPENAI_PROXY_UPSTREAM_MAX_TIMEOUT_MS": "100"}, post(b"/openai2", {**SECURED, "timeout": 60_000})),
    ],
    ids=["body", "text", "query", "invalid", "not finite", "default", "clamped"],
)
async def test_the_upstream_has_the_time_that_the_caller_gives_it(
    start: Start, upstream: Upstream, settings: dict[str, str], said: bytes
) -> None:
    async with start(**SWAP, **settings) as proxy:
        client = await proxy.connect()
        await client.say(said)
        there = await upstream.accept()
        await there.hear()
        back = await client.hear()
        assert (back.status, error(back)["code"]) == (504, "OPENAI_PROXY_TIMEOUT")
        await there.closed()


async def test_to_connect_takes_no_longer_than_the_caller_gives_it_for_the_head(
    start: Start, upstream: Upstream
) -> None:
    async with start(**SWAP, OXY_TARGET=f"https://127.0.0.1:{upstream.port}") as proxy:  # which is silent in TLS
        client = await proxy.connect()
        await client.say(post(b"/openai2", {**SECURED, "timeout": 100}))
        back = await client.hear()
        assert (back.status, error(back)["message"]) == (504, "Timeout while connecting to the upstream")
        await (await upstream.accept()).closed()


async def test_a_caller_may_give_more_time_than_the_setting(start: Start, upstream: Upstream) -> None:
    async with start(**SWAP, OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="20") as proxy:
        patient, hasty = await proxy.connect(), await proxy.connect()
        await patient.say(post(b"/openai2", {**SECURED, "timeout": 30_000}))
        there = await upstream.accept()
        await there.hear()
        await hasty.say(post(b"/openai2", SECURED))
        assert (await hasty.hear()).status == 504
        await there.say(answer())
        assert (await patient.hear()).status == 200


async def test_a_silence_in_a_stream_has_the_callers_time_too(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(post(b"/openai2", {**SECURED, "timeout": 100}))
    there = await upstream.accept()
    await there.hear()
    await there.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"one"))
    await client.head()
    assert await client.chunk() == b"one"
    assert await client.rest() == b""  # torn
