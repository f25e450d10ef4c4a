"""The ledger: what is entered reaches every book, and no book's trouble reaches an exchange."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

from proxy import ledger as room
from proxy.entry import Book, Entry
from proxy.exchange import Exchange, new_id
from proxy.ledger import BATCH, MOST_HEARD, MOST_WAITING, Ledger
from proxy.redaction import Redaction
from proxy.usage import Usage

ROOT = Path(__file__).parent.parent
PATIENCE = 10.0


class Shelf:
    """A book that keeps its entries, can be stuck, and can break."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dropped = 0
        self.batches: list[list[Entry]] = []
        self.problem: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.closed: float | None = None

    def write(self, entries: Sequence[Entry]) -> None:
        self.batches.append(list(entries))
        self.free.wait(PATIENCE)
        if self.problem:
            raise self.problem

    def close(self, patience: float) -> None:
        self.closed = patience

    @property
    def ids(self) -> list[str]:
        return [entry.exchange.id for batch in self.batches for entry in batch]


def exchange() -> Exchange:
    return Exchange(id=new_id(), method="GET", path="/v1/models", status=200, result="success")


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.005)


Open = Callable[..., Ledger]


@pytest.fixture
def shelves() -> tuple[Shelf, Shelf]:
    return Shelf("first"), Shelf("second")


@pytest.fixture
def open_ledger(shelves: tuple[Shelf, Shelf]) -> Iterator[Open]:
    opened: list[Ledger] = []

    def open_ledger(books: Sequence[Book] = shelves) -> Ledger:
        opened.append(Ledger(books, Redaction()))
        opened[-1].start()
        return opened[-1]

    yield open_ledger
    for shelf in shelves:
        shelf.free.set()
    for ledger in opened:
        ledger.close()


