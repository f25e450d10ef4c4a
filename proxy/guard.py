"""What is under way at once, and bounds on it: whoever finds no slot, or no room, is refused, and nobody queues."""

from proxy.errors import Overloaded


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


class Guard:
    """`limit` exchanges at once. `busy` is how many there are."""

    __slots__ = ("busy", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0

    def check(self) -> None:
        """Raise `Overloaded` if there is no slot to be had."""
        if self.busy >= self.limit:
            raise Overloaded(f"{self.limit} exchanges are under way already; try again in a moment")

    def __enter__(self) -> None:
        """Take a slot. Raises `Overloaded` if there is none."""
        self.check()
        self.busy += 1

    def __exit__(self, *_: object) -> None:
        """Give the slot back."""
        self.busy -= 1

    def __repr__(self) -> str:
        return f"<Guard {self.busy}/{self.limit}>"


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


def share(total: int, workers: int) -> int:
    """Return how much of a bound one of several processes has, so that all together stay within it."""
    return max(1, total // workers)
