"""What is written down of an exchange: an allow-list of facts, and their two spellings, JSON and a line for people.

Nothing that a client or the upstream chose can break a line, a terminal or a page: names and paths come percent-encoded
to printable ASCII, messages with their odd characters escaped, each cut to a length. A whole line is shorter than
`PIPE_BUF`, so that on Linux a pipe takes it in one piece (POSIX, write) and the lines of several workers do not mix.
"""

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import quote

from proxy.exchange import Exchange
from proxy.readable import size

Facts = dict[str, Any]


class Redact(Protocol):
    """Masks what is secret in a text; of a long one so many characters are looked at, and the rest is cut off."""

    def __call__(self, text: str, longest: int = ...) -> str: ...


PIPE_BUF = 4096  # bytes; that of Linux, where macOS has 512
LONGEST_PATH = 1900
LONGEST_NAME = 100
LONGEST_MESSAGE = 150
LONGEST_DETAIL = 200
ROOM = 1200  # characters behind what is written down: a mask is shorter than what it covers, and the cut has an edge

WELL = ("success", "client_cancelled")  # the results that count as no error: a client may leave

COLOURS = {"2xx": "32", "3xx": "36", "4xx": "33", "5xx": "31"}  # ECMA-48 8.3.117: green, cyan, yellow, red

PLAIN = re.compile(r"[!#-;=?-\[\]-~]*")  # printable ASCII, less space, quotation mark, backslash, < and >
SAFE = "!#$%&'()*+,-./:;=?@[]^_`{|}~"
ORDINARY = re.compile(rf"(?:{PLAIN.pattern[:-1]}{{0,{LONGEST_NAME}}}(?:\n|\Z))*")
TRUTH = ("false", "true")
READABLE = re.compile(r"[ -~]*")


class Entry(NamedTuple):  # made for each exchange: a frozen dataclass takes several times as long
    """What a book may write down: an exchange whose texts are fit for it, and what of it there is as a line of JSON."""

    exchange: Exchange
    json: str

    @property
    def facts(self) -> Facts:
        """Return what is in the line, by the names there."""
        return cast("Facts", json.loads(self.json))


class Book(Protocol):
    """Where entries are written. It is called from one thread, at least once a second, and may take its time.

    `dropped` entries did not get into it.
    """

    name: str

    @property
    def dropped(self) -> int: ...

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


# The texts that others chose, how each is made fit, and its length.
TEXTS: Mapping[str, tuple[Callable[[str, int], str], int]] = {
    "method": (name, 32),
    "path": (name, LONGEST_PATH),
    **dict.fromkeys(("incoming_id", "upstream_id", "model", "asked", "key"), (name, LONGEST_NAME)),
    "failure": (message, LONGEST_MESSAGE),
    "detail": (message, LONGEST_DETAIL),
}


@lru_cache(maxsize=600)
def status_class(status: int | None) -> str:
    """Return `2xx` for 200 and its like; `none` where there was no answer."""
    return f"{status // 100}xx" if status is not None and 100 <= status < 600 else "none"


def failed(exchange: Exchange) -> bool:
    """Tell whether an exchange counts as an error: whatever did not succeed, unless it was the client that left."""
    return exchange.result not in WELL


def entries(exchanges: Sequence[Exchange], redact: Redact) -> list[Entry]:
    """Return what the books get of these exchanges."""
    return [Entry(exchange, as_json(exchange)) for exchange in _fit(exchanges, redact)]


def _fit(exchanges: Sequence[Exchange], redact: Redact) -> list[Exchange]:
    """Return the exchanges with texts that may be written down.

    Names are looked at all together: most need nothing, and to look once into a long text costs least. Those of keys
    look like what redaction looks for, and would have it look more closely into all the others.
    """
    keys = {f"{each.key}" for each in exchanges}
    names = [
        *{each.method for each in exchanges},
        *{each.path for each in exchanges},
        *{f"{each.model}" for each in exchanges},
        *{f"{each.asked}" for each in exchanges},
        *[f"{each.incoming_id}" for each in exchanges if each.incoming_id is not None],
        *[f"{each.upstream_id}" for each in exchanges if each.upstream_id is not None],
    ]
    if _are_fit(keys, redact) and _are_fit(names, redact):
        return [each if each.failure is each.detail is None else _made_fit(each, redact) for each in exchanges]
    return [_made_fit(each, redact) for each in exchanges]


def _are_fit(names: Collection[str], redact: Redact) -> bool:
    together = "\n".join(names)
    no_name_has_two_lines = together.count("\n") == len(names) - 1
    return no_name_has_two_lines and ORDINARY.fullmatch(together) is not None and redact(together) == together


