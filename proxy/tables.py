"""The tables of the history, and how its file is opened. `history` writes them, `recall` reads them."""

import math
import os
import sqlite3
import time
from pathlib import Path

OURS = 0x4F585903  # `application_id`: whose file it is, and the version of its tables
NOT_OURS = "not a history of this version of Oxy; move it away, or name another file in PROXY_HISTORY"
# To sort many totals SQLite takes a file elsewhere, which a full disk or a container whose files are read-only does not
# let it have. In memory those of a month, 400 an hour, take 15 MB for a page and 30 for `oxy usage`.
NO_TEMPORARY_FILES = "PRAGMA temp_store = MEMORY"
MOST_MODELS = 100  # by name; see `FirstFew`
MINUTES_KEPT = 120  # and then as a part of their hour
LATE = 900  # seconds: what another worker may still write of a minute that is to be merged
BUSY = 1.0  # seconds to wait for another worker's transaction
SHORTLY = 0.01  # seconds, where SQLite does not wait itself
SHORTEST = 1e-6  # seconds that are told from less
MINUTE, HOUR, DAY = 60, 3600, 86400

TOKENS = ("input", "cached", "output", "reasoning", "total")
SUMS = (
    *("requests", "errors", "overloads", "cancellations", "retries", "bytes_in", "bytes_out"),
    *("duration", "first_byte", "first_bytes", *TOKENS),
)
MAXIMA = ("longest", "longest_first_byte", *(f"most_{kind}" for kind in TOKENS))
GROUP = ("route", "model", "key", "class", "result")

# A row has the lines of up to a hundred entries, the newest last: `last` is its number, `began` the latest of them.
# Rows of one entry, with columns to ask by, took three times as long to write. Who asks walks through the newest rows;
# to find nothing in 100,000 entries takes 70 to 100 ms. AUTOINCREMENT: be all pruned, no number comes again.
#
# Totals are those of a minute, and a while later of an hour, for which its minutes go over into its first one. So each
# exchange is counted in one row, and charts can be asked for by all that totals can be asked for by.
_GROUP = ", ".join(f"{column} TEXT NOT NULL" for column in GROUP)
_VALUES = ", ".join(f"{column} NOT NULL" for column in (*SUMS, *MAXIMA))
TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (
    last INTEGER PRIMARY KEY AUTOINCREMENT, began REAL NOT NULL, lines TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (
    moment INTEGER NOT NULL, {_GROUP}, {_VALUES}, PRIMARY KEY (moment, {", ".join(GROUP)})) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS times (
    hour INTEGER NOT NULL, class INTEGER NOT NULL, requests INTEGER NOT NULL, PRIMARY KEY (hour, class)) WITHOUT ROWID;
PRAGMA application_id = {OURS};
COMMIT;
"""


def _adding(table: str, key: tuple[str, ...], sums: tuple[str, ...], maxima: tuple[str, ...], rows: str = "") -> str:
    changes = [f"{column} = {column} + excluded.{column}" for column in sums]
    changes += [f"{column} = max({column}, excluded.{column})" for column in maxima]
    given = rows or f"VALUES ({', '.join('?' * len(key + sums + maxima))})"
    return f"INSERT INTO {table} {given} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(changes)}"


# How many entries, `began`, and their lines.
ADD_ENTRIES = """
INSERT INTO entries VALUES (coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'entries'), 0) + ?, ?, ?)
"""
ADD_TOTALS = _adding("totals", ("moment", *GROUP), SUMS, MAXIMA)
ADD_TIMES = _adding("times", ("hour", "class"), ("requests",), ())

# Rows come in the order in which exchanges ended, which is near enough to that in which they began, and go as a whole
# with the newest entry in them.
PRUNE_ENTRIES = """
DELETE FROM entries WHERE last < coalesce(
    (SELECT last FROM entries WHERE began >= ? ORDER BY last LIMIT 1), (SELECT max(last) + 1 FROM entries))
"""
# Those among the totals from one moment on, and before another.
_MINUTES = f"FROM totals WHERE moment >= ? AND moment < ? AND moment % {HOUR}"
_MERGED = ", ".join((*GROUP, *(f"sum({column})" for column in SUMS), *(f"max({column})" for column in MAXIMA)))
MINUTES_TO_HOURS = (
    _adding(
        "totals",
        ("moment", *GROUP),
        SUMS,
        MAXIMA,
        rows=f"SELECT moment / {HOUR} * {HOUR} AS hour, {_MERGED} {_MINUTES} GROUP BY hour, {', '.join(GROUP)}",
    ),
    f"DELETE {_MINUTES}",
)
KEEP_THE_NEWEST = "DELETE FROM entries WHERE last <= (SELECT max(last) FROM entries) - ?"


class NotOurs(sqlite3.DatabaseError):
    """The file is a database of something else, or of another version of the tables."""


def opened(path: Path) -> sqlite3.Connection:
    """Open the file, or make it, readable for its owner alone. Raises `sqlite3.Error` or `OSError`."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, timeout=BUSY, isolation_level=None)  # transactions are begun and ended by hand
    try:
        # In this order: another worker, which makes the tables in one transaction, may come in between.
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (whose,) = db.execute("PRAGMA application_id").fetchone()
        if whose != OURS and (whose, tables) != (0, 0):
            raise NotOurs(f"it is {NOT_OURS}")
        write_ahead(db)
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(NO_TEMPORARY_FILES)
        if whose != OURS:
            db.executescript(TABLES)
    except BaseException:
        db.close()
        raise
    return db


def write_ahead(db: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait by itself while another worker is at it, or makes the tables."""
    give_up = time.monotonic() + BUSY
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                raise
            time.sleep(SHORTLY)
        else:
            return


def prune(db: sqlite3.Connection, before: float) -> None:
    """Delete what is older."""
    db.execute(PRUNE_ENTRIES, (before,))
    db.execute("DELETE FROM totals WHERE moment < ?", (before - HOUR,))
    db.execute("DELETE FROM times WHERE hour < ?", (before - HOUR,))


def merge_minutes(db: sqlite3.Connection, since: float) -> float:
    """Make hours of the minutes that are a while ago, from one on; return up to which.

    To look at all hours for minutes among them would take milliseconds, each time.
    """
    until = time.time() - MINUTES_KEPT * MINUTE
    for statement in MINUTES_TO_HOURS:
        db.execute(statement, (since, until))
    return until


def time_class(seconds: float) -> int:
    """Return the class of a time; each is 5 % longer than the one before."""
    return round(math.log(seconds if seconds > SHORTEST else SHORTEST) * 20)  # a third cheaper than max()


def middle_of(time_class: int) -> float:
    """Return the time in the middle of a class; no time in it is more than 2.6 % away from that."""
    return math.exp(time_class / 20)
