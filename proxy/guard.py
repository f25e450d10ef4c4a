"""What is under way at once, and bounds on it: whoever finds no slot, or no room, is refused, and nobody queues."""

from threading import Lock

from proxy.errors import Overloaded
from proxy.tally import Column

# A memory barrier, which taking a lock is: else a processor may read others' rows before its own write is seen.
IN_ORDER = Lock()


class Traffic:
    """Exchanges in flight, those that have begun and not ended: `now`, and the `most` that there were at once."""

    __slots__ = ("most", "now")

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def enter(self) -> None:
        """Count one that begins."""
        self.now += 1
        if self.now > self.most:
            self.most = self.now

    def leave(self) -> None:
        """Count one that has ended."""
        self.now -= 1

    def __repr__(self) -> str:
        return f"<Traffic {self.now}, at most {self.most}>"


class SharedTraffic:
    """The same of several processes: `now` is how many there are in this one, `most` how many there were in all."""

    __slots__ = ("_counted", "_highest", "_marks", "now")

    def __init__(self, counted: Column, marks: Column) -> None:
        self._counted = counted
        self._marks = marks
        self._highest = marks.own  # whoever had the row before may have seen more
        self.now = 0

    @property
    def most(self) -> int:
        """The most of which any of them knows."""
        return self._marks.greatest()

    def enter(self) -> None:
        """Count one that begins."""
        self.now += 1
        self._counted.put(self.now)
        if (total := self._counted.total()) > self._highest:
            self._highest = total
            self._marks.put(total)

    def leave(self) -> None:
        """Count one that has ended."""
        self.now -= 1
        self._counted.put(self.now)

    def __repr__(self) -> str:
        return f"<SharedTraffic {self.now}, at most {self.most}>"


class Guard:
    """`limit` of something at once, exchanges if it is not named. `busy` is how many there are."""

    __slots__ = ("_name", "busy", "limit")

    def __init__(self, limit: int, name: str = "exchanges") -> None:
        self.limit = limit
        self.busy = 0
        self._name = name

    def check(self) -> None:
        """Raise `Overloaded` if there is no slot to be had."""
        if self.busy >= self.limit:
            raise full(self.limit, self._name)

    def __enter__(self) -> None:
        """Take a slot. Raises `Overloaded` if there is none."""
        self.check()
        self.busy += 1

    def __exit__(self, *_: object) -> None:
        """Give the slot back."""
        self.busy -= 1

    def __repr__(self) -> str:
        return f"<Guard {self.busy}/{self.limit}>"


class SharedGuard:
    """`limit` exchanges at once in several processes together. `busy` is how many there are in this one."""

    __slots__ = ("_counted", "busy", "limit")

    def __init__(self, limit: int, counted: Column) -> None:
        self.limit = limit
        self.busy = 0
        self._counted = counted

    def check(self) -> None:
        """Raise `Overloaded` if there is no slot to be had."""
        if self._counted.total() >= self.limit and self._counted.total_of_the_living() >= self.limit:
            raise full(self.limit)

    def __enter__(self) -> None:
        """Take a slot. Raises `Overloaded` if there is none.

        It is taken first, and given back where there was none: of two that take the last one at once both may be
        refused, but never are both let in.
        """
        self.busy += 1
        self._counted.put(self.busy)
        with IN_ORDER:
            pass
        if self._counted.total() > self.limit and self._counted.total_of_the_living() > self.limit:
            self.__exit__()
            raise full(self.limit)

    def __exit__(self, *_: object) -> None:
        """Give the slot back."""
        self.busy -= 1
        self._counted.put(self.busy)

    def __repr__(self) -> str:
        return f"<SharedGuard {self.busy} of {self._counted.total()}/{self.limit}>"


AnyTraffic = Traffic | SharedTraffic
AnyGuard = Guard | SharedGuard


class Budget:
    """`limit` bytes that may be held at once, for all requests together."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Hold so many bytes more. Raises `Overloaded` if that is more than there may be."""
        if self.held + size > self.limit:
            raise Overloaded("Too much is being uploaded at once; try again in a moment")
        self.held += size

    def give(self, size: int) -> None:
        """Hold so many bytes less."""
        self.held -= size

    def __repr__(self) -> str:
        return f"<Budget {self.held}/{self.limit}>"


def full(limit: int, name: str = "exchanges") -> Overloaded:
    """Return what to raise where no slot is free."""
    return Overloaded(f"{limit} {name} are under way already; try again in a moment")


def share(total: int, workers: int) -> int:
    """Return how much of a bound one of several processes has, so that all together stay within it."""
    return max(1, total // workers)
