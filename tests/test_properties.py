"""What holds for any path, any query, any list of fields and any chunking.

What ought to cross is told here once more, from the contract alone; no function of the proxy is asked for it.
"""

import asyncio
import string
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

import httpx
import pytest
import pytest_asyncio
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.endpoints import Endpoints
from proxy.exchange import Call, Exchange
from proxy.headers import Crossing, inbound, outbound
from proxy.settings import load
from proxy.upstream import Upstream as FarBank
from tests.conftest import (
    CLIENT_KEY,
    SWAP,
    UPSTREAM_KEY,
    WAYS,
    Running,
    Start,
    going,
    running,
    ways,
)
from tests.peers import Heard, Pairs, Peer, Upstream, answer, chunked, request

way = ways(*WAYS)

pure = settings(max_examples=100)
bounded = settings(max_examples=40)
in_one_loop = pytest.mark.asyncio(loop_scope="module")

# The contract: which fields of a request, and of an answer, end here.
HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
END_WITH_US = HOP_BY_HOP | {b"expect", b"host", b"x-api-key", b"forwarded", b"x-real-ip"}
CREDENTIALS = {b"authorization", b"api-key"}
FORWARDED = b"x-forwarded-"
PREFIXES = {"OXY_HOP_HEADER_PREFIX": "X-Hop-, cf-"}
FRAMING = {b"content-length", b"transfer-encoding"}

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
TOKENS = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
VALUES = "\t" + "".join(map(chr, (*range(0x20, 0x7F), *range(0x80, 0x100))))
KNOWN = (
    *sorted((END_WITH_US | CREDENTIALS) - FRAMING - {b"connection", b"host"}),
    b"X-Forwarded-For",
    b"x-forwarded-",
    b"X-Forwarded",
    b"X-Hop-Count",
    b"CF-Ray",
    b"CfRay",
    b"Cookie",
    b"Set-Cookie",
    b"X-Request-Id",
    b"Content-Type",
    b"Date",
)

ALL = [(name, b"1") for name in KNOWN]
OFFER = [
    (b"Connection", b"Upgrade, HTTP2-Settings"),
    (b"Upgrade", b"h2c"),
    (b"HTTP2-Settings", b"AAMAAABkAARAAAAAAAIAAAAA"),
]


def raw(alphabet: str, **sizes: int) -> st.SearchStrategy[bytes]:
    return st.text(alphabet, **sizes).map(lambda text: text.encode("latin-1"))


paths = raw(VISIBLE.replace("?", ""), max_size=40).map(lambda path: b"/" + path)
queries = st.one_of(st.just(b""), raw(VISIBLE, max_size=40).map(lambda query: b"?" + query))
blanks = raw(" \t", max_size=2)
values = raw(VALUES, max_size=20).map(lambda value: value.strip(b" \t"))
names = st.one_of(
    st.builds(
        lambda name, case: case(name),
        st.sampled_from(KNOWN),
        st.sampled_from((bytes.lower, bytes.upper, bytes.title, bytes.swapcase)),
    ),
    raw(TOKENS, min_size=1, max_size=20),
).filter(
    # An Origin asks for CORS, and a second Host is refused (RFC 9112 3.2).
    lambda name: name.lower() not in FRAMING | {b"connection", b"origin", b"host"}
)


@st.composite
def fields(draw: st.DrawFn) -> Pairs:
    """Fields in any order, with duplicates, and `Connection` naming some of them."""
    drawn = draw(st.lists(st.tuples(names, values), max_size=8))
    again = [(name, draw(values)) for name, _ in drawn if draw(st.booleans())]
    pairs: Pairs = draw(st.permutations(drawn + again))
    tokens = st.lists(st.sampled_from([b"close", b"Content-Length", *(name for name, _ in pairs)]), max_size=3)
    for _ in range(draw(st.integers(0, 2))):
        pairs.insert(draw(st.integers(0, len(pairs))), (b"Connection", b" , ".join(draw(tokens))))
    return pairs


