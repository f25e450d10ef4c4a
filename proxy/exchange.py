"""The nouns that pass between the two banks: the exchange as it is known, the call as it goes out, the answer."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import getrandbits
from typing import Literal, Protocol

from proxy.errors import Failure, Fields, Pairs, Result
from proxy.heads import Head, Shaped
from proxy.usage import Usage

TimeoutSource = Literal["default", "provided", "invalid", "clamped"]
IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))  # RFC 9110 9.2.2
LONGEST_ID = 512  # bytes of an id that a client gives; OpenAI takes no longer one


def new_id() -> str:
    """Return 32 hexadecimal digits that no other exchange has. They name an exchange; they are no secret."""
    return f"{getrandbits(128):032x}"


class Heard(Protocol):
    """What was heard of an answer and not looked into yet: `size` bytes."""

    @property
    def size(self) -> int: ...

    def told(self) -> tuple[Usage | None, str | None]:
        """Return usage and model as far as they are certain; asked once."""

    def failed(self) -> bool:
        """Tell whether the upstream's last word in a stream was that it failed."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer as they pass through: the only mutable record, and it holds no secret.

    Once it is entered in the ledger nobody but that changes it any more. Times are seconds, but for `began`, the time
    of day.

      route           the name of the route, never a path
      path            as the client sent it, without its query
      incoming_id     the client's own `X-Request-Id`
      status          of the answer, 499 where nobody was left to hear one
      result          the one word for how it ended; what nobody has judged is a fault of ours
      model           that of the answer; `asked` is that which a convenience route was asked for
      first_byte      from `began` until the head of the upstream's answer went to the client
      first_chunk     the same for the first piece of a body that did not come with the head
      client_wait     for what had to be read of the client's body before the call could go out
      upstream_wait   from the call going out until the upstream's head, or its end where the answer is read whole
      timeout         in force for the head and for each silence; `timeout_source` is where it comes from
      timed_out       what took too long, where something did: "connect", "head", "idle"
      failure, detail what went wrong, in words for the client and in words for the operator
      key             the name of the client key, never the key
      heard           where the ledger is to look for usage and model; it lets go of it then
      usage_added     true where the proxy asked for the usage, and kept it from the client
      messages_in, messages_out, close_code    of a WebSocket: what came from the client, went to it, and ended it
    """

    id: str
    method: str
    path: str
    incoming_id: str | None = None
    route: str = "relay"
    began: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.perf_counter)
    status: int | None = None
    result: Result = "internal_error"
    timeout: float | None = None
    timeout_source: TimeoutSource = "default"
    timed_out: str | None = None
    stream: bool = False
    model: str | None = None
    asked: str | None = None
    first_byte: float | None = None
    first_chunk: float | None = None
    duration: float = 0.0
    client_wait: float | None = None
    upstream_wait: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    upstream_id: str | None = None
    usage: Usage | None = None
    heard: Heard | None = None
    retries: int = 0
    overloaded: bool = False
    cancelled: bool = False
    failure: str | None = None
    detail: str | None = None
    key: str | None = None
    messages_in: int | None = None
    messages_out: int | None = None
    close_code: int | None = None
    usage_added: bool | None = None

    def elapsed(self) -> float:
        """Return how long it has been going on."""
        return time.perf_counter() - self.clock

    @property
    def named(self) -> str | None:
        """The model to show; totals and metrics know none but the answer's, for a client may write any name."""
        return self.model or self.asked

    @property
    def answered(self) -> bool:
        """Whether the upstream's answer has begun; what is read whole begins long before the client hears of it."""
        return self.upstream_wait is not None

    @property
    def overhead(self) -> float | None:
        """What of the time until the first byte was the proxy's own; None where there is nothing to tell it by."""
        if self.first_byte is None or self.upstream_wait is None:
            return None
        return max(0.0, self.first_byte - (self.client_wait or 0.0) - self.upstream_wait)

    @property
    def ids(self) -> Pairs:
        """The fields by which a client finds this exchange again."""
        ids = [(b"x-proxy-request-id", self.id.encode())]
        if self.incoming_id is not None:
            ids.append((b"x-incoming-request-id", self.incoming_id.encode("latin-1")))
        return ids


def as_answer(failure: Failure, exchange: Exchange) -> tuple[Pairs, bytes]:
    """Return the fields and the body of the answer that tells a client of a failure.

    SDKs show what stands in `x-request-id`; in an answer of our own that is our id.
    """
    body = failure.body(request_id=exchange.id, incoming_id=exchange.incoming_id)
    content = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return [*content, *failure.headers, *exchange.ids, (b"x-request-id", exchange.id.encode())], body


class Body(Protocol):
    """A request's body as it comes. `length` is what Content-Length says, None where it comes in chunks."""

    @property
    def length(self) -> int | None: ...

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. May raise what is to end the exchange."""


class Request(Protocol):
    """What of a request decides about its call. Names of fields are in lower case; `target` is as it came.

    `head` is there where it may be remembered what was made of it.
    """

    method: str
    headers: Pairs
    fields: Fields

    @property
    def head(self) -> Head | None: ...
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


Retell = Callable[[bytes, bytes], Awaitable[bytes]]


@dataclass(slots=True)
class Call:
    """The complete request for the upstream.

    `target` is path and query as they go on the wire. `headers` are those of the client that may cross, and our
    credentials; framing included, `Host` not. `body` is None where the request has none. `timeout` takes the place of
    the setting. `retell` makes another body of that of a successful answer, which is read whole for it, and of its
    coding. `release` lets go of what is kept for the body; whoever has the call calls it when the exchange is over. An
    `idempotent` one may go out again where it came to nothing. `shaped` is what it was made of, as long as nothing but
    its length is its own: whoever changes target or headers takes that away.
    """

    method: str
    target: bytes
    headers: Pairs
    body: Body | None
    timeout: float | None = None
    retell: Retell | None = None
    release: Callable[[], None] | None = None
    idempotent: bool = False
    shaped: Shaped | None = None


# RFC 6455 7.4.1
GOING_AWAY, NO_STATUS, ABNORMAL, BROKEN = 1001, 1005, 1006, 1011
SAYABLE = {NO_STATUS: None, ABNORMAL: BROKEN}


@dataclass(frozen=True, slots=True)
class Close:
    """How one side of a WebSocket ended it: with a code, without one (1005), or without a word (1006)."""

    code: int
    reason: str = ""

    @property
    def said(self) -> bool:
        """Whether there was a word."""
        return self.code != ABNORMAL

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

    @property
    def complete(self) -> bool: ...

    async def pour(self, sink: Sink) -> None:
        """Push each piece into the sink the moment that it comes, until the last byte is here."""

    def take(self) -> bytes:
        """Return what is here and has not gone into a sink."""

    async def close(self) -> None:
        """Give the connection back, or close it where the answer was not heard to its end."""
