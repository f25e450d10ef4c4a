"""What the history has to say: to the log pages, and to `oxy usage`.

Each question opens the file anew, and for reading only, so that it may be asked from any thread and any process.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from proxy.entry import Facts, name
from proxy.tables import BUSY, DAY, HOUR, MAXIMA, MINUTE, OURS, SUMS, middle_of

NEWEST = 200  # entries
SERIES = 60  # minutes

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

        `after` leaves out what has that number or a lower one. `status` is a class ("4xx"). `failed` leaves out what
        went well. `request_id` is ours or the client's own.
        """
        wanted = {"route = ?": route, "model = ?": model, "class = ?": status}
        where = {condition: value for condition, value in wanted.items() if value is not None}
        conditions, values = [*where, "number > ?"], [*where.values(), after]
        if failed:
            conditions.append("failed = 1")
        if request_id is not None:
            conditions.append("(id = ? OR incoming_id = ?)")
            values += [name(request_id)] * 2  # as it was written down
        query = f"SELECT number, json FROM entry WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?"  # noqa: S608  conditions of our own
        return [{"number": number, **json.loads(text)} for number, text in self._ask(query, *values, limit)]

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
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", timeout=BUSY, uri=True)) as db:
                if db.execute("PRAGMA application_id").fetchone() != (OURS,):
                    raise NoHistory(f"{self._path} is not a history of this version of Oxy")
                db.row_factory = sqlite3.Row
                return db.execute(query, values).fetchall()
        except sqlite3.Error as problem:
            raise NoHistory(f"the history {self._path} cannot be read: {problem}") from problem


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
