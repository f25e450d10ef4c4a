"""How a thread that works leaves room for the loop's.

It keeps the loop waiting: with the interpreter's lock for up to 5 ms at a time (sys.getswitchinterval), without it,
where the two share a core, for the scheduler's slice of some 3 ms. Both delay the exchanges that come meanwhile. So it
works in slices of a few tenths of a millisecond, and sleeps between them for as long as the loop takes to wake up.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

BREATH = 0.0002  # seconds

T = TypeVar("T")


def in_slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Give the items so many at a time, with a breath behind each slice."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
        time.sleep(BREATH)
