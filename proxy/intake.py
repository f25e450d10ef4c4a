"""What a client sends, cut into requests: by llhttp (RFC 9112), and past it where there is nothing left to parse.

It knows where heads and bodies begin and end, and nothing of answers: each request goes to its connection as soon as
its head is there, and what comes of its body to the `Cycle` that the connection has made for it.
"""

from typing import Protocol, cast

import httptools

from proxy.cycle import Cycle
from proxy.errors import BadRequest, Failure, Fields, HeadTooLarge, Pairs
from proxy.handshake import offers_websocket
from proxy.headers import LOWER_CASE, by_name, in_lower_case
from proxy.heads import Head, Heads, cut
from proxy.request import MAX_HEAD, MAX_TARGET, examine, measure, origin_form, without_upgrade


class Line(Protocol):
    """The connection, as far as its intake knows it."""

    def begin(self, head: Head, pairs: Pairs, fields: Fields) -> Cycle: ...
    def hand_over(self, method: str, target: bytes, pairs: Pairs, early: bytes) -> None: ...
    def expect_head(self) -> None: ...
    def fail(self, failure: Failure) -> None: ...


class Intake:
    """What comes in on one connection. `latest` is the request whose body is being read, or was read last.

    `in_head` is true while a part of a head is here and not the rest; `deaf` where what comes from here on is dropped.
    """

    __slots__ = (
        "_heads", "_large", "_left", "_line", "_pairs", "_parsed", "_parser", "_target", "_text", "_timed", "_undone",
        "_upgrading", "deaf", "in_head", "latest",
    )  # fmt: skip

    def __init__(self, line: Line, heads: Heads) -> None:
        self.latest: Cycle | None = None
        self.in_head = self.deaf = False
        self._line = line
        self._heads = heads
        self._parser = httptools.HttpRequestParser(self)
        self._upgrading = False
        self._timed = self._large = False
        self._undone = 0  # bytes that the parser keeps: of a head, a chunk's size, a trailer
        self._left = 0  # bytes of a body of known length that are still to come
        self._text = b""  # by which the head that the parser is about to read may be known (see `heads`)
        self._parsed = False  # whether the parser has read the head whose body comes

    @property
    def in_body(self) -> bool:
        """Whether the body of the latest request is still to come to its end."""
        return self.latest is not None and self.latest.more

    def take(self, data: bytes) -> None:
        """Take what came; what is whole of it goes on from here."""
        if self._left:
            data = self._hear_rest(data)
        while data and not self.deaf and (again := self._again(data)) is not None:
            data = again
        if not data or self.deaf:
            return
        self._undone += len(data)
        self._large = self._undone > MAX_TARGET or self._timed
        try:
            if not self._parse(data):
                return
        except httptools.HttpParserError as problem:
            failure = problem.__context__
            self._line.fail(failure if isinstance(failure, Failure) else BadRequest("This is not valid HTTP"))
            return
        if self._undone or self.in_head:
            self._bound_undone()

    def end(self) -> None:
        """Take nothing more. The garbage collector comes rarely: those that know one another let go."""
        self.latest = None
        self._parser = cast(httptools.HttpRequestParser, None)
        self._line = cast(Line, None)

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.in_head = True
        self._target = b""
        self._pairs: Pairs = []

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the request target."""
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; one behind the body is a trailer and ends here (RFC 9110 6.5.1)."""
        if self.in_head:
            self._pairs.append((LOWER_CASE.get(name) or in_lower_case(name), value.rstrip()))

    def on_headers_complete(self) -> None:
        """Hand on a head that is to be relayed. Raises `Failure` for one that is not."""
        if self._parser.should_upgrade():
            self._upgrading = True
            return
        self.in_head = self._timed = False
        self._undone = 0
        pairs, version = self._pairs, self._parser.get_http_version()
        fields = by_name(pairs)
        examine(pairs, fields, version)
        if self._large:
            measure(self._target, pairs)
        last = version == "1.0" or not self._parser.should_keep_alive()
        text, self._text = self._text, b""
        method, target = self._parser.get_method().decode("ascii"), origin_form(self._target)
        self._parsed = True
        self._begin(Head(self._heads, text, method, target, version, pairs, fields, last=last), pairs, fields)

    def on_body(self, data: bytes) -> None:
        """Hand a piece of the body to its exchange."""
        self._undone = 0
        if self._left:
            self._left -= len(data)
        self.latest.hear(data)  # type: ignore[union-attr]  # a body has a head before it

    def on_message_complete(self) -> None:
        """Let the exchange know that its request is whole."""
        self._undone = 0
        if not self._upgrading:
            self.latest.hear_end()  # type: ignore[union-attr]

    # Its own

    def _again(self, data: bytes) -> bytes | None:
        """Take a request whose head came before, past the parser; return what lies behind it, None where it did not."""
        self._text = b""
        if self._undone or self.in_head or (self.latest is not None and (self.latest.more or self.latest.last)):
            return None
        if (found := cut(data)) is None:
            return None
        text, digits, end = found
        if (head := self._heads.known(text)) is None:
            self._text = text
            return None
        self._parsed = False
        self._begin(head, head.headers.stating(digits), head.fields_stating(digits))
        rest = data[end:]
        if self._left:
            return self._hear_rest(rest) if rest else rest
        self.deaf = head.last
        cast(Cycle, self.latest).hear_end()
        return rest

    def _begin(self, head: Head, pairs: Pairs, fields: Fields) -> None:
        self._left = int(fields.get(b"content-length", 0))
        self.latest = self._line.begin(head, pairs, fields)

    def _hear_rest(self, data: bytes) -> bytes:
        """Hand on the rest of a body whose length is known, past the parser; return what lies behind it.

        llhttp would have nothing to say of these bytes, and httptools would copy each once more.
        """
        piece, data = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
        cycle = cast(Cycle, self.latest)
        self._left -= len(piece)
        cycle.hear(piece)
        if not self._left:
            self.deaf = cycle.last
            if self._parsed:
                self._parser = httptools.HttpRequestParser(self)
            cycle.hear_end()
        return data

    def _parse(self, data: bytes) -> bool:
        """Let the parser read; return whether what comes next is for it too, and not for another protocol."""
        try:
            self._parser.feed_data(data)
            return True
        except httptools.HttpParserUpgrade as stopped:
            rest: memoryview | None = memoryview(data)[stopped.args[0] :]
        while rest is not None:
            if offers_websocket(self._pairs, self._parser.get_http_version()):
                self._upgrading = self.in_head = False
                method = self._parser.get_method().decode("ascii")
                self._line.hand_over(method, self._target, self._pairs, bytes(rest))
                return False
            rest = self._feed_plainly(rest)
        return True

    def _feed_plainly(self, rest: memoryview) -> memoryview | None:
        """Parse a request that offered an upgrade without that offer, and what follows it up to the next such offer."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        self._parser, self._upgrading = httptools.HttpRequestParser(self), False
        self._parser.feed_data(without_upgrade(method, self._target, version, self._pairs))
        try:
            self._parser.feed_data(rest)
        except httptools.HttpParserUpgrade as stopped:
            return rest[stopped.args[0] :]
        return None

    def _bound_undone(self) -> None:
        """Bound what comes in pieces, in size, and a head in time, from its first byte to its last."""
        if self._undone > MAX_TARGET + MAX_HEAD:
            self._line.fail(HeadTooLarge("The header fields are too large"))
        elif self.in_head and not self._timed:
            self._timed = True
            self._line.expect_head()
