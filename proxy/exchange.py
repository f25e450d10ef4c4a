"""The nouns that pass between the two banks: the exchange as it is known, the call as it goes out, the answer."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from random import getrandbits
from typing import Protocol

from proxy.errors import Pairs


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The complete request for the upstream.

    `target` is path and query as they go on the wire. `headers` are those of the client that may cross, and our
    credentials; framing included, `Host` not. `body` is None where the request has none.
    """

    method: str
    target: bytes
    headers: Pairs
    body: AsyncIterable[bytes] | None


class Answer(Protocol):
    """The upstream's response as it streams. `close()` must be awaited, whatever happened."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Pairs: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def close(self) -> None: ...
