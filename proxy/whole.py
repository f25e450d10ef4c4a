"""Bodies that have to be read whole: requests that are rewritten, and the one answer that is. All of it is bounded."""

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from proxy.codings import is_identity
from proxy.errors import BadRequest, BodyTooLarge, Pairs, UpstreamUnreachable
from proxy.exchange import Answer, Body, Retell, Sink
from proxy.guard import Budget, Guard
from proxy.headers import first
from proxy.values import MEGABYTE

MOST_OF_AN_ANSWER = 64 * MEGABYTE
MOST_AT_ONCE = 64 * 1024  # bytes of JSON that the loop's thread reads, in some milliseconds at worst
MOST_ASIDE = 1024  # longer ones that wait for their turn
# What says something about the bytes of a body ends with them (RFC 9110 8, RFC 9530).
OF_THE_BYTES = frozenset(
    (
        *(b"content-length", b"transfer-encoding", b"content-encoding", b"content-type", b"content-md5"),
        *(b"digest", b"content-digest", b"repr-digest", b"etag", b"accept-ranges"),
    )
)
WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
RAW_DEFLATE = -15

T = TypeVar("T")


class Whole:
    """A body that is here. It keeps nothing of what was taken.

    `sent` is called once: when more is asked for, since the content has been sent by then, or at `release`.
    """

    def __init__(self, content: bytes, sent: Callable[[], None] | None = None) -> None:
        self.length = len(content)
        self._content = content
        self._sent = sent

    async def read(self) -> bytes:
        """Return all of it, then nothing."""
        content, self._content = self._content, b""
        if not content:
            self.release()
        return content

    def again(self) -> "Whole":
        """Return the same once more; nothing of this one may have been taken."""
        return Whole(self._content)

    def release(self) -> None:
        """Let go of what is kept for it."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent()


async def read_whole(body: Body | None, limit: int, budget: Budget) -> bytes:
    """Return a request's body. Raises `BodyTooLarge` as soon as it is known to be longer than `limit` bytes.

    While it comes, `budget` counts it, and may raise `Overloaded`: who sends it is perhaps not known yet.
    """
    if body is None:
        return b""
    if (body.length or 0) > limit:
        raise too_large(limit)
    pieces, size = [], 0
    try:
        while piece := await body.read():
            budget.take(len(piece))
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            pieces.append(piece)
    finally:
        budget.give(size)
    return b"".join(pieces)


class Aside:
    """Where what takes long with bodies is done: in a thread of its own, one after the other.

    The others' exchanges go on meanwhile, whoever sends such bodies, and however many; `budget` counts their bytes, and
    no more than `most` wait for their turn.
    """

    def __init__(self, budget: Budget, most: int = MOST_ASIDE) -> None:
        self._budget = budget
        self._places = Guard(most, "long bodies")
        self._thread = ThreadPoolExecutor(1, "oxy-json")

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """Do the work on so many bytes and return its result. Raises `Overloaded`, and what the work raises."""
        with self._places:
            self._budget.take(size)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
            finally:
                self._budget.give(size)

    async def do_if_long(self, size: int, work: Callable[[], T]) -> T:
        """Do the work here and now where that takes no longer than to hand it over."""
        return work() if size <= MOST_AT_ONCE else await self.do(size, work)


def too_large(limit: int) -> BodyTooLarge:
    """Return what to raise of a body that is longer than `limit` bytes."""
    return BodyTooLarge(f"The body is larger than the {limit // MEGABYTE} MB that this route takes")


def expanded(content: bytes, coding: bytes, limit: int) -> bytes:
    """Return what a client compressed, of one coding or none.

    Raises `BodyTooLarge` beyond `limit` bytes, and `BadRequest` where it is not what the coding says.
    """
    if is_identity(coding):
        return content
    coding = coding.strip().lower()
    if coding not in WINDOW:
        raise BadRequest("Content-Encoding: gzip or deflate is expected, or none")
    window = WINDOW[coding]
    if coding == b"deflate" and not _has_zlib_header(content):
        window = RAW_DEFLATE  # what many send under that name
    decoder = zlib.decompressobj(window)
    try:
        text = decoder.decompress(content, limit + 1)
    except zlib.error:
        raise BadRequest(f"The body is not {coding.decode()}, as its Content-Encoding says") from None
    if len(text) > limit:
        raise too_large(limit)
    if not decoder.eof or decoder.unused_data:
        raise BadRequest(f"The body does not end where its {coding.decode()} coding does")
    return text


def _has_zlib_header(content: bytes) -> bool:
    return len(content) > 1 and content[0] & 0x0F == 8 and (content[0] << 8 | content[1]) % 31 == 0  # RFC 1950 2.2


class Retold:
    """An answer whose body is here: another's, or one made of it."""

    complete = True

    def __init__(self, answer: Answer, headers: Pairs, body: bytes) -> None:
        self.status = answer.status
        self.headers = headers
        self._answer = answer
        self._body = body

    async def pour(self, sink: Sink) -> None:
        """Do nothing: all is here."""

    def take(self) -> bytes:
        """Return the body."""
        return self._body

    async def close(self) -> None:
        """Close the answer that it is made of."""
        await self._answer.close()


