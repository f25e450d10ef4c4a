"""What is read whole is read within a bound, and unpacked within one."""

import gzip
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequest, BodyTooLarge, Overloaded
from proxy.guard import Budget
from proxy.values import MEGABYTE
from proxy.whole import Whole, expanded, read_whole

PLENTY = Budget(1 << 40)
Packer = Callable[[bytes], bytes]

# A busy machine is no failure.
pure = settings(max_examples=60)
JSON = b'{"model": "gpt-4o", "messages": []}' * 20


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the time would make of each worker's tests others


def raw_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


PACKERS: list[tuple[bytes, Packer]] = [(b"gzip", gzipped), (b"deflate", zlib.compress), (b"deflate", raw_deflate)]
each_packing = pytest.mark.parametrize(("coding", "pack"), PACKERS, ids=["gzip", "zlib", "raw deflate"])


class Body:
    """A body that comes in pieces. `unread` are those that nobody wanted."""

    def __init__(self, *pieces: bytes, length: int | None = None) -> None:
        self.length = length
        self.unread = list(pieces)

    async def read(self) -> bytes:
        return self.unread.pop(0) if self.unread else b""


# ---- requests


@pytest.mark.parametrize("pieces", [(), (b"all of it",), (b"a", b"b", b"c"), (b"0123456789",)])
@pytest.mark.parametrize("told", [True, False])
async def test_a_body_within_the_bound_is_read_whole(pieces: tuple[bytes, ...], told: bool) -> None:
    content = b"".join(pieces)
    assert await read_whole(Body(*pieces, length=len(content) if told else None), 10, PLENTY) == content


async def test_no_body_is_an_empty_one() -> None:
    assert await read_whole(None, 10, PLENTY) == b""


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    body = Body(b"a", length=3 * MEGABYTE + 1)
    with pytest.raises(BodyTooLarge, match=r"^The body is larger than the 3 MB that this route takes$"):
        await read_whole(body, 3 * MEGABYTE, PLENTY)
    assert body.unread == [b"a"]


async def test_a_body_that_grows_too_large_is_read_no_further() -> None:
    body = Body(b"12345", b"12345", b"1", b"rest", b"rest")
    with pytest.raises(BodyTooLarge):
        await read_whole(body, 10, PLENTY)
    assert body.unread == [b"rest", b"rest"]


@pytest.mark.parametrize("room", [3, 100])
async def test_a_body_is_counted_while_it_comes_and_no_longer(room: int) -> None:
    budget = Budget(room)
    with suppress(Overloaded):
        assert await read_whole(Body(b"ab", b"cd", b"ef"), 100, budget) == b"abcdef"
        assert room == 100
    assert budget.held == 0


async def test_a_body_that_is_here_can_be_given_again() -> None:
    body = Whole(b"content")
    for _ in range(2):
        assert await body.again().read() == b"content"
    assert await body.read() == b"content"


async def test_a_body_that_was_taken_is_kept_by_nobody() -> None:
    content = bytes(1000)
    before = sys.getrefcount(content)
    body = Whole(content)
    await body.read()
    assert sys.getrefcount(content) == before


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
async def test_that_a_body_is_sent_is_said_once_when_more_is_asked_for_or_it_is_released(reads: int) -> None:
    said: list[int] = []
    body = Whole(b"content", lambda: said.append(1))
    for _ in range(reads):
        await body.read()
    assert said == [1] * (reads > 1)
    body.release()
    body.release()
    assert said == [1]


async def test_a_body_that_is_here_is_given_once() -> None:
    body = Whole(b"content")
    assert (body.length, await body.read(), await body.read(), await body.read()) == (7, b"content", b"", b"")


# ---- codings


@pytest.mark.parametrize("coding", [b"", b"identity", b" Identity "])
def test_what_is_not_compressed_stays_as_it_is(coding: bytes) -> None:
    assert expanded(JSON, coding, 1) is JSON


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        (b"gzip", gzipped(JSON)),
        (b" GZip\t", gzipped(JSON)),
        (b"x-gzip", gzipped(JSON)),
        (b"deflate", zlib.compress(JSON)),
        (b"deflate", zlib.compress(JSON, 0)),
        (b"deflate", zlib.compress(JSON, 9)),
        (b"deflate", raw_deflate(JSON)),
    ],
)
def test_a_compressed_body_is_unpacked(coding: bytes, content: bytes) -> None:
    assert expanded(content, coding, len(JSON)) == JSON


