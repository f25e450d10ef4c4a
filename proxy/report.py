"""`oxy usage`: who used how many tokens, as a table for people or as JSON."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from proxy.recall import By, NoHistory, Recall, Row
from proxy.tables import DAY, HOUR, MINUTE, TOKENS

UNITS = {"m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
COLUMNS = ("requests", "errors", *TOKENS, "average")


def usage(arguments: Sequence[str], history: Path | None) -> str:
    """Return what `oxy usage` prints for these arguments. Raises `NoHistory`; ends the program on a bad argument."""
    options = parser().parse_args(arguments)
    if history is None:
        raise NoHistory("nothing is kept from one run to the next: set PROXY_HISTORY to the file that is to keep it")
    since = 0.0 if options.since is None else time.time() - options.since
    rows = Recall(history).usage(options.by, since=since)
    if options.by != "day":
        rows.sort(key=lambda row: row["total"], reverse=True)
    if options.json:
        return json.dumps([{options.by: row.pop("of"), **row} for row in rows], indent=2)
    return table(options.by, rows)


def parser() -> argparse.ArgumentParser:
    """Return the parser of what follows `oxy usage`."""
    described = argparse.ArgumentParser(
        prog="oxy usage",
        description="Who used how many tokens, from the file that PROXY_HISTORY names. Days and hours are UTC.",
    )
    described.add_argument("--by", choices=("model", "route", "day", "key"), default="model", help="(default model)")
    described.add_argument(
        "--since", type=span, metavar="SPAN", help="only the last 90m, 12h, 7d or 2w, in whole hours (default: all)"
    )
    described.add_argument("--json", action="store_true", help="print JSON")
    return described


def span(text: str) -> int:
    """Read a span of time such as `7d`; return seconds."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError("write a span such as 90m, 12h, 7d or 2w")
    return int(found[1]) * UNITS[found[2]]


def table(by: By, rows: Sequence[Row]) -> str:
    """Return the rows as a table, numbers to the right, and their sum where there are several."""
    lines = [(by, *COLUMNS), *(_cells(row["of"] or "-", row) for row in rows)]
    if len(rows) > 1:
        total: Row = {column: sum(row[column] for row in rows) for column in (*COLUMNS[:-1], "duration")}
        lines.append(_cells("all", {**total, "average": total["duration"] / total["requests"]}))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join((cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:]))).rstrip() for cells in lines
    )


def _cells(name: str, row: Row) -> tuple[str, ...]:
    return (name, *(f"{row[column]:,}" for column in COLUMNS[:-1]), f"{row['average']:.3f} s")