async def retold(answer: Answer, retell: Retell, hear: Callable[[bytes], None]) -> Answer:
    """Return the answer with what `retell` makes of its body, or as it is where it tells of an error.

    `hear` gets a copy of the body as it came. Raises what `retell` raises, and `UpstreamUnreachable` where the body is
    too large.
    """
    if not 200 <= answer.status < 300:
        return answer
    content = await gathered(answer, MOST_OF_AN_ANSWER)
    hear(content)
    body = await retell(content, first(answer.headers, b"content-encoding") or b"")
    kept = [pair for pair in answer.headers if pair[0] not in OF_THE_BYTES]
    length = str(len(body)).encode()
    return Retold(answer, [*kept, (b"content-type", b"application/json"), (b"content-length", length)], body)


async def told_anew(tell: Callable[[bytes], bytes], aside: Aside, content: bytes, coding: bytes) -> bytes:
    """Return what `tell` makes of an answer's body, of one coding or none; where that takes long, it is done aside.

    Raises `UpstreamUnreachable` where the body cannot be read, `Overloaded`, and what `tell` raises.
    """
    work = partial(unpacked_and_told, tell, content, coding)
    # Its bytes are not counted: it is paid for, and refused, it would be asked for again.
    return work() if is_identity(coding) and len(content) <= MOST_AT_ONCE else await aside.do(0, work)


def unpacked_and_told(tell: Callable[[bytes], bytes], content: bytes, coding: bytes) -> bytes:
    """Return what `tell` makes of a body once its coding is undone. Raises `UpstreamUnreachable` where it cannot be."""
    try:
        text = expanded(content, coding, MOST_OF_AN_ANSWER)
    except (BadRequest, BodyTooLarge):
        raise UpstreamUnreachable("The upstream's response cannot be read") from None
    return tell(text)


async def gathered(answer: Answer, most: int) -> bytes:
    """Return the whole body of an answer. Raises `UpstreamUnreachable` if it is longer than `most` bytes."""
    heard = Heard(most)
    if not answer.complete:
        await answer.pour(heard)
    return b"".join([*heard.pieces, answer.take()])


class Heard:
    """A sink that keeps what it takes, up to a bound."""

    def __init__(self, most: int) -> None:
        self.pieces: list[bytes] = []
        self._room = most

    def push(self, piece: bytes) -> bool:
        """Keep a piece."""
        self.pieces.append(piece)
        self._room -= len(piece)
        return self._room >= 0

    async def drain(self) -> None:
        """Refuse more. Raises `UpstreamUnreachable`."""
        raise UpstreamUnreachable("The upstream's response is too large")