def test_raw_deflate_may_begin_almost_as_zlib_does() -> None:
    stored = b"\x08\x02\x00\xfd\xff{}" + b"\x01\x00\x00\xff\xff"  # RFC 1951 3.2.4: bits up to the length are ignored
    assert expanded(stored, b"deflate", 2) == b"{}"


@each_packing
@pure
@given(content=st.binary(max_size=300))
def test_whatever_was_packed_comes_out_again(coding: bytes, pack: Packer, content: bytes) -> None:
    assert expanded(pack(content), coding, 300) == content


@pytest.mark.parametrize(
    "coding", [b"br", b"zstd", b"compress", b"x-deflate", b"gzip, gzip", b"identity, gzip", b"*", b"gzip;q=1", b"\xff"]
)
def test_an_unknown_coding_is_refused(coding: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^Content-Encoding: gzip or deflate is expected, or none$"):
        expanded(gzipped(JSON), coding, 10_000)


@each_packing
def test_what_breaks_off_is_refused_wherever_it_does(coding: bytes, pack: Packer) -> None:
    packed = pack(JSON)
    for end in range(len(packed)):
        with pytest.raises(BadRequest, match=r"^The body does not end where its (gzip|deflate) coding does$"):
            expanded(packed[:end], coding, 10_000)


@each_packing
@pytest.mark.parametrize("more", [b"\x00", b"{}", gzipped(b"{}")])
def test_what_goes_on_behind_its_end_is_refused(coding: bytes, pack: Packer, more: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^The body does not end where its (gzip|deflate) coding does$"):
        expanded(pack(JSON) + more, coding, 10_000)


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        (b"gzip", JSON),
        (b"gzip", zlib.compress(JSON)),
        (b"gzip", gzipped(JSON)[:-8] + bytes(8)),  # its checksum
        (b"deflate", JSON),
        (b"deflate", gzipped(JSON)),
        (b"deflate", zlib.compress(JSON)[:-4] + bytes(4)),
        (b"deflate", b"\x78\xbb" + bytes(4)),  # it wants a dictionary
        (b"deflate", b"\xff"),
    ],
)
def test_what_is_not_what_its_coding_says_is_refused(coding: bytes, content: bytes) -> None:
    with pytest.raises(BadRequest, match=rf"^The body is not {coding.decode()}, as its Content-Encoding says$"):
        expanded(content, coding, 10_000)


@pure
@given(st.sampled_from((b"gzip", b"deflate")), st.sampled_from([pack for _, pack in PACKERS]), st.binary(), st.data())
def test_no_bytes_raise_anything_but_a_refusal(coding: bytes, pack: Packer, noise: bytes, data: st.DataObject) -> None:
    packed = pack(noise)
    at = data.draw(st.integers(0, len(packed)))
    with suppress(BadRequest, BodyTooLarge):
        assert len(expanded(packed[:at] + noise + packed[at:], coding, 50)) <= 50


@each_packing
@pytest.mark.parametrize("beyond", [0, 1])
def test_the_bound_is_on_what_comes_out(coding: bytes, pack: Packer, beyond: int) -> None:
    packed = pack(bytes(100_000 + beyond))
    if beyond:
        with pytest.raises(BodyTooLarge):
            expanded(packed, coding, 100_000)
    else:
        assert len(expanded(packed, coding, 100_000)) == 100_000


@pytest.mark.untraced
@each_packing
def test_a_bomb_takes_no_more_memory_than_the_bound(coding: bytes, pack: Packer) -> None:
    bomb = pack(bytes(32 * MEGABYTE))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge, match="1 MB"):
            expanded(bomb, coding, MEGABYTE)
        assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
    finally:
        tracemalloc.stop()
