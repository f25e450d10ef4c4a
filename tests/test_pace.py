"""The clerk's pace: whatever it does with a batch, the loop's thread has its turn after a few of the entries."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import history, metrics
from proxy.exchange import Exchange
from proxy.history import History
from proxy.ledger import BATCH, SPELLED_AT_ONCE, TOLD_AT_ONCE, Ledger
from proxy.metrics import Metrics
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
        (keeping, BATCH // history.SLICE + 4),
    ],
)
def test_it_breathes_between_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], Work], breaths: int
) -> None:
    begun = work(tmp_path)
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    begun()
    assert len(taken) >= breaths
    assert all(taken)
