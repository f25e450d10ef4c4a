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
OPERATOR_COOKIE = b"oxy_access"  # it opens the operator's pages (see `login`), and ends here
CLIENT_ADDRESS = frozenset((b"forwarded", b"x-real-ip"))
CLIENT_ADDRESS_PREFIX = b"x-forwarded-"

# RFC 9112 6: framing is restated by each hop and cannot be named away, or a body would go on without its length.
FRAMING = frozenset((b"content-length", b"transfer-encoding"))
# What says something about the bytes of a body ends with them (RFC 9110 8, RFC 9530).
OF_THE_BYTES = frozenset(
    (
        *(b"content-length", b"transfer-encoding", b"content-encoding", b"content-type", b"content-md5"),
        *(b"digest", b"content-digest", b"repr-digest", b"etag", b"accept-ranges"),
    )
)
NO_BODY = frozenset((204, 304))  # statuses: RFC 9112 6.3; the answer to a HEAD comes on top
COMMON_TOKENS = frozenset((b"keep-alive", b"Keep-Alive", b"close"))  # they name no field
MOST_NAMES, LONGEST_NAME = 1024, 64  # that are remembered


class Crossing:
    """Takes out fields that may not cross: those named in `drop`, and those whose names begin like one of `prefixes`.

    A length crosses whatever the prefixes: the body that it frames does too.
    Each name is looked into once and remembered, up to a bound, since the same few come with every request.
    """

    def __init__(self, drop: frozenset[bytes], prefixes: tuple[bytes, ...] = ()) -> None:
        self._drop = drop
        self._prefixes = prefixes
        self._known: dict[bytes, bool] = {}  # no dict with a __missing__: each look into one takes five times as long

    def of(self, pairs: Pairs) -> Pairs:
        """Return the fields that cross."""
        known = self._known
        try:
            return [pair for pair in pairs if known[pair[0]]]
        except KeyError:
            return [pair for pair in pairs if self._crosses(pair[0])]

    def _crosses(self, name: bytes) -> bool:
        crosses = name not in self._drop and (name in FRAMING or not name.startswith(self._prefixes))
        if len(self._known) < MOST_NAMES and len(name) <= LONGEST_NAME:
            self._known[name] = crosses
        return crosses


INBOUND = Crossing(HOP_BY_HOP)

LOWER_CASE: dict[bytes, bytes] = {}  # one object for each name, up to a bound, so that its hash is made only once


def in_lower_case(name: bytes) -> bytes:
    """Return a name in lower case; the next time it may be found in `LOWER_CASE`."""
    lowered = name.lower()
    if len(LOWER_CASE) < MOST_NAMES and len(name) <= LONGEST_NAME:
        lowered = LOWER_CASE.setdefault(lowered, lowered)
        LOWER_CASE[name] = lowered
    return lowered


def by_name(pairs: Pairs) -> Fields:
    """Return the fields by their names, of several the first."""
    return dict(pairs[::-1])


def has_any(data: bytes | bytearray, *wanted: bytes) -> bool:
    """Tell whether one of these occurs in the data. In Python 3.11, `in` makes and drops an exception each time."""
    for one in wanted:  # noqa: SIM110  a generator takes twice as long
        if data.find(one) >= 0:
            return True
    return False


def first(pairs: Pairs, wanted: bytes) -> bytes | None:
    """Return the value of the first field of that name, or None."""
    for name, value in pairs:
        if name == wanted:
            return value
    return None


def outbound(pairs: Pairs, crossing: Crossing) -> Pairs:
    """Return what of a request's fields goes on to the upstream; fields that `Connection` names do not either."""
    kept = crossing.of(pairs)
    for name, value in pairs:
        if name == b"connection" and value not in COMMON_TOKENS:
            kept = _less(kept, _named(value))
        elif name == b"transfer-encoding":  # RFC 9112 6.3: a length beside it says nothing
            kept = [*_less(kept, FRAMING), (b"transfer-encoding", b"chunked")]
    return kept


def inbound(pairs: Pairs) -> Pairs:
    """Return what of an answer's fields goes back to the client."""
    kept = INBOUND.of(pairs)
    if len(kept) == len(pairs):  # neither of those below was there
        return kept
    for name, value in pairs:
        if name == b"connection" and value not in COMMON_TOKENS:
            kept = _less(kept, _named(value))
        elif name == b"transfer-encoding":
            kept = _less(kept, FRAMING)
    return kept


def without_cookie(pairs: Pairs, cookie: bytes) -> Pairs:
    """Return the fields less the cookie of that name; the others stay as they are (RFC 6265 4.2.1)."""
    kept = []
    for name, value in pairs:
        if name == b"cookie" and value.find(cookie) >= 0:
            value = b";".join(each for each in value.split(b";") if each.partition(b"=")[0].strip() != cookie).strip()
            if not value:
                continue
        kept.append((name, value))
    return kept


def append_forwarded_for(pairs: Pairs, client: bytes) -> Pairs:
    """Return the fields with `client` added behind the addresses that `X-Forwarded-For` already lists."""
    listed = [value for name, value in pairs if name == b"x-forwarded-for"]
    # RFC 4291 2.5.5.2: so a socket for both kinds of addresses names one of IPv4, and hardly anyone reads that.
    client = client.removeprefix(b"::ffff:")
    return [*_less(pairs, {b"x-forwarded-for"}), (b"x-forwarded-for", b", ".join([*listed, client]))]


def _less(pairs: Pairs, names: frozenset[bytes] | set[bytes]) -> Pairs:
    return [pair for pair in pairs if pair[0] not in names]


def _named(connection: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in connection.split(b",")) - FRAMING
