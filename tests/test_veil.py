"""Keys that an upstream says back are masked; what holds none passes as it is."""

import gzip
import random
import zlib

import pytest

from proxy.exchange import Sink
from proxy.veil import MOST, Veil
from tests.conftest import CLIENT_KEY, UPSTREAM_KEY, Running, Start
from tests.peers import Upstream, answer, chunked, request

CALL = request(headers=[(b"X-API-Key", CLIENT_KEY.encode())])
KEYS = [UPSTREAM_KEY.encode(), CLIENT_KEY.encode()]
each_key = pytest.mark.parametrize("key", KEYS, ids=["upstream key", "client key"])


async def heard(proxy: Running, upstream: Upstream, said: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    upstream.says(said)
    client = await proxy.connect()
    await client.say(CALL)
    back = await client.hear()
    return back.headers, back.body


@pytest.mark.untraced
@each_key
@pytest.mark.parametrize("name", [b"Location", b"WWW-Authenticate", b"Set-Cookie", b"X-Debug"])
@pytest.mark.parametrize("status", [200, 302, 401])
async def test_a_key_in_a_field_is_masked(
    proxy: Running, upstream: Upstream, name: bytes, status: int, key: bytes
) -> None:
    fields = [(name, b"https://x/?key=" + key + b"&a=b"), (b"X-Other", b"as it is")]
    headers, _ = await heard(proxy, upstream, answer(status, fields))
    assert (name.lower(), b"https://x/?key=" + b"*" * len(key) + b"&a=b") in headers
    assert (b"x-other", b"as it is") in headers


@each_key
@pytest.mark.parametrize("status", [400, 401, 500, 599])
async def test_a_key_in_an_error_is_masked_and_its_length_stays(
    proxy: Running, upstream: Upstream, status: int, key: bytes
) -> None:
    body = b'{"error": "Incorrect API key provided: ' + key + b", twice: " + key + b'"}'
    headers, back = await heard(proxy, upstream, answer(status, body=body))
    assert back == body.replace(key, b"*" * len(key))
    assert (b"content-length", str(len(body)).encode()) in headers


@pytest.mark.parametrize("cut", range(1, len(UPSTREAM_KEY), 5))
async def test_a_key_that_comes_in_two_pieces_is_masked_too(proxy: Running, upstream: Upstream, cut: int) -> None:
    key = UPSTREAM_KEY.encode()
    client = await proxy.connect()
    await client.say(CALL)
    far = await upstream.accept()
    await far.head()
    await far.say(b"HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"<" + key[:cut]))
    await client.head()
    await far.say(chunked(key[cut:] + b">", b""))
    assert key[1:] not in await client.until(b"0\r\n\r\n")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_key_in_a_compressed_error_is_masked_and_the_error_plain(
    proxy: Running, upstream: Upstream, coding: str
) -> None:
    body = b'{"error": "' + KEYS[0] + b'"}'
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    fields = [(b"Content-Encoding", coding.encode()), (b"Content-Type", b"application/json")]
    headers, back = await heard(proxy, upstream, answer(401, fields, packed))
    assert back == body.replace(KEYS[0], b"*" * len(KEYS[0]))
    assert (b"content-type", b"application/json") in headers
    assert b"content-encoding" not in dict(headers)


@pytest.mark.parametrize("padding", [0, MOST])
@pytest.mark.parametrize("coding", [b"identity", b"", b"utf-8", b"gzip", b"br, gzip"])
async def test_a_key_in_an_error_that_is_plain_whatever_it_says_is_masked(
    proxy: Running, upstream: Upstream, coding: bytes, padding: int
) -> None:
    body = b'{"error": "' + KEYS[0] + b'"}' + b" " * padding
    headers, back = await heard(proxy, upstream, answer(401, [(b"Content-Encoding", coding)], body))
    assert back == body.replace(KEYS[0], b"*" * len(KEYS[0]))
    assert (b"content-encoding", coding) in headers


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(b'{"error": "nothing secret"}', mtime=0)),
        (b"gzip", b"not gzip at all"),
        (b"br", b"\x8b\x02\x80hello\x03"),
        (b"gzip", gzip.compress(bytes(300), mtime=0) + bytes(MOST)),
    ],
    ids=["nothing in it", "broken", "unknown coding", "too long"],
)
async def test_a_compressed_error_without_a_key_passes_byte_for_byte(
    proxy: Running, upstream: Upstream, coding: bytes, body: bytes
) -> None:
    headers, back = await heard(proxy, upstream, answer(400, [(b"Content-Encoding", coding)], body))
    assert (back, dict(headers)[b"content-encoding"]) == (body, coding)


