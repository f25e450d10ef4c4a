"""The nouns that pass between the two banks: the exchange as it is known, the call as it goes out, the answer."""

from dataclasses import dataclass
from random import getrandbits
from typing import Protocol

from proxy.errors import Fields, Pairs


def new_id() -> str:
    """Return 32 hexadecimal digits that no other exchange has. They name an exchange; they are no secret."""
    return f"{getrandbits(128):032x}"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer as they pass through: the only mutable record, and it holds no secret.

    `path` is as the client sent it, without its query. `incoming_id` is the client's own `X-Request-Id`.
    """

    id: str
    method: str
    path: str
    incoming_id: str | None = None

    @property
    def ids(self) -> Pairs:
        """The fields by which a client finds this exchange again."""
        ids = [(b"x-proxy-request-id", self.id.encode())]
        if self.incoming_id is not None:
            ids.append((b"x-incoming-request-id", self.incoming_id.encode("latin-1")))
        return ids


class Body(Protocol):
    """A request's body as it comes. `length` is what Content-Length says, None where it comes in chunks."""

    length: int | None

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. May raise what is to end the exchange."""


class Request(Protocol):
    """What of a request decides about its call. Names of fields are in lower case; `target` is as it came."""

    method: str
    headers: Pairs
    fields: Fields

    @property
    def target(self) -> bytes: ...
    @property
    def client_address(self) -> bytes | None: ...
    @property
    def upload(self) -> Body | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds, each for itself (None: no limit).

    `connect` is for DNS, TCP and TLS together, `read` for the head and then for each silence, `write` for each stall
    of an upload, `pool` for the wait for a free connection.
    """

    connect: float | None
    read: float | None
    write: float | None
    pool: float | None


@dataclass(slots=True)
class Call:
    """The complete request for the upstream.

    `target` is path and query as they go on the wire. `headers` are those of the client that may cross, and our
    credentials; framing included, `Host` not. `body` is None where the request has none.
    """

    method: str
    target: bytes
    headers: Pairs
    body: Body | None


# RFC 6455 7.4.1
GOING_AWAY, NO_STATUS, ABNORMAL, BROKEN = 1001, 1005, 1006, 1011
SAYABLE = {NO_STATUS: None, ABNORMAL: BROKEN}


@dataclass(frozen=True, slots=True)
class Close:
    """How one side of a WebSocket ended it: with a code, without one (1005), or without a word (1006)."""

    code: int
    reason: str = ""

    @property
    def sayable(self) -> int | None:
        """The code in which the other side is told of it; None is none."""
        return SAYABLE.get(self.code, self.code)


class Sink(Protocol):
    """Where the pieces of an answer go."""

    def push(self, piece: bytes) -> bool:
        """Take a piece; return False if no more should come before `drain` returns."""

    async def drain(self) -> None:
        """Wait until there is room again."""


class Answer(Protocol):
    """The upstream's response as it streams. Whoever opened it closes it, whatever happened.

    `complete` turns true when its last byte is here. Reading raises what the transport raises.
    """

    status: int
    headers: Pairs
    complete: bool

    async def pour(self, sink: Sink) -> None:
        """Push each piece into the sink the moment that it comes, until the last byte is here."""

    def take(self) -> bytes:
        """Return what is here and has not gone into a sink."""

    async def close(self) -> None:
        """Give the connection back, or close it where the answer was not heard to its end."""
