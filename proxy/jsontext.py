"""A JSON object as the text that a client wrote: members are taken out and put in, the others stay letter for letter.

Values are parsed to be looked at, never to be written again: a number keeps its digits, a string its escapes. What
RFC 8259 leaves open is decided strictly, since another parser could make something else of it: a name given twice, a
number beyond a double's range, half of a surrogate pair and a NUL are refused, as is more nesting than anyone means.
"""

import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from proxy.errors import BadRequest

Container = dict[str, object] | list[object]

MAX_DEPTH = 200
MAX_MEMBERS = 1000
MAX_VALUES = 500_000  # a value takes far more memory than its text, and who sends it is perhaps not known yet
# A call of the interpreter's C code is not interrupted, so that long texts are looked at in steps of some milliseconds.
STEP = 256 * 1024  # characters
BLANKS = re.compile(r"[ \t\n\r]*")
BACKSLASHES = re.compile(r"\\*+")
# Every escape from the left, so that an escaped backslash does not begin one.
SOUND = re.compile(
    r"(?:[^\\]{1,65536}+|\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?!u0000|u[dD][89a-fA-F]).))"
    r"{0,50000}+",
    re.DOTALL,
)
UNSOUND = re.compile(r"\\u(?:(?P<nul>0000)|(?P<half>[dD][89a-fA-F]))")
REASONS = {"nul": "it holds a NUL", "half": "it holds half of a surrogate pair"}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object: its name and its value as they were written, and what the value means."""

    name: str
    text: str
    value: object


Members = dict[str, Member]


def member(name: str, value: object) -> Member:
    """Return a member of our own."""
    return Member(json.dumps(name), json.dumps(value), value)


def write(members: Members) -> str:
    """Return the text of an object with these members."""
    return "{" + ",".join(f"{member.name}:{member.text}" for member in members.values()) + "}"


def read(body: bytes, ours: Collection[str] = ()) -> tuple[Members, BadRequest | None]:
    """Return the members of the object in `body`, as far as they can be read, and the first thing wrong with it.

    Those that are `ours` go no further, so that no other parser can make something else of their numbers.
    """
    if not body:
        return {}, BadRequest("The body is empty: a JSON object is expected")
    try:
        text = body.decode("utf-8-sig")  # RFC 8259 8.1: a byte order mark may be ignored
    except UnicodeDecodeError as problem:
        return {}, BadRequest(f"The body is not JSON: byte {problem.start} is not UTF-8")
    if _too_many(text):
        return {}, BadRequest(f"The body holds more than {MAX_VALUES} values")
    reader = Reader(text, ours)
    try:
        reader.read(most=MAX_MEMBERS)
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno} column {problem.colno}"
        return reader.members, BadRequest(
            f"The body is not a JSON object: {problem.msg.removesuffix(' at')} at {where}"
        )
    except RecursionError:
        reader.complain("nested too deeply")
    return reader.members, BadRequest(reader.complaint) if reader.complaint else None


def members_of(text: str) -> Members:
    """Return the members of an object whose text has been read before."""
    reader = Reader(text)
    reader.read()
    return reader.members


def elements_of(text: str) -> list[str]:
    """Return the texts of the elements of an array whose text has been read before."""
    found: list[str] = []
    at = _past_blanks(text, 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        found.append(text[at:end])
        at = _past_blanks(text, end)
        at = _past_blanks(text, at + 1) if text[at] == "," else at
    return found


@dataclass(slots=True)
class Reader:
    """One reading of a text. What is wrong but does not hinder it is its `complaint`, the first; the rest it raises."""

    text: str
    ours: Collection[str] = ()
    members: Members = field(default_factory=dict)
    complaint: str = ""
    _name: str = ""

    def read(self, most: float = math.inf) -> None:
        """Read the members, and complain of more than `most`. Raises `json.JSONDecodeError` and `RecursionError`."""
        decoder = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_float=self._finite, parse_int=self._whole, parse_constant=self._finite
        )
        at = self._expect("{", _past_blanks(self.text, 0))
        more, count = self.text[at : at + 1] != "}", 0
        while more:
            count += 1
            if count > most:
                self.complain(f"it and those before it are more than {most} members")
                return
            at = self._member(decoder, at)
            more = self.text[at : at + 1] == ","
            at = _past_blanks(self.text, at + 1) if more else at
        at = self._expect("}", at)
        if at != len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, at)

    def complain(self, what: str) -> None:
        """Note something that is wrong with the member at hand."""
        self.complaint = self.complaint or f"{ascii(self._name[:100])[1:-1]}: {what}"

    def _member(self, decoder: json.JSONDecoder, at: int) -> int:
        """Read one member; return where what follows it begins."""
        self._expect('"', at)
        name, end = _DECODER.raw_decode(self.text, at)
        self._name = name
        name_text = self.text[at:end]
        at = self._expect(":", _past_blanks(self.text, end))
        value, end = decoder.raw_decode(self.text, at)
        text = self.text[at:end]
        self._examine(name_text)
        self._examine(text)
        if _too_deep(value, text):
            self.complain("nested too deeply")
        if name in self.members:
            self.complain("given twice")
        else:
            self.members[name] = Member(name_text, text, value)
        return _past_blanks(self.text, end)

    def _expect(self, character: str, at: int) -> int:
        """Return where what follows the character begins."""
        if self.text[at : at + 1] != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", self.text, at)
        return _past_blanks(self.text, at + 1)

    def _examine(self, text: str) -> None:
        if "\\u0000" in text or "\\ud" in text or "\\uD" in text:
            at = 0
            while (end := SOUND.match(text, at).end()) > at:  # type: ignore[union-attr]  # it matches nothing as well
                at = end
            if found := UNSOUND.match(text, at):
                self.complain(REASONS[str(found.lastgroup)])

    # What the decoder calls

    def _unique(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if len(value) < len(pairs):
            self.complain("a name in it is given twice")
        return value

    def _finite(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value) and self._name not in self.ours:
            self.complain("a number in it is too large, or is none")
        return value

    def _whole(self, text: str) -> int | float:
        # What Python's int() refuses to read, for the time it takes, is still a number.
        return int(text) if len(text) < 4000 else self._finite(text)


def _too_many(text: str) -> bool:
    """Tell whether there are too many values in a text; commas and brackets in strings are none."""
    if sum(map(_marks, _steps(text))) <= MAX_VALUES:
        return False
    marks, inside = 0, False
    for step in _steps(text):
        parts = step.replace("\\\\", "").replace('\\"', "").split('"')
        marks += _marks(" ".join(parts[inside::2]))
        if marks > MAX_VALUES:
            return True
        inside ^= len(parts) % 2 == 0
    return False


def _steps(text: str) -> Iterator[str]:
    """Give a text in pieces that part no backslash from what it escapes."""
    at = 0
    while at < len(text):
        end = at + STEP
        if text[end - 1 : end] == "\\":
            end = BACKSLASHES.match(text, end).end() + 1  # type: ignore[union-attr]  # it matches nothing as well
        yield text[at:end]
        at = end


def _marks(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _too_deep(value: object, text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = _containers([value])
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
    return bool(level)


def _containers(outer: Container) -> list[Container]:
    inside = outer.values() if isinstance(outer, dict) else outer
    return [inner for inner in inside if isinstance(inner, (dict, list))]


def _past_blanks(text: str, at: int) -> int:
    blanks = BLANKS.match(text, at)
    return blanks.end() if blanks else at


_DECODER = json.JSONDecoder()
