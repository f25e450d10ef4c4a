"""The main promise, on real sockets: what the upstream hears is what the client said, and back."""

import asyncio

import pytest

from tests.conftest import CLIENT_KEY, WAYS, Running, Start, our_protocol, ways
from tests.peers import Peer, Upstream, answer, chunked, request

way = ways(*WAYS)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ONE, TWO = b"data: one\n\n", b"data: two\n\n"


async def test_a_request_and_its_answer_cross_unchanged(client: Peer, upstream: Upstream) -> None:
    await client.say(request("POST", b"/v1/chat/completions?a=1&a=2;b=%2F+&c=", [(b"X-Odd", b"a, b")], b'{"n": 1.0}'))
    there = await upstream.accept()
    heard = await there.hear()
    assert heard.start == b"POST /v1/chat/completions?a=1&a=2;b=%2F+&c= HTTP/1.1"
    assert heard.headers == [
        (b"host", f"127.0.0.1:{upstream.port}".encode()),
        (b"x-odd", b"a, b"),
        (b"content-length", b"10"),
    ]
    assert heard.body == b'{"n": 1.0}'
    await there.say(answer(529, [(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"Server", b"them")], b"\x00\xff"))
    back = await client.hear()
    assert back.status == 529
    assert back.headers[:-1] == [
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"server", b"them"),
        (b"content-length", b"2"),
    ]
    assert back.headers[-1][0] == b"x-proxy-request-id"
    assert back.body == b"\x00\xff"


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"/v1/models", b"/v1/models"),
        (b"/v1/models?", b"/v1/models?"),
        (b"//twice//v1//models", b"//twice//v1//models"),
        (b"/v1/a%2Fb/../c/./%2e%2E?x=%00", b"/v1/a%2Fb/../c/./%2e%2E?x=%00"),
        (b"/v1/models?a=1&a=&;b=+%20&&?=/", b"/v1/models?a=1&a=&;b=+%20&&?=/"),
        (b"/v1/models#fragment", b"/v1/models#fragment"),
        (b"http://elsewhere.example/v1/models?a=b", b"/v1/models?a=b"),
        (b"http://elsewhere.example/v1/models", b"/v1/models"),
        (b"/api/openai/v1/models?a", b"/v1/models?a"),
        (b"/api/openai/v2/models", b"/api/openai/v2/models"),
        (b"/api/openai/v1", b"/api/openai/v1"),
    ],
)
async def test_a_target_goes_on_as_it_came(client: Peer, upstream: Upstream, said: bytes, heard: bytes) -> None:
    upstream.says(answer())
    await client.say(request(target=said))
    await client.hear()
    assert upstream.heard[0].target == heard


async def test_a_question_about_the_server_as_a_whole_goes_on(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(OXY_TARGET=upstream.url + "/prefix") as proxy:
        client = await proxy.connect()
        await client.say(request("OPTIONS", b"*"))
        await client.hear()
    assert upstream.heard[0].target == b"*"


@pytest.mark.parametrize(
    ("prefix", "said", "heard"),
    [
        ("/v1", b"/v1/models", b"/v1/models"),
        ("/v1/", b"/v1/models", b"/v1/models"),
        ("/v1", b"/models", b"/v1/models"),
        ("/v1", b"/v1", b"/v1"),
        ("/v1", b"/v1?a", b"/v1?a"),
        ("/v1", b"/v1beta/models", b"/v1/v1beta/models"),
        ("/openai/v1", b"/v1/models", b"/openai/v1/models"),
        ("/openai/v1", b"/openai/v1/models", b"/openai/v1/openai/v1/models"),
        ("/gateway", b"/v1/models", b"/gateway/v1/models"),
    ],
)
async def test_the_targets_path_stands_before_but_its_last_segment_not_twice(
    start: Start, upstream: Upstream, prefix: str, said: bytes, heard: bytes
) -> None:
    upstream.says(answer())
    async with start(OPENAI_BASE_URL=upstream.url + prefix, OXY_TARGET="") as proxy:
        client = await proxy.connect()
        await client.say(request(target=said))
        await client.hear()
    assert upstream.heard[0].target == heard


async def test_the_first_event_arrives_while_the_second_is_held_back(client: Peer, upstream: Upstream) -> None:
    await client.say(request("POST", b"/v1/responses", body=b"{}"))
    there = await upstream.accept()
    await there.hear()
    await there.say(HEAD, chunked(ONE))
    assert (await client.head()).get(b"transfer-encoding") == b"chunked"
    assert await client.chunk() == ONE
    await there.say(chunked(TWO, b""))
    assert await client.chunk() == TWO
    assert await client.chunk() == b""


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_the_first_part_of_an_upload_arrives_while_the_second_is_held_back(
    client: Peer, upstream: Upstream, framing: str
) -> None:
    field, first, second = {
        "length": (b"Content-Length: 6", b"one", b"two"),
        "chunked": (b"Transfer-Encoding: chunked", chunked(b"one"), chunked(b"two", b"")),
    }[framing]
    await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n" % field, first)
    there = await upstream.accept()
    head = await there.head()
    assert (head.get(b"content-length"), head.get(b"transfer-encoding")) == {
        "length": (b"6", None),
        "chunked": (None, b"chunked"),
    }[framing]
    assert await there.until(b"one") == first.partition(b"one")[0] + b"one"
    await client.say(second)
    assert (await there.until(b"two")).endswith(b"two")
    await there.say(answer())
    assert (await client.hear()).status == 200


@pytest.mark.parametrize("way", ["fast"], indirect=True)  # httpx's hears an answer behind the upload
async def test_an_upload_goes_on_while_its_answer_has_begun(client: Peer, upstream: Upstream) -> None:
    await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"one"))
    there = await upstream.accept()
    await there.until(b"one")
    await there.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"heard one"))
    assert (await client.head()).status == 200
    assert await client.chunk() == b"heard one"
    await client.say(chunked(b"two", b""))
    assert (await there.until(chunked(b"two", b""))).startswith(b"\r\n")
    await there.say(chunked(b"heard two", b""))
    assert [await client.chunk(), await client.chunk()] == [b"heard two", b""]
    await client.say(request())
    await there.head()
    await there.say(answer(body=b"on the same connections"))
    assert (await client.hear()).body == b"on the same connections"


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_who_reads_only_behind_its_upload_hears_an_early_refusal_all_the_same(
    client: Peer, upstream: Upstream
) -> None:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    size = 20_000_000
    await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
    there = await upstream.accept()
    await there.head()
    refusing = asyncio.create_task(there.say(answer(status=413, body=bytes(size))))
    await client.say(bytes(size))
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    back = await client.hear()
    assert (back.status, len(back.body)) == (413, size)
    await refusing


