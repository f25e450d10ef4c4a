"""A body that waits: in memory as far as it is short, on disk beyond."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, TypeVar

from proxy.errors import Overloaded
from proxy.exchange import Body
from proxy.guard import Budget

IN_MEMORY = 1024 * 1024

T = TypeVar("T")


class Spool:
    """Takes a body, and gives it back once. Whoever made it closes it.

    What is written to disk and read from it passes in pieces of `IN_MEMORY` bytes, in a thread, so that a slow disk
    holds nobody else up. `length` is how much was taken, and what `budget` counts until it is closed.
    """

    def __init__(self, budget: Budget) -> None:
        self.length = 0
        self._budget = budget
        self._file: IO[bytes] | None = None
        self._held: list[bytes] = []
        self._holding = 0
        self._rewound = False
        self._at_work = Lock()  # held by the thread that has the file

    async def write(self, piece: bytes) -> None:
        """Take a piece. Raises `Overloaded` where there is no room for it, be it on the disk."""
        self._budget.take(len(piece))
        self._held.append(piece)
        self._holding += len(piece)
        self.length += len(piece)
        if self._holding > IN_MEMORY:
            await self._flush()

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end; nothing may be written any more. Raises as `write` does."""
        if self._file is not None:
            if not self._rewound:
                self._rewound = True
                await self._flush()
                await self._aside(self._file.seek, 0)
            return await self._aside(self._file.read, IN_MEMORY)
        content, self._held = b"".join(self._held), []
        return content

    def close(self) -> None:
        """Let it all go. Where a thread is still at it, another waits for that one, and the loop does not."""
        self._budget.give(self.length)
        self.length = 0
        self._held = []
        if self._file is None:
            return
        if self._at_work.locked():
            asyncio.get_running_loop().run_in_executor(None, self._alone, close, self._file)
        else:
            close(self._file)

    async def _aside(self, work: Callable[..., T], *given: object) -> T:
        with on_disk():
            return await asyncio.to_thread(self._alone, work, *given)

    def _alone(self, work: Callable[..., T], *given: object) -> T:
        with self._at_work:
            return work(*given)

    async def _flush(self) -> None:
        content, self._held, self._holding = b"".join(self._held), [], 0
        if self._file is None:
            # Not in a thread: if the client hung up meanwhile, a file that is made there would be nobody's to close.
            with on_disk():
                self._file = TemporaryFile()  # noqa: SIM115  `close` closes it
        await self._aside(self._file.write, content)


@contextmanager
def on_disk() -> Iterator[None]:
    """Raise `Overloaded` where the disk does not do what it is asked for inside; the log gets its reason."""
    try:
        yield
    except OSError as problem:
        full = Overloaded("What has to wait for its key cannot be kept on the proxy's disk: show the key in a header")
        full.detail = str(problem)
        raise full from problem


def close(file: IO[bytes]) -> None:
    """Close a file. What a full disk did not take is written once more, and nobody wants it."""
    with suppress(OSError):
        file.close()


class Resumed:
    """A body whose beginning waits in a spool. Its length is that of the whole, where the rest knows it."""

    def __init__(self, begun: Spool, rest: Body) -> None:
        self.length = rest.length
        self._begun: Spool | None = begun
        self._rest = rest

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        if self._begun is not None:
            if piece := await self._begun.read():
                return piece
            self._begun = None
        return await self._rest.read()
