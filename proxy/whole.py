"""Requests' bodies that have to be read whole, and unpacked, each within a bound."""

import zlib
from collections.abc import Callable

from proxy.codings import is_identity
from proxy.errors import BadRequest, BodyTooLarge
from proxy.exchange import Body
from proxy.guard import Budget
from proxy.values import MEGABYTE

WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
RAW_DEFLATE = -15


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


def too_large(limit: int) -> BodyTooLarge:
    """Return what to raise of a body that is longer than `limit` bytes."""
    return BodyTooLarge(f"The body is larger than the {limit // MEGABYTE} MB that this route takes")


def expanded(content: bytes, coding: bytes, limit: int) -> bytes:
    """Return what was compressed, of one coding or none.

    What `codings` undoes is only looked into; this takes the place of what came, and so has to be what its coding says,
    to the last byte. Raises `BodyTooLarge` beyond `limit` bytes, and `BadRequest` where it is something else.
    """
    if is_identity(coding):
        return content
    coding = coding.strip().lower()
    if coding not in WINDOW_BITS:
        raise BadRequest("Content-Encoding: gzip or deflate is expected, or none")
    window = WINDOW_BITS[coding]
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