async def test_a_client_that_expects_100_gets_one_and_the_upstream_is_not_asked(
    client: Peer, upstream: Upstream
) -> None:
    await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.say(b"{}")
    heard = await (there := await upstream.accept()).hear()
    assert (heard.get(b"expect"), heard.body) == (None, b"{}")
    await there.say(answer())
    assert (await client.hear()).status == 200


async def test_interim_answers_end_here(client: Peer, upstream: Upstream) -> None:
    upstream.says(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(body=b"final")
    )
    await client.say(request())
    assert (await client.hear()).body == b"final"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("DELETE", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_keep_their_length_and_the_connection(
    client: Peer, upstream: Upstream, method: str, said: bytes
) -> None:
    upstream.says(said)
    for _ in range(2):
        await client.say(request(method))
        back = await client.hear(bodiless=True)
        assert back.get(b"content-length") == (b"12" if b"12" in said else None)
        assert back.get(b"transfer-encoding") is None
    assert upstream.accepted == 1


@our_protocol
async def test_an_answer_to_head_announces_no_chunks(client: Peer, upstream: Upstream) -> None:
    upstream.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.say(request("HEAD"))
    assert (await client.hear(bodiless=True)).get(b"transfer-encoding") is None


async def test_a_body_that_lasts_until_the_upstream_closes_is_relayed(client: Peer, upstream: Upstream) -> None:
    await client.say(request())
    there = await upstream.accept()
    await there.hear()
    await there.say(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n\x00\x01\x02")
    await there.close()
    assert (await client.hear()).body == b"\x00\x01\x02"


async def test_connections_are_kept_on_both_sides(client: Peer, upstream: Upstream) -> None:
    upstream.says(answer())
    for _ in range(5):
        await client.say(request("POST", body=b"{}"))
        assert (await client.hear()).status == 200
    assert upstream.accepted == 1


async def test_pipelined_requests_are_answered_in_order(client: Peer, upstream: Upstream) -> None:
    upstream.says(answer())
    await client.say(request(target=b"/1"), request(target=b"/2"), request(target=b"/3"))
    for _ in range(3):
        assert (await client.hear()).status == 200
    assert [heard.target for heard in upstream.heard] == [b"/1", b"/2", b"/3"]


async def test_fields_that_connection_names_end_here_whatever_else_is_taken_out(
    start: Start, upstream: Upstream
) -> None:
    upstream.says(answer())
    named = [(b"Connection", b"keep-alive"), (b"Connection", b"X-Hop"), (b"X-Hop", b"1")]
    async with start(PROXY_X_API_KEY=CLIENT_KEY) as proxy:  # as many fields go with the key as come twice
        client = await proxy.connect()
        await client.say(request(headers=[(b"X-API-Key", CLIENT_KEY.encode()), *named]))
        assert (await client.hear()).status == 200
    assert upstream.heard[0].get(b"x-hop") is None


async def test_a_client_that_names_its_request_finds_the_name_in_the_answer(client: Peer, upstream: Upstream) -> None:
    upstream.says(answer(headers=[(b"X-Request-Id", b"req_upstream")]))
    await client.say(request(headers=[(b"X-Request-Id", b"mine-1")]))
    back = await client.hear()
    assert upstream.heard[0].get(b"x-request-id") == b"mine-1"
    assert back.get(b"x-request-id") == b"req_upstream"
    assert back.get(b"x-incoming-request-id") == b"mine-1"


async def test_an_sdk_finds_the_id_of_an_answer_of_our_own_where_it_looks_for_one(client: Peer) -> None:
    await client.say(b"GET http://no path HTTP/1.1\r\nHost: h\r\n\r\n")
    back = await client.hear()
    assert back.status == 400
    assert back.get(b"x-request-id") == back.get(b"x-proxy-request-id") is not None


async def test_a_name_that_is_too_long_for_one_goes_on_but_is_not_kept(client: Peer, upstream: Upstream) -> None:
    upstream.says(answer())
    for length in (512, 513):
        await client.say(request(headers=[(b"X-Request-Id", b"x" * length)]))
        kept = (await client.hear()).get(b"x-incoming-request-id")
        assert kept == (b"x" * 512 if length == 512 else None)
        assert upstream.heard[-1].get(b"x-request-id") == b"x" * length


async def test_each_exchange_has_an_id_of_its_own(client: Peer, upstream: Upstream) -> None:
    upstream.says(answer())
    ids = set()
    for _ in range(20):
        await client.say(request())
        ids.add((await client.hear()).get(b"x-proxy-request-id"))
    assert len(ids) == 20


@pytest.mark.parametrize(
    ("setting", "said", "heard"),
    [
        ("drop", [(b"X-Forwarded-For", b"1.2.3.4"), (b"X-Real-IP", b"1"), (b"Forwarded", b"for=1")], []),
        ("pass", [(b"X-Forwarded-For", b"1.2.3.4")], [(b"x-forwarded-for", b"1.2.3.4")]),
        ("append", [(b"X-Forwarded-For", b"1.2.3.4")], [(b"x-forwarded-for", b"1.2.3.4, 127.0.0.1")]),
        ("append", [], [(b"x-forwarded-for", b"127.0.0.1")]),
    ],
)
async def test_the_clients_address_is_told_only_where_the_operator_says_so(
    start: Start, upstream: Upstream, setting: str, said: list[tuple[bytes, bytes]], heard: list[tuple[bytes, bytes]]
) -> None:
    upstream.says(answer())
    async with start(PROXY_FORWARDED=setting) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=said))
        await client.hear()
    assert upstream.heard[0].headers[1:] == heard


