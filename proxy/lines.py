"""The logs: on stdout one line per exchange, JSON or text, and on stderr what concerns the process.

A reader that stops reading blocks whoever writes, so that a thread of its own does. Lines wait for it up to a bound;
what comes beyond is dropped and counted, and said in the log as soon as it is read again.
"""

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import TextIO

from proxy.entry import PIPE_BUF, Entry, as_text
from proxy.pace import in_slices
from proxy.values import LogFormat

MOST_WAITING = 10_000  # lines
SLICE = 50  # entries, about 10 us, and as long for who writes them; see `pace`
MOST_NEWS = 1000  # of which some have a traceback
RETRY = 1.0  # seconds after which a stream that could not be written is tried again
LAST_WORDS = 2.0  # seconds for what waits for stderr at the end

log = logging.getLogger("oxy")


class Outlet:
    """Writes lines to a descriptor, in a thread of its own. `dropped` lines did not get into it.

    At most `most` wait; `notice` spells how many a reader has missed.
    """

    def __init__(self, fd: int, *, most: int, notice: Callable[[int], str]) -> None:
        self._fd = fd
        self._most = most
        self._notice = notice
        self._waiting: deque[bytes] = deque()  # both ends may be used from two threads at once, without a lock
        self._some: SimpleQueue[None] = SimpleQueue()  # no Event: a destructor may log while one is being set
        self._closing = threading.Event()
        self._torn = False  # what has gone out last was a part of a line
        self._told = 0
        self._refused = self._lost = 0  # lines: each thread counts up its own
        self._writer = threading.Thread(target=self._work, name="oxy-log", daemon=True)
        self._writer.start()

    def __str__(self) -> str:
        return f"{self.waiting} waiting, {self.dropped} dropped"

    @property
    def waiting(self) -> int:
        """How many lines wait, those not counted that a stuck reader is being given."""
        return len(self._waiting)

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def write(self, lines: Sequence[str]) -> None:
        """Take these lines, as many as there is room for. One thread at a time may do so."""
        room = max(0, self._most - len(self._waiting))
        self._waiting.extend(line.encode("utf-8", "backslashreplace") + b"\n" for line in lines[:room])
        self._refused += len(lines[room:])
        if lines and self._some.empty():
            self._some.put(None)

    def close(self, patience: float) -> None:
        """Write what waits; a stream that takes no more within so many seconds is left alone."""
        self._closing.set()
        self._some.put(None)
        self._writer.join(patience)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._some.get()
            self._drain()
        self._drain()  # what came between its last look and the word to close

    def _drain(self) -> None:
        while self._waiting:
            torn = self._torn
            missing = 0 if torn else self.dropped - self._told
            piece = b"\n" if torn else self._notice(missing).encode() + b"\n" if missing else self._next_piece()
            gone = self._put(piece)
            if gone:
                self._torn = piece[gone - 1 : gone] != b"\n"
            if gone == len(piece):
                self._told += missing
                continue
            if not (torn or missing):
                self._lost += piece.count(b"\n", gone)
            if self._closing.wait(RETRY):
                return

    def _next_piece(self) -> bytes:
        """Return as many whole lines as Linux's pipes take in one piece: so those of several workers do not mix."""
        piece = self._waiting.popleft()
        while self._waiting and len(piece) + len(self._waiting[0]) <= PIPE_BUF:
            piece += self._waiting.popleft()
        return piece

    def _put(self, piece: bytes) -> int:
        """Return how many bytes of it went out: not all where the reader is gone, or the disk is full."""
        # Straight to the descriptor: `sys.stdout` has a lock, and a thread that is stuck with it stops the exit.
        gone = 0
        while gone < len(piece):
            try:
                gone += os.write(self._fd, piece[gone:])
            except BlockingIOError:  # whoever shares the pipe has made it so
                select.select([], [self._fd], [])
            except OSError:
                break
        return gone


class Lines:
    """A book that is a stream of lines. `dropped` lines did not get into it."""

    name = "log"

    def __init__(self, fd: int, log_format: LogFormat, *, colour: bool = False) -> None:
        self._format: LogFormat = log_format
        self._colour = colour
        self._outlet = Outlet(fd, most=MOST_WAITING, notice=self._notice)

    def __repr__(self) -> str:
        return f"<Lines {self._outlet}>"

    @property
    def dropped(self) -> int:
        return self._outlet.dropped

    def write(self, entries: Sequence[Entry]) -> None:
        """Take these entries, as many as there is room for."""
        for some in in_slices(entries, SLICE):
            self._outlet.write([self._line(entry) for entry in some])

    def close(self, patience: float) -> None:
        """Write what waits; a stream that takes no more within so many seconds is left alone, and that is said."""
        self._outlet.close(patience)
        if missing := self._outlet.waiting:
            log.warning("the log on stdout lacks its last lines, at least %s", missing)

    def _line(self, entry: Entry) -> str:
        return entry.json if self._format == "json" else as_text(entry.facts, colour=self._colour)

    def _notice(self, missing: int) -> str:
        return f'{{"dropped_log_entries":{missing}}}' if self._format == "json" else f"{missing} log entries dropped"


class News(logging.Handler):
    """Writes records to a stream that has a descriptor. Whoever logs waits for no reader."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._outlet = Outlet(stream.fileno(), most=MOST_NEWS, notice=self._notice)

    def __repr__(self) -> str:
        return f"<News {self._outlet}>"

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, if there is room for it."""
        if self._stream.closed:  # its number may be another's by now
            return
        try:
            self._outlet.write([self.format(record)])
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, within a bound. `logging` calls this at the end of the process."""
        self._outlet.close(LAST_WORDS)
        super().close()

    def _notice(self, missing: int) -> str:
        words = f"{missing} lines of this log were dropped"
        return self.format(logging.makeLogRecord({"levelname": "WARNING", "msg": words}))


def log_lines(stream: TextIO | None, log_format: LogFormat, environ: Mapping[str, str]) -> Lines | None:
    """Return the book for a stream; text is coloured on a terminal, unless NO_COLOR is set (no-color.org).

    None where standard output is closed, or is none of the system's: nobody reads it, and nobody misses a line.
    """
    if stream is None:
        return None
    try:
        fd = stream.fileno()
    except OSError:
        return None
    return Lines(fd, log_format, colour=stream.isatty() and not environ.get("NO_COLOR"))
