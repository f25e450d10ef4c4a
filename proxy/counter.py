"""What the convenience routes have in common: keys and credentials are looked at, and the head of a call is made.

What a body says is believed, or complained of, only once the client's key is known to be right.
"""

import asyncio
import re

from proxy.access import CREDENTIALS, Access
from proxy.downstream import Downstream
from proxy.errors import Failure, Forbidden, Pairs, Unauthorized
from proxy.exchange import Body, Call, Exchange
from proxy.guard import Budget, share
from proxy.own import Own
from proxy.routes import Relay
from proxy.settings import Settings
from proxy.values import MEGABYTE
from proxy.whole import OF_THE_BYTES, Aside

MOST_OF_ALL_OBJECTS = 512 * MEGABYTE  # in memory
MOST_OF_ALL_FORMS = 4096 * MEGABYTE  # on disk

STEP = 4 * MEGABYTE
TRIES = 100  # places of a body in which a key could stand
SECURITY_KEY = b'"security_key"'
VALUE = re.compile(rb'\s{0,99}+:\s{0,99}+"([^"\\]{1,999}+)"')


class Counter:
    """Where every convenience request comes by.

    `max_body` is how many bytes of a JSON object are taken; `objects` and `forms` bound the bytes of all that come at
    once, since whoever sends them may turn out to have no key. `aside` is where long objects are looked into.
    """

    def __init__(self, settings: Settings, access: Access, relay: Relay) -> None:
        self._access = access
        self._relay = relay
        self._default = settings.upstream_timeout
        self._most = settings.upstream_max_timeout
        self.objects = Budget(share(MOST_OF_ALL_OBJECTS, settings.workers))
        self.max_body = min(settings.max_body, self.objects.limit)  # what is more would find no room, ever
        self.forms = Budget(share(MOST_OF_ALL_FORMS, settings.workers))
        self.aside = Aside(self.objects)

    async def is_shown_in(self, body: bytes) -> bool:
        """Tell whether a client's key stands in an object's text, its name without escapes. Raises `Overloaded`."""
        self.objects.take(len(body))
        try:
            return await self._is_in(body)
        finally:
            self.objects.give(len(body))

    async def _is_in(self, body: bytes) -> bool:
        at, tries = 0, TRIES
        while tries and at < len(body):
            await asyncio.sleep(0)  # some milliseconds are behind it
            end = at + STEP
            if (found := body.find(SECURITY_KEY, at, end + len(SECURITY_KEY))) < 0:
                at = end
                continue
            at, tries = found + len(SECURITY_KEY), tries - 1
            shown = VALUE.match(body, at)
            if shown and self._access.is_client_key(shown[1]):
                return True
        return False

    def knows(self, downstream: Downstream, own: Own) -> bool:
        """Tell whether header or query bear a client's key, where one is asked for."""
        return self._admitted(downstream, own) is not None

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
            raise Forbidden(f"The security_key is missing or wrong{why}") from None
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