def _made_fit(exchange: Exchange, redact: Redact) -> Exchange:
    fit: dict[str, Any] = {}
    for text, (clean, longest) in TEXTS.items():
        given = getattr(exchange, text)
        if given is not None:
            fit[text] = clean(redact(given, longest + ROOM), longest)
    return replace(exchange, **fit)


def as_json(known: Exchange) -> str:
    """Return an exchange as a line of JSON. What is not known is left out.

    By hand: with a dict and `json` it takes three times as long. Only messages need escapes; names that are fit for
    this have neither quotation mark nor backslash, and the rest is words of ours. What is alike in most exchanges is
    spelled once for all of them. Times are told to the microsecond.
    """
    incoming_id = "" if known.incoming_id is None else f',"incoming_id":"{known.incoming_id}"'
    upstream_id = "" if known.upstream_id is None else f',"upstream_id":"{known.upstream_id}"'
    kind = _kind(known.route, known.method, known.path, known.named, known.stream, known.status, known.result)
    timeout = _timeout(known.timeout, known.timeout_source, known.timed_out)
    first_byte = "" if known.first_byte is None else f',"first_byte":{known.first_byte:.6f}'
    upstream_wait = "" if known.upstream_wait is None else f',"upstream_wait":{known.upstream_wait:.6f}'
    first_chunk = "" if known.first_chunk is None else f',"first_chunk":{known.first_chunk:.6f}'
    client_wait = "" if known.client_wait is None else f',"client_wait":{known.client_wait:.6f}'
    talk = "" if known.messages_in is None else _talk(known)
    tokens = "" if not known.usage else _tokens(*known.usage) % (*known.usage.values(),)
    rest = _rest(known.usage_added, known.retries, known.overloaded, known.cancelled, known.key)
    failure = "" if known.failure is None else f',"failure":{quoted(known.failure)}'
    detail = "" if known.detail is None else f',"detail":{quoted(known.detail)}'
    return (
        f'{{"time":"{moment(known.began)}","id":"{known.id}"{incoming_id}{upstream_id}{kind}{timeout}'
        f',"duration":{known.duration:.6f}{first_byte}{first_chunk}{client_wait}{upstream_wait}'
        f',"bytes_in":{known.bytes_in},"bytes_out":{known.bytes_out}{talk}{tokens}{rest}{failure}{detail}}}'
    )


@lru_cache(maxsize=512)
def _kind(route: str, method: str, path: str, model: str | None, stream: bool, status: int | None, result: str) -> str:
    named = "" if model is None else f',"model":"{model}"'
    answered = "" if status is None else f',"status":{status}'
    return (
        f',"route":"{route}","method":"{method}","path":"{path}"{named},"stream":{TRUTH[stream]}{answered}'
        f',"result":"{result}"'
    )


@lru_cache(maxsize=512)
def _rest(added: bool | None, retries: int, overloaded: bool, cancelled: bool, key: str | None) -> str:
    asked = "" if added is None else f',"usage_added":{TRUTH[added]}'
    named = "" if key is None else f',"key":"{key}"'
    return f'{asked},"retries":{retries},"overloaded":{TRUTH[overloaded]},"cancelled":{TRUTH[cancelled]}{named}'


@lru_cache(maxsize=64)
def _tokens(*kinds: str) -> str:
    counts = ",".join([f'"{kind}":%d' for kind in kinds])
    return f',"tokens":{{{counts}}}'


def _talk(known: Exchange) -> str:
    """Return what there is of a WebSocket besides."""
    messages = f',"messages_in":{known.messages_in},"messages_out":{known.messages_out}'
    return messages if known.close_code is None else f'{messages},"close_code":{known.close_code}'


@lru_cache(maxsize=64)
def _timeout(timeout: float | None, source: str, timed_out: str | None) -> str:
    line = "" if timeout is None else f',"timeout":{round(timeout, 6)}'
    line += f',"timeout_source":"{source}"'
    return line if timed_out is None else f'{line},"timed_out":"{timed_out}"'


def moment(value: float) -> str:
    """Return a time of day in UTC, to the millisecond (RFC 3339)."""
    whole, thousandths = divmod(round(value * 1000), 1000)
    return f"{_to_the_second(whole)}.{thousandths:03d}Z"


@lru_cache(maxsize=8)
def _to_the_second(value: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(value))


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
    yield f"{size(chosen['bytes_in'])} in"
    yield f"{size(chosen['bytes_out'])} out"
    if "model" in chosen:
        yield chosen["model"]
    if "tokens" in chosen:
        yield f"{chosen['tokens'].get('input', '?')} + {chosen['tokens'].get('output', '?')} tokens"
    if chosen["retries"]:
        yield f"retries {chosen['retries']}"
    if "key" in chosen:
        yield f"key {chosen['key']}"
    yield f"{chosen['route']} {chosen['id']}"
