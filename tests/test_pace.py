"""The clerk's pace: whatever it does with a batch, the loop's thread has its turn after a few of the entries."""

import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from proxy import history, metrics, pace
from proxy.exchange import Exchange
from proxy.history import History
from proxy.ledger import BATCH, SPELLED_AT_ONCE, TOLD_AT_ONCE, Ledger
from proxy.metrics import Metrics
from proxy.pace import Load, in_slices
from proxy.redaction import Redaction
from tests.test_history import written

PATIENCE = 20.0

Work = Callable[[], object]


def telling(tmp_path: Path) -> Work:
    ledger = Ledger([], Redaction())
    for _ in range(BATCH):
        ledger.enter(Exchange(id="0", method="GET", path="/", status=200, result="success"))

    def write_down() -> None:
        ledger.start()
        ledger.close(PATIENCE)

    return write_down


def counting(tmp_path: Path) -> Work:
    book = Metrics([], dict)
    return lambda: book.write([written()] * BATCH)


def keeping(tmp_path: Path) -> Work:
    book = History(tmp_path / "history.sqlite", days=30)
    return lambda: book.write([written()] * BATCH)


@pytest.mark.parametrize(
    ("work", "breaths"),
    [
        (telling, BATCH // TOLD_AT_ONCE + BATCH // SPELLED_AT_ONCE),
        (counting, BATCH // metrics.SLICE),
        (keeping, BATCH // history.SLICE + 3),
    ],
)
def test_it_breathes_between_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], Work], breaths: int
) -> None:
    monkeypatch.setattr(pace, "FULL", math.inf)
    monkeypatch.setattr(pace, "WINDOW", 0)
    begun = work(tmp_path)
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    begun()
    assert len(taken) >= breaths
    assert all(taken)


def test_in_longer_slices_too_the_history_gets_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FULL", 0)
    monkeypatch.setattr(pace, "WINDOW", 0)
    book = History(tmp_path / "history.sqlite", days=30)
    book.write([written()] * BATCH)
    book.close(PATIENCE)
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as db:
        sums = [db.execute(f"SELECT sum(requests) FROM {table}").fetchone()[0] for table in ("totals", "times")]
        (lines,) = db.execute("SELECT max(last) FROM entries").fetchone()
    assert [lines, *sums] == [BATCH] * 3


@pytest.mark.parametrize(("full", "lengths"), [(math.inf, [3, 3, 3, 3, 3]), (0, [12, 3])])
def test_where_the_process_has_no_rest_a_slice_is_longer(
    monkeypatch: pytest.MonkeyPatch, full: float, lengths: list[int]
) -> None:
    monkeypatch.setattr(pace, "FULL", full)
    monkeypatch.setattr(pace, "WINDOW", 0)
    slices = [*in_slices(range(15), 3)]
    assert [len(some) for some in slices] == lengths
    assert [item for some in slices for item in some] == [*range(15)]


def test_it_has_none_while_it_takes_a_whole_core(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([7.0, 7.1, 7.15, 7.35])
    monkeypatch.setattr(time, "process_time", lambda: next(spent))
    load = Load()
    told = [load.is_full(now) for now in (1000.0, 1000.1, 1000.15, 1000.2, 1000.4)]
    assert told == [False, True, True, False, True], "it is looked at now and then"
