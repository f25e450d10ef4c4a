"""What of a client's request RFC 9112 and we want refused, once its head is parsed. Pure; raises `Failure`."""

from proxy.errors import BadRequest, Fields, HeadTooLarge, NotImplementedHere, Pairs, TargetTooLong

MAX_TARGET = 32 * 1024
MAX_HEAD = 64 * 1024  # bytes of all fields together
MAX_FIELDS = 200
UNIQUE = (b"host", b"transfer-encoding")


def examine(pairs: Pairs, fields: Fields, version: str) -> None:
    """Raise `Failure` for what RFC 9112 wants refused. `fields` are the pairs by name."""
    several = (
        {name for name in UNIQUE if sum(pair[0] == name for pair in pairs) > 1} if len(fields) < len(pairs) else ()
    )
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or b"transfer-encoding" in several):
        raise NotImplementedHere("No transfer coding but chunked is understood here")  # 6.1
    if version not in ("1.0", "1.1"):
        raise BadRequest("This is not HTTP/1.1")
    if b"host" in several or (version == "1.1" and b"host" not in fields):
        raise BadRequest("A request has one Host field")  # 3.2
    if coding is not None and version == "1.0":
        raise BadRequest("HTTP/1.0 has no transfer codings")  # 6.1
    if len(pairs) > MAX_FIELDS:
        raise HeadTooLarge("The header fields are too many")


def measure(target: bytes, pairs: Pairs) -> None:
    """Raise `Failure` if the target or the fields are too large."""
    if len(target) > MAX_TARGET:
        raise TargetTooLong("The request target is too long")
    if sum(len(name) + len(value) for name, value in pairs) > MAX_HEAD:
        raise HeadTooLarge("The header fields are too large")


def origin_form(target: bytes) -> bytes:
    """Return path and query of a request target as they came, whichever form it has (RFC 9112 3.2)."""
    if target.startswith(b"/") or target == b"*":
        return target
    _, scheme_end, rest = target.partition(b"://")
    if not scheme_end:
        raise BadRequest("The request target is neither a path nor a URL")
    end = min((place for mark in (b"/", b"?") if (place := rest.find(mark)) >= 0), default=len(rest))
    return rest[end:] if rest[end:].startswith(b"/") else b"/" + rest[end:]


def without_upgrade(method: bytes, target: bytes, version: str, pairs: Pairs) -> bytes:
    """Return a head anew, less its offer to speak another protocol (RFC 9110 7.8: to be ignored).

    llhttp reads no body behind such an offer; a second one reads the head as the plain request that it also is.
    """
    if method == b"CONNECT":
        return b"A tunnel is nothing to relay\r\n\r\n"
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    for name, value in pairs:
        if name == b"connection":
            value = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
        if name != b"upgrade":
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
