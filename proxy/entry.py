"""What is written down of an exchange: an allow-list of facts, and their two spellings, JSON and a line for people.

Nothing that a client or the upstream chose can break a line, a terminal or a page: names and paths come percent-encoded
to printable ASCII, messages with their odd characters escaped, each cut to a length. A whole line is shorter than
`PIPE_BUF`, so that a pipe takes it in one piece (POSIX, write) and the lines of several workers do not mix.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from proxy.exchange import Exchange
from proxy.usage import Usage

Facts = dict[str, Any]
Redact = Callable[[str], str]

PIPE_BUF = 4096
LONGEST_PATH = 2048
LONGEST_NAME = 100
LONGEST_MESSAGE = 150
LONGEST_DETAIL = 200

# `input` and `output` are the whole; the others are parts of them, `total` their sum.
KINDS = (
    *("input", "cached", "output", "reasoning", "total"),
    *("input_text", "input_audio", "input_image", "output_text", "output_audio", "output_image"),
)
counts_of = attrgetter(*KINDS)
MOST_TOKENS = 10**9  # beyond that it is no count, whatever it was that the upstream said

COLOURS = {"2xx": "32", "3xx": "36", "4xx": "33", "5xx": "31"}  # ECMA-48 8.3.117: green, cyan, yellow, red

PLAIN = re.compile(r"[!#-;=?-\[\]-~]*")  # printable ASCII, less space, quotation mark, backslash, < and >
SAFE = "!#$%&'()*+,-./:;=?@[]^_`{|}~"
ORDINARY = re.compile(rf"{PLAIN.pattern[:-1]}{{0,{LONGEST_NAME}}}(?:\n{PLAIN.pattern[:-1]}{{0,{LONGEST_NAME}}}){{7}}")
READABLE = re.compile(r"[ -~]*")


class Entry(NamedTuple):  # made for each exchange: a frozen dataclass takes several times as long
    """What a book may write down of an exchange: the facts that were chosen, and the same as a line of JSON."""

    began: float
    facts: Facts
    json: str


class Book(Protocol):
    """Where entries are written. It is called from one thread, at least once a second, and may take its time.

    `dropped` entries did not get into it.
    """

    name: str
    dropped: int

    def write(self, entries: Sequence[Entry]) -> None:
        """Write these entries, none where nothing happened."""

    def close(self, patience: float) -> None:
        """Write what is left within so many seconds."""


class FirstFew:
    """Bounds what others choose: the first so many values stay as they are, all others are `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the value, or `other`."""
        if value not in self._known:
            if len(self._known) >= self._most:
                return "other"
            self._known.add(value)
        return value


encode = json.JSONEncoder(separators=(",", ":")).encode


def name(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a path or a name as printable ASCII, whatever else is in it percent-encoded, and cut to a length.

    What was read as Latin-1 from the wire is the bytes that it was.
    """
    if PLAIN.fullmatch(text):
        return text[:longest]
    try:
        raw = text[:longest].encode("latin-1")
    except UnicodeEncodeError:
        raw = text[:longest].encode("utf-8", "surrogatepass")
    return quote(raw, safe=SAFE)[:longest]


def message(text: str, longest: int) -> str:
    """Return a message on one line of printable ASCII, other characters escaped, and cut to a length."""
    if READABLE.fullmatch(text):
        return text[:longest]
    return text[:longest].encode("unicode_escape").decode("ascii")[:longest]


# How each of the texts that others chose is made fit, in the order of `_texts`.
WAYS = (
    (name, 32),
    (name, LONGEST_PATH),
    *[(name, LONGEST_NAME)] * 4,
    (message, LONGEST_MESSAGE),
    (message, LONGEST_DETAIL),
)


def tokens(usage: Usage | None) -> dict[str, int]:
    """Return the counts that are known by their kind."""
    if usage is None:
        return {}
    counts = zip(KINDS, counts_of(usage), strict=True)
    return {kind: count for kind, count in counts if type(count) is int and 0 <= count < MOST_TOKENS}


def status_class(status: int | None) -> str:
    """Return `2xx` for 200 and its like; `none` where there was no answer."""
    return f"{status // 100}xx" if status is not None and 100 <= status < 600 else "none"


def failed(chosen: Facts) -> bool:
    """Tell whether an exchange counts as an error: whatever did not succeed, unless it was the client that left."""
    return chosen["result"] not in ("success", "client_cancelled")


def facts(exchange: Exchange, redact: Redact) -> Facts:
    """Return what is written down of an exchange, and no more; what is not known is left out."""
    method, path, incoming_id, upstream_id, model, key, failure, detail = _texts(exchange, redact)
    chosen = {
        "time": moment(exchange.began),
        "id": exchange.id,
        "incoming_id": incoming_id,
        "upstream_id": upstream_id,
        "route": exchange.route,
        "method": method,
        "path": path,
        "model": model,
        "stream": exchange.stream,
        "status": exchange.status,
        "result": exchange.result,
        "timeout": seconds(exchange.timeout),
        "timeout_source": exchange.timeout_source,
        "timed_out": exchange.timed_out,
        "duration": seconds(exchange.duration),
        "first_byte": seconds(exchange.first_byte),
        "upstream_wait": seconds(exchange.upstream_wait),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "tokens": tokens(exchange.usage) or None,
        "retries": exchange.retries,
        "overloaded": exchange.overloaded,
        "cancelled": exchange.cancelled,
        "key": key,
        "failure": failure,
        "detail": detail,
    }
    return {fact: value for fact, value in chosen.items() if value is not None}


def _texts(exchange: Exchange, redact: Redact) -> Sequence[str | None]:
    """Return the texts that others chose, fit to be written down. They are looked at together: most need nothing."""
    given = (
        exchange.method,
        exchange.path,
        exchange.incoming_id,
        exchange.upstream_id,
        exchange.model,
        exchange.key,
        exchange.failure,
        exchange.detail,
    )
    together = "\n".join([text or "" for text in given])
    if ORDINARY.fullmatch(together) and redact(together) == together:
        return given
    return [
        None if text is None else clean(redact(text), most) for text, (clean, most) in zip(given, WAYS, strict=True)
    ]


def seconds(value: float | None) -> float | None:
    """Return a time as it is written down: to the microsecond."""
    return None if value is None else round(value, 6)


def moment(value: float) -> str:
    """Return a time of day in UTC, to the millisecond (RFC 3339)."""
    whole, thousandths = divmod(round(value * 1000), 1000)
    return f"{_to_the_second(whole)}.{thousandths:03d}Z"


@lru_cache(maxsize=8)
def _to_the_second(value: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(value))


def entry(exchange: Exchange, redact: Redact) -> Entry:
    """Return what the books get of an exchange."""
    chosen = facts(exchange, redact)
    return Entry(began=exchange.began, facts=chosen, json=encode(chosen))


def as_text(chosen: Facts, *, colour: bool = False) -> str:
    """Return an entry as one line for people; what went as it should is short."""
    status = str(chosen.get("status", "---"))
    if colour:
        status = f"\x1b[{COLOURS.get(status_class(chosen.get('status')), '35')}m{status}\x1b[0m"
    line = f"{chosen['time']} {status} {chosen['method']} {chosen['path']} {', '.join(_remarks(chosen))}"
    if chosen["result"] != "success":
        line += f" {chosen['result']}"
    if "failure" in chosen:
        line += f": {chosen['failure']}"
    return f"{line} ({chosen['detail']})" if "detail" in chosen else line


def _remarks(chosen: Facts) -> Iterator[str]:
    yield f"{chosen['duration']:.3f} s"
    if "first_byte" in chosen:
        yield f"first byte {chosen['first_byte']:.3f} s"
    yield f"{_size(chosen['bytes_in'])} in"
    yield f"{_size(chosen['bytes_out'])} out"
    if "model" in chosen:
        yield chosen["model"]
    if "tokens" in chosen:
        yield f"{chosen['tokens'].get('input', '?')} + {chosen['tokens'].get('output', '?')} tokens"
    if chosen["retries"]:
        yield f"retries {chosen['retries']}"
    if "key" in chosen:
        yield f"key {chosen['key']}"
    yield f"{chosen['route']} {chosen['id']}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
