"""The history: entries and totals in one SQLite file, shared by the workers.

Entries are kept as they are, the newest of them, up to a hundred lines in a row; totals by route, model, key, class of
status and result, for a while by the minute, then by the hour; times in classes 5 % wide, from which quantiles are read
(`recall`).
All are written by the same batch in one transaction, so that a worker that is killed loses the batch that was gathering
and no more. WAL lets pages read meanwhile. Without a sync for each transaction, a machine that loses its power may lose
the last ones (sqlite.org/pragma.html#pragma_synchronous).
"""

import logging
import math
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from operator import add
from pathlib import Path
from typing import Any

from proxy.entry import Entry, FirstFew, failed, status_class
from proxy.exchange import Exchange
from proxy.pace import in_slices
from proxy.tables import (
    ADD_ENTRIES,
    ADD_TIMES,
    ADD_TOTALS,
    DAY,
    HOUR,
    KEEP_THE_NEWEST,
    LATE,
    MINUTE,
    MOST_MODELS,
    SUMS,
    TOKENS,
    merge_minutes,
    opened,
    prune,
    time_class,
)

MOST_ENTRIES = 100_000  # and up to 99 more, with which the oldest share a row; about 70 MB
MOST_UNWRITTEN = 10_000
SLICE = 100  # entries, which become a row and take about 0.3 ms
RETRY = 5.0  # seconds
PRUNING = 60.0  # seconds

log = logging.getLogger("oxy")

Row = tuple[Any, ...]
Values = tuple[float, ...]
Group = tuple[int, str, str | None, str | None, int | None, str]


