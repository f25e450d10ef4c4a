"""Learns usage, model and failure from a copy of an answer's bytes, after they have gone on.

Rules of the house: no I/O, nothing is raised, and what is not certain stays unknown. While the answer passes, its bytes
are copied and no more; they are looked into once, at the end. Of a long answer the newest bytes are kept, and the
beginning of the record (a JSON body, or an event of a stream) in the middle of which they start.
"""

import re
from collections.abc import Iterator
from json import JSONDecoder

from proxy.codings import decoder, is_identity
from proxy.errors import Fields
from proxy.headers import has_any
from proxy.usage import Usage, model_of, usage_of

HEAD = 8 * 1024
TAIL = 16 * 1024
MOST = 2 * TAIL  # kept before it is cut down to the tail, so that on the whole each byte is moved once
SPACE = 64  # bytes of white space that are looked at together
TRIES = 8  # places that are tried in a record of which the middle is missing

JSON, EVENT_STREAM = b"application/json", b"text/event-stream"
USAGE, MODEL = b'"usage"', b'"model"'
COUNT = b'_tokens"'  # each usage has some, where `"usage":null` may stand in every event
DATA = re.compile(rb"^data:(.*)", re.MULTILINE)
BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")

# Members of an object, whose values hold at most flat objects and arrays. No byte is ever tried twice.
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
FLAT = rb'[^][{}"]*+(?:%b[^][{}"]*+)*+' % STRING
VALUE = rb"(?:%b|[\w.+-]++|\{%b\}|\[%b\])" % (STRING, FLAT, FLAT)
MEMBERS = rb"(?:\s*+%b\s*+:\s*+%b\s*+,)*?\s*+" % (STRING, VALUE)
UP_TO_MODEL, UP_TO_TYPE = (
    re.compile(rb'\s*+\{%b"%b"\s*+:\s*+"([^"\\]*+)"' % (MEMBERS, name), re.DOTALL) for name in (b"model", b"type")
)
LAST_EVENT = rb'\s*+\{\s*+"type"\s*+:\s*+"response\.(?:completed|incomplete|failed)"\s*+,%b"response"\s*+:' % MEMBERS
UP_TO_RESPONSE = re.compile(LAST_EVENT, re.DOTALL)

DONE = (b"\ndata: [DONE]", b"\ndata:[DONE]")
# How an event begins by which the upstream says that it failed, in a stream whose status was 200; one word of WORDS is
# in it, which is looked for first.
WORDS = (b"error", b"failed")
FAILURE = re.compile(
    rb"^(?:event: ?(?:error|response\.failed)$"
    rb'|data: ?\{\s*+"(?:error"\s*+:\s*+\{|type"\s*+:\s*+"(?:error|response\.failed)"))',
    re.MULTILINE,
)
LAST = (".completed", ".incomplete", ".failed", ".done")  # how types of events end that tell the usage of all

Record = dict[str, object]
read_json = JSONDecoder().raw_decode  # json.loads spends as much again on short texts


