"""A client that hangs up, a client that holds back, and what the proxy leaves torn."""

import asyncio

import pytest

from tests.conftest import Running
from tests.peers import Peer, Upstream, answer, chunked, request

SSE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("body", [None, b"{}"], ids=["GET", "POST"])
async def test_a_client_gone_before_the_head_ends_the_upstreams_work(
    client: Peer, upstream: Upstream, body: bytes | None
) -> None:
    await client.say(request("POST" if body else "GET", body=body))
    there = await upstream.accept()
    await there.hear()
    client.abort()
    await there.closed()


async def test_a_client_gone_in_a_stream_ends_the_upstreams_work(client: Peer, upstream: Upstream) -> None:
    await client.say(request("POST", body=b"{}"))
    there = await upstream.accept()
    await there.hear()
    await there.say(SSE, chunked(b"data: 1\n\n"))
    await client.head()
    await client.close()
    await there.closed()


async def test_a_client_gone_during_its_upload_ends_the_upstreams_work(client: Peer, upstream: Upstream) -> None:
    await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nonly this")
    there = await upstream.accept()
    await there.until(b"only this")
    client.abort()
    await there.closed()


async def test_a_client_gone_before_the_upstream_is_reached_leaves_nothing(
    transparent: Running, upstream: Upstream
) -> None:
    upstream.says(answer())
    for _ in range(3):
        client = await transparent.connect()
        await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
        client.abort()
    client = await transparent.connect()
    await client.say(request())
    assert (await client.hear()).status == 200


async def test_a_slow_exchange_on_a_kept_connection_is_followed_by_another(client: Peer, upstream: Upstream) -> None:
    await client.say(request("POST", body=b"{}"))
    there = await upstream.accept()
    for _ in range(3):
        await there.hear()
        await there.say(SSE, chunked(b"slow"))
        await client.head()
        assert await client.chunk() == b"slow"
        await asyncio.sleep(0.1)
        await there.say(chunked(b""))
        assert await client.chunk() == b""
        await client.say(request("POST", body=b"{}"))
    assert upstream.accepted == 1


async def test_an_answer_before_the_end_of_the_upload_is_relayed_and_the_rest_dropped(
    client: Peer, upstream: Upstream
) -> None:
    upload = b"x" * 3_000_000
    await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(upload), upload[:1000])
    there = await upstream.accept()
    await there.head()
    await there.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
    await there.close()
    await client.say(upload[1000:])
    back = await client.hear()
    assert (back.status, back.body) in [(413, b"no"), (502, back.body)]
    upstream.says(answer(body=b"next"))
    await client.say(request())
    assert (await client.hear()).body == b"next"


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        SSE + chunked(b"only this"),
        SSE + b"64\r\nonly this",
    ],
    ids=["length", "between chunks", "in a chunk"],
)
async def test_an_answer_that_breaks_off_is_left_torn(client: Peer, upstream: Upstream, said: bytes) -> None:
    await client.say(request())
    there = await upstream.accept()
    await there.hear()
    await there.say(said)
    await there.close()
    head = await client.head()
    rest = await client.rest()
    assert head.status == 200
    assert b"only this" in rest or b"in a chunk" not in said
    assert not rest.endswith(b"0\r\n\r\n")
    assert len(rest) < 100
