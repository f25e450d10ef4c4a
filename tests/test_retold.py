"""An answer is heard within a bound and told anew, with nothing said of it that was true of the old bytes alone."""

from functools import partial
from threading import current_thread

import pytest

from proxy.aside import MOST_AT_ONCE, Aside
from proxy.errors import Pairs, UpstreamUnreachable
from proxy.exchange import Answer, Sink
from proxy.retold import Gatherer, Retold, retold, told_anew
from tests.test_whole import JSON, PLENTY, Packer, each_packing, gzipped


def unheard(content: bytes) -> None:
    """Hear a copy of what is told anew, for nothing."""


class Told:
    """An answer as it comes from the upstream: some pieces flow, and a last one may be here already."""

    def __init__(self, *pieces: bytes, status: int = 200, headers: Pairs | None = None, last: bytes = b"") -> None:
        self.status = status
        self.headers: Pairs = headers or []
        self.complete = not pieces
        self.closed = False
        self.pieces = iter(pieces)
        self._last = last

    async def pour(self, sink: Sink) -> None:
        for piece in self.pieces:
            if not sink.push(piece):
                await sink.drain()
        self.complete = True

    def take(self) -> bytes:
        last, self._last = self._last, b""
        return last

    async def close(self) -> None:
        self.closed = True


echo = partial(told_anew, lambda body: b"<" + body + b">", Aside(PLENTY))


@pytest.mark.parametrize(
    ("pieces", "last"), [((), b"abc"), ((b"abc",), b""), ((b"a", b"b"), b"c"), ((b"a", b"b", b"c"), b""), ((), b"")]
)
async def test_an_answer_is_told_anew_of_all_its_pieces(pieces: tuple[bytes, ...], last: bytes) -> None:
    answer = await retold(Told(*pieces, last=last), echo, unheard)
    told = b"<" + b"".join(pieces) + last + b">"
    assert (answer.status, answer.complete, answer.take()) == (200, True, told)


async def test_what_was_said_of_the_old_bytes_is_not_said_of_the_new() -> None:
    said = [
        *((b"content-length", b"3"), (b"etag", b'"x"'), (b"date", b"today"), (b"content-md5", b"x")),
        *((b"transfer-encoding", b"chunked"), (b"content-type", b"text/plain"), (b"accept-ranges", b"bytes")),
        *((b"x-request-id", b"1"), (b"digest", b"x"), (b"content-digest", b"x"), (b"repr-digest", b"x")),
        *((b"set-cookie", b"a"), (b"set-cookie", b"b")),
    ]
    answer = await retold(Told(last=b"abc", status=201, headers=said), echo, unheard)
    assert answer.status == 201
    assert answer.headers == [
        (b"date", b"today"),
        (b"x-request-id", b"1"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"content-type", b"application/json"),
        (b"content-length", b"5"),
    ]


@each_packing
async def test_a_compressed_answer_is_unpacked_and_told_plainly(coding: bytes, pack: Packer) -> None:
    answer = await retold(Told(pack(b"abc"), headers=[(b"content-encoding", coding)]), echo, unheard)
    assert answer.take() == b"<abc>"
    assert answer.headers == [(b"content-type", b"application/json"), (b"content-length", b"5")]


@pytest.mark.parametrize("status", [300, 304, 400, 401, 429, 500, 529])
async def test_an_answer_that_tells_of_an_error_passes_as_it_is(status: int) -> None:
    told = Told(b"a", b"b", status=status)
    assert await retold(told, echo, unheard) is told
    assert list(told.pieces) == [b"a", b"b"]


@pytest.mark.parametrize(("coding", "content"), [(b"br", b"abc"), (b"gzip", b"abc"), (b"gzip", gzipped(JSON)[:9])])
async def test_an_answer_that_cannot_be_unpacked_is_the_upstreams_fault(coding: bytes, content: bytes) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"^The upstream's response cannot be read$"):
        await retold(Told(content, headers=[(b"content-encoding", coding)]), echo, unheard)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.retold.MOST_OF_AN_ANSWER", 10)


@pytest.mark.usefixtures("narrow")
async def test_an_answer_that_is_too_large_is_heard_no_further() -> None:
    told = Told(b"12345", b"12345", b"1", b"rest")
    with pytest.raises(UpstreamUnreachable, match=r"^The upstream's response is too large$"):
        await retold(told, echo, unheard)
    assert list(told.pieces) == [b"rest"]


@pytest.mark.usefixtures("narrow")
async def test_an_answer_that_unpacks_too_large_is_refused() -> None:
    with pytest.raises(UpstreamUnreachable, match=r"^The upstream's response cannot be read$"):
        await retold(Told(last=gzipped(b"12345678901"), headers=[(b"content-encoding", b"gzip")]), echo, unheard)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("length", "thread"), [(MOST_AT_ONCE, "MainThread"), (MOST_AT_ONCE + 1, "oxy-json_0")])
async def test_a_long_answer_is_told_beside_the_loop(length: int, thread: str) -> None:
    told = await told_anew(lambda _: current_thread().name.encode(), Aside(PLENTY), b"x" * length, b"")
    assert told == thread.encode()


async def test_an_answer_of_the_largest_size_is_told() -> None:
    assert (await retold(Told(b"12345", b"67890"), echo, unheard)).take() == b"<1234567890>"


async def test_what_is_told_anew_has_no_more_to_pour_and_closes_what_it_is_made_of() -> None:
    told = Told(b"abc")
    answer: Answer = Retold(told, [], b"new")
    await answer.pour(Gatherer(10))
    assert list(told.pieces) == [b"abc"]
    await answer.close()
    assert told.closed
