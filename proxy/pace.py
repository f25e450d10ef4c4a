"""How a thread that works leaves room for the loop's.

It keeps the loop waiting: with the interpreter's lock for up to 5 ms at a time (sys.getswitchinterval), without it,
where the two share a core, for the scheduler's slice of some 3 ms. Both delay the exchanges that come meanwhile. So it
works in slices of a few tenths of a millisecond, and sleeps behind each for twice as long as that took, so that few
exchanges are met by two of them. On a machine that is twice as fast, all of this is half as long.

Where the process has no rest at all, whoever comes waits for others in any case. There a slice is longer: to change to
the other thread and back costs as much as a third of a short one.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

LONGEST = 0.0005  # seconds; a slice may have waited for others
LONGER = 4
FULL = 0.97  # of a core
WINDOW = 0.1  # seconds

T = TypeVar("T")


class Load:
    """Whether the process takes a whole core, looked at now and then."""

    def __init__(self) -> None:
        self._since = self._spent = 0.0
        self._full = False

    def is_full(self, now: float) -> bool:
        """Tell whether it did of late; `now` is that of `time.perf_counter`."""
        if now - self._since >= WINDOW:
            spent = time.process_time()
            self._full = spent - self._spent >= FULL * (now - self._since)
            self._since, self._spent = now, spent
        return self._full


_load = Load()


def in_slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Give the items so many at a time, or four times as many, see above, with a breath behind each slice."""
    first = 0
    while first < len(items):
        began = time.perf_counter()
        end = first + size * (LONGER if _load.is_full(began) else 1)
        yield items[first:end]
        first = end
        time.sleep(min(2 * (time.perf_counter() - began), LONGEST))
