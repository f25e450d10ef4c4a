"""Usage of streamed chat completions, asked for where the client did not ask, and kept from it (PROXY_INCLUDE_USAGE).

The one setting that changes a relayed body, off unless the operator wants it: the upstream is asked for one event more,
which tells the tokens, and that event is taken out of the answer again. The `"usage":null` that the upstream then puts
into every other event stays there. A stream that comes compressed, although nobody asked for that, goes on as it is: it
would wait for ends of events that nobody can see in it.
"""

import json
import re
from collections.abc import Callable
from functools import partial

from proxy.aside import MOST_AT_ONCE, Aside
from proxy.downstream import Downstream
from proxy.exchange import Answer, Call, Exchange
from proxy.filtered import Filtered
from proxy.guard import Budget
from proxy.headers import first
from proxy.jsontext import member, read, write
from proxy.routes import Route
from proxy.whole import Whole, read_whole

PATH = re.compile(rb"/chat/completions(?:\?|\Z)")
ASKED_WITH = frozenset((b"content-length", b"transfer-encoding", b"accept-encoding"))
EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
LONGEST_EVENT = 64 * 1024


class IncludeUsage:
    """A route that asks for usage, around the one that makes the call. `limit` bytes of a body are looked into."""

    def __init__(self, relay: Route, *, limit: int, budget: Budget) -> None:
        self._relay = relay
        self._limit = limit
        self._budget = budget
        self._aside = Aside(budget)

    async def shape(self, exchange: Exchange, downstream: Downstream) -> Call:
        """Make the call, and ask for usage in it where it is a streamed chat completion that does not."""
        call = await self._relay.shape(exchange, downstream)
        upload = call.body
        if upload is None or upload.length is None or upload.length > self._limit or not _may_be_chat(call):
            return call
        content = await read_whole(upload, self._limit, self._budget)
        asking = await self._aside.do_if_long(len(content), partial(asked, content))
        held = len(content) if len(content) > MOST_AT_ONCE else 0  # a short one goes out with its head
        self._budget.take(held)  # there is room: what it took was given back just now
        call.body = body = Whole(asking or content, partial(self._budget.give, held))
        call.release = body.release
        if asking is not None:
            kept = [pair for pair in call.headers if pair[0] not in ASKED_WITH]
            call.headers, call.shaped = [*kept, (b"content-length", str(len(asking)).encode())], None
            exchange.usage_added = True
        return call


def _may_be_chat(call: Call) -> bool:
    plain = first(call.headers, b"content-encoding") is None
    return call.method == "POST" and plain and PATH.search(call.target) is not None


def asked(content: bytes) -> bytes | None:
    """Return the request with `stream_options.include_usage`, None where it is none to change."""
    members, complaint = read(content)
    stream, options = members.get("stream"), members.get("stream_options")
    given = options.value if options is not None else None
    if complaint is not None or stream is None or stream.value is not True:
        return None
    if given is None:
        given = {}
    if not isinstance(given, dict) or "include_usage" in given:
        return None
    return write(members | {"stream_options": member("stream_options", {**given, "include_usage": True})}).encode()


class WithoutUsage(Filtered):
    """A stream of events less the one that tells usage alone. `hear` gets all of it.

    An event that is too long to be waited for goes on as it is.
    """

    def __init__(self, answer: Answer, hear: Callable[[bytes], None]) -> None:
        super().__init__(answer, [pair for pair in answer.headers if pair[0] != b"content-length"])
        self._hear = hear
        self._held = b""  # of an event that has not ended

    def filtered(self, piece: bytes, *, last: bool) -> bytes:
        """Return the events that have ended; at the end, all that is left."""
        self._hear(piece)
        data = self._held + piece
        ends = [found.end() for found in EVENT_END.finditer(data)]
        end = ends[-1] if ends else 0
        if last or len(data) - end > LONGEST_EVENT:
            end = len(data)
        self._held = data[end:]
        return less_usage(data[:end])


def less_usage(events: bytes) -> bytes:
    """Return whole events without the one that has usage and no choices."""
    if not NO_CHOICES.search(events):
        return events
    kept, start = [], 0
    for found in [*EVENT_END.finditer(events), None]:
        end = len(events) if found is None else found.end()
        if not _tells_usage_alone(events[start:end]):
            kept.append(events[start:end])
        start = end
    return b"".join(kept)


def _tells_usage_alone(event: bytes) -> bool:
    field, _, data = event.strip().partition(b":")
    try:
        chunk = json.loads(data) if field == b"data" else None
    except (ValueError, RecursionError):
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)
