"""Keys that an upstream says back: masked before a client hears them, in header fields and in the bodies of errors.

A mask is as long as what it covers, so that lengths stay true. Successful bodies pass as they are: to look for a key in
them would delay them, and to change them break them.
"""

from collections.abc import Iterable
from itertools import chain

from proxy.codings import Decoder, decoder
from proxy.errors import Pairs, UpstreamUnreachable
from proxy.exchange import Answer
from proxy.filtered import Filtered
from proxy.headers import OF_THE_BYTES, first, has_any
from proxy.retold import Retold, gathered

SHORTEST = 8  # bytes of a key that is looked for; a shorter one stands in too many words
MOST = 64 * 1024  # bytes of an error that are looked through
MOST_HELD = 1024 * 1024  # bytes of one that are held until its head can go out


class Veil:
    """Masks the given secrets, and those that it comes to know."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._kept = tuple(secret.encode() for secret in secrets if len(secret) >= SHORTEST)
        self._passing: tuple[bytes, ...] = ()
        self._look()

    def know(self, secret: bytes) -> None:
        """Mask this too, until two more have come: a token is renewed while the one before is still in use."""
        self._passing = (*self._passing[-1:], secret)
        self._look()

    def _look(self) -> None:
        self.secrets = self._kept + self._passing
        self.longest = max(map(len, self.secrets), default=0)

    def over_head(self, headers: Pairs) -> Pairs:
        """Return the fields of an answer, masked where they hold a secret."""
        values = b"\n".join([value for _, value in headers])
        if has_any(values, *self.secrets):
            return [(name, self.mask(value)) for name, value in headers]
        return headers

    async def over_body(self, answer: Answer) -> Answer:
        """Return an error so that its body is masked.

        One that is longer than `MOST`, or is compressed in a way that is not known here, is not unfolded. Raises
        `UpstreamUnreachable` for a compressed one that does not say its length and is longer than anyone's, and for one
        that has a secret in it and cannot be read to its end: a part of it with a length of its own would look whole.
        """
        if not self.secrets:
            return answer
        decoding = decoder(first(answer.headers, b"content-encoding") or b"")
        length = first(answer.headers, b"content-length")
        if decoding is None or (length is not None and int(length) > MOST):
            return Veiled(answer, self)  # whatever it says, it may be plain
        content = await gathered(answer, MOST_HELD)
        return Retold(answer, *self._unfolded(answer.headers, content, decoding))

    def over_whole(self, headers: Pairs, content: bytes) -> tuple[Pairs, bytes]:
        """Return the fields and the body of an error that is here, masked. Raises `UpstreamUnreachable` likewise."""
        headers = self.over_head(headers)
        decoding = decoder(first(headers, b"content-encoding") or b"")
        return (headers, self.mask(content)) if decoding is None else self._unfolded(headers, content, decoding)

    def mask(self, data: bytes) -> bytes:
        """Return the data with an asterisk for each byte of a secret."""
        for secret in self.secrets:
            if secret in data:
                data = data.replace(secret, b"*" * len(secret))
        return data

    def _unfolded(self, headers: Pairs, content: bytes, decoding: Decoder) -> tuple[Pairs, bytes]:
        """Return a compressed error as it is, unless there is a secret in it: then masked, and plain."""
        plain, complete = undone(decoding, content) if len(content) <= MOST else (b"", True)
        masked = self.mask(plain)
        if masked == plain:
            return headers, self.mask(content)  # whatever it says, it may be plain
        if not complete:
            raise UpstreamUnreachable("The upstream's response is broken off, and has a key in it")
        kept = [pair for pair in headers if pair[0] not in OF_THE_BYTES or pair[0] == b"content-type"]
        return [*kept, (b"content-length", str(len(masked)).encode())], masked


def undone(decoding: Decoder, content: bytes) -> tuple[bytes, bool]:
    """Return what can be read of a coded body, and whether that is all of it."""
    plain = bytearray()
    try:
        for part in chain(decoding.decode(content), decoding.end()):
            plain += part
    except Exception:  # whatever its library raises
        return bytes(plain), False
    return bytes(plain), decoding.whole


class Veiled(Filtered):
    """An error whose body is masked as it streams; what may be the beginning of a secret waits for what follows."""

    def __init__(self, answer: Answer, veil: Veil) -> None:
        super().__init__(answer, answer.headers)
        self._veil = veil
        self._tail = b""
        self._looked_at = 0

    def filtered(self, piece: bytes, *, last: bool) -> bytes:
        """Return what came, masked, less what may be the beginning of a secret."""
        data = self._tail + piece
        held = 0
        if self._looked_at < MOST:
            self._looked_at += len(piece)
            data = self._veil.mask(data)
            held = self._veil.longest - 1 if self._looked_at < MOST and not last else 0
        end = max(0, len(data) - held)
        self._tail = data[end:]
        return data[:end]
