"""Azure OpenAI for clients that speak to OpenAI: where a call's path leads there, and which deployment its model is.

The bytes of a body pass unchanged; only as much of it as names the model is looked at before the call goes on.
"""

import json
import re
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote, unquote_to_bytes

from proxy.errors import BadRequest
from proxy.exchange import Call
from proxy.guard import Budget, share
from proxy.headers import first
from proxy.rewrites.transcriptions import Form
from proxy.settings import Settings
from proxy.spool import Resumed, Spool
from proxy.values import MEGABYTE

# Operations that Azure has below a deployment; all others are the resource's own.
DEPLOYED = frozenset(
    (
        *(b"/chat/completions", b"/completions", b"/embeddings"),
        *(b"/images/generations", b"/images/edits", b"/images/variations"),
        *(b"/audio/transcriptions", b"/audio/translations", b"/audio/speech"),
    )
)
MOST_OF_A_MODEL = 512  # bytes of a name
# Of brackets and strings before it. Each takes 1 to 3 us, and 10 MB of nothing else took 25 s of CPU.
MOST_MARKS = 100_000
MOST_WAITING = 1024 * MEGABYTE  # of bodies whose model has not come yet, on disk


class Reader(Protocol):
    """Looks for the model in a body as it comes; `model` is None until it is found."""

    model: str | None

    def feed(self, piece: bytes) -> None: ...


def placing(settings: Settings) -> "Azure | None":
    """Return what maps calls as the settings want it, None where they go as they are."""
    return Azure(settings) if settings.azure != "off" else None


class Azure:
    """Maps calls for `/v1/...` to Azure's paths, in one of two styles.

    `v1`: everything is found under `/openai/v1/...`. `deployments`: the model's deployment stands in the path, and
    `api-version` in the query, unless the client has put one there.
    """

    def __init__(self, settings: Settings) -> None:
        self._deploys = settings.azure == "deployments"
        self._version = b"api-version=" + quote(settings.azure_version or "").encode()
        self._deployments = dict(settings.azure_deployments)
        self._budget = Budget(share(MOST_WAITING, settings.workers))

    async def place(self, call: Call) -> None:
        """Set the call's target. Raises `BadRequest` where a model is needed and none is found."""
        if not call.target.startswith(b"/v1/"):
            return  # Azure's own already
        if not self._deploys:
            call.target = b"/openai" + call.target
            return
        path, _, query = call.target.removeprefix(b"/v1").partition(b"?")
        if call.method == "POST" and path in DEPLOYED:
            path = b"/deployments/" + self._deployment(await self._model(call)) + path
        if not has_version(query):
            query = query + b"&" + self._version if query else self._version
        call.target = b"/openai" + path + b"?" + query

    def _deployment(self, model: str) -> bytes:
        """Return the deployment of a model; Azure allows no dots in one that bears a model's name."""
        deployment = self._deployments.get(model) or model.replace(".", "")
        if not deployment:
            raise BadRequest("model: it names no deployment on Azure")
        return quote(deployment, safe="").encode()

    async def _model(self, call: Call) -> str:
        """Read the body until its model is known. What was read goes on before the rest."""
        if call.body is None:
            raise BadRequest("model: it is missing, and names the deployment on Azure")
        reader = reader_for(call)
        spool = Spool(self._budget)
        call.release = both(spool.close, call.release)
        while reader.model is None and (piece := await call.body.read()):
            await spool.write(piece)
            reader.feed(piece)
        call.body = Resumed(spool, call.body)
        if not reader.model:
            raise BadRequest("model: it is missing, no string, or too far behind; it names the deployment on Azure")
        return reader.model


def has_version(query: bytes) -> bool:
    """Tell whether a query has an `api-version`, in any spelling that a server could take for it."""
    names = (pair.partition(b"=")[0] for pair in query.split(b"&"))
    return any(unquote_to_bytes(name).lower() == b"api-version" for name in names)


def reader_for(call: Call) -> Reader:
    """Return what finds the model in a body of the call's kind. Raises `BadRequest` where nothing can."""
    if (first(call.headers, b"content-encoding") or b"identity").lower() != b"identity":
        raise BadRequest("Content-Encoding: the model, which names the deployment on Azure, cannot be read through one")
    kind = first(call.headers, b"content-type") or b""
    return InForm(kind) if kind.lower().startswith(b"multipart/") else InObject()


class InForm:
    """Finds the field `model` of a form."""

    def __init__(self, content_type: bytes) -> None:
        self._form = Form(content_type, own=("model",))
        self.model: str | None = None

    def feed(self, piece: bytes) -> None:
        """Look at a piece. Raises `BadRequest`."""
        self._form.feed(piece)
        self.model = self._form.own.get("model")


# What lies below the members of an object, up to the next bracket; a string that is not whole ends it too.
BELOW = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
STRUCTURE = re.compile(rb'["{}\[\],:]')
IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class InObject:
    """Finds the member `model` of a JSON object, at its top alone, in a text that comes in pieces."""

    def __init__(self) -> None:
        self.model: str | None = None
        self._depth = 0
        self._string: bytearray | None = None  # the one that is being read
        self._escaped = False
        self._last = bytearray()  # string at the top
        self._name = ""  # of the member whose value is being read
        self._marks = 0

    def feed(self, piece: bytes) -> None:
        """Look at a piece."""
        at = 0
        while at < len(piece) and self.model is None:
            at = self._outside(piece, at) if self._string is None else self._inside(self._string, piece, at)

    def _outside(self, piece: bytes, at: int) -> int:
        if self._depth > 1 and (below := BELOW.match(piece, at)):
            at = below.end()
        found = STRUCTURE.search(piece, at)
        if found is None:
            return len(piece)
        self._marks += 1
        if self._marks > MOST_MARKS:
            self.model = ""
        match found[0]:
            case b'"':
                self._string = bytearray()
            case b"{" | b"[":
                self._depth += 1
            case b"}" | b"]":
                self._end_member()
                self._depth -= 1
            case b":":
                self._name = _read(self._last)
            case _:
                self._end_member()
        return found.end()

    def _inside(self, string: bytearray, piece: bytes, at: int) -> int:
        start = at + 1 if self._escaped else at
        end = IN_STRING.match(piece, start).end()  # type: ignore[union-attr]  # it may match nothing
        self._escaped = piece[end : end + 1] == b"\\"  # the last of the piece: what it escapes is in the next
        if self._depth == 1:
            room = MOST_OF_A_MODEL + 1 - len(string)
            string += piece[at : min(end + self._escaped, at + room)]
        if piece[end : end + 1] == b'"':
            self._end_string(string)
        return end + 1

    def _end_string(self, string: bytearray) -> None:
        self._string = None
        if self._depth != 1:
            return
        self._last = string
        if self._name == "model":
            self.model = _read(string)

    def _end_member(self) -> None:
        """Note that a model which has ended, or has members of its own, and was no string is none."""
        if self._name == "model":
            self.model = ""
        self._name, self._last = "", bytearray()


def _read(string: bytearray) -> str:
    """Return the text of a string between its quotes, none of one that is too long or is not valid."""
    if len(string) > MOST_OF_A_MODEL:
        return ""
    try:
        text = str(json.loads(f'"{string.decode()}"'))
        text.encode()  # half of a surrogate pair has no bytes that could stand in a path
    except ValueError:
        return ""
    return text


def both(one: Callable[[], None], other: Callable[[], None] | None) -> Callable[[], None]:
    """Return what lets go of two things, or of one where there is no other."""

    def release() -> None:
        one()
        if other is not None:
            other()

    return release