class History:
    """A book that is an SQLite file. What it cannot write now it tries again later; `dropped` were too many to wait."""

    name = "history"

    def __init__(self, path: Path, days: int) -> None:
        self._path = path.absolute()  # which no name that SQLite understands otherwise is
        self._days = days
        self._db: sqlite3.Connection | None = None
        self._file: object = None  # which file that is
        self._model = FirstFew(MOST_MODELS)
        self._unwritten: list[Entry] = []
        self._not_before = self._next_pruning = -math.inf
        self._merged = 0.0  # up to when minutes of the file have been made hours
        self._failing = False
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<History {self._path}, {len(self._unwritten)} unwritten, {self.dropped} dropped>"

    def write(self, entries: Sequence[Entry]) -> None:
        """Write these entries and those that could not be written before."""
        self._unwritten.extend(entries)
        if too_many := self._unwritten[:-MOST_UNWRITTEN]:
            del self._unwritten[: len(too_many)]
            self.dropped += len(too_many)
        if self._db is not None and not self._unwritten and not self._stands():
            self._hang_up()  # beside its log, which it would keep in place, nobody could begin another file
        now = time.monotonic()
        if now < self._not_before or not (self._unwritten or now >= self._next_pruning):
            return
        try:
            self._transact(now)
        except (sqlite3.Error, OSError) as problem:
            self._rest(problem)
        except Exception:  # a fault of ours, which would come again with each try
            self._hang_up()
            self.dropped += len(self._unwritten)
            self._unwritten.clear()
            raise

    def close(self, patience: float) -> None:
        """Try once more to write what is left, and close the file. Called when nobody writes any more."""
        if self._unwritten:
            self._not_before = -math.inf
            self.write([])
        if lost := len(self._unwritten):
            log.warning("the history %s lacks the last %s entries", self._path, lost)
        self._hang_up()

    def _transact(self, now: float) -> None:
        pruning = now >= self._next_pruning
        if self._db is None:
            self._db = opened(self._path)
            self._file = identity(self._path)
            self._merged = 0.0
        elif identity(self._path) != self._file:
            raise FileNotFoundError("somebody has put another file in its place")
        db = self._db
        additions = self._additions()  # in Python, which takes its time: other workers wait for a transaction to end
        db.execute("BEGIN IMMEDIATE")
        for some in in_slices(additions, 1):
            for statement, rows in some:
                db.executemany(statement, rows)
        db.execute(KEEP_THE_NEWEST, (MOST_ENTRIES,))
        if pruning:
            prune(db, time.time() - self._days * DAY)
            self._merged = merge_minutes(db, self._merged - LATE)  # if it is undone, the file will be opened anew
        db.execute("COMMIT")
        self._unwritten.clear()
        if pruning:
            self._next_pruning = now + PRUNING
        if self._failing:
            self._failing = False
            log.warning("the history %s is written again; %s entries are missing in it", self._path, self.dropped)

    def _additions(self) -> list[tuple[str, list[Row]]]:
        """Return the statements that add what is unwritten, each with its rows."""
        rows: list[Row] = []
        times: defaultdict[int, Counter[int]] = defaultdict(Counter)
        sums: list[tuple[tuple[Any, ...], Values]] = []
        for some in in_slices(self._unwritten, SLICE):
            rows.append(_row(some))
            for key, group in grouped(some).items():
                times[key[0] // HOUR * HOUR].update([time_class(exchange.duration) for exchange in group])
                sums.append((self._bounded(key), measured(group)))
        return [
            (ADD_ENTRIES, rows),
            (ADD_TOTALS, [(*key, *values) for key, values in summed(sums).items()]),
            (ADD_TIMES, [(hour, kind, count) for hour, counts in times.items() for kind, count in counts.items()]),
        ]

    def _bounded(self, group: Group) -> tuple[int, str, str, str, str, str]:
        minute, route, model, key, status, result = group
        return minute, route, "" if model is None else self._model(model), key or "", status_class(status), result

    def _stands(self) -> bool:
        """Tell whether the file that is open is still the one of that name."""
        try:
            return identity(self._path) == self._file
        except OSError:
            return False

    def _rest(self, problem: Exception) -> None:
        self._hang_up()
        self._not_before = time.monotonic() + RETRY
        if not self._failing:
            self._failing = True
            log.warning("the history %s cannot be written: %s. Exchanges go on; it is tried again", self._path, problem)

    def _hang_up(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()  # what was begun and not committed is undone


def identity(path: Path) -> object:
    """Return what tells this file from any other that stands under its name. Raises `OSError`."""
    found = path.stat()
    return found.st_dev, found.st_ino


def grouped(entries: Iterable[Entry]) -> dict[Group, list[Exchange]]:
    """Return the exchanges of entries by what totals are kept by."""
    groups: defaultdict[Group, list[Exchange]] = defaultdict(list)
    for entry in entries:
        exchange = entry.exchange
        minute = int(exchange.began) // MINUTE * MINUTE
        groups[minute, exchange.route, exchange.model, exchange.key, exchange.status, exchange.result].append(exchange)
    return groups


def measured(group: Sequence[Exchange]) -> Values:
    """Return what exchanges add to totals, in the order of SUMS, and then of MAXIMA."""
    durations = [exchange.duration for exchange in group]
    first_bytes = [exchange.first_byte for exchange in group if exchange.first_byte is not None]
    spent = [exchange.usage for exchange in group if exchange.usage] or [{}]
    tokens = [[counts.get(kind, 0) for counts in spent] for kind in TOKENS]
    return (
        len(group),
        sum(map(failed, group)),
        sum([exchange.overloaded for exchange in group]),
        sum([exchange.cancelled for exchange in group]),
        sum([exchange.retries for exchange in group]),
        sum([exchange.bytes_in for exchange in group]),
        sum([exchange.bytes_out for exchange in group]),
        sum(durations),
        sum(first_bytes),
        len(first_bytes),
        *map(sum, tokens),
        max(durations),
        max(first_bytes, default=0),
        *map(max, tokens),
    )


def summed(pairs: Iterable[tuple[tuple[Any, ...], Values]]) -> dict[tuple[Any, ...], Values]:
    """Return the totals of each group."""
    totals: dict[tuple[Any, ...], Values] = {}
    end_of_sums = len(SUMS)
    for key, values in pairs:
        if key not in totals:
            totals[key] = values
            continue
        before = totals[key]
        added = map(add, before[:end_of_sums], values[:end_of_sums])
        totals[key] = (*added, *map(max, before[end_of_sums:], values[end_of_sums:]))
    return totals


def _row(entries: Sequence[Entry]) -> Row:
    newest = max(entry.exchange.began for entry in entries)
    return len(entries), newest, "\n".join([entry.json for entry in entries])
