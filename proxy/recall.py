"""What the history has to say: to the log pages, and to `oxy usage`.

Each question opens the file anew, and for reading only, so that it may be asked from any thread and any process.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from re import Pattern
from typing import Any, Literal

from proxy.entry import Facts
from proxy.tables import BUSY, DAY, HOUR, MAXIMA, MINUTE, NO_TEMPORARY_FILES, NOT_OURS, OURS, SUMS, middle_of
from proxy.wanted import ANY, Wanted

NEWEST = 200  # entries
SERIES = 60  # minutes

By = Literal["model", "route", "day", "key", "result"]
Row = dict[str, Any]

_TOTALS = ", ".join(
    (
        *(f"coalesce(sum({column}), 0) AS {column}" for column in SUMS),
        *(f"coalesce(max({column}), 0) AS {column}" for column in MAXIMA),
    )
)
_GROUPS: dict[By, str] = {
    "model": "model",
    "route": "route",
    "key": "key",
    "result": "result",
    "day": f"strftime('%Y-%m-%d', moment / {DAY} * {DAY}, 'unixepoch')",
}


class NoHistory(Exception):
    """The history cannot be read; the message says why."""


class Recall:
    """Answers questions from the history in a file. Each method raises `NoHistory` where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def newest(self, wanted: Wanted = ANY, *, limit: int = NEWEST, after: int = 0) -> list[Facts]:
        """Return the newest entries that are wanted, the newest first, each with its `number`.

        `after` leaves out what has that number or a lower one.
        """
        patterns = wanted.patterns()
        with self._asking("SELECT last, lines FROM entries WHERE last > ? ORDER BY last DESC", after) as rows:
            found = (
                {"number": number, **json.loads(line)}
                for last, lines in rows
                if has_all(patterns, lines)
                for number, line in zip(range(last, after, -1), reversed(lines.split("\n")), strict=False)
                if has_all(patterns, line)
            )
            return list(islice(found, limit))

    def latest(self) -> int:
        """Return the number of the newest entry, 0 where there is none."""
        (found,) = self._ask("SELECT coalesce(max(last), 0) FROM entries")
        return int(found[0])

    def since(self) -> int | None:
        """Return when the first minute or hour begins that there are totals of; None where there are none."""
        ((moment,),) = self._ask("SELECT min(moment) FROM totals")
        return moment  # type: ignore[no-any-return]

    def totals(self, wanted: Wanted = ANY, since: float = 0.0) -> Row:
        """Return the totals of what is wanted, and began in the hour of `since` or later.

        Sums and maxima by the names of their columns; and `average`, `p50`, `p99` and `average_first_byte` in seconds,
        None where nothing was measured. `p50` and `p99` are kept for all exchanges together: None for a part of them.
        """
        hour = since // HOUR * HOUR
        condition, values = wanted.rows()
        (found,) = self._ask(f"SELECT {_TOTALS} FROM totals WHERE moment >= ? AND {condition}", hour, *values)  # noqa: S608  columns of our own
        return {**_averaged(dict(found)), **self._quantiles(wanted, hour, most=found["longest"])}

    def results(self, wanted: Wanted = ANY) -> dict[str, int]:
        """Return how many of what is wanted had each result."""
        condition, values = wanted.rows()
        query = f"SELECT result, sum(requests) AS requests FROM totals WHERE {condition} GROUP BY result"  # noqa: S608  columns of our own
        return {row["result"]: row["requests"] for row in self._ask(query, *values)}

    def minutes(self, wanted: Wanted = ANY, now: float | None = None) -> list[Row]:
        """Return the totals of what is wanted in each minute of the last hour, the oldest first, be they nothing."""
        newest = int(time.time() if now is None else now) // MINUTE * MINUTE
        first = newest - (SERIES - 1) * MINUTE
        condition, values = wanted.rows()
        query = f"SELECT moment, {_TOTALS} FROM totals WHERE moment >= ? AND {condition} GROUP BY moment"  # noqa: S608  columns of our own
        found = {row["moment"]: dict(row) for row in self._ask(query, first, *values)}
        nothing = dict.fromkeys((*SUMS, *MAXIMA), 0)
        moments = range(first, newest + MINUTE, MINUTE)
        return [found.get(moment, {"moment": moment, **nothing}) for moment in moments]

    def names(self, by: By) -> list[str]:
        """Return the models, routes or keys that there are totals of: a tenth of the work of adding those up."""
        rows = self._ask(f"SELECT DISTINCT {_GROUPS[by]} FROM totals WHERE moment >= 0")  # noqa: S608  columns of our own
        return sorted(name for (name,) in rows if name)

    def usage(self, *by: By, wanted: Wanted = ANY, since: float = 0.0) -> list[Row]:
        """Return the totals of each model, route, key, result or day (UTC), or of each that they make together."""
        condition, values = wanted.rows()
        groups = ", ".join(f"{_GROUPS[each]} AS {each}" for each in by)
        places = ", ".join(map(str, range(1, len(by) + 1)))
        query = f"SELECT {groups}, {_TOTALS} FROM totals WHERE moment >= ? AND {condition} GROUP BY {places}"  # noqa: S608  columns of our own
        rows = self._ask(f"{query} ORDER BY {places}", since // HOUR * HOUR, *values)
        return [_averaged(dict(row)) for row in rows]

    def _quantiles(self, wanted: Wanted, hour: float, *, most: float) -> dict[str, float | None]:
        if wanted != ANY:
            return {"p50": None, "p99": None}
        times = self._ask("SELECT class, sum(requests) FROM times WHERE hour >= ? GROUP BY class ORDER BY class", hour)
        return {"p50": _quantile(times, 0.5, most=most), "p99": _quantile(times, 0.99, most=most)}

    def _ask(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._asking(query, *values) as rows:
            rows.row_factory = sqlite3.Row
            return rows.fetchall()

    @contextmanager
    def _asking(self, query: str, *values: object) -> Iterator[sqlite3.Cursor]:
        try:
            if self._path.is_fifo():  # to open it would wait for who writes into it
                raise NoHistory(f"{self._path} is {NOT_OURS}")
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", timeout=BUSY, uri=True)) as db:
                if db.execute("PRAGMA application_id").fetchone() != (OURS,):
                    raise NoHistory(f"{self._path} is {NOT_OURS}")
                db.execute(NO_TEMPORARY_FILES)
                yield db.execute(query, values)
        except (sqlite3.Error, OSError, ValueError) as problem:  # the last of a line that is damaged
            raise NoHistory(f"the history {self._path} cannot be read: {problem}") from problem


def has_all(patterns: Iterable[Pattern[str]], text: str) -> bool:
    """Tell whether each of these is in a text."""
    return all(pattern.search(text) for pattern in patterns)


def _averaged(row: Row) -> Row:
    row["average"] = row["duration"] / row["requests"] if row["requests"] else None
    row["average_first_byte"] = row["first_byte"] / row["first_bytes"] if row["first_bytes"] else None
    return row


def _quantile(times: Sequence[sqlite3.Row], share: float, *, most: float) -> float | None:
    """Return the time that so large a share of the requests did not exceed, from their counts by class.

    The middle of a class may be more than the longest time in it, which is `most`.
    """
    left = share * sum(count for _, count in times)
    for number, count in times:
        left -= count
        if left <= 0:
            return min(middle_of(number), most)
    return None
