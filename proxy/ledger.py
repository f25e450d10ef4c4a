"""The ledger: one entry per exchange, written into every book by a thread of its own.

An exchange is entered by putting it into a queue, and that is all that it pays for. Everything else happens in the
clerk's thread, in batches: looking into what was heard of an answer, choosing the facts, rendering, metrics, history. A
book that cannot be written costs entries, which are counted, and never an exchange.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from proxy.entry import Book, Entry, Redact, entries
from proxy.exchange import Exchange, Heard
from proxy.pace import in_slices

BATCH = 500  # entries
PAUSE = 0.2  # seconds in which a batch gathers
TICK = 1.0  # seconds after which the books hear that nothing happened
MOST_WAITING = 10_000  # entries
MOST_HEARD = 4 * 1024 * 1024  # bytes of answers that wait with them; what is more is looked into at once
PATIENCE = 5.0  # seconds for the last entries, on a machine that has no time
MOMENT = 0.5  # seconds more, in which a book says what it lacks
TOLD_AT_ONCE, SPELLED_AT_ONCE = 8, 12  # entries, about 50 us; see `pace`

FAILED = "The upstream ended its stream with an error"

log = logging.getLogger("oxy")


class Ledger:
    """Takes exchanges from the loop's thread and gives their entries to the books. `dropped` were not taken."""

    def __init__(self, books: Sequence[Book], redact: Redact) -> None:
        self._books = books
        self._redact = redact
        self._waiting: deque[Exchange] = deque()  # both ends may be used from two threads at once, without a lock
        self._some, self._enough, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._clerk = threading.Thread(target=self._work, name="oxy-ledger", daemon=True)
        self._complained: set[str] = set()
        self._told = 0
        self._at_hand = 0  # entries that are no longer waiting and not yet in every book
        self._give_up = math.inf
        self._taken = self._looked_into = 0  # bytes of what was heard: each thread counts up its own
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Ledger {len(self._waiting)} waiting, {self.dropped} dropped>"

    def losses(self) -> dict[str, int]:
        """Return how many entries did not get into the ledger and into each of its books."""
        return {"ledger": self.dropped, **{book.name: book.dropped for book in self._books}}

    def start(self) -> None:
        """Let the clerk begin; before that, entries only wait."""
        self._clerk.start()

    def enter(self, exchange: Exchange) -> None:
        """Take an exchange that is settled. Nobody else is to change it any more."""
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        if exchange.heard is not None:
            if self._taken - self._looked_into > MOST_HEARD:
                self._look_into(exchange, exchange.heard)
            else:
                self._taken += exchange.heard.size
        self._waiting.append(exchange)
        waiting = len(self._waiting)  # counted after it: else the clerk could go to sleep in between
        if waiting == 1:
            self._some.set()
        elif waiting == BATCH:
            self._enough.set()

    def close(self, patience: float = PATIENCE) -> None:
        """Write what waits, within so many seconds; what a stuck book did not take by then is lost, and said to be."""
        self._give_up = time.monotonic() + patience
        self._closing.set()
        self._some.set()
        self._enough.set()
        if self._clerk.ident is not None:
            self._clerk.join(patience + MOMENT)
        if missing := len(self._waiting) + self._at_hand:
            log.warning("there was no time to write down the last %s exchanges", missing)

    def _work(self) -> None:
        self._write_down()  # so that whoever reads a book finds one, be it empty
        while not self._closing.is_set():
            if self._waiting or self._some.wait(TICK):
                self._enough.wait(PAUSE)
            self._some.clear()
            self._enough.clear()
            self._write_down()
        self._write_down()
        for book in self._books:
            with self._whatever_happens(book.name):
                book.close(max(0.0, self._give_up - time.monotonic()))

    def _write_down(self) -> None:
        """Write what waits, in batches; once with nothing where nothing does.

        What came meanwhile and is no batch yet gathers on, until the end: each batch costs a transaction.
        """
        while True:
            batch = self._next_batch()
            for book in self._books:
                with self._whatever_happens(book.name):
                    book.write(batch)
            self._at_hand = 0
            if len(self._waiting) < (1 if self._closing.is_set() else BATCH):
                break
        if missing := self.dropped - self._told:
            self._told += missing
            log.warning("the ledger did not keep up: %s exchanges were not written down", missing)

    def _next_batch(self) -> list[Entry]:
        self._at_hand = min(BATCH, len(self._waiting))
        exchanges = [self._waiting.popleft() for _ in range(self._at_hand)]
        for some in in_slices(exchanges, TOLD_AT_ONCE):
            for exchange in some:
                if (heard := exchange.heard) is not None:
                    self._looked_into += heard.size
                    self._look_into(exchange, heard)
        batch: list[Entry] = []
        for some in in_slices(exchanges, SPELLED_AT_ONCE):
            batch += self._entries(some)
        return batch

    def _look_into(self, exchange: Exchange, heard: Heard) -> None:
        """Let the exchange know what was said in its answer; what was heard of it is let go."""
        exchange.heard = None
        try:
            exchange.usage, exchange.model = heard.told()
            if exchange.result == "success" and heard.failed():
                exchange.result, exchange.failure = "upstream_api_error", FAILED
        except Exception:
            self._complain("usage")

    def _entries(self, exchanges: Sequence[Exchange]) -> list[Entry]:
        try:
            return entries(exchanges, self._redact)
        except Exception:
            self._complain("entries")
            if len(exchanges) == 1:
                return []
            return [entry for exchange in exchanges for entry in self._entries([exchange])]

    @contextmanager
    def _whatever_happens(self, name: str) -> Iterator[None]:
        """Let a fault of ours cost what it is in, and not the clerk, who has the other books and entries to write."""
        try:
            yield
        except Exception:
            self._complain(name)

    def _complain(self, name: str) -> None:
        if name not in self._complained:
            self._complained.add(name)
            log.exception("the ledger's %s could not be written; this is said once", name)
