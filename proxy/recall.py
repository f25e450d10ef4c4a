"""What the history has to say: to the log pages, and to `oxy usage`.

Each question opens the file anew, and for reading only, so that it may be asked from any thread and any process.
"""

import json
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from re import Pattern
from typing import Any, Literal

from proxy.entry import Facts, name
from proxy.tables import BUSY, DAY, HOUR, MAXIMA, MINUTE, NOT_OURS, OURS, SUMS, middle_of

NEWEST = 200  # entries
SERIES = 60  # minutes

# An entry is found by how a member stands in its line: in a value each quotation mark is escaped, so that none can pose
# as a member. To parse all lines would take ten times as long, and so would a pattern that does not begin with several
# letters, for which `re` looks as for a plain text. A status has three digits.
STATUSES = {
    **{f"{first}xx": re.compile(f'"status":{first}') for first in range(1, 6)},
    "none": re.compile(r'"stream":(?:true|false),"result"|"status":[6-9]'),
}
FAILED = re.compile(r'"result":"(?!success"|client_cancelled")')

By = Literal["model", "route", "day", "key"]
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
    "day": f"strftime('%Y-%m-%d', hour / {DAY} * {DAY}, 'unixepoch')",
}


class NoHistory(Exception):
    """The history cannot be read; the message says why."""


class Recall:
    """Answers questions from the history in a file. Each method raises `NoHistory` where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def newest(
        self,
        *,
        limit: int = NEWEST,
        after: int = 0,
        route: str | None = None,
        model: str | None = None,
        status: str | None = None,
        failed: bool = False,
        request_id: str | None = None,
    ) -> list[Facts]:
        """Return the newest entries, the newest first, each with its `number`.

        `after` leaves out what has that number or a lower one. `status` is a class ("4xx", "none"). `failed` leaves
        out what went well. `request_id` is ours or the client's own.
        """
        asked = {"route": route, "model": model}
        patterns = [member(which, value) for which, value in asked.items() if value is not None]
        if status is not None:
            patterns.append(STATUSES[status])
        if failed:
            patterns.append(FAILED)
        if request_id is not None:
            patterns.append(id_of(name(request_id)))  # as it was written down
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

    def totals(self, since: float = 0.0) -> Row:
        """Return the totals of what began in the hour of `since` or later.

        Sums and maxima by the names of their columns; and `average`, `p50`, `p99` and `average_first_byte` in seconds,
        None where nothing was measured.
        """
        hour = since // HOUR * HOUR
        (found,) = self._ask(f"SELECT {_TOTALS} FROM hourly WHERE hour >= ?", hour)  # noqa: S608  columns of our own
        times = self._ask("SELECT class, sum(requests) FROM times WHERE hour >= ? GROUP BY class ORDER BY class", hour)
        p50, p99 = (_quantile(times, share, most=found["longest"]) for share in (0.5, 0.99))
        return {**_averaged(dict(found)), "p50": p50, "p99": p99}

    def minutes(self, now: float | None = None) -> list[Row]:
        """Return the totals of each minute of the last hour, the oldest first, those without a request too."""
        newest = int(time.time() if now is None else now) // MINUTE * MINUTE
        first = newest - (SERIES - 1) * MINUTE
        found = {row["minute"]: dict(row) for row in self._ask("SELECT * FROM minutely WHERE minute >= ?", first)}
        nothing = dict.fromkeys((*SUMS, *MAXIMA), 0)
        moments = range(first, newest + MINUTE, MINUTE)
        return [_averaged(found.get(moment, {"minute": moment, **nothing})) for moment in moments]

    def usage(self, by: By, since: float = 0.0) -> list[Row]:
        """Return the totals of each model, route, key or day (UTC), named in `of`."""
        query = f"SELECT {_GROUPS[by]} AS of, {_TOTALS} FROM hourly WHERE hour >= ? GROUP BY of ORDER BY of"  # noqa: S608  columns of our own
        return [_averaged(dict(row)) for row in self._ask(query, since // HOUR * HOUR)]

    def _ask(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._asking(query, *values) as rows:
            rows.row_factory = sqlite3.Row
            return rows.fetchall()

    @contextmanager
    def _asking(self, query: str, *values: object) -> Iterator[sqlite3.Cursor]:
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", timeout=BUSY, uri=True)) as db:
                if db.execute("PRAGMA application_id").fetchone() != (OURS,):
                    raise NoHistory(f"{self._path} is {NOT_OURS}")
                yield db.execute(query, values)
        except (sqlite3.Error, ValueError) as problem:  # the latter of a line that is damaged
            raise NoHistory(f"the history {self._path} cannot be read: {problem}") from problem


def member(name: str, text: str) -> Pattern[str]:
    """Return what finds a member of an entry that is this text."""
    return re.compile(re.escape(f'"{name}":{quoted(text)}'))


def id_of(request: str) -> Pattern[str]:
    """Return what finds a request by our id or the client's own, and not by the upstream's."""
    found = re.escape(f'id":{quoted(request)}')
    return re.compile(f"{found}(?<!upstream_{found})")


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
