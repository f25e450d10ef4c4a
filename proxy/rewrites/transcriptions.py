"""A form for `POST /openai/audio/transcriptions`, rewritten as it streams (RFC 7578).

Rules of the house: no I/O. The proxy's own fields are taken out wherever they stand. Every other part goes on, its
header fields as they were said and its content byte for byte; but an empty field for which there is a default is none.
Defaults follow behind the last part. However long the form, nothing is held but the head of one part, one value for
each own field, and bytes that may begin a boundary.
"""

import logging
import weakref
from collections.abc import Collection
from functools import partial

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from proxy.errors import BadRequest, Pairs

DEFAULTS = (("model", "whisper-1"), ("response_format", "json"), ("temperature", "0"))
NAMES = frozenset(dict(DEFAULTS))

MOST_BOUNDARY = 70  # RFC 2046 5.1.1
MOST_HEAD = 8192  # bytes of all header fields of a part
MOST_VALUE = 8192  # bytes of an own field
MOST_MODEL = 1024
# A form may be read before its key is heard, and 20 MB of nothing but small parts take 8 s of CPU; as long take lines
# that begin like a boundary and go on otherwise, which RFC 2046 5.1.1 does not let content have.
MOST_PARTS = 1000
MOST_FIELDS = 4000  # in the heads of all parts, 5 us each