def crossing(pairs: Pairs, ended: set[bytes], *prefixes: bytes) -> Pairs:
    """What the contract lets through: all but what ends here and what `Connection` names, in order."""
    named = {token.strip().lower() for name, value in pairs if name == b"Connection" for token in value.split(b",")}
    return [
        (name.lower(), value)
        for name, value in pairs
        if name.lower() not in ended | named and not name.lower().startswith(prefixes)
    ]


def less(pairs: Pairs, names: set[bytes]) -> Pairs:
    return [(name, value) for name, value in pairs if name not in names]


@st.composite
def cut(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """The bytes in pieces, to be put together again in order."""
    places = draw(st.lists(st.integers(0, len(whole)), max_size=12))
    return [whole[start:end] for start, end in pairwise((0, *sorted(places), len(whole)))]


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[bytes, bytes]:
    """How a body may be told from what follows it: the field that says it, and the body so framed."""
    if draw(st.booleans()):
        return b"Content-Length: %d" % len(body), body
    pieces = [piece for piece in draw(cut(body)) if piece]
    size = draw(st.sampled_from((b"%x", b"%X", b"000%x")))
    extension = draw(st.sampled_from((b"", b";a", b';a=b;c="d e"')))
    frames = [size % len(piece) + extension + b"\r\n" + piece + b"\r\n" for piece in pieces]
    last = b"0" + extension + b"\r\n" + draw(st.sampled_from((b"", b"X-Late: 1\r\nA: 3\r\n"))) + b"\r\n"
    return b"Transfer-Encoding: " + draw(st.sampled_from((b"chunked", b"Chunked"))), b"".join((*frames, last))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)  # it would fill a falsifying example
class Stage:
    """Two proxies before one upstream: one that touches nothing it need not, one that swaps keys and drops prefixes."""

    upstream: Upstream
    transparent: Running
    swapping: Running

    async def play(
        self, proxy: Running, *pieces: bytes, times: int = 1, bodiless: bool = False
    ) -> tuple[list[Heard], list[Heard]]:
        """Say this to the proxy, each piece in a write of its own; return what the upstream heard, and the client."""
        self.upstream.heard.clear()
        client = await proxy.connect()
        try:
            await client.dribble(*pieces)
            return self.upstream.heard, [await client.hear(bodiless=bodiless) for _ in range(times)]
        finally:
            await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WAYS)
