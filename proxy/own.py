"""What a convenience request says to the proxy alone: a client key, credentials for this call, a time limit.

It stands among the members of a JSON object, the parts of a form, or the pairs of a query, and is taken out there.
"""

import math
import re
from urllib.parse import unquote_to_bytes

from proxy import values
from proxy.errors import BadRequest, Pairs
from proxy.exchange import TimeoutSource

NAMES = ("security_key", "openai_api_key", "project", "organization", "timeout")
CREDENTIALS = (
    ("openai_api_key", b"authorization", b"Bearer "),
    ("project", b"openai-project", b""),
    ("organization", b"openai-organization", b""),
)
# No digit can be matched in two ways: a long text that is no number after all would take time by the square.
NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)


class Own:
    """The proxy's own fields of one request, in all the places where they were given."""

    def __init__(self) -> None:
        self._given: dict[str, list[object]] = {}

    def add(self, name: str, value: object) -> None:
        """Take a field; null and an empty text count as none, as they do in the documents of older systems."""
        if value is not None and value != "":
            self._given.setdefault(name, []).append(value)

    def keys(self) -> list[bytes]:
        """Return all that was given as a client key."""
        given = self._given.get("security_key", [])
        return [key.encode("utf-8", "surrogatepass") for key in given if isinstance(key, str)]

    def credentials(self) -> Pairs:
        """Return the header fields that were given for this call.

        Raises `BadRequest` if a field came twice, is no text, or cannot stand in a header.
        """
        for name, given in self._given.items():
            if len(given) > 1:
                raise BadRequest(f"{name}: given twice")
            if name != "timeout" and not isinstance(given[0], str):
                raise BadRequest(f"{name}: a string is expected")
        return [(field, scheme + self._text(name)) for name, field, scheme in CREDENTIALS if name in self._given]

    def timeout(self, *, default: float, most: float) -> tuple[float, TimeoutSource]:
        """Return how many seconds to wait for the upstream, and where that number comes from."""
        if "timeout" not in self._given:
            return default, "default"
        asked = _milliseconds(self._given["timeout"][0])
        if asked is None:
            return default, "invalid"
        return (most, "clamped") if asked > most * 1000 else (asked / 1000, "provided")

    def _text(self, name: str) -> bytes:
        try:
            return values.key(str(self._given[name][0])).encode()
        except ValueError as problem:
            raise BadRequest(f"{name}: {problem}") from None


def _milliseconds(asked: object) -> float | None:
    """Return a caller's `timeout` as a number above zero, None if it is not one."""
    if isinstance(asked, str) and NUMBER.fullmatch(asked):
        asked = float(asked)
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return None
    return asked if asked > 0 and (isinstance(asked, int) or math.isfinite(asked)) else None


def split_query(query: bytes) -> tuple[bytes, Own]:
    """Return a query without the proxy's own pairs, and those. What stays keeps its order and its spelling."""
    own, kept = Own(), []
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if (plain := _plain(name)) in NAMES:
            own.add(plain, _plain(value))
        else:
            kept.append(pair)
    return b"&".join(kept), own


def _plain(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8", "replace")