def test_what_is_entered_reaches_every_book_in_order(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TICK", 2 * PATIENCE)
    ledger = open_ledger()
    entered = [exchange() for _ in range(3)]
    for each in entered:
        ledger.enter(each)
    until(lambda: all(len(shelf.ids) == 3 for shelf in shelves))
    assert shelves[0].ids == shelves[1].ids == [each.id for each in entered]
    assert shelves[0].batches[-1][0].json.startswith('{"time":"20')
    assert shelves[0].batches[-1][0].exchange.began == entered[-1 if len(shelves[0].batches[-1]) == 1 else -3].began


def test_a_full_batch_does_not_wait_for_the_pause(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PAUSE", 2 * PATIENCE)
    ledger = open_ledger()
    for _ in range(2 * BATCH):
        ledger.enter(exchange())
    until(lambda: len(shelves[0].ids) == 2 * BATCH)
    assert max(map(len, shelves[0].batches)) == BATCH
    ledger.close()


def test_what_a_full_batch_leaves_waits_for_the_pause_alone(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TICK", 2 * PATIENCE)
    ledger = open_ledger()
    until(lambda: shelves[1].batches)
    for each in [exchange() for _ in range(BATCH + 3)]:
        ledger.enter(each)
    until(lambda: len(shelves[0].ids) == BATCH + 3)


def test_the_books_are_opened_before_anything_happens(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TICK", 2 * PATIENCE)
    open_ledger()
    until(lambda: shelves[0].batches == shelves[1].batches == [[]])


def test_what_comes_while_a_batch_is_written_gathers_again(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PAUSE", 0.02)
    times: list[float] = []

    def write(entries: Sequence[Entry]) -> None:
        if entries:
            times.append(time.monotonic())
            shelves[1].batches.append(list(entries))
            if len(times) < 5:
                ledger.enter(exchange())

    monkeypatch.setattr(shelves[0], "write", write)
    ledger = open_ledger(shelves[:1])
    ledger.enter(exchange())
    until(lambda: len(shelves[1].ids) == 5)
    assert all(later - earlier >= room.PAUSE for earlier, later in pairwise(times))


def test_while_nothing_happens_the_books_hear_of_that(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TICK", 0.001)
    open_ledger()
    until(lambda: len(shelves[0].batches) > 2)
    assert shelves[0].ids == []


def test_a_book_that_breaks_is_told_of_once_and_stops_no_other(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], told: list[str]
) -> None:
    shelves[0].problem = ValueError("a broken book")
    ledger = open_ledger()
    for count in (1, 2):
        ledger.enter(exchange())
        until(lambda count=count: len(shelves[1].ids) == count)  # type: ignore[misc]
    assert told == ["the ledger's first could not be written; this is said once"]


def test_an_exchange_that_cannot_be_spelled_costs_no_other(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], told: list[str]
) -> None:
    ledger = open_ledger()
    odd, even = exchange(), exchange()
    odd.began = float("inf")
    ledger.enter(odd)
    ledger.enter(even)
    until(lambda: shelves[0].ids)
    assert shelves[0].ids == [even.id]
    assert told == ["the ledger's entries could not be written; this is said once"]


class Hearsay:
    """What was heard of an answer, and who looked into it."""

    def __init__(self, size: int = 10, problem: Exception | None = None) -> None:
        self.size = size
        self.problem = problem
        self.asked_by: list[int] = []

    def told(self) -> tuple[Usage | None, str | None]:
        self.asked_by.append(threading.get_ident())
        if self.problem is not None:
            raise self.problem
        return {"input": 7}, "gpt-4o"

    def failed(self) -> bool:
        return False


def heard(hearsay: Hearsay) -> Exchange:
    each = exchange()
    each.heard = hearsay
    return each


def test_what_was_heard_is_looked_into_by_the_clerk(open_ledger: Open, shelves: tuple[Shelf, Shelf]) -> None:
    ledger, hearsay = open_ledger(), Hearsay()
    ledger.enter(heard(hearsay))
    until(lambda: shelves[1].ids)
    assert shelves[0].batches[-1][0].facts["tokens"] == {"input": 7}
    assert shelves[0].batches[-1][0].facts["model"] == "gpt-4o"
    assert shelves[0].batches[-1][0].exchange.heard is None  # else it would be kept for as long as the entry is
    assert len(hearsay.asked_by) == 1
    assert hearsay.asked_by != [threading.get_ident()]


def test_what_was_heard_and_waits_is_bounded(shelves: tuple[Shelf, Shelf]) -> None:
    ledger = Ledger(shelves, Redaction())
    hearsays = [Hearsay(MOST_HEARD // 2) for _ in range(5)]
    for hearsay in hearsays:
        ledger.enter(heard(hearsay))
    assert [len(hearsay.asked_by) for hearsay in hearsays] == [0, 0, 0, 1, 1]
    ledger.start()
    until(lambda: len(shelves[1].ids) == 5)
    assert [len(hearsay.asked_by) for hearsay in hearsays] == [1] * 5
    another = Hearsay()
    ledger.enter(heard(another))
    assert another.asked_by != [threading.get_ident()]
    ledger.close()
    assert [entry.facts["tokens"] for batch in shelves[0].batches for entry in batch] == [{"input": 7}] * 6


def test_what_cannot_be_looked_into_at_once_costs_its_usage_alone(
    shelves: tuple[Shelf, Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(shelves, Redaction())
    for hearsay in (Hearsay(MOST_HEARD + 1), Hearsay(problem=ZeroDivisionError("of ours"))):
        ledger.enter(heard(hearsay))
    ledger.start()
    ledger.close(PATIENCE)
    assert ["tokens" in entry.facts for batch in shelves[0].batches for entry in batch] == [True, False]
    assert [record.message for record in caplog.records] == [
        "the ledger's usage could not be written; this is said once"
    ]


def test_what_cannot_be_looked_into_costs_its_usage_alone(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], told: list[str]
) -> None:
    ledger = open_ledger()
    ledger.enter(heard(Hearsay(problem=ValueError("a broken tap"))))
    ledger.enter(heard(Hearsay()))
    until(lambda: len(shelves[1].ids) == 2)
    entries = [entry for batch in shelves[0].batches for entry in batch]
    assert [entry.facts.get("tokens") for entry in entries] == [None, {"input": 7}]
    assert told == ["the ledger's usage could not be written; this is said once"]


def test_a_stuck_book_blocks_nobody_and_what_is_too_much_is_counted_and_told(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], told: list[str]
) -> None:
    ledger = open_ledger()
    until(lambda: shelves[1].batches)
    shelves[0].free.clear()
    ledger.enter(exchange())
    until(lambda: shelves[0].ids)
    one = exchange()
    for _ in range(MOST_WAITING + 7):
        ledger.enter(one)
    assert repr(ledger) == f"<Ledger {MOST_WAITING} waiting, 7 dropped>"
    assert ledger.losses() == {"ledger": 7, "first": 0, "second": 0}
    shelves[0].free.set()
    until(lambda: told)
    assert len(shelves[1].ids) == 1 + MOST_WAITING
    assert told == ["the ledger did not keep up: 7 exchanges were not written down"]


def test_closing_writes_what_waits_and_closes_the_books(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PAUSE", 2 * PATIENCE)
    ledger = open_ledger()
    for _ in range(3):
        ledger.enter(exchange())
    ledger.close()
    assert told == []
    assert len(shelves[0].ids) == 3
    assert all(shelf.closed is not None and 0 < room.PATIENCE - shelf.closed < 1 for shelf in shelves)


def test_what_is_entered_while_the_last_is_written_is_written_too(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(entries: Sequence[Entry]) -> None:
        shelves[1].batches.append(list(entries))
        if len(shelves[1].ids) < 3:
            ledger.enter(exchange())

    monkeypatch.setattr(room, "TICK", 2 * PATIENCE)
    ledger = open_ledger(shelves[:1])
    until(lambda: shelves[0].batches)
    monkeypatch.setattr(shelves[0], "write", write)
    ledger.close()
    assert len(shelves[1].ids) == 3


def test_closing_does_not_wait_for_a_stuck_book_beyond_its_patience_and_says_what_is_lost(
    open_ledger: Open, shelves: tuple[Shelf, Shelf], told: list[str]
) -> None:
    ledger = open_ledger()
    until(lambda: shelves[1].batches)
    shelves[0].free.clear()
    ledger.enter(exchange())
    until(lambda: shelves[0].ids)
    ledger.enter(exchange())
    ledger.enter(exchange())
    ledger.close(0.05)
    assert shelves[0].closed is None
    assert told == ["there was no time to write down the last 3 exchanges"]


def test_what_the_last_batch_wrote_is_not_missing(shelves: tuple[Shelf, Shelf], told: list[str]) -> None:
    ledger = Ledger(shelves, Redaction())
    ledger.enter(exchange())
    ledger._write_down()
    ledger.close()
    assert len(shelves[0].ids) == 1
    assert told == []


def test_a_ledger_that_was_never_started_closes_at_once(shelves: tuple[Shelf, Shelf], told: list[str]) -> None:
    ledger = Ledger(shelves, Redaction())
    ledger.enter(exchange())
    ledger.close()
    assert shelves[0].ids == []
    assert told == ["there was no time to write down the last 1 exchanges"]


A_PROCESS_WHOSE_STDOUT_IS_FULL = """
    import os, sys, time
    from proxy.exchange import Exchange
    from proxy.ledger import Ledger
    from proxy.lines import log_lines
    from proxy.redaction import Redaction

    lines = log_lines(sys.stdout, "json", os.environ)
    ledger = Ledger([lines], Redaction())
    ledger.start()
    exchange = Exchange(id="1", method="GET", path="/")
    for _ in range(22_000):
        ledger.enter(exchange)
        if ledger.dropped or len(ledger._waiting) > 5000:
            time.sleep(0.02)
    while not lines.dropped:
        time.sleep(0.02)
    ledger.close(0.3)
    print("closed, some dropped:", sum(ledger.losses().values()) > 0, file=sys.stderr)
"""


@pytest.mark.untraced
def test_a_process_whose_stdout_nobody_reads_goes_on_and_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", dedent(A_PROCESS_WHOSE_STDOUT_IS_FULL)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lost, closed = process.stderr.read().splitlines()
        assert lost == "the log on stdout lacks its last lines, at least 10000"
        assert closed == "closed, some dropped: True"
        assert process.wait(PATIENCE) == 0
