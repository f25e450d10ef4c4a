"""Convenience requests that are a JSON object, or say all that they have to say in their query."""

from collections.abc import Callable
from functools import partial

from proxy.aside import MOST_AT_ONCE
from proxy.codings import is_identity
from proxy.counter import Counter, with_query
from proxy.downstream import Downstream
from proxy.errors import BadRequest, BodyTooLarge, Failure
from proxy.exchange import Call, Exchange
from proxy.jsontext import Members, read, write
from proxy.own import NAMES, Own, split_query
from proxy.retold import told_anew
from proxy.rewrites import responses
from proxy.usage import model_of
from proxy.values import MEGABYTE
from proxy.whole import Whole, expanded, read_whole

JSON = b"application/json"
# Of a coded body whose key stands in it: it was a thousandth of that on its way.
MOST_OF_A_STRANGERS = 8 * MEGABYTE


class Objects:
    """Takes a JSON object, and calls with what `rewrite` makes of its members."""

    def __init__(
        self,
        counter: Counter,
        rewrite: Callable[[Members], Members] = dict,
        *,
        target: bytes = b"",
        retell: Callable[[bytes], bytes] | None = None,
        empty: responses.Empty = "refused",
        idempotent: bool = False,
    ) -> None:
        self._counter = counter
        self._rewrite = rewrite
        self._target = target
        self._retell = retell
        self._empty = empty
        self._idempotent = idempotent

    async def shape(self, exchange: Exchange, downstream: Downstream) -> Call:
        """Read the object, take out what is the proxy's own, and make the call."""
        query, own = split_query(downstream.query)
        members, complaint = await self._members(downstream, own)
        for name in NAMES:
            if found := members.pop(name, None):
                own.add(name, found.value)
        exchange.asked = model_in(members)  # of what is refused, too
        admitted = self._counter.admit(exchange, downstream, own, complaint)
        size = sum(len(found.text) for found in members.values())
        members, text = await self._counter.known.aside.do_if_long(size, partial(self._rewritten, members))
        exchange.asked = model_in(members)
        body = None if self._empty == "nothing" and not members else Whole(text)
        target = with_query(self._target or responses.target(downstream.path), query)
        call = self._counter.call(exchange, downstream, own, admitted, target=target, body=body, content_type=JSON)
        call.idempotent = self._idempotent
        if self._retell is not None:
            call.retell = partial(told_anew, self._retell, self._counter.known.aside)
            call.headers = [pair for pair in call.headers if pair[0] != b"accept-encoding"]
        return call

    def _rewritten(self, members: Members) -> tuple[Members, bytes]:
        members = self._rewrite(members)
        return members, write(members).encode()

    async def _members(self, downstream: Downstream, own: Own) -> tuple[Members, Failure | None]:
        limit, room = self._counter.max_body, self._counter.room(downstream, own)
        body = await read_whole(downstream.upload, limit, room.objects)
        if not body and self._empty != "refused":
            return {}, None
        coding = downstream.fields.get(b"content-encoding", b"")
        if is_identity(coding) and len(body) <= MOST_AT_ONCE:
            return read(body, NAMES)
        if room is self._counter.strangers:
            work = partial(of_a_stranger, body, coding, min(limit, MOST_OF_A_STRANGERS), self._counter.is_shown_in)
        else:
            work = partial(unfolded, body, coding, limit)
        return await room.aside.do(len(body), work)


def model_in(members: Members) -> str | None:
    """Return the model that an object asks for, if it names one."""
    model = members.get("model")
    return model_of(model.value) if model is not None else None


def unfolded(body: bytes, coding: bytes, limit: int) -> tuple[Members, Failure | None]:
    """Return the members of the object in a body, of one coding or none, and what is wrong with it."""
    try:
        return read(expanded(body, coding, limit), NAMES)
    except (BadRequest, BodyTooLarge) as complaint:
        return {}, complaint


def of_a_stranger(
    body: bytes, coding: bytes, limit: int, is_shown_in: Callable[[bytes], bool]
) -> tuple[Members, Failure | None]:
    """Return the same, but none of a long text in which no client's key stands.

    To read it takes up to twelve times its size, and time that the senders behind it wait.
    """
    try:
        text = expanded(body, coding, limit)
    except (BadRequest, BodyTooLarge) as complaint:
        return {}, complaint
    return read(text, NAMES) if len(text) <= MOST_AT_ONCE or is_shown_in(text) else ({}, None)


class Queries:
    """Takes what is the proxy's own out of the query, and calls without a body."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    async def shape(self, exchange: Exchange, downstream: Downstream) -> Call:
        """Make the call."""
        query, own = split_query(downstream.query)
        admitted = self._counter.admit(exchange, downstream, own, None)
        target = with_query(responses.target(downstream.path), query)
        call = self._counter.call(exchange, downstream, own, admitted, target=target)
        call.idempotent = True
        return call