async def stage(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("nowhere")
    async with Upstream().listening() as upstream:
        upstream.says(answer())
        async with AsyncExitStack() as proxies:
            with going(request.param) as way:
                target = {"OXY_TARGET": upstream.url, "OXY_TRANSPORT": way}
                transparent, swapping = [
                    await proxies.enter_async_context(running(load({**target, **environ}, folder)))
                    for environ in ({}, {**SWAP, **PREFIXES})
                ]
            yield Stage(upstream=upstream, transparent=transparent, swapping=swapping)


# What is not relayed, or not as it is, begins with one of these.
OURS = (
    *(b"/api/openai/v1/", b"/chatgpt", b"/debug/runtime", b"/embeddings", b"/health", b"/log", b"/metrics", b"/openai"),
)


@in_one_loop
@given(path=paths, query=queries)
@example(path=b"//elsewhere.example/x", query=b"?")
@example(path=b"/v1/../%2e%2E/%2F", query=b"??#?")
@bounded
async def test_any_path_and_query_go_on_as_they_came(stage: Stage, path: bytes, query: bytes) -> None:
    assume(path.partition(b"#")[0] != b"/" and not path.startswith(OURS))
    stage.upstream.says(answer())
    (heard,), _ = await stage.play(stage.transparent, request("GET", path + query))
    assert heard.start == b"GET " + path + query + b" HTTP/1.1"


@in_one_loop
@given(path=paths, query=queries)
@bounded
async def test_the_older_name_of_any_path_is_taken_off(stage: Stage, path: bytes, query: bytes) -> None:
    stage.upstream.says(answer())
    (heard,), _ = await stage.play(stage.transparent, request("GET", b"/api/openai/v1" + path + query))
    assert heard.target == b"/v1" + path + query


@in_one_loop
@given(said=fields(), before=blanks, after=blanks, body=st.one_of(st.none(), st.binary(max_size=20)))
@example(said=ALL, before=b"", after=b"", body=b"{}")
@example(said=[(b"X-Request-Id", b"1"), (b"x-request-id", b"2")], before=b"", after=b"", body=None)
@example(said=[*OFFER, (b"Connection", b"content-length,, A"), (b"a", b"1")], before=b"\t", after=b" ", body=b"{}")
@bounded
async def test_any_fields_of_a_request_go_on_in_order_less_those_that_end_here(
    stage: Stage, said: Pairs, before: bytes, after: bytes, body: bytes | None
) -> None:
    stage.upstream.says(answer())
    padded = [(name, before + value + after) for name, value in said]
    for _ in range(3):  # then the head is known, and goes past the parser
        (heard,), (back,) = await stage.play(stage.transparent, request("POST", headers=padded, body=body))
        assert heard.body == (body or b"")
        assert heard.all(b"content-length") == ([] if body is None else [b"%d" % len(body)])
        assert heard.all(b"host") == [stage.upstream.url.removeprefix("http://").encode()]
        assert less(heard.headers, {b"host", b"content-length"}) == crossing(said, END_WITH_US, FORWARDED)
        asked = [value for name, value in said if name.lower() == b"x-request-id"]
        assert back.all(b"x-incoming-request-id") == asked[:1]
        body = body and body + b"and more"


@in_one_loop
@given(said=fields(), carrier=st.sampled_from((b"X-API-Key: %s", b"Authorization: Bearer %s", b"API-Key: %s")))
@example(said=[*ALL, (b"Connection", b"authorization, close")], carrier=b"X-API-Key: %s")
@bounded
async def test_whatever_else_is_said_the_upstream_hears_its_key_once_and_never_the_clients(
    stage: Stage, said: Pairs, carrier: bytes
) -> None:
    stage.upstream.says(answer())
    name, _, value = (carrier % CLIENT_KEY.encode()).partition(b": ")
    (heard,), (back,) = await stage.play(stage.swapping, request(headers=[*said, (name, value)]))
    assert back.status == 200
    expected = crossing(said, END_WITH_US | CREDENTIALS, FORWARDED, b"x-hop-", b"cf-")
    assert less(heard.headers, {b"host"}) == [*expected, (b"authorization", b"Bearer " + UPSTREAM_KEY.encode())]


@in_one_loop
@given(method=st.sampled_from(("GET", "HEAD")), status=st.integers(200, 599), said=fields(), body=st.binary())
@example(method="GET", status=529, said=ALL, body=b"")
@example(method="GET", status=304, said=[], body=b"not sent")
@example(method="HEAD", status=200, said=[], body=b"not sent")
@bounded
async def test_any_status_and_fields_of_an_answer_come_back_in_order_less_those_that_end_here(
    stage: Stage, method: str, status: int, said: Pairs, body: bytes
) -> None:
    if status == 204:
        body = b""
    sent = b"" if method == "HEAD" or status == 304 else body  # the length that the body would have is stated anyhow
    stage.upstream.says(answer(status, said, body).removesuffix(body) + sent)
    _, both = await stage.play(stage.transparent, 2 * request(method), times=2, bodiless=method == "HEAD")
    for back in both:  # the second would not be understood if a byte too many or too few had come before
        assert (back.status, back.body) == (status, sent)
        expected = [*crossing(said, HOP_BY_HOP), (b"content-length", b"%d" % len(body))]
        assert less(back.headers, {b"x-proxy-request-id"}) == expected


@in_one_loop
@given(bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=3), data=st.data())
@bounded
async def test_requests_in_any_chunks_and_cut_anywhere_on_the_wire_arrive_as_they_are(
    stage: Stage, bodies: list[bytes], data: st.DataObject
) -> None:
    stage.upstream.says(answer())
    framings = [data.draw(framed(body)) for body in bodies]
    start = b"POST /v1/files?a HTTP/1.1\r\nHost: proxy.example\r\nA:1\r\n"
    said = b"".join(start + field + b"\r\nB: 2\r\n\r\n" + payload for field, payload in framings)
    heard, back = await stage.play(stage.transparent, *data.draw(cut(said)), times=len(bodies))
    assert [one.status for one in back] == [200] * len(bodies)
    assert [one.body for one in heard] == bodies
    assert {one.start for one in heard} == {b"POST /v1/files?a HTTP/1.1"}
    assert [less(one.headers, FRAMING | {b"host"}) for one in heard] == [[(b"a", b"1"), (b"b", b"2")]] * len(bodies)


