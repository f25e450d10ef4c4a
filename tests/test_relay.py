"""The main promise, on real sockets: what the upstream hears is what the client said, and back."""

import asyncio

import pytest

from tests.conftest import Running, Start
from tests.peers import Peer, Upstream, answer, chunked, request

EVENTS = [b"data: one\n\n", b"data: two\n\n"]


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
