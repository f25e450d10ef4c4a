"""Heads of requests that come again, word for word but for the length of the body.

A client says the same head with each request, on all connections of its program. What llhttp and RFC 9112 made of it,
and what the relay made of that, is remembered and used again: the same bytes, read from the same state, mean the same.

Rules of the house: only what was admitted is remembered, when it comes for the second time, up to a bound, so that
nobody without a key can fill this, nor heads that never come again. Only an ordinary head is: of HTTP/1.1, with no
coding of the body and no offer to speak another protocol, and with nothing in its text but what was read.
"""

from typing import Any
from urllib.parse import unquote

from proxy.errors import Fields, Pairs

ASGI = {"version": "3.0", "spec_version": "2.3"}
MOST = 256  # heads
MOST_SEEN = 4096  # hashes of those that came once
LONGEST = 8 * 1024  # bytes
MOST_DIGITS = 15
END = b"\r\n\r\n"
LENGTH = b"content-length"
LENGTHS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")  # as clients spell it
UNUSUAL = (b"transfer-encoding", b"upgrade", b"expect")


class Template:
    """Fields with a blank for the length of a body, `at` this place; -1 where they state none."""

    __slots__ = ("at", "pairs")

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.at = next((place for place, (name, _) in enumerate(pairs) if name == LENGTH), -1)

    def stating(self, digits: bytes) -> Pairs:
        """Return them with this length filled in, if there is a blank."""
        pairs = self.pairs.copy()
        if self.at >= 0:
            pairs[self.at] = (LENGTH, digits)
        return pairs


class Shaped:
    """What the relay made of a head: the name of the client's key, and target and fields of the call.

    `wire` is the head of the call as it goes upstream, in two pieces: before and behind the digits of the length.
    """

    __slots__ = ("headers", "key", "target", "wire")

    def __init__(self, key: str | None, target: bytes, headers: Pairs) -> None:
        self.key = key
        self.target = target
        self.headers = Template(headers)
        self.wire: tuple[bytes, bytes] | None = None


class Head:
    """A head that may be remembered under its `text`, b"" for none; and what of its ASGI scope is always the same.

    `heads` are those that it may come to be one of. `target` is in origin form, `fields` are the pairs by name, `last`
    says that no other follows on its connection. One that is remembered has `headers` besides, and `shaped`, what the
    relay has made of it.
    """

    __slots__ = ("_heads", "fields", "headers", "last", "pairs", "scope", "shaped", "text")

    headers: Template

    def __init__(
        self,
        heads: "Heads",
        text: bytes,
        method: str,
        target: bytes,
        version: str,
        pairs: Pairs,
        fields: Fields,
        *,
        last: bool,
    ) -> None:
        path, _, query = target.partition(b"?")
        readable = path.decode("ascii")
        self._heads = heads
        self.text = text
        self.pairs = pairs
        self.fields = fields
        self.last = last
        self.shaped: Shaped | None = None
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": method,
            "root_path": "",
            "path": unquote(readable) if "%" in readable else readable,
            "raw_path": path,
            "query_string": query,
            "target": target,
        }

    def fields_stating(self, digits: bytes) -> Fields:
        """Return the fields by name, with this length where they state one."""
        return {**self.fields, LENGTH: digits} if digits else self.fields.copy()

    def comes_again(self) -> bool:
        """Tell whether it has come before, and have it remembered then. Only for one that was admitted."""
        return self._heads.recognise(self)


class Heads:
    """The heads that one server remembers for its relay, and hashes of those that came once.

    What was made of a head is true behind the same settings alone: no two servers may have these in common.
    """

    __slots__ = ("_known", "_seen")

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._seen: set[int] = set()

    def __repr__(self) -> str:
        return f"<Heads {len(self._known)} known, {len(self._seen)} seen>"

    def known(self, text: bytes) -> Head | None:
        """Return the head that has this text, if it is remembered."""
        return self._known.get(text)

    def recognise(self, head: Head) -> bool:
        """Tell whether a head has come before, and remember it then. One that never does costs but a hash."""
        if head.text in self._known:
            return True
        if (mark := hash(head.text)) not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(mark)
            return False
        if not is_ordinary(head):
            return False
        head.headers = Template(head.pairs)
        if len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
        self._known[head.text] = head
        return True


def cut(data: bytes) -> tuple[bytes, bytes, int] | None:
    """Return the text by which the head at the beginning may be known, the digits of its length, and where it ends.

    The text is all of it but those digits. None where the head is not all there, is long, or states an odd length.
    """
    end = data.find(END, 0, LONGEST)
    if end < 0:
        return None
    for length in LENGTHS:
        at = data.find(length, 0, end)
        if at >= 0:
            at += len(length)
            stop = data.find(b"\r\n", at)
            digits = data[at:stop]
            if not digits.isdigit() or len(digits) > MOST_DIGITS or (len(digits) > 1 and digits.startswith(b"0")):
                return None
            return data[:at] + data[stop:end], digits, end + len(END)
    return data[:end], b"", end + len(END)


def is_ordinary(head: Head) -> bool:
    """Tell whether a head may be remembered under its text: it says, line by line, what was made of it, and no more.

    Before a request, llhttp skips any CR and LF (RFC 9112 2.2), so that a text could be what stands before its head.
    """
    if len(head.fields) < len(head.pairs) or any(name in head.fields for name in UNUSUAL):
        return False
    start, *lines = head.text.split(b"\r\n")
    said = [(LENGTH, b"") if pair[0] == LENGTH else pair for pair in head.pairs]
    asked = b"%b %b HTTP/1.1" % (head.scope["method"].encode(), head.scope["target"])
    return start == asked and [_field(line) for line in lines] == said


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" \t")