@in_one_loop
@given(body=st.binary(max_size=300), interim=st.lists(st.sampled_from((100, 102, 103)), max_size=2), data=st.data())
@bounded
async def test_an_answer_cut_anywhere_on_the_wire_comes_back_as_it_is(
    stage: Stage, body: bytes, interim: list[int], data: st.DataObject
) -> None:
    closes = data.draw(st.booleans())
    field, payload = (b"Connection: close", body) if closes else data.draw(framed(body))
    early = b"".join(b"HTTP/1.1 %d Not Yet\r\nLink: </x>\r\n\r\n" % status for status in interim)
    said = early + b"HTTP/1.1 207 As It Likes\r\nA:1\r\n" + field + b"\r\nB: 2\r\n\r\n" + payload
    stage.upstream.says(*data.draw(cut(said)), closes=closes)
    _, (back,) = await stage.play(stage.transparent, request())
    assert (back.status, back.body) == (207, body)
    assert less(back.headers, FRAMING | {b"x-proxy-request-id"}) == [(b"a", b"1"), (b"b", b"2")]


# The same without a wire.


@given(said=fields())
@pure
def test_what_is_clean_is_not_cleaned_again(said: Pairs) -> None:
    lowered = [(name.lower(), value) for name, value in said]
    ending = Crossing(frozenset(END_WITH_US), (FORWARDED,))
    once = outbound(lowered, ending)
    assert outbound(once, ending) == once
    assert inbound(inbound(lowered)) == inbound(lowered) == crossing(said, HOP_BY_HOP)


@st.composite
def spelled(draw: st.DrawFn, plain: bytes) -> bytes:
    """One of the many spellings of some text: any of its bytes percent-encoded, and any of those again."""
    for code in draw(st.lists(st.sampled_from((b"%%%02x", b"%%%02X")), max_size=3)):
        chosen = draw(st.integers(0, 2 ** len(plain) - 1))
        plain = b"".join(code % byte if chosen >> place & 1 else bytes((byte,)) for place, byte in enumerate(plain))
    return plain


dots = st.builds(
    bytes.join, st.just(b""), st.tuples(st.sampled_from((b".", b"..")), st.sampled_from((b"", b";", b";a=b")))
)
segments = raw("ab.-~", min_size=1, max_size=5).filter(lambda segment: segment not in (b".", b".."))
slashes = st.sampled_from((b"/", b"\\"))


@given(before=segments, slash=slashes, dotted=dots, after=st.one_of(st.just(b""), segments), data=st.data())
@pure
def test_no_spelling_of_dot_segments_is_on_a_list(
    before: bytes, slash: bytes, dotted: bytes, after: bytes, data: st.DataObject
) -> None:
    tail = data.draw(slashes) + after if after else b""
    path = b"/v1/" + data.draw(spelled(before + slash + dotted + tail))
    assert not Endpoints(("/v1/*", "*")).include(path)
    assert Endpoints(()).include(path)


@given(pattern=st.text("ab/*", max_size=8), path=st.text("ab/", max_size=8))
@pure
def test_a_star_stands_for_any_run_of_characters(pattern: str, path: str) -> None:
    assert Endpoints((pattern,)).include(path.encode()) is fnmatchcase(path, pattern)


