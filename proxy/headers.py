"""What may cross, in each direction: pure functions over lists of (name, value) byte pairs.

Rules of the house: bytes stay bytes, in pairs, in order, duplicates kept. Names of a request come in lower case from
the server; names of an answer come as the upstream wrote them. First clean, then sign: whoever calls adds credentials
to what is returned here, so that no `Connection: authorization` of a client can take them away (golang/go#50580).
"""

from proxy.errors import Pairs

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
COMMON_TOKENS = frozenset((b"keep-alive", b"close"))
OPTIONAL_WHITESPACE = b" \t"  # RFC 9110 5.6.3: not part of a value; httptools leaves it there, h11 refuses it


def first(pairs: Pairs, wanted: bytes) -> bytes | None:
    """Return the value of the first field of that (lower-case) name, or None. Names in `pairs` are in lower case."""
    for name, value in pairs:
        if name == wanted:
            return value
    return None


def outbound(pairs: Pairs, *, drop: frozenset[bytes], prefixes: tuple[bytes, ...]) -> Pairs:
    """Return what of a request's fields goes on to the upstream.

    `drop` holds lower-case names, `prefixes` the beginnings of names; fields that `Connection` names go too.
    """
    for name, value in pairs:
        if name == b"connection" and value not in COMMON_TOKENS:
            drop = drop | _named(value)
    kept = [
        (name, value.strip(OPTIONAL_WHITESPACE))
        for name, value in pairs
        if name not in drop and not name.startswith(prefixes)
    ]
    return _restate_framing(pairs, kept)


def inbound(pairs: Pairs) -> Pairs:
    """Return what of an answer's fields goes back to the client."""
    lowered = [(name.lower(), value) for name, value in pairs]
    drop = HOP_BY_HOP
    for name, value in lowered:
        if name == b"connection" and value not in COMMON_TOKENS:
            drop = drop | _named(value)
        elif (
            name == b"transfer-encoding"
        ):  # RFC 9112 6.3: the chunks tell the end, whatever length is stated beside them
            drop = drop | FRAMING
    return [pair for pair in lowered if pair[0] not in drop]


def _named(connection: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in connection.split(b",")) - FRAMING


def _restate_framing(pairs: Pairs, kept: Pairs) -> Pairs:
    """State `chunked` where the client framed its body so; a length then says nothing (RFC 9112 6.3)."""
    if first(pairs, b"transfer-encoding") is None:
        return kept
    return [*(pair for pair in kept if pair[0] != b"content-length"), (b"transfer-encoding", b"chunked")]


def append_forwarded_for(pairs: Pairs, client: bytes) -> Pairs:
    """Return the fields with `client` added behind the addresses that `X-Forwarded-For` already lists."""
    listed = [value for name, value in pairs if name == b"x-forwarded-for"]
    others = [pair for pair in pairs if pair[0] != b"x-forwarded-for"]
    return [*others, (b"x-forwarded-for", b", ".join([*listed, client]))]