class Tap:
    """Hears the pieces of one answer, and tells at the end what it said. `fields` are its own, framing included.

    `streams` tells whether it is a stream of events.
    """

    __slots__ = ("_complete", "_decoder", "_framed", "_in_data", "_kept", "_mute", "_opening", "streams")

    def __init__(self, fields: Fields) -> None:
        media_type = fields.get(b"content-type", b"")
        if media_type != JSON:
            media_type = media_type.partition(b";")[0].strip().lower()
        coding = fields.get(b"content-encoding")
        if coding is not None and is_identity(coding):
            coding = None
        self._decoder = decoder(coding) if coding is not None else None
        self.streams = media_type == EVENT_STREAM
        self._mute = not (self.streams or media_type == JSON) or (coding is not None and self._decoder is None)
        # RFC 9112 6.3: a body that goes on until the connection ends may have been torn, and nobody can tell.
        self._framed = b"content-length" in fields or b"transfer-encoding" in fields
        self._kept = bytearray()
        self._opening = b""  # until something is cut off
        self._in_data = False  # what is kept begins in a line of data
        self._complete = False

    @property
    def size(self) -> int:
        """How many bytes are kept; behind the end they are all that is held."""
        return len(self._kept) + len(self._opening)

    def hear(self, piece: bytes) -> None:
        """Take a copy of the next bytes of the body, as they were on the wire."""
        if self._mute:
            return
        if self._decoder is None:
            self._keep(piece)
        else:
            self._unfold(self._decoder.decode(piece))

    def end(self, *, complete: bool) -> None:
        """Take it that nothing more comes; `complete` says that the answer came to its end.

        Whoever is to tell may wait for a while: what undoes a coding, up to 48 KB, is let go here.
        """
        self._complete = complete and self._framed
        if self._decoder is not None and not self._mute:
            self._unfold(self._decoder.end())
        if self._decoder is not None and not self._mute:  # it may have turned out not to be what it said
            self._complete = self._complete and self._decoder.whole
        self._decoder = None

    def told(self) -> tuple[Usage | None, str | None]:
        """Return usage and model as far as they are certain; asked once, behind the end."""
        if self._mute:
            return None, None
        if not self.streams:
            record = self._body(self._complete)
            return usage_of(record.get("usage")), model_of(record.get("model"))
        usage = model = None
        text = with_plain_line_ends(self._kept)
        final = self._complete or text.endswith(DONE, 0, end_of(text, len(text)))
        for event in self._events(text, self._complete):
            record = response_in(event)
            if usage is None and (usage := usage_of(record.get("usage"))):
                final = final or is_last(event)  # where each event counts along, only the end is right
            model = model or model_of(record.get("model"))
            if usage and model:
                break
        return usage if final else None, model

    def failed(self) -> bool:
        """Tell whether the upstream's last word in a stream was that it failed."""
        if self._mute or not self.streams:
            return False
        text = with_plain_line_ends(self._kept)
        end = end_of(text, len(text))
        if text.endswith(DONE, 0, end):
            end = end_of(text, text.rfind(b"\n", 0, end))
        blank_line = text.rfind(b"\n\n", 0, end)
        event = text[max(blank_line, 0) : end]
        if blank_line < 0 and self._opening:
            event = with_plain_line_ends(self._opening).partition(b"\n\n")[0]
        return has_any(event, *WORDS) and FAILURE.search(event) is not None

    def _keep(self, piece: bytes) -> None:
        kept = self._kept
        if len(kept) + len(piece) <= MOST:
            kept += piece
            return
        if self._opening and not self.streams and len(piece) > TAIL:
            kept.clear()  # what is left out of a text leaves another one
            piece = piece[-TAIL:]
        for start in range(0, len(piece), TAIL):
            if len(kept) > TAIL:
                self._cut()
            kept += piece[start : start + TAIL]

    def _unfold(self, parts: Iterator[bytes]) -> None:
        try:
            for part in parts:
                self._keep(part)
        except Exception:  # each library has its own; what cannot be decoded stays unknown
            self._mute = True
            self._kept.clear()
            self._opening = b""

    def _cut(self) -> None:
        kept = self._kept
        cut = len(kept) - TAIL
        start = 0
        if self.streams:
            start = start_of_event(kept, cut)
            line = start_of_line(kept, start, cut)
            if line or not self._opening:
                self._in_data = kept.startswith(b"data:", line)
        if start or not self._opening:
            self._opening = bytes(kept[start : start + HEAD])
        del kept[:cut]

    def _body(self, complete: bool) -> Record:
        """Return what the body says, of which the end is believed only if it is one: it may be of any level."""
        body = bytes(self._kept)
        if complete or self._opening:
            return ends(self._opening or body[:HEAD], body if complete else b"")
        return parsed(body) or ends(body[:HEAD], b"")

    def _events(self, text: bytes | bytearray, complete: bool) -> Iterator[Record]:
        """Give what those events say in which there is usage, the newest first; then the newest that names a model."""
        for wanted in (COUNT, MODEL):
            start = len(text)
            while (at := text.rfind(wanted, 0, start)) >= 0:
                blank_line, end = text.rfind(b"\n\n", 0, at), text.find(b"\n\n", at)
                start = max(blank_line, 0)
                event = text[start : end if end >= 0 else None]
                if blank_line >= 0 or not self._opening:
                    yield (said := parsed(data_of(event)))
                    if wanted is MODEL and "model" in response_in(said):
                        return
                elif end >= 0 or complete:
                    yield self._event_cut_into(event)

    def _event_cut_into(self, rest: bytes | bytearray) -> Record:
        """Return what an event says of which the middle is missing, as its response in any case."""
        opening = data_of(with_plain_line_ends(self._opening).partition(b"\n\n")[0])
        line, _, lines = rest.partition(b"\n")
        tail = (bytes(line) if self._in_data else b"") + data_of(lines)
        response, kind = UP_TO_RESPONSE.match(opening), UP_TO_TYPE.match(opening)
        said = ends(opening[response.end() if response else 0 :], tail, nested=response is not None)
        return {"type": kind[1].decode(errors="replace") if kind else None, "response": said}


