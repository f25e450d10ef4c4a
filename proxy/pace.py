"""How a thread that works leaves room for the loop's.

It keeps the loop waiting: with the interpreter's lock for up to 5 ms at a time (sys.getswitchinterval), without it,
where the two share a core, for the scheduler's slice of some 3 ms. Both delay the exchanges that come meanwhile. So it
works in slices of some 50 us, and begins each when the loop has just sent a call and waits for the answer (`Gaps`):
that takes as long at least, in most cases, and then the slice has met nobody.

Where the process has no rest at all, whoever comes waits for others in any case. There a slice is longer, with a sleep
behind it: to change to the other thread and back costs as much as half of a short one.
"""

import time
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TypeVar

LONGEST = 0.0005  # seconds to wait for a gap
BREATH = 0.0005  # seconds at most behind a longer slice, which may have waited for others
LONGER = 8
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


class Gaps:
    """Moments in which the loop begins to wait. `wanted` is whether a thread waits for one."""

    def __init__(self) -> None:
        self.wanted = False
        self._come = True  # whether one came when it was waited for last
        self._gate = Lock()
        self._gate.acquire()

    def begin(self) -> None:
        """Let a thread that waits go on. Called by the loop's thread alone, of which a process has one."""
        self.wanted = False
        if self._gate.locked():
            self._gate.release()

    def wait(self, worked: float) -> None:
        """Wait for the next one, half a millisecond at most; where none came of late, twice as long as was worked.

        One that began a moment too late for another counts.
        """
        self.wanted = True
        self._come = self._gate.acquire(timeout=LONGEST if self._come else min(2 * worked, LONGEST))
        self.wanted = False


gaps = Gaps()
_load = Load()


def in_slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Give the items so many at a time, each slice in a gap; or eight times as many, see above."""
    first, worked = 0, 0.0
    while first < len(items):
        full = _load.is_full(time.perf_counter())
        if not full:
            gaps.wait(worked)
        began, end = time.perf_counter(), first + size * (LONGER if full else 1)
        yield items[first:end]
        first, worked = end, time.perf_counter() - began
        if full:
            time.sleep(min(2 * worked, BREATH))
