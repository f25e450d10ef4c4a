"""A tally that several processes keep together, in memory that all of them see, so that one bound holds for them all.

Each process writes into a row of its own and nowhere else, so that nobody waits for a lock; how many there are in all
is the sum of a column. A row whose process has died is struck out by whoever takes it, or would refuse somebody for it.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "OXY_TALLY"  # tells workers, which are processes of their own, where it is
MEMORY = Path("/dev/shm")  # noqa: S108  a write to a file on a disk may have to wait for the disk
ROWS = 1024  # four times the most workers: those that are replaced finish what they have

OWNERS, IN_FLIGHT, MOST, RELAYED, SHAPED = COLUMNS = range(5)
COUNTS = (IN_FLIGHT, RELAYED, SHAPED)  # these end with their process
CELL = 8  # bytes
SIZE = CELL * (1 + len(COLUMNS) * ROWS)  # the first cell says how many rows have ever been in use


@contextmanager
def laid_out(folder: Path) -> Iterator[None]:
    """Have a tally for the processes that are started meanwhile; in this folder where there is no better place.

    Where there is no place at all they have none, and do without.
    """
    file = next(filter(begun, (place(folder), folder / "tally")), None)
    if file is not None:
        os.environ[VARIABLE] = str(file)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if file is not None:
            file.unlink(missing_ok=True)


def place(folder: Path) -> Path:
    """Return the best place for the tally of a workspace, named after it: who removes the one finds the other."""
    return MEMORY / f"{folder.name}-tally"


def begun(file: Path) -> bool:
    """Begin a tally in this file, and tell whether there was room for all of it: later, lack of it would kill."""
    try:
        file.touch(0o600, exist_ok=False)
        file.write_bytes(bytes(SIZE))
    except OSError:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        return False
    return True


class Tally:
    """The tally as one process sees it, which has a row in it."""

    def __init__(self, file: Path) -> None:
        """Take a row. Raises `OSError` where there is no such file."""
        self._gate = os.open(file, os.O_RDWR)  # for as long as the process lives
        cells = memoryview(mmap.mmap(self._gate, SIZE)).cast("q")
        self.rows, cells = cells[:1], cells[1:]
        self._columns = [cells[column * ROWS : (column + 1) * ROWS] for column in COLUMNS]
        owners = self._columns[OWNERS]
        with self._alone():
            self._strike_out()
            self.row = owners.tolist().index(0)
            owners[self.row] = os.getpid()
            self.rows[0] = max(self.rows[0], self.row + 1)

    def __repr__(self) -> str:
        return f"<Tally row {self.row} of {self.rows[0]}>"

    def column(self, number: int) -> "Column":
        """Return one of its columns."""
        return Column(self, self._columns[number])

    def strike_out_the_dead(self) -> None:
        """Let nothing be counted that dead processes had, unless another is just at that."""
        with suppress(BlockingIOError), self._alone(wait=False):
            self._strike_out()

    def _strike_out(self) -> None:
        for row, owner in enumerate(self._columns[OWNERS][: self.rows[0]]):
            if owner and not lives(owner):
                for column in (OWNERS, *COUNTS):
                    self._columns[column][row] = 0

    @contextmanager
    def _alone(self, *, wait: bool = True) -> Iterator[None]:
        """Be the only one who gives rows away. Raises `BlockingIOError` where it is not to wait for another."""
        import fcntl  # which Windows has not

        fcntl.flock(self._gate, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)


class Column:
    """One number of each process."""

    __slots__ = ("_cells", "_row", "_rows", "_tally")

    def __init__(self, tally: Tally, cells: memoryview) -> None:
        self._tally = tally
        self._cells = cells
        self._row, self._rows = tally.row, tally.rows

    @property
    def own(self) -> int:
        """Our own number."""
        return self._cells[self._row]

    def put(self, number: int) -> None:
        """Write our own number."""
        self._cells[self._row] = number

    def total(self) -> int:
        """Return the sum of all."""
        return sum(self._cells[: self._rows[0]])

    def greatest(self) -> int:
        """Return the greatest of all, of processes that are gone too."""
        return max(self._cells[: self._rows[0]])

    def total_of_the_living(self) -> int:
        """Return the sum of all, less what dead processes have left behind. Takes some calls of the system."""
        self._tally.strike_out_the_dead()
        return self.total()


def lives(pid: int) -> bool:
    """Tell whether there is a process of that number, which is ours."""
    if os.name == "nt":  # pragma: no cover  there, the question ends the process that it is asked of
        return True
    try:
        os.kill(pid, 0)  # asks whether there is such a process
    except OSError:  # or it is somebody else's
        return False
    return True
