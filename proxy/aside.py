"""Work on long bodies, beside the loop: the others' exchanges go on meanwhile."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.guard import Budget, Guard

MOST_AT_ONCE = 64 * 1024  # bytes of JSON that the loop's thread reads, in some milliseconds at worst
MOST_ASIDE = 1024  # longer ones that wait for their turn

T = TypeVar("T")


class Aside:
    """Where what takes long with bodies is done: in a thread of its own, one after the other.

    The others' exchanges go on meanwhile, whoever sends such bodies, and however many; `budget` counts their bytes, and
    no more than `most` wait for their turn.
    """

    def __init__(self, budget: Budget, most: int = MOST_ASIDE) -> None:
        self._budget = budget
        self._places = Guard(most, "long bodies")
        self._thread = ThreadPoolExecutor(1, "oxy-json")

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """Do the work on so many bytes and return its result. Raises `Overloaded`, and what the work raises."""
        with self._places:
            self._budget.take(size)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
            finally:
                self._budget.give(size)

    async def do_if_long(self, size: int, work: Callable[[], T]) -> T:
        """Do the work here and now where that takes no longer than to hand it over."""
        return work() if size <= MOST_AT_ONCE else await self.do(size, work)
