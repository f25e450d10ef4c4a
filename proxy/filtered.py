"""An answer whose bytes change on their way. What it is depends on who changes them: see `veil` and `include_usage`."""

from proxy.errors import Pairs
from proxy.exchange import Answer, Sink


class Filtered:
    """Stands between an answer and the sink that it is poured into; `headers` are those that the changed one has.

    To the answer beneath it is a sink. Whoever inherits says in `filtered` what goes on of what came, and what is kept
    until more has come, or until the end, after which nothing comes any more.
    """

    def __init__(self, answer: Answer, headers: Pairs) -> None:
        self.status = answer.status
        self.headers = headers
        self._answer = answer
        self._sink: Sink

    def filtered(self, piece: bytes, *, last: bool) -> bytes:
        """Return what goes on now."""
        raise NotImplementedError  # pragma: no cover  each that inherits has its own

    # What an answer can

    @property
    def complete(self) -> bool:
        """Whether its last byte is here."""
        return self._answer.complete

    async def pour(self, sink: Sink) -> None:
        """Push what goes on into the sink as it comes."""
        self._sink = sink
        await self._answer.pour(self)

    def take(self) -> bytes:
        """Return what is here and has not gone into a sink."""
        return self.filtered(self._answer.take(), last=True)

    async def close(self) -> None:
        """Close the answer beneath."""
        await self._answer.close()

    # What a sink can

    def push(self, piece: bytes) -> bool:
        """Pass on what goes on of a piece; return whether there is room for more."""
        return self._sink.push(self.filtered(piece, last=False))

    async def drain(self) -> None:
        """Wait until there is room again."""
        await self._sink.drain()
