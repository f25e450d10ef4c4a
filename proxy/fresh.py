"""An answer that is good for a while: asked for once, however many want it."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """Asks when its answer is older than so many seconds; whoever wants it meanwhile waits for the same one.

    What `ask` raises, everybody hears who waits for it; the next one asks anew. So does who comes when it has been
    asked for `patience` seconds without an answer.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float, *, patience: float = math.inf) -> None:
        self._ask = ask
        self._seconds = seconds
        self._patience = patience
        self._since = 0.0  # when it was asked for last
        self._asking: asyncio.Task[T] | None = None
        self._answer: tuple[float, T] | None = None

    async def __call__(self) -> T:
        """Return the answer."""
        now = time.monotonic()
        if self._answer is not None and now - self._answer[0] < self._seconds:
            return self._answer[1]
        if self._asking is None or now - self._since >= self._patience:
            self._since = now
            self._asking = asyncio.create_task(self._renew())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)  # one who hangs up leaves it to the others

    async def _renew(self) -> T:
        answer = await self._ask()
        self._answer = (time.monotonic(), answer)
        return answer

    def _asked(self, task: asyncio.Task[T]) -> None:
        if task is self._asking:
            self._asking = None
        if not task.cancelled():
            task.exception()  # heard, even if all who waited for it have gone