def start_of_event(stream: bytearray, position: int) -> int:
    """Return where the event in the middle of which a position lies begins; 0 if that cannot be seen any more."""
    if b"\r" not in stream:  # as nearly always, in half the time
        at = stream.rfind(b"\n\n", 0, position + 1)
        return at + 2 if at >= 0 else 0
    found = ((stream.rfind(line, 0, position + len(line) - 1), len(line)) for line in BLANK_LINES)
    return max((at + length for at, length in found if at >= 0), default=0)


def start_of_line(stream: bytearray, event: int, position: int) -> int:
    """Return where the line of an event in which a position lies begins; 0 if that cannot be seen any more."""
    return max(event, stream.rfind(b"\n", event, position) + 1, stream.rfind(b"\r", event, position) + 1)


def with_plain_line_ends(text: bytes | bytearray) -> bytes | bytearray:
    """Return what an event stream says with LF for each of the three line ends that it may use."""
    if text.find(b"\r") < 0:  # as nearly always, and each copy of a long text costs
        return text
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def end_of(text: bytes | bytearray, end: int) -> int:
    """Return where the white space begins that stands in front of a position."""
    while end > 0 and not (last := text[max(end - SPACE, 0) : end].rstrip()):
        end -= SPACE
    return max(end - SPACE, 0) + len(last) if end > 0 else 0


def data_of(event: bytes | bytearray) -> bytes:
    """Return what the `data` lines of an event say together."""
    return b"\n".join(DATA.findall(event))


def response_in(event: Record) -> Record:
    """Return the response that an event of the Responses API repeats; other events speak for themselves."""
    response = event.get("response")
    return response if isinstance(response, dict) else event


def is_last(event: Record) -> bool:
    """Tell whether the usage in an event is that of the whole answer, and not what was used up to it."""
    kind = event.get("type")
    return event.get("choices") == [] or (isinstance(kind, str) and kind.endswith(LAST))


def ends(opening: bytes, tail: bytes, *, nested: bool = False) -> Record:
    """Return what an object says at its outermost level in its two ends; if `nested`, it is the `response` of another.

    What begins at a member of that level and goes on to the end is, with a brace before it, an object in its own right.
    At any other level the braces do not match, and the parser refuses.
    """
    lead = b'{"response":{' if nested else b"{"
    said = response_in(ending(tail, USAGE, lead)) if nested else ending(tail, USAGE, lead)
    if match := UP_TO_MODEL.match(opening):
        said["model"] = match[1].decode(errors="replace")
        return said
    more = ending(tail, MODEL, lead)
    return (response_in(more) if nested else more) | said


def ending(tail: bytes, name: bytes, lead: bytes) -> Record:
    """Return the object that ends here from its last member of that name on."""
    at = len(tail)
    for _ in range(TRIES):
        at = tail.rfind(name, 0, at)
        if at < 0:
            break
        # What follows a backslash is the rest of another name.
        if tail[max(at - 64, 0) : at].rstrip().endswith((b",", b"{")) and (record := parsed(lead + tail[at:])):
            return record
    return {}


def parsed(text: bytes) -> Record:
    """Return the JSON object that a text is, and an empty one if it is none."""
    try:
        said = text.decode().strip()
        record, end = read_json(said)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and end == len(said) else {}
