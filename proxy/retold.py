"""An answer that is read whole and told anew (`/chatgpt`), within a bound; and what `veil` needs of that for errors."""

from collections.abc import Callable
from functools import partial

from proxy.aside import MOST_AT_ONCE, Aside
from proxy.codings import is_identity
from proxy.errors import BadRequest, BodyTooLarge, Pairs, UpstreamUnreachable
from proxy.exchange import Answer, Retell, Sink
from proxy.headers import OF_THE_BYTES, first
from proxy.values import MEGABYTE
from proxy.whole import expanded

MOST_OF_AN_ANSWER = 64 * MEGABYTE


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
    gatherer = Gatherer(most)
    if not answer.complete:
        await answer.pour(gatherer)
    return b"".join([*gatherer.pieces, answer.take()])


class Gatherer:
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
