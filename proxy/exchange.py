"""The nouns that pass between the two banks: the exchange as it is known, the call as it goes out, the answer."""

from collections.abc import Callable
from dataclasses import dataclass
from random import getrandbits
from typing import Literal, Protocol

from proxy.errors import Pairs

TimeoutSource = Literal["default", "provided", "invalid", "clamped"]


def new_id() -> str:
    """Return 32 hexadecimal digits that no other exchange has. They name an exchange; they are no secret."""
    return f"{getrandbits(128):032x}"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer as they pass through: the only mutable record, and it holds no secret.

    `path` is as the client sent it, without its query. `incoming_id` is the client's own `X-Request-Id`. `timeout` is
    how many seconds the upstream has for the head and for each silence, None where it is the setting.
    """

    id: str
    method: str
    path: str
    incoming_id: str | None = None
    route: str = "relay"
    timeout: float | None = None
    timeout_source: TimeoutSource = "default"
    retries: int = 0


class Body(Protocol):
    """A request's body as it comes. `length` is what Content-Length says, None where it comes in chunks."""

    @property
    def length(self) -> int | None: ...

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. May raise what is to end the exchange."""


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
    credentials; framing included, `Host` not. `body` is None where the request has none. `timeout` takes the place of
    the setting. `retell` makes another body of that of a successful answer, which is read whole for it. `release` lets
    go of what is kept for the body; whoever has the call calls it when the exchange is over. An `idempotent` one may
    go out again where it came to nothing; its body can be read again.
    """

    method: str
    target: bytes
    headers: Pairs
    body: Body | None
    timeout: float | None = None
    retell: Callable[[bytes], bytes] | None = None
    release: Callable[[], None] | None = None
    idempotent: bool = False


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

    @property
    def complete(self) -> bool: ...

    async def pour(self, sink: Sink) -> None:
        """Push each piece into the sink the moment that it comes, until the last byte is here."""

    def take(self) -> bytes:
        """Return what is here and has not gone into a sink."""

    async def close(self) -> None:
        """Give the connection back, or close it where the answer was not heard to its end."""
