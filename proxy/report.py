"""`oxy usage`: who used how many tokens, as a table for people or as JSON."""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from proxy.recall import By, NoHistory, Recall, Row
from proxy.tables import DAY, HOUR, MINUTE, TOKENS

UNITS = {"m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
GROUPS: tuple[By, ...] = get_args(By)
COLUMNS = ("requests", "errors", *TOKENS, "average")


def usage(arguments: Sequence[str], history: Path | None) -> str:
    """Return what `oxy usage` prints for these arguments. Raises `NoHistory`; ends the program on a bad argument."""
    options = parser().parse_args(arguments)
    if history is None:
        raise NoHistory("nothing is kept from one run to the next: set PROXY_HISTORY to the file that is to keep it")
    since = 0.0 if options.since is None else time.time() - options.since
    rows = ordered(options.by, Recall(history).usage(*options.by, since=since))
    return json.dumps(rows, indent=2) if options.json else table(options.by, rows)


def parser() -> argparse.ArgumentParser:
    """Return the parser of what follows `oxy usage`."""
    described = argparse.ArgumentParser(
        prog="oxy usage",
        description="Who used how many tokens, from the file that PROXY_HISTORY names. Days and hours are UTC.",
    )
    described.add_argument(
        "--by",
        type=groups,
        metavar="GROUPS",
        default="model",
        help=f"one or several of {', '.join(GROUPS)}, such as key,model (default: model)",
    )
    described.add_argument(
        "--since", type=span, metavar="SPAN", help="only the last 90m, 12h, 7d or 2w, in whole hours (default: all)"
    )
    described.add_argument("--json", action="store_true", help="print JSON")
    return described


def groups(text: str) -> tuple[By, ...]:
    """Read what totals are to be grouped by, such as `key,model`."""
    chosen = tuple(each for name in text.split(",") for each in GROUPS if each == name.strip())
    if len(set(chosen)) < text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"write one or several of {', '.join(GROUPS)}, with commas and each once")
    return chosen


def span(text: str) -> int:
    """Read a span of time such as `7d`; return seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError("write a span such as 90m, 12h, 7d or 2w")
    return int(found[1]) * UNITS[found[2]]


def ordered(by: Sequence[By], rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the greatest group first, and so on in each of them; days in their order."""
    totals: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        for group in _around(row, by):
            totals[group] += row["total"]

    def rank(row: Row) -> list[tuple[int, str]]:
        groups = zip(by, _around(row, by), strict=True)
        return [(0 if kind == "day" else -totals[group], group[-1]) for kind, group in groups]

    return sorted(rows, key=rank)


def table(by: Sequence[By], rows: Sequence[Row]) -> str:
    """Return the rows as a table, numbers to the right, and their sum where there are several."""
    lines = [(*by, *COLUMNS), *((*(row[each] or "-" for each in by), *_cells(row)) for row in rows)]
    if len(rows) > 1:
        total: Row = {column: sum(row[column] for row in rows) for column in (*COLUMNS[:-1], "duration")}
        names = ("all", *[""] * (len(by) - 1))
        lines.append((*names, *_cells({**total, "average": total["duration"] / total["requests"]})))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = (*[str.ljust] * len(by), *[str.rjust] * len(COLUMNS))
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, cells, widths, strict=True)).rstrip()
        for cells in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (*(f"{row[column]:,}" for column in COLUMNS[:-1]), f"{row['average']:,.3f} s")


def _around(row: Row, by: Sequence[By]) -> list[tuple[str, ...]]:
    """Return the groups that a row is in, the widest first."""
    return [tuple(row[each] for each in by[:end]) for end in range(1, len(by) + 1)]