def unfinished(body: bytes) -> bytes:
    stream = zlib.compressobj()
    return stream.compress(body) + stream.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("coded", "status"),
    [
        (unfinished(b"no such key: " + KEYS[0]), 502),
        (zlib.compress(b"no such key: " + KEYS[0] + bytes(6_000_000)), 502),  # more than is unfolded
        (unfinished(b"no such key"), 401),
    ],
    ids=["unfinished", "too long", "unfinished, without a key"],
)
async def test_of_a_broken_error_with_a_key_in_it_no_part_looks_whole(
    proxy: Running, upstream: Upstream, coded: bytes, status: int
) -> None:
    upstream.says(answer(401, [(b"Content-Encoding", b"deflate")], coded))
    client = await proxy.connect()
    await client.say(CALL)
    back = await client.hear()
    assert (back.status, KEYS[0] in back.body) == (status, False)
    assert status == 502 or back.body == coded


async def test_a_compressed_error_whose_length_is_not_known_is_masked_too(proxy: Running, upstream: Upstream) -> None:
    packed = gzip.compress(b"<" + KEYS[0] + b">")
    said = b"HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, back = await heard(proxy, upstream, said + chunked(packed[:9], packed[9:], b""))
    assert back == b"<" + b"*" * len(KEYS[0]) + b">"


async def test_a_long_compressed_error_whose_length_is_not_known_passes_byte_for_byte(
    proxy: Running, upstream: Upstream
) -> None:
    packed = gzip.compress(random.Random(1).randbytes(2 * MOST), mtime=0)
    said = b"HTTP/1.1 429 No\r\nContent-Encoding: gzip\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    headers, back = await heard(proxy, upstream, said + chunked(packed[:MOST], packed[MOST:], b""))
    assert (back, dict(headers)[b"retry-after"]) == (packed, b"7")


async def test_a_success_passes_as_it_is(proxy: Running, upstream: Upstream) -> None:
    body = b"the model said " + KEYS[0]
    _, back = await heard(proxy, upstream, answer(200, body=body))
    assert back == body


async def test_a_long_error_is_looked_through_up_to_a_bound_and_passes_whole(
    proxy: Running, upstream: Upstream
) -> None:
    key = KEYS[0]
    body = key + bytes(4 * MOST) + key
    client = await proxy.connect()
    await client.say(CALL)
    far = await upstream.accept()
    await far.head()
    await far.say(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(body))
    for start in range(0, len(body), 10_000):
        await far.say(body[start : start + 10_000])
    assert (await client.hear()).body == b"*" * len(key) + body[len(key) :]


async def test_where_there_is_no_key_nothing_is_masked(transparent: Running, upstream: Upstream) -> None:
    _, back = await heard(transparent, upstream, answer(401, body=b"no " + KEYS[0]))
    assert back == b"no " + KEYS[0]


async def test_a_key_too_short_to_be_one_stands_in_too_many_words(start: Start, upstream: Upstream) -> None:
    async with start(OPENAI_API_KEY="sk-long-enough", PROXY_X_API_KEY="error,client-key-of-a-test") as proxy:
        _, back = await heard(proxy, upstream, answer(400, body=b"an error"))
        assert back == b"an error"


def test_the_shortest_key_that_is_looked_for_has_eight_bytes() -> None:
    assert Veil(["12345678", "1234567"]).mask(b"12345678 1234567") == b"******** 1234567"


@pytest.mark.parametrize(("more", "masked"), [(0, True), (1, False)])
@pytest.mark.parametrize("framed", [True, False], ids=["of known length", "in chunks"])
async def test_a_compressed_error_is_looked_into_up_to_a_bound(
    proxy: Running, upstream: Upstream, framed: bool, more: int, masked: bool
) -> None:
    packed = gzip.compress(KEYS[0])
    name = b"n" * (MOST + more - len(packed) - 1) + b"\0"  # RFC 1952 2.3: of the file, which makes it as long as wanted
    coded = packed[:3] + b"\x08" + packed[4:10] + name + packed[10:]
    said = answer(401, [(b"Content-Encoding", b"gzip")], coded)
    if not framed:
        said = b"HTTP/1.1 401 No\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(coded, b"")
    _, back = await heard(proxy, upstream, said)
    assert back == (b"*" * len(KEYS[0]) if masked else coded)


def test_a_renewed_token_and_the_one_before_it_are_masked_and_no_older_one() -> None:
    veil = Veil([])
    veil.know(b"token-one")
    veil.know(b"token-two")
    assert veil.mask(b"token-one token-two") == b"********* *********"
    veil.know(b"token-new")
    assert veil.mask(b"token-one token-two token-new") == b"token-one ********* *********"


class Slow(Sink):
    """A sink without room."""

    def push(self, piece: bytes) -> bool:
        return False

    async def drain(self) -> None:
        self.drained = True


async def test_a_masked_error_waits_for_its_client_as_any_other() -> None:
    class Two:
        status, headers, complete = 400, [(b"a", b"b")], False

        async def pour(self, sink: Sink) -> None:
            if not sink.push(b"x" * 100):
                await sink.drain()

        def take(self) -> bytes:
            return b""

        async def close(self) -> None:
            self.closed = True

    slow, far = Slow(), Two()
    veiled = await Veil(["a-secret-of-ours"]).over_body(far)
    await veiled.pour(slow)
    await veiled.close()
    assert slow.drained
    assert far.closed
    assert not veiled.complete
