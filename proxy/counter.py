"""What the convenience routes have in common: keys and credentials are looked at, and the head of a call is made.

What a body says is believed, or complained of, only once the client's key is known to be right; or where it had no key,
which may stand in what could not be read.
"""

import json
import re
from dataclasses import dataclass

from proxy.access import CREDENTIALS, Access
from proxy.aside import Aside
from proxy.downstream import Downstream
from proxy.errors import Failure, Forbidden, Pairs, Unauthorized
from proxy.exchange import Body, Call, Exchange
from proxy.guard import Budget, share
from proxy.headers import OF_THE_BYTES
from proxy.own import Own
from proxy.routes import Relay
from proxy.settings import Settings
from proxy.values import MEGABYTE

MOST_OF_ALL_OBJECTS = 512 * MEGABYTE  # in memory
MOST_OF_ALL_FORMS = 4096 * MEGABYTE  # on disk
MOST_OF_A_FORM = 512 * MEGABYTE
STRANGERS = 4  # senders whose key is not known yet have a fourth of that besides, or room for one body
MOST_STRANGERS_ASIDE = 32  # each takes some 30 ms at worst

STEP = 4 * MEGABYTE
TRIES = 100  # places of a body in which a key could stand
SECURITY_KEY = b'"security_key"'
VALUE = re.compile(rb'\s{0,99}+:\s{0,99}+("(?:[^"\\]|\\.){1,999}+")')


@dataclass(frozen=True, slots=True)
class Room:
    """What bodies of some senders have to themselves: memory for objects, disk for forms, a thread for what is long."""

    objects: Budget
    forms: Budget
    aside: Aside


class Counter:
    """Where every convenience request comes by.

    `max_body` is how many bytes of a JSON object are taken. A body waits with those of senders who are `known`, or of
    `strangers`, who may turn out to have no key: whatever those hold back, they take no room from the others.
    """

    def __init__(self, settings: Settings, access: Access, relay: Relay) -> None:
        self._access = access
        self._relay = relay
        self._default = settings.upstream_timeout
        self._most = settings.upstream_max_timeout
        objects = share(MOST_OF_ALL_OBJECTS, settings.workers)
        forms = share(MOST_OF_ALL_FORMS, settings.workers)
        self.max_body = min(settings.max_body, objects)  # what is more would find no room, ever
        known, strange = Budget(objects), Budget(besides(objects, self.max_body))
        self.known = Room(known, Budget(forms), Aside(known))
        self.strangers = Room(strange, Budget(besides(forms, MOST_OF_A_FORM)), Aside(strange, MOST_STRANGERS_ASIDE))

    def room(self, downstream: Downstream, own: Own) -> Room:
        """Return where the body of a request waits, by what header and query say of its sender."""
        return self.known if self._admitted(downstream, own) is not None else self.strangers

    def is_shown_in(self, text: bytes) -> bool:
        """Tell whether a client's key stands in an object's text, its name without escapes. It takes milliseconds."""
        at, tries = 0, TRIES
        while tries and at < len(text):
            end = at + STEP  # nothing interrupts a step, which takes some milliseconds
            if (found := text.find(SECURITY_KEY, at, end + len(SECURITY_KEY))) < 0:
                at = end
                continue
            at, tries = found + len(SECURITY_KEY), tries - 1
            shown = VALUE.match(text, at)
            if shown and self._access.is_client_key(unescaped(shown[1])):
                return True
        return False

    def ready(self, downstream: Downstream, own: Own) -> bool:
        """Tell whether header and query say enough for a call: the client's key, and one for the upstream."""
        admitted = self._admitted(downstream, own)
        if admitted is None:
            return False
        return self._access.signs or any(name in CREDENTIALS for name, _ in admitted + own.credentials())

    def _admitted(self, downstream: Downstream, own: Own) -> Pairs | None:
        try:
            return self._access.admit(downstream.headers, own.keys())[0]
        except Unauthorized:
            return None

    def admit(self, exchange: Exchange, downstream: Downstream, own: Own, complaint: Failure | None) -> Pairs:
        """Return the fields of an admitted request. Raises `Forbidden`, and then the complaint about its body."""
        try:
            admitted, exchange.key = self._access.admit(downstream.headers, own.keys())
        except Unauthorized:
            why = f": none could be read. {complaint}" if complaint is not None and not own.keys() else ""
            raise Forbidden(f"The security_key is missing or wrong{why}") from complaint
        if complaint is not None:
            raise complaint
        return admitted

    def call(
        self,
        exchange: Exchange,
        downstream: Downstream,
        own: Own,
        admitted: Pairs,
        *,
        target: bytes,
        body: Body | None = None,
        content_type: bytes | None = None,
    ) -> Call:
        """Return the call of an admitted request. Raises `NotFound` and `BadRequest`."""
        self._relay.check(target)
        exchange.timeout, exchange.timeout_source = own.timeout(default=self._default, most=self._most)
        kept = [pair for pair in self._relay.cleaned(admitted, downstream) if pair[0] not in OF_THE_BYTES]
        headers = self._signed(kept, own.credentials()) + framing(downstream.method, body, content_type)
        return Call(method=downstream.method, target=target, headers=headers, body=body, timeout=exchange.timeout)

    def _signed(self, pairs: Pairs, own: Pairs) -> Pairs:
        """Return the fields with the request's own credentials, and ours where it has no key."""
        theirs = {name for name, _ in own}
        if b"authorization" in theirs:  # our project and organization are none of that key's
            return [pair for pair in pairs if pair[0] not in theirs | CREDENTIALS] + self._access.presented(own)
        pairs = [pair for pair in pairs if pair[0] not in theirs] + own
        return pairs + self._access.signature(pairs)


def besides(room: int, one: int) -> int:
    """Return how much room there is for strangers, where one of their bodies may take so much."""
    return max(room // STRANGERS, min(room, one))


def unescaped(text: bytes) -> bytes:
    """Return what a string of JSON says, b"" for what is none."""
    try:
        return str(json.loads(text)).encode("utf-8", "surrogatepass")
    except ValueError:
        return b""


def framing(method: str, body: Body | None, content_type: bytes | None) -> Pairs:
    """Return the fields that say what a call's body is (RFC 9110 8.6: a POST says so of none too)."""
    if body is None:
        return [(b"content-length", b"0")] if method == "POST" else []
    kind = [(b"content-type", content_type)] if content_type is not None else []
    if body.length is None:
        return [*kind, (b"transfer-encoding", b"chunked")]
    return [*kind, (b"content-length", str(body.length).encode())]


def with_query(target: bytes, query: bytes) -> bytes:
    """Return the target with a query, if there is one."""
    return target + b"?" + query if query else target