async def test_headers_of_the_platform_in_front_end_here(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(OXY_HOP_HEADER_PREFIX="X-SCF-, x-fc") as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"X-Scf-Id", b"1"), (b"x-FC-Token", b"2"), (b"X-Other", b"3")]))
        await client.hear()
    assert upstream.heard[0].headers[1:] == [(b"x-other", b"3")]


@pytest.mark.parametrize("prefix", ["content-", "C,T"])
async def test_a_prefix_takes_away_no_framing(start: Start, upstream: Upstream, prefix: str) -> None:
    upstream.says(answer())
    body = b"DELETE /v1/files/1 HTTP/1.1\r\nHost: h\r\n\r\n"  # what would be a request, were it no body
    async with start(OXY_HOP_HEADER_PREFIX=prefix) as proxy:
        client = await proxy.connect()
        await client.say(request("POST", headers=[(b"Content-Type", b"text/plain")], body=body))
        assert (await client.hear()).status == 200
        await client.say(request("POST", headers=[(b"Transfer-Encoding", b"chunked")]) + chunked(body, b""))
        assert (await client.hear()).status == 200
    assert [(heard.body, heard.get(b"content-type")) for heard in upstream.heard] == [(body, None)] * 2


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/v1/responses", 200),
        (b"/v1/responses?a=b", 200),
        (b"/api/openai/v1/responses", 200),
        (b"/v1/images/edits", 200),
        (b"/v1/files", 404),
        (b"/v1/images/../files", 404),
        (b"/v1/images/%2e%2E/files", 404),
        (b"/v1/images/x%2f..%2ffiles", 404),
    ],
)
async def test_only_listed_endpoints_are_relayed(start: Start, upstream: Upstream, target: bytes, status: int) -> None:
    upstream.says(answer())
    async with start(PROXY_ENDPOINTS="/v1/responses,/v1/images/*") as proxy:
        client = await proxy.connect()
        await client.say(request(target=target))
        assert (await client.hear()).status == status
    assert len(upstream.heard) == (status == 200)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_malformed_http_is_refused_and_goes_nowhere(client: Peer, upstream: Upstream, said: bytes) -> None:
    await client.say(said)
    assert (await client.hear()).status == 400
    assert await client.rest() == b""
    assert upstream.accepted == 0


async def test_an_upgrade_is_relayed_as_the_plain_request_that_it_also_is(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer(426))
    client = await proxy.connect()
    fields = [(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c"), (b"X-API-Key", b"client-key-of-a-test")]
    await client.say(request(headers=fields))
    assert (await client.hear()).status == 426
    assert [name for name, _ in upstream.heard[0].headers] == [b"host", b"authorization"]
