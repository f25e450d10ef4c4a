"""The Responses API under `/openai2`: which operation a path names, and what it is called upstream."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

PREFIX = b"/openai2"
TARGET = b"/v1/responses"

Empty = Literal["refused", "object", "nothing"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    `name` is what log and metrics call it. A POST takes a JSON object; where none comes, `empty` says what goes on.
    An `idempotent` one changes nothing, or nothing more, when it arrives twice.
    """

    name: str
    empty: Empty = "refused"
    idempotent: bool = False


# The path behind the prefix, as it is sent; an id is any one segment.
OPERATIONS: tuple[tuple[re.Pattern[bytes], dict[str, Operation]], ...] = (
    (re.compile(b""), {"POST": Operation("openai2")}),
    (re.compile(b"/compact"), {"POST": Operation("openai2.compact")}),
    (re.compile(b"/input_tokens"), {"POST": Operation("openai2.input_tokens", empty="object", idempotent=True)}),
    (
        re.compile(b"/([^/]+)"),
        {
            "GET": Operation("openai2.retrieve", idempotent=True),
            "DELETE": Operation("openai2.delete", idempotent=True),
        },
    ),
    (re.compile(b"/([^/]+)/input_items"), {"GET": Operation("openai2.input_items", idempotent=True)}),
    (re.compile(b"/([^/]+)/cancel"), {"POST": Operation("openai2.cancel", empty="nothing")}),
)


def operations(path: bytes) -> dict[str, Operation]:
    """Return the operations that a raw path offers, by method: none where it is no path of this family.

    An id with a slash or a dot segment in it, encoded or not, would name something else upstream; so would one that is
    encoded twice, where it is decoded twice, and one with a fragment, where that is cut off.
    """
    for pattern, offered in OPERATIONS:
        if found := pattern.fullmatch(path.removeprefix(PREFIX)):
            return {} if any(map(_leads_away, found.groups())) else offered
    return {}


def target(path: bytes) -> bytes:
    """Return where a raw path of this family leads, the id in its own spelling."""
    return TARGET + path.removeprefix(PREFIX)


def _leads_away(id: bytes) -> bool:
    plain = unquote_to_bytes(id)
    # Some servers cut `;parameters` from a segment before they resolve it.
    is_dots = plain.partition(b";")[0] in (b".", b"..")
    return is_dots or b"#" in id or b"/" in plain or b"\\" in plain or unquote_to_bytes(plain) != plain
