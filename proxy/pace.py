"""How a thread that works leaves room for the loop's.

It keeps the loop waiting: with the interpreter's lock for up to 5 ms at a time (sys.getswitchinterval), without it,
where the two share a core, for the scheduler's slice of some 3 ms. Both delay the exchanges that come meanwhile. So it
works in slices of a few tenths of a millisecond, and sleeps behind each for twice as long as that took, so that few
exchanges are met by two of them. On a machine that is twice as fast, all of this is half as long.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

LONGEST = 0.0005  # seconds; a slice may have waited for others

T = TypeVar("T")


def in_slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Give the items so many at a time, with a breath behind each slice."""
    for first in range(0, len(items), size):
        began = time.perf_counter()
        yield items[first : first + size]
        time.sleep(min(2 * (time.perf_counter() - began), LONGEST))