# What it refuses it raises as well, and the client hears of it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Form:
    """One form on its way: `feed` it what the client says, send on what it returns, `end` it with the client's body.

      own           the proxy's own fields heard so far, the first of several
      repeated      those of them that came again
      file_begun    whether the head of the part `file` has been heard
      content_type  what goes upstream with the form

    After a BadRequest the form is lost, but `own` still tells what was heard before it.
    """

    def __init__(self, content_type: bytes, own: Collection[str]) -> None:
        """Take out the fields that `own` names.

        Raise BadRequest if the content type is not that of a form, or has no boundary that can be used.
        """
        boundary = _boundary(content_type)
        self.content_type = content_type
        self.own: dict[str, str] = {}
        self.repeated: set[str] = set()
        self.file_begun = False
        self._model, self._in_model = bytearray(), False
        self._names = frozenset(own)
        self._defaults = dict(DEFAULTS)  # those still to be added
        self._complete = False
        self._boundaries = self._fields = 0
        self._padding = MOST_HEAD  # that may still stand behind boundaries
        self._part = 0
        self._head: Pairs = []
        self._room = 0  # for the rest of the part's head, or of an own field's value
        self._field, self._value = bytearray(), bytearray()
        self._name = ""  # of the part whose content is being heard
        self._delimiter = b"--" + boundary
        self._ready: list[bytes] = []
        self._held: list[bytes] = []  # the head of a part that is none if it has no content
        self._parser = self._begun_parser(boundary)

    @property
    def model(self) -> str | None:
        """The model of the call, None if none has been heard yet."""
        return self._model.decode(errors="replace") or (self._defaults.get("model") if self._complete else None)

    def feed(self, piece: bytes) -> bytes:
        """Return what goes upstream of this piece and of bytes held back before; raise BadRequest if it cannot."""
        self._boundaries += piece.count(b"\r\n" + self._delimiter)
        if self._boundaries > MOST_PARTS:
            raise BadRequest(f"the form has more than {MOST_PARTS} parts, or lines that begin with its boundary")
        if self._parser.state == MultipartState.BOUNDARY_PADDING:
            self._take_padding(piece)
        try:
            self._parser.write(piece)
        except FormParserError as problem:
            raise BadRequest(self._unreadable()) from problem
        ready = b"".join(self._ready)
        self._ready.clear()
        return ready

    def end(self) -> bytes:
        """Return the missing defaults and the closing boundary; raise BadRequest if more of the form was due."""
        if not self._complete:
            raise BadRequest("the form breaks off before its closing boundary")
        if not self.file_begun:
            raise BadRequest("file: the form has no such field")
        for name, value in self._defaults.items():
            disposition = f'form-data; name="{name}"'.encode()
            self._ready += (self._rendered([(b"Content-Disposition", disposition)]), value.encode(), b"\r\n")
        return b"".join((*self._ready, self._delimiter, b"--\r\n"))

    def _begun_parser(self, boundary: bytes) -> MultipartParser:
        """Return a parser that has already read the head of a part without a name, of which nothing is kept.

        Its content is what a client says before the first boundary. RFC 2046 5.1.1 lets it say something; a parser
        that expects the first boundary does not (Kludex/python-multipart#59).
        """
        parser = MultipartParser(boundary, max_header_count=MOST_HEAD, max_header_size=MOST_HEAD)
        parser.write(self._delimiter + b"\r\n\r\n\r\n")
        this: Form = weakref.proxy(self)  # else the two were a cycle, and the garbage collector comes rarely
        parser.set_callback("part_begin", partial(Form._begin_part, this))
        parser.set_callback("header_field", partial(Form._hear_field, this))
        parser.set_callback("header_value", partial(Form._hear_value, this))
        parser.set_callback("header_end", partial(Form._end_field, this))
        parser.set_callback("headers_finished", partial(Form._begin_content, this))
        parser.set_callback("part_data", partial(Form._hear_content, this))
        parser.set_callback("part_end", partial(Form._end_part, this))
        parser.set_callback("end", partial(Form._end, this))
        return parser

    def _begin_part(self) -> None:
        self._part += 1
        self._head = []
        self._room = MOST_HEAD

    def _hear_field(self, data: bytes, start: int, end: int) -> None:
        self._take_room(end - start)
        self._field += data[start:end]

    def _hear_value(self, data: bytes, start: int, end: int) -> None:
        self._take_room(end - start)
        self._value += data[start:end]

    def _end_field(self) -> None:
        self._take_room(len(b": \r\n"))
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise BadRequest(f"the form has more than {MOST_FIELDS} header fields")
        self._head.append((bytes(self._field), bytes(self._value)))
        self._field.clear()
        self._value.clear()

    def _begin_content(self) -> None:
        """Decide by its name what becomes of a part."""
        self._name = self._name_in_head()
        if self._name in self._names:
            self._room = MOST_VALUE
            return
        self._in_model = self._name == "model" and not self._model
        self.file_begun = self.file_begun or self._name == "file"
        (self._held if self._name in NAMES else self._ready).append(self._rendered(self._head))

    def _hear_content(self, data: bytes, start: int, end: int) -> None:
        if self._name in self._names:
            self._take_room(end - start)
            self._value += data[start:end]
        elif self._name:
            if self._held:
                self._defaults.pop(self._name, None)
                self._ready.append(self._held.pop())
            self._ready.append(data[start:end])
            if self._in_model:
                self._model += data[start : min(end, start + MOST_MODEL - len(self._model))]

    def _end_part(self) -> None:
        if self._name in self._names:
            self._keep()
        elif self._held:
            self._held.clear()
        elif self._name:
            self._ready.append(b"\r\n")
        self._name = ""

    def _end(self) -> None:
        self._complete = True

    def _keep(self) -> None:
        """Keep an own field, if it is the first of its name."""
        try:
            value = self._value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"{self._name}: the value is not UTF-8") from None  # the cause holds the value
        self._value.clear()
        if self._name in self.own:
            self.repeated.add(self._name)
        self.own.setdefault(self._name, value)

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room >= 0:
            return
        if self._name:
            raise BadRequest(f"{self._name}: the value is longer than {MOST_VALUE} bytes")
        raise BadRequest(f"part {self._part} of the form: its header fields are longer than {MOST_HEAD} bytes")

    def _take_padding(self, piece: bytes) -> None:
        """Bound what the parser would read byte by byte: blanks behind a boundary may go on for ever."""
        self._padding -= len(piece) - len(piece.lstrip(b" \t"))
        if self._padding < 0:
            raise BadRequest(self._unreadable())

    def _unreadable(self) -> str:
        reason = f"a boundary or header line cannot be read, or is longer than {MOST_HEAD} bytes"
        return f"part {max(self._part, 1)} of the form: {reason}"  # the first boundary stands before any part

    def _name_in_head(self) -> str:
        dispositions = [value for field, value in self._head if field.lower() == b"content-disposition"]
        if len(dispositions) != 1:
            raise BadRequest(f"part {self._part} of the form: it needs one Content-Disposition")
        _, parameters = parse_options_header(dispositions[0])
        if not parameters.get(b"name"):
            raise BadRequest(f"part {self._part} of the form: its Content-Disposition has no name")
        return parameters[b"name"].decode("latin-1")  # which loses nothing; it is compared, not shown

    def _rendered(self, head: Pairs) -> bytes:
        lines = (self._delimiter, *(field + b": " + value for field, value in head), b"", b"")
        return b"\r\n".join(lines)


def _boundary(content_type: bytes) -> bytes:
    media_type, parameters = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise BadRequest("Content-Type: it has to be multipart/form-data")
    boundary = parameters.get(b"boundary", b"")
    if not 0 < len(boundary) <= MOST_BOUNDARY:
        raise BadRequest(f"Content-Type: it needs a boundary of 1 to {MOST_BOUNDARY} characters")
    return boundary
