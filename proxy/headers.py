"""What may cross, in each direction: pure functions over lists of (name, value) byte pairs.

Rules of the house: bytes stay bytes, in pairs, in order, duplicates kept. Names are in lower case and values without
the white space around them, as both parsers hand them over. First clean, then sign: whoever calls adds credentials to
what is returned here, so that no `Connection: authorization` of a client can take them away (golang/go#50580).
"""

from proxy.errors import Fields, Pairs

# RFC 9110 7.6.1. Trailers cannot be carried on, so their announcement ends here too.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# `Host` is set anew from the target; the server answers `Expect` itself; `X-API-Key` is for this proxy alone.
END_HERE = HOP_BY_HOP | {b"expect", b"host", b"x-api-key"}
CLIENT_ADDRESS = frozenset((b"forwarded", b"x-real-ip"))
CLIENT_ADDRESS_PREFIX = b"x-forwarded-"

# RFC 9112 6: framing is restated by each hop and cannot be named away, or a body would go on without its length.
FRAMING = frozenset((b"content-length", b"transfer-encoding"))
COMMON_TOKENS = frozenset((b"keep-alive", b"Keep-Alive", b"close"))  # they name no field
MOST_NAMES = 1024


class Crossing(dict[bytes, bool]):
    """Tells of a field's name whether it may cross: not if `drop` holds it, nor if it begins like one of `prefixes`.

    Each name is looked into once and remembered, up to a bound, since the same few come with every request.
    """

    def __init__(self, drop: frozenset[bytes], prefixes: tuple[bytes, ...] = ()) -> None:
        self._drop = drop
        self._prefixes = prefixes

    def __missing__(self, name: bytes) -> bool:
        crosses = name not in self._drop and not name.startswith(self._prefixes)
        if len(self) < MOST_NAMES:
            self[name] = crosses
        return crosses


INBOUND = Crossing(HOP_BY_HOP)


class LowerCase(dict[bytes, bytes]):
    """Gives a name in lower case: one object for each name, up to a bound, so that its hash is made only once."""

    def __missing__(self, name: bytes) -> bytes:
        lowered = name.lower()
        if len(self) < MOST_NAMES:
            lowered = self.setdefault(lowered, lowered)
            self[name] = lowered
        return lowered


LOWER_CASE = LowerCase()


def first(pairs: Pairs, wanted: bytes) -> bytes | None:
    """Return the value of the first field of that name, or None."""
    for name, value in pairs:
        if name == wanted:
            return value
    return None


def outbound(pairs: Pairs, fields: Fields, crossing: Crossing) -> Pairs:
    """Return what of a request's fields goes on to the upstream; fields that `Connection` names do not either."""
    kept = [pair for pair in pairs if crossing[pair[0]]]
    plain = len(fields) == len(pairs) and b"transfer-encoding" not in fields
    if plain and fields.get(b"connection", b"close") in COMMON_TOKENS:
        return kept
    for name, value in pairs:
        if name == b"connection" and value not in COMMON_TOKENS:
            kept = _less(kept, _named(value))
        elif name == b"transfer-encoding":  # RFC 9112 6.3: a length beside it says nothing
            kept = [*_less(kept, FRAMING), (b"transfer-encoding", b"chunked")]
    return kept


def inbound(pairs: Pairs) -> Pairs:
    """Return what of an answer's fields goes back to the client."""
    kept = [pair for pair in pairs if INBOUND[pair[0]]]
    for name, value in pairs:
        if name == b"connection" and value not in COMMON_TOKENS:
            kept = _less(kept, _named(value))
        elif name == b"transfer-encoding":
            kept = _less(kept, FRAMING)
    return kept


def append_forwarded_for(pairs: Pairs, client: bytes) -> Pairs:
    """Return the fields with `client` added behind the addresses that `X-Forwarded-For` already lists."""
    listed = [value for name, value in pairs if name == b"x-forwarded-for"]
    return [*_less(pairs, {b"x-forwarded-for"}), (b"x-forwarded-for", b", ".join([*listed, client]))]


def _less(pairs: Pairs, names: frozenset[bytes] | set[bytes]) -> Pairs:
    return [pair for pair in pairs if pair[0] not in names]


def _named(connection: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in connection.split(b",")) - FRAMING
