"""A head that came before goes past the parser, and neither the upstream nor the client can tell."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.cycle import Cycle
from proxy.exchange import Exchange
from proxy.headers import by_name
from proxy.heads import LONGEST, MOST, MOST_SEEN, Head, Heads, Template, cut, is_ordinary
from proxy.ledger import Ledger
from proxy.pool import around_length
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, Start, noting, ways
from tests.peers import Heard, Pairs, Peer, Upstream, answer, chunked, request

way = ways("fast")

KEY = (b"Authorization", b"Bearer " + CLIENT_KEY.encode())
SDK = [KEY, (b"User-Agent", b"OpenAI/Python 1.99.0"), (b"X-Stainless-OS", b"Linux"), (b"Content-Type", b"text/plain")]


@pytest.fixture
def remembered() -> Iterator[list[Heads]]:
    """What each server that is started after it remembers."""
    with noting(Heads) as made:
        yield made


async def play(client: Peer, *requests: bytes) -> list[Heard]:
    """Say one request after the other, each when the one before has its answer."""
    answers = []
    for said in requests:
        await client.say(said)
        answers.append(await client.hear())
    return answers


def post(body: bytes, headers: Pairs = SDK, target: bytes = b"/v1/chat/completions?a") -> bytes:
    return request("POST", target, headers, body)


async def test_a_head_goes_past_the_parser_from_the_third_time_on(
    proxy: Running, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    bodies = [b"a", b"bb", b"c" * 12, b"", b"dd", b"e" * 100_000]
    client = await proxy.connect()
    for body, times in zip(bodies, (0, 0, 1, 2, 3, 4), strict=True):
        [back] = await play(client, post(body))
        assert (back.status, len(past)) == (200, times)
    for heard, body in zip(upstream.heard, bodies, strict=True):
        assert heard.start == b"POST /v1/chat/completions?a HTTP/1.1"
        assert heard.headers == [
            (b"host", f"127.0.0.1:{upstream.port}".encode()),
            *[(name.lower(), value) for name, value in SDK[1:]],
            (b"content-length", b"%d" % len(body)),
            (b"authorization", b"Bearer " + UPSTREAM_KEY.encode()),
        ]
        assert heard.body == body


async def test_it_is_known_on_another_connection_too_and_without_a_body(
    proxy: Running, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    for times in (0, 0, 1, 2):
        await play(await proxy.connect(), request(headers=SDK))
        assert len(past) == times
    assert len({tuple(heard.headers) for heard in upstream.heard}) == 1


async def test_one_that_comes_for_the_second_time_behind_another_is_not_that_one(
    proxy: Running, upstream: Upstream, past: list[bytes]
) -> None:
    """The text is that of the first head in what came, and not that of another one there."""
    upstream.says(answer())
    client = await proxy.connect()
    for _ in range(3):
        await client.say(post(b"one", target=b"/one") + post(b"two!", target=b"/two"))
        assert [(await client.hear()).status for _ in range(2)] == [200, 200]
    assert [(heard.target, heard.body) for heard in upstream.heard] == [(b"/one", b"one"), (b"/two", b"two!")] * 3
    assert [text.partition(b" HTTP")[0] for text in past] == [b"POST /one"]


async def test_many_that_are_known_may_come_at_once_and_cut_anywhere(
    proxy: Running, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    await play(client, *[post(b"to begin with")] * 2)
    said = b"".join(post(b"%d" % number * number) for number in range(9)) + b"\r\n" + post(b"odd")
    for step in (len(said), 701, 97, 13):
        del upstream.heard[:], past[:]
        await client.dribble(*[said[at : at + step] for at in range(0, len(said), step)])
        assert [(await client.hear()).status for _ in range(10)] == [200] * 10
        assert [heard.body for heard in upstream.heard] == [b"%d" % number * number for number in range(9)] + [b"odd"]
        assert past or step < 300  # which is less than a head


async def test_what_comes_between_goes_through_the_parser_and_back(
    proxy: Running, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    await play(client, *[post(b"again")] * 3)
    in_chunks = [*SDK, (b"Transfer-Encoding", b"chunked")]
    await play(client, request("POST", headers=in_chunks) + chunked(b"one", b"two", b""))
    await play(
        client, post(b"and again"), request("POST", headers=in_chunks) + chunked(b"three", b""), post(b"the last")
    )
    assert [heard.body for heard in upstream.heard[3:]] == [b"onetwo", b"and again", b"three", b"the last"]
    assert len(past) == 3


LAST = [*SDK, (b"Connection", b"close")]


@pytest.mark.parametrize("last", [post(b"last", LAST), request("GET", headers=LAST)], ids=["a body", "no body"])
@pytest.mark.parametrize("cut", [0, 5, -1], ids=["at once", "in the head", "at its end"])
async def test_behind_the_last_request_of_a_connection_nothing_known_begins(
    proxy: Running, upstream: Upstream, past: list[bytes], last: bytes, cut: int
) -> None:
    upstream.says(answer())
    await play(await proxy.connect(), *[post(b"known")] * 3)
    for time in range(4):  # from the third on it is known itself
        del past[:]
        client = await proxy.connect()
        with noting(Cycle) as begun:
            await client.dribble(last[:cut], last[cut:] + post(b"known"))
            back = await client.hear()
        assert len(begun) == 1  # none waits in vain either
        assert (back.status, back.get(b"connection"), back.body) == (200, b"close", b"{}")
        await client.closed()
        assert bool(past) == (time > 1 and (not cut or (cut < 0 and b"POST" in last)))
    assert [heard.body for heard in upstream.heard[3:]] == [b"last" if b"POST" in last else b""] * 4


@pytest.mark.parametrize(
    ("ahead", "told"),
    [(post(b"last", LAST, b"/1"), [200]), (post(b"once", SDK, b"/1") + b"GET / HTTP/1.1\r\n\r\n", [200, 400])],
    ids=["a last request", "what is refused"],
)
async def test_nor_in_a_segment_of_its_own_while_that_has_no_answer(
    proxy: Running, upstream: Upstream, ahead: bytes, told: list[int]
) -> None:
    playing = asyncio.ensure_future(play(await proxy.connect(), *[post(b"known")] * 3))
    there = await upstream.accept()
    for _ in range(3):
        await there.hear()
        await there.say(answer())
    await playing
    client = await proxy.connect()
    with noting(Cycle) as begun:
        await client.say(ahead)
        await there.hear()
        await client.say(post(b"known"))
        await asyncio.sleep(0.02)
        await there.say(answer())
        assert [(await client.hear()).status for _ in told] == told
        await client.closed()
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("version", "wish"), [(b"HTTP/1.0", b"close"), (b"HTTP/1.0", b"keep-alive"), (b"HTTP/1.1", b"close")]
)
async def test_a_last_request_is_one_each_time(
    proxy: Running, upstream: Upstream, past: list[bytes], version: bytes, wish: bytes
) -> None:
    upstream.says(answer())
    for _ in range(4):
        client = await proxy.connect()
        await client.say(post(b"last", [*SDK, (b"Connection", wish)]).replace(b"HTTP/1.1", version))
        assert (await client.hear()).get(b"connection") == b"close"
        await client.closed()
    assert len(past) == (2 if version == b"HTTP/1.1" else 0)


async def test_the_name_of_the_key_is_written_down_each_time(
    proxy: Running, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Exchange] = []
    monkeypatch.setattr(Ledger, "enter", lambda _, exchange: entered.append(exchange))
    upstream.says(answer())
    await play(await proxy.connect(), *[post(b"{}")] * 4)
    assert [exchange.key for exchange in entered] == ["key-1"] * 4


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_what_reads_like_a_known_head_within_a_body_is_a_body(
    proxy: Running, upstream: Upstream, past: list[bytes], framing: str
) -> None:
    upstream.says(answer())
    client, said = await proxy.connect(), post(b"known")
    await play(client, *[said] * 3)
    del past[:]
    field, pieces = {
        "length": ((b"Content-Length", b"%d" % (3 * len(said))), [said] * 3),
        "chunked": ((b"Transfer-Encoding", b"chunked"), [b"%x\r\n" % (3 * len(said)), *[said] * 3, b"\r\n0\r\n\r\n"]),
    }[framing]
    await client.say(request("POST", b"/v1/files", [KEY, field]))
    there = len(upstream.heard)
    for piece in pieces:  # each in a segment of its own
        await asyncio.sleep(0.02)
        await client.say(piece)
    assert (await client.hear()).status == 200
    assert [heard.body for heard in upstream.heard[there:]] == [said * 3]
    assert not past


async def test_what_reads_like_a_known_head_within_a_head_is_a_part_of_that(
    transparent: Running, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    client, said = await transparent.connect(), request(headers=[(b"A", b"b")])
    await play(client, *[said] * 3)
    del past[:]
    await client.say(b"GET /v1/other HTTP/1.1\r\nX-Value: ")
    await asyncio.sleep(0.02)
    await client.say(said)
    assert (await client.hear()).status == 200
    assert upstream.heard[-1].target == b"/v1/other"
    assert upstream.heard[-1].get(b"x-value") == b"GET /v1/models HTTP/1.1"
    assert not past


async def test_what_is_malformed_behind_a_known_head_is_refused_as_ever(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    await play(client, *[post(b"known")] * 3)
    await client.say(post(b"known") + b"no HTTP at all\r\n\r\n")
    assert [(await client.hear()).status for _ in range(2)] == [200, 400]
    await client.closed()


@pytest.mark.parametrize(
    "blank", [b"\n\r\r\n\r\n", b"\n\r\n\r\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n\r\n", b"\r\n", b"\n\n"]
)
async def test_line_ends_before_a_request_are_never_known_in_its_place(
    proxy: Running, upstream: Upstream, past: list[bytes], blank: bytes
) -> None:
    upstream.says(answer())
    deletion = request("DELETE", b"/v1/files/a", [KEY])
    for _ in range(3):
        client = await proxy.connect()
        await client.say(blank + deletion)  # RFC 9112 2.2: empty lines may come before it
        assert (await client.hear()).status == 200
    stranger = await proxy.connect()
    await stranger.say(blank + request(headers=[(b"Authorization", b"Bearer wrong")]))
    assert (await stranger.hear()).status == 401
    assert [heard.start for heard in upstream.heard] == [b"DELETE /v1/files/a HTTP/1.1"] * 3
    assert past == []


async def test_a_wrong_key_is_never_remembered(
    remembered: list[Heads], proxy: Running, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    wrong = post(b"{}", [(b"Authorization", b"Bearer " + CLIENT_KEY.encode()[:-1])])
    assert {back.status for back in await play(client, *[wrong] * 4)} == {401}
    assert not upstream.heard
    assert repr(remembered) == "[<Heads 0 known, 0 seen>]", "nobody without a key fills this"


async def test_what_one_proxy_made_of_a_head_is_not_what_another_makes_of_it(
    proxy: Running, start: Start, upstream: Upstream, past: list[bytes]
) -> None:
    upstream.says(answer())
    await play(await proxy.connect(), *[post(b"{}")] * 3)
    async with start(**SWAP | {"PROXY_X_API_KEY": "another"}) as other:
        assert {back.status for back in await play(await other.connect(), *[post(b"{}")] * 3)} == {401}
    async with start(**SWAP | {"OPENAI_API_KEY": "sk-another"}) as other:
        await play(await other.connect(), *[post(b"{}")] * 3)
    assert {heard.get(b"authorization") for heard in upstream.heard[3:]} == {b"Bearer sk-another"}
    assert len(past) == 2, "each has its own"


async def test_the_clients_address_is_that_of_each_connection(
    remembered: list[Heads], start: Start, upstream: Upstream
) -> None:
    upstream.says(answer())
    async with start(PROXY_FORWARDED="append") as proxy:
        await play(await proxy.connect(), *[post(b"{}", [])] * 4)
    assert {heard.get(b"x-forwarded-for") for heard in upstream.heard} == {b"127.0.0.1"}
    assert repr(remembered) == "[<Heads 0 known, 0 seen>]", "another client with the same head has another address"


async def test_a_deployment_is_that_of_each_body(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    azure = {"PROXY_AZURE": "deployments", "OPENAI_API_VERSION": "2024-10-21"}
    models = [b"gpt-1", b"gpt-1", b"gpt-1", b"gpt-2"]
    async with start(**SWAP, **azure) as proxy:
        await play(
            await proxy.connect(), *[post(b'{"model":"%b"}' % model, target=b"/v1/embeddings") for model in models]
        )
    assert [heard.target.split(b"/")[3] for heard in upstream.heard] == models


async def test_a_body_that_asks_for_usage_has_its_own_length(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    streamed, plain = b'{"stream":true}', b'{"n":1}'
    said = [plain, plain, plain, streamed, plain]
    coded = [*SDK, (b"Accept-Encoding", b"gzip")]
    async with start(**SWAP, PROXY_INCLUDE_USAGE="1") as proxy:
        await play(await proxy.connect(), *[post(body, coded) for body in said])
    asked = b'{"stream":true,"stream_options":{"include_usage": true}}'
    assert [heard.body for heard in upstream.heard] == [plain, plain, plain, asked, plain]
    codings = [heard.get(b"accept-encoding") for heard in upstream.heard]
    assert codings == [b"gzip", b"gzip", b"gzip", None, b"gzip"], "what is to be changed has to be read"


@pytest.mark.parametrize(
    "headers",
    [
        [*SDK, (b"A", b"1"), (b"a", b"2")],
        [*SDK, (b"Expect", b"100-continue")],
        [*SDK, (b"Connection", b"upgrade"), (b"Upgrade", b"h2c")],
        [*SDK, (b"X", b"x" * LONGEST)],
        [*SDK, (b"Content-LENGTH", b"5")],
    ],
    ids=["a name twice", "expect", "an offer", "long", "another spelling of the length"],
)
async def test_a_head_that_is_not_ordinary_is_served_and_not_remembered(
    transparent: Running, upstream: Upstream, past: list[bytes], headers: Pairs
) -> None:
    upstream.says(answer())
    client = await transparent.connect()
    spelled = any(name.lower() == b"content-length" for name, _ in headers)
    said = request("POST", headers=headers, body=None if spelled else b"hello") + (b"hello" if spelled else b"")
    for _ in range(4):
        await client.say(said)
        back = await client.hear()
        if back.status == 100:
            back = await client.hear()
        assert back.status == 200
    assert [heard.body for heard in upstream.heard] == [b"hello"] * 4
    assert past == []


def test_a_length_is_filled_in_where_there_is_one_and_else_nothing() -> None:
    assert Template([(b"a", b"1"), (b"content-length", b"5")]).stating(b"7") == [
        (b"a", b"1"),
        (b"content-length", b"7"),
    ]
    assert Template([(b"a", b"1")]).stating(b"7") == [(b"a", b"1")]


def test_a_head_is_cut_around_its_length() -> None:
    head = b"POST / HTTP/1.1\r\na: 5\r\ncontent-length: 5\r\nb: 5\r\n\r\n"
    before, behind = around_length(head, b"5") or (b"", b"")
    assert before + b"77" + behind == head.replace(b"length: 5", b"length: 77")
    assert around_length(b"GET / HTTP/1.1\r\n\r\n", b"") == (b"GET / HTTP/1.1\r\n\r\n", b"")
    assert around_length(b"GET / HTTP/1.1\r\n\r\n", b"5") is None


@pytest.mark.parametrize("digits", [b"+5", b"05", b"5 ", b"0x5", b"5,5", b"", b"\xb2", b"1" * 16])
def test_an_odd_length_is_left_to_the_parser(digits: bytes) -> None:
    assert cut(b"POST / HTTP/1.1\r\nContent-Length: " + digits + b"\r\nHost: h\r\n\r\n") is None


def test_the_text_is_the_head_less_its_length() -> None:
    head = b"POST / HTTP/1.1\r\ncontent-length: 12\r\nHost: h\r\n\r\n"
    text = b"POST / HTTP/1.1\r\ncontent-length: \r\nHost: h"
    assert cut(head + b"and more") == (text, b"12", len(head))
    assert cut(head[:-1]) is None
    assert cut(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") == (b"GET / HTTP/1.1\r\nHost: h", b"", 27)


HOST = (b"host", b"h")


@pytest.mark.parametrize(
    ("text", "pairs", "ordinary"),
    [
        (b"GET /a?b HTTP/1.1\r\nHost: h", [HOST], True),
        (b"GET /a?b HTTP/1.1\r\nHost:h \t\r\nA:", [HOST, (b"a", b"")], True),
        (b"GET /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: ", [HOST, (b"content-length", b"5")], True),
        (b"GET /a?b HTTP/1.1\r\nHost: h\r\nContent-LENGTH: 5", [HOST, (b"content-length", b"5")], False),
        (b"\r\nGET /a?b HTTP/1.1\r\nHost: h", [HOST], False),
        (b"\n\r", [HOST], False),
        (b"GET /a?b HTTP/1.1\n\r", [HOST], False),
        (b"PUT /a?b HTTP/1.1\r\nHost: h", [HOST], False),
        (b"GET /a?c HTTP/1.1\r\nHost: h", [HOST], False),
        (b"GET http://h/a?b HTTP/1.1\r\nHost: h", [HOST], False),
        (b"GET /a?b HTTP/1.0\r\nHost: h", [HOST], False),
        (b"GET /a?b HTTP/1.1\r\nHost: i", [HOST], False),
        (b"GET /a?b HTTP/1.1\r\nHosts: h", [HOST], False),
        (b"GET /a?b HTTP/1.1\r\nHost: h", [HOST, (b"a", b"1")], False),
        (b"GET /a?b HTTP/1.1\r\nHost: h\r\nA: 1", [HOST], False),
        (b"GET /a?b HTTP/1.1\r\nHost: h\nA: 1", [HOST, (b"a", b"1")], False),
        (b"GET /a?b HTTP/1.1\r\nHost: h\r\nA: \r1", [HOST, (b"a", b"1")], False),
        (b"GET /a?b HTTP/1.1\r\nA: 1\r\nA: 2", [(b"a", b"1"), (b"a", b"2")], False),
        (b"GET /a?b HTTP/1.1\r\nUpgrade: h2c", [(b"upgrade", b"h2c")], False),
        (b"GET /a?b HTTP/1.1\r\nTransfer-Encoding: chunked", [(b"transfer-encoding", b"chunked")], False),
    ],
)
def test_a_head_is_ordinary_if_its_lines_say_what_was_read(text: bytes, pairs: Pairs, ordinary: bool) -> None:
    assert is_ordinary(Head(Heads(), text, "GET", b"/a?b", "1.1", pairs, by_name(pairs), last=False)) is ordinary


class Reading:
    """What the parser makes of the first head in some bytes, given one by one, and where it ends; -1 if it does not."""

    def __init__(self, data: bytes) -> None:
        self.target, self.end = b"", -1
        self.pairs: Pairs = []
        parser = httptools.HttpRequestParser(self)
        with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            for self._at in range(1, len(data) + 1):
                parser.feed_data(data[self._at - 1 : self._at])
        self.method, self.version = parser.get_method().decode(), parser.get_http_version()

    def on_url(self, piece: bytes) -> None:
        self.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.end < 0:
            self.pairs.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        self.end = self._at
        raise EOFError  # which ends the reading


BLANKS = st.text("\r\n\t ", max_size=6).map(str.encode)
STARTS = st.sampled_from([b"GET /a?b HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: h\r\n", b"GET / HTTP/1.0\r\n", b""])
PARTS = [
    b"Host: h",
    b"Content-Length: 5",
    b"content-length: 7",
    b"Content-LENGTH: 5",
    b"Content-Length:",
    b"A: b",
    b"A",
    b":",
]
LINES = st.lists(
    st.sampled_from([*PARTS, b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b"\r\n\r\n", b"5"])
).map(b"".join)


@given(said=st.builds(lambda *parts: b"".join(parts), BLANKS, STARTS, LINES), more=BLANKS)
@example(said=b"\n\r\r\n\r\nGET / HTTP/1.1\r\nHost: h", more=b"")
@example(said=b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5", more=b"")
def test_what_may_be_remembered_is_what_the_parser_reads(said: bytes, more: bytes) -> None:
    data = said + b"\r\n\r\n" + more
    read, found = Reading(data), cut(data)
    if read.end < 0 or found is None:
        return
    text, digits, end = found
    fields = by_name(read.pairs)
    if is_ordinary(Head(Heads(), text, read.method, read.target, read.version, read.pairs, fields, last=False)):
        assert (end, digits, read.version) == (read.end, fields.get(b"content-length", b""), "1.1")


def made(number: int) -> Head:
    return Head(Heads(), b"GET /%d HTTP/1.1" % number, "GET", b"/%d" % number, "1.1", [], {}, last=False)


def test_what_is_remembered_is_bounded() -> None:
    heads = Heads()
    for _ in range(2):
        for number in range(MOST + 1):
            heads.recognise(made(number))
    assert len(heads._known) == MOST
    assert heads.known(made(0).text) is None
    assert heads.recognise(made(MOST))
    assert heads.known(made(1).text) is not None, "what is known already drives nothing out"
    for number in range(MOST_SEEN + 1):
        heads.recognise(made(10_000 + number))
    assert len(heads._seen) <= MOST_SEEN
    assert len(heads._known) == MOST, "what comes once drives nothing out"