@given(path=st.lists(segments).map(b"/".join), data=st.data())
@pure
def test_dots_within_a_segment_are_but_dots_however_they_are_spelled(path: bytes, data: st.DataObject) -> None:
    assert Endpoints(("/*",)).include(b"/" + data.draw(spelled(path)))


class Recorder(httpx.AsyncBaseTransport):
    """A transport that goes nowhere and knows where it was to go."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.url, self.target = request.url, request.url.raw_path
        return httpx.Response(200)


versions = st.sampled_from((b"v1", b"v1x", b"v", b"openai", b"V1"))


@given(
    prefix=st.lists(versions, max_size=3),
    path=st.lists(versions, min_size=1, max_size=3),
    end=queries,
    slash=st.booleans(),
)
@pure
async def test_the_targets_path_stands_before_any_other_but_its_last_segment_never_twice(
    tmp_path_factory: pytest.TempPathFactory, prefix: list[bytes], path: list[bytes], end: bytes, slash: bool
) -> None:
    own = b"".join(b"/" + segment for segment in prefix)
    said = b"".join(b"/" + segment for segment in path) + (b"/" if slash else b"") + end
    recorder = Recorder()
    far = FarBank(load({"OXY_TARGET": f"https://api.example{own.decode()}"}, tmp_path_factory.getbasetemp()), recorder)
    exchange = Exchange(id="", method="GET", path="")
    await (await far.open(exchange, Call(method="GET", target=said, headers=[], body=None))).close()
    twice = prefix[-1:] == path[:1]
    assert recorder.target == b"".join(b"/" + segment for segment in (prefix[:-1] if twice else prefix)) + said
    assert (recorder.url.raw_scheme, recorder.url.raw_host) == (b"https", b"api.example")


# Found on the way: what no strategy above draws.


@pytest.mark.parametrize("target", [b"/%68ealth", b"/health%0A", b"/%0A", b"/healt%68?x"])
async def test_another_spelling_of_a_page_of_ours_is_relayed(client: Peer, upstream: Upstream, target: bytes) -> None:
    upstream.says(answer())
    await client.say(request("GET", target))
    await client.hear()
    assert [heard.target for heard in upstream.heard] == [target]


async def test_a_target_in_absolute_form_keeps_its_empty_query(client: Peer, upstream: Upstream) -> None:
    upstream.says(answer())
    await client.say(request("GET", b"http://proxy.example/v1/models?"))
    await client.hear()
    assert [heard.target for heard in upstream.heard] == [b"/v1/models?"]


async def test_an_absolute_target_without_a_path_means_the_root(client: Peer) -> None:
    await client.say(request("GET", b"http://proxy.example"))  # RFC 9112 3.2.1, 3.2.2
    assert (await client.hear()).body == b"Welcome to the OpenAI Reverse Proxy!"


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize(
    ("framing", "payload"),
    [(b"Content-Length: 7", b'{"n":1}'), (b"Transfer-Encoding: chunked", chunked(b'{"n"', b":1}", b""))],
    ids=["length", "chunks"],
)
async def test_an_offer_to_speak_http2_costs_nobody_the_body(
    client: Peer, upstream: Upstream, framing: bytes, payload: bytes, apart: bool
) -> None:
    # Java's HttpClient offers it with every request (Kludex/uvicorn#2722); RFC 9110 7.8: it may be ignored.
    upstream.says(answer())
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    head = b"POST /v1/responses HTTP/1.1\r\nHost: proxy.example\r\n" + offer + b"\r\n" + framing + b"\r\n\r\n"
    for _ in range(2):
        await client.dribble(*((head, payload) if apart else (head + payload,)))
        assert (await client.hear()).status == 200
    await client.say(request())
    assert (await client.hear()).status == 200
    assert [heard.body for heard in upstream.heard] == [b'{"n":1}', b'{"n":1}', b""]
    assert less(upstream.heard[0].headers, FRAMING | {b"host"}) == []


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
async def test_trailers_of_a_request_never_become_fields(client: Peer, upstream: Upstream, apart: bool) -> None:
    upstream.says(answer())  # RFC 9110 6.5.1
    head = b"POST /v1/files HTTP/1.1\r\nHost: proxy.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    rest = chunked(b"abc") + b"0\r\nX-Trailer: 1\r\nAuthorization: Bearer late\r\n\r\n"
    await client.dribble(*((head, rest) if apart else (head + rest,)))
    assert (await client.hear()).status == 200
    (heard,) = upstream.heard
    assert heard.body == b"abc"
    assert less(heard.headers, FRAMING | {b"host"}) == []


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip\r\nTransfer-Encoding: chunked"])
async def test_a_transfer_coding_that_cannot_be_named_upstream_is_refused(
    client: Peer, upstream: Upstream, coding: bytes
) -> None:
    upstream.says(answer())  # RFC 9112 6.1: 501, or the upstream would take compressed bytes for plain ones
    head = b"POST /v1/files HTTP/1.1\r\nHost: proxy.example\r\nTransfer-Encoding: " + coding
    await client.say(head + b"\r\n\r\n" + chunked(b"\x1f\x8b...", b""))
    assert (await client.hear()).status in (400, 501)
    assert upstream.heard == []


@pytest.mark.parametrize("length", [b"2", b"9"])
async def test_an_answer_in_chunks_is_as_long_as_its_chunks_whatever_else_it_states(
    client: Peer, upstream: Upstream, length: bytes
) -> None:
    # RFC 9112 6.3: the chunks override the length, which must not be passed on.
    head = b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    upstream.says(head + chunked(b"abc", b""))
    await client.say(request())
    back = await client.hear()
    assert (back.body, back.get(b"content-length")) == (b"abc", None)


async def test_an_answer_that_the_server_will_not_write_is_a_502_or_passes(client: Peer, upstream: Upstream) -> None:
    # RFC 9110 5.5: a control character may be kept or refused. Nothing at all is no answer.
    upstream.says(answer(headers=[(b"Set-Cookie", b"a=\x01")]))
    await client.say(request())
    back = await client.hear()
    assert (back.status, back.get(b"set-cookie")) in ((200, b"a=\x01"), (502, None))


async def test_a_client_of_http_1_0_hears_no_chunks(client: Peer, upstream: Upstream) -> None:
    # RFC 9112 6.1: no transfer coding to whoever speaks an older version; the end of the connection ends the body.
    upstream.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abc", b"def", b""))
    await client.say(b"GET /v1/models HTTP/1.0\r\nHost: proxy.example\r\n\r\n")
    back = await client.hear()
    assert (back.get(b"transfer-encoding"), back.body) == (None, b"abcdef")


async def test_a_head_that_comes_byte_by_byte_for_ever_is_not_waited_for(start: Start) -> None:
    async with start(PROXY_HEAD_TIMEOUT_MS="300") as proxy:
        client = await proxy.connect()
        dripping = asyncio.ensure_future(drip(client))
        try:
            assert (await client.hear()).status == 408
        finally:
            dripping.cancel()


@pytest.mark.parametrize(
    "whole",
    [
        request(),
        request("POST", body=b"{}"),
        b"POST /v1/files HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"{}", b""),
    ],
    ids=["no body", "length", "chunks"],
)
async def test_a_head_that_began_together_with_another_request_is_not_waited_for_either(
    start: Start, upstream: Upstream, whole: bytes
) -> None:
    upstream.says(answer())
    async with start(PROXY_HEAD_TIMEOUT_MS="300") as proxy:
        client = await proxy.connect()
        await client.say(whole, b"GET /v1/mod")
        await client.hear()
        assert (await client.hear()).status == 408


async def drip(client: Peer) -> None:
    await client.say(b"GET /v1/models HTTP/1.1\r\nHost: proxy.example\r\nX-Long: ")
    while True:
        await client.say(b"x")
        await asyncio.sleep(0.05)
