"""The clerk's pace: whatever it does with a batch, the loop's thread has its turn after a few of the entries."""

import math
import sqlite3
import threading
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
from proxy.pace import Gaps, Load, gaps, in_slices
from proxy.pool import Pool
from proxy.redaction import Redaction
from tests.peers import Upstream, answer
from tests.test_connection import ask, far
from tests.test_history import written

__all__ = ["far"]

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

    def work() -> None:
        book.write([written()] * BATCH)
        book.close(PATIENCE)

    return work


@pytest.mark.parametrize(
    ("work", "breaths"),
    [
        (telling, BATCH // TOLD_AT_ONCE + BATCH // SPELLED_AT_ONCE),
        (counting, BATCH // metrics.SLICE),
        (keeping, BATCH // history.SLICE + 3),
    ],
)
def test_each_slice_waits_for_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], Work], breaths: int
) -> None:
    monkeypatch.setattr(pace, "FULL", math.inf)
    monkeypatch.setattr(pace, "WINDOW", 0)
    begun = work(tmp_path)
    taken: list[float] = []
    monkeypatch.setattr(gaps, "wait", taken.append)
    begun()
    assert len(taken) >= breaths
    assert any(taken)


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


@pytest.mark.parametrize(
    ("full", "lengths", "waits", "breaths"), [(math.inf, [3] * 10, 10, 0), (0, [24, 6], 0, 2)], ids=["rest", "none"]
)
def test_where_the_process_has_no_rest_a_slice_is_longer_and_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, full: float, lengths: list[int], waits: int, breaths: int
) -> None:
    monkeypatch.setattr(pace, "FULL", full)
    monkeypatch.setattr(pace, "WINDOW", 0)
    waited: list[float] = []
    slept: list[float] = []
    monkeypatch.setattr(gaps, "wait", waited.append)
    monkeypatch.setattr(time, "sleep", slept.append)
    slices = [*in_slices(range(30), 3)]
    assert [len(some) for some in slices] == lengths
    assert [item for some in slices for item in some] == [*range(30)]
    assert (len(waited), len(slept)) == (waits, breaths)
    assert all(0 < pause <= pace.BREATH for pause in slept)


def test_who_waits_for_a_gap_goes_on_when_one_begins_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST", PATIENCE)
    some, over = Gaps(), threading.Event()

    def work() -> None:
        some.wait(0)
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not some.wanted:
        time.sleep(0.001)
    assert not over.wait(0.02)
    some.begin()
    assert over.wait(PATIENCE)
    worker.join()
    assert not some.wanted


def test_without_gaps_it_goes_on_and_waits_no_longer_than_twice_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    some = Gaps()
    some.wait(0.0)
    monkeypatch.setattr(pace, "LONGEST", PATIENCE)
    began = time.monotonic()
    for _ in range(3):
        some.wait(0.001)
    assert time.monotonic() - began < PATIENCE
    assert not some.wanted


def test_where_none_came_of_late_the_next_one_is_waited_for_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    some, begun = Gaps(), threading.Event()
    some.wait(0.0)
    monkeypatch.setattr(pace, "LONGEST", PATIENCE)

    def begin() -> None:
        while not some.wanted:
            time.sleep(0.001)
        time.sleep(0.02)
        begun.set()
        some.begin()

    loop = threading.Thread(target=begin)
    loop.start()
    some.wait(PATIENCE)
    assert begun.is_set()
    loop.join()


def test_a_gap_may_begin_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST", 0)
    some = Gaps()

    def work() -> None:
        for _ in range(20_000):
            some.wait(0)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        some.begin()
    worker.join()


async def test_the_loop_has_a_gap_when_it_has_sent_a_call(far: Pool, upstream: Upstream) -> None:
    upstream.says(answer())
    gaps.wanted = True
    heard = await ask(far)
    assert not gaps.wanted
    await heard.close()


def test_it_has_none_while_it_takes_a_whole_core(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([7.0, 7.1, 7.15, 7.35])
    monkeypatch.setattr(time, "process_time", lambda: next(spent))
    load = Load()
    told = [load.is_full(now) for now in (1000.0, 1000.1, 1000.15, 1000.2, 1000.4)]
    assert told == [False, True, True, False, True], "it is looked at now and then"
