"""The history: what is entered is in the file, from any number of processes; a file that fails costs nothing else."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from proxy import history as room
from proxy import tables
from proxy.entry import Entry
from proxy.exchange import Exchange, new_id
from proxy.history import PRUNING, History
from proxy.recall import Recall
from proxy.redaction import Redaction
from proxy.tables import DAY, HOUR, OURS, middle_of, time_class
from tests.test_entry import entry

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0


def written(**facts: Any) -> Entry:
    """An entry of a successful exchange, but for what is said otherwise."""
    made = {"id": new_id(), "method": "POST", "path": "/v1/responses", "status": 200, "result": "success"}
    return entry(Exchange(**{**made, **facts}), Redaction())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


@pytest.fixture
def history(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    monkeypatch.setattr(room, "RETRY", 0.0)
    history = History(file, days=30)
    yield history
    history.close(0)


def ask(file: Path, query: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(file)) as db, db:
        return db.execute(query, values).fetchall()


def test_what_is_written_is_there_for_its_owner_alone(history: History, file: Path) -> None:
    entries = [written(), written()]
    history.write(entries)
    assert [found["id"] for found in Recall(file).newest()] == [each.facts["id"] for each in reversed(entries)]
    assert repr(history) == f"<History {file}, 0 unwritten, 0 dropped>"
    for name in ("", "-wal", "-shm"):
        assert stat.S_IMODE(Path(f"{file}{name}").stat().st_mode) == 0o600


def test_it_is_kept_from_one_run_to_the_next(history: History, file: Path) -> None:
    history.write([written()])
    history.close(0)
    again = History(file, days=30)
    again.write([written()])
    again.close(0)
    assert Recall(file).totals()["requests"] == 2


@pytest.mark.parametrize("batches", [[[3.0], [1.0]], [[1.0], [3.0]], [[1.0, 3.0]], [[3.0, 1.0]]])
def test_the_longest_time_is_that_of_all_batches(history: History, file: Path, batches: list[list[float]]) -> None:
    for batch in batches:
        history.write([written(duration=time, first_byte=time / 2) for time in batch])
    totals = Recall(file).totals()
    assert (totals["longest"], totals["longest_first_byte"]) == (3.0, 1.5)
    assert max(row["longest"] for row in Recall(file).minutes()) == 3.0


def test_the_newest_entries_are_kept_and_the_totals_of_all(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_ENTRIES", 10)
    for number in range(4):
        history.write([written(id=f"{number}-{each}") for each in range(5)])
    assert [found["id"] for found in Recall(file).newest()][::9] == ["3-4", "2-0"]
    assert len(Recall(file).newest()) == 10
    assert Recall(file).totals()["requests"] == 20


def test_of_many_that_came_together_fewer_than_a_hundred_are_kept_too_long(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_ENTRIES", 120)
    history.write([written(id=f"{number}") for number in range(350)])
    assert [found["id"] for found in Recall(file).newest(limit=1000)] == [f"{number}" for number in range(349, 199, -1)]


def test_what_is_older_goes_with_the_newest_of_what_it_came_with(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    history.write([written(began=now - 29 * DAY), written(began=now - 31 * DAY)])
    assert len(Recall(file).newest()) == 2
    monkeypatch.setattr(history, "_next_pruning", 0.0)
    monkeypatch.setattr(time, "time", lambda: now + 2 * DAY)
    history.write([])
    assert Recall(file).newest() == []


def test_no_number_comes_again_when_all_entries_are_gone(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.write([written(began=time.time() - 31 * DAY)] * 7)
    assert Recall(file).newest() == []
    history.write([written()] * 2)
    assert [found["number"] for found in Recall(file).newest(after=7)] == [9, 8]


@pytest.mark.parametrize("younger", [True, False])
def test_what_is_older_than_its_days_is_deleted(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch, younger: bool
) -> None:
    now = time.time()
    history.write([written(began=now - 31 * DAY)])
    history.write([written(began=now - 29 * DAY)] * younger)
    monkeypatch.setattr(history, "_next_pruning", 0.0)
    history.write([])
    assert len(Recall(file).newest()) == younger
    assert Recall(file).totals()["requests"] == younger
    assert ask(file, "SELECT count(*) FROM times") == [(int(younger),)]
    assert ask(file, "SELECT count(*) FROM totals") == [(int(younger),)]


def test_minutes_of_a_while_ago_become_their_hour_and_nothing_is_counted_twice(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    hour = now // HOUR * HOUR - 3 * HOUR
    again = [written(began=hour + 70, duration=2.0), written(began=hour + 130, duration=1.0, model="m")]
    history.write([written(began=hour + 10, duration=1.0), *again, written(began=now)])
    for _ in range(2):
        monkeypatch.setattr(history, "_next_pruning", 0.0)
        history.write([])
        rows = ask(file, "SELECT moment - ?, model, requests, duration, longest FROM totals", hour)
        assert rows[:-1] == [(0, "", 2, 3.0, 2.0), (0, "m", 1, 1.0, 1.0)]
        assert rows[-1][1:] == ("", 1, 0.0, 0.0)
    history.write([written(began=hour + 190, duration=4.0)])  # it took its time
    assert Recall(file).totals()["requests"] == 5
    another = History(file, days=30)
    another.write([])
    another.close(0)
    (late, *_) = ask(file, "SELECT moment - ?, model, requests, duration, longest FROM totals", hour)
    assert late == (0, "", 3, 7.0, 4.0)


def test_an_hour_has_all_that_its_minutes_had(history: History, file: Path) -> None:
    hour = time.time() // HOUR * HOUR - 3 * HOUR
    for minute in range(1, 10):
        usage = {kind: 7 * minute + place for place, kind in enumerate(tables.TOKENS)}
        facts = {"duration": minute / 4, "first_byte": minute / 8, "bytes_in": minute, "bytes_out": 2 * minute}
        history.write([written(began=hour + 60 * minute, usage=usage, retries=minute, **facts)])
    minutes = Recall(file).totals()
    another = History(file, days=30)
    another.write([])
    another.close(0)
    assert ask(file, "SELECT moment - ?, requests FROM totals", hour) == [(0, 9)]
    assert Recall(file).totals() == minutes


@pytest.mark.parametrize("opened_anew", [False, True])
def test_what_another_worker_writes_late_is_merged_too(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch, opened_anew: bool
) -> None:
    now = time.time() // HOUR * HOUR
    monkeypatch.setattr(time, "time", lambda: now)
    history.write([])
    ago = tables.MINUTES_KEPT * 60 + (2 * tables.LATE if opened_anew else tables.LATE - 60)
    another = History(file, days=30)
    another.write([])
    another.write([written(began=now - ago)])
    another.close(0)
    if opened_anew:
        history.close(0)
    monkeypatch.setattr(history, "_next_pruning", 0.0)
    history.write([])
    assert ask(file, "SELECT moment % 3600, requests FROM totals") == [(0, 1)]


def test_an_hour_is_kept_for_as_long_as_its_last_minute(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time() // HOUR * HOUR + HOUR / 2
    monkeypatch.setattr(time, "time", lambda: now)
    history.write([written(began=now - 30 * DAY + 60)])
    for _ in range(2):
        monkeypatch.setattr(history, "_next_pruning", 0.0)
        history.write([])
    assert ask(file, "SELECT moment - ?, requests FROM totals", now - 30 * DAY) == [(-HOUR / 2, 1)]
    assert ask(file, "SELECT sum(requests) FROM times") == [(1,)]


def test_minutes_become_hours_as_time_goes_by(history: History, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = time.time() // HOUR * HOUR
    for later in range(0, 4 * HOUR, 60):
        monkeypatch.setattr(time, "time", lambda now=hour + later: now)
        monkeypatch.setattr(history, "_next_pruning", 0.0)
        history.write([written(began=hour + later)])
    rows = ask(file, "SELECT (moment - ?) / 60, requests FROM totals ORDER BY moment", hour)
    kept = tables.MINUTES_KEPT
    assert rows == [(0, 60), (60, 240 - 60 - kept - 1), *((minute, 1) for minute in range(240 - kept - 1, 240))]


def test_it_prunes_while_nothing_happens_and_not_all_the_time(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.write([written()])
    old = time.time() - 31 * DAY
    ask(file, "UPDATE entries SET began = ?", old)
    history.write([])
    assert len(Recall(file).newest()) == 1
    monkeypatch.setattr(history, "_next_pruning", 0.0)
    history.write([])
    assert Recall(file).newest() == []


def test_it_prunes_while_one_exchange_comes_after_another(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    history.write([written()])
    ask(file, "UPDATE entries SET began = ?", time.time() - 31 * DAY)
    for _ in range(5):
        now += PRUNING / 4
        history.write([written()])
    assert len(Recall(file).newest()) == 5


@pytest.mark.parametrize("another", [True, False])
def test_a_file_that_was_taken_away_is_noticed_and_made_anew(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, another: bool
) -> None:
    history.write([written()])
    for name in ("", "-wal", "-shm"):
        Path(f"{file}{name}").unlink()
    if another:
        file.touch()
    history.write([written()])
    assert ["cannot be written" in message for message in caplog.messages] == [True]
    history.write([])
    assert Recall(file).totals()["requests"] == 1


@pytest.mark.parametrize("another", [True, False])
def test_who_has_nothing_to_write_lets_go_of_a_file_that_was_taken_away(
    history: History, file: Path, told: list[str], another: bool
) -> None:
    def is_open() -> bool:
        return any(Path(found.path) == moved for found in psutil.Process().open_files())

    moved = file.with_name("moved")
    history.write([written()])
    file.rename(moved)
    assert is_open()
    if another:
        file.touch()
    history.write([])
    assert not is_open(), "nobody else can begin a file beside its log"
    history.write([written()])
    assert Recall(file).totals()["requests"] == 1
    assert not told


def test_of_many_models_totals_tell_the_first_apart(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.write([written(model=f"model-{number:03d}") for number in range(120)])
    found = {row["model"]: row["requests"] for row in Recall(file).usage("model")}
    assert len(found) == 101
    assert found["other"] == 20


# ---- several processes

WRITER = """
    import sys
    from pathlib import Path
    from proxy.exchange import Exchange, new_id
    from proxy.history import PRUNING, History
    from proxy.ledger import Ledger
    from proxy.redaction import Redaction
    import time

    history = History(Path(sys.argv[1]), 30)
    ledger = Ledger([history], Redaction())
    ledger.start()
    count, pace = int(sys.argv[2]), float(sys.argv[3])
    for number in range(count):
        ledger.enter(Exchange(id=new_id(), method="POST", path="/", status=200, result="success", duration=0.5))
        if pace:
            print(number, flush=True)
            time.sleep(pace)
    ledger.close(20)
"""


def writer(file: Path, count: int, pace: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", dedent(WRITER), str(file), str(count), str(pace)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.untraced
def test_three_processes_write_one_history(file: Path) -> None:
    processes = [writer(file, 700) for _ in range(3)]
    complaints = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert complaints == ["", "", ""]
    totals = Recall(file).totals()
    assert (totals["requests"], totals["duration"]) == (2100, 1050)
    entries = Recall(file).newest(limit=3000)
    assert [entry["number"] for entry in entries] == [*range(2100, 0, -1)]
    assert len({entry["id"] for entry in entries}) == 2100
    assert ask(file, "SELECT sum(requests) FROM times") == ask(file, "SELECT sum(requests) FROM totals") == [(2100,)]


def test_who_opens_it_while_another_begins_it_waits_for_that(
    history: History, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as another:
        another.execute("BEGIN IMMEDIATE")  # SQLite tells whoever asks for WAL then to go away, without waiting
        alarm = threading.Timer(0.2, another.rollback)
        alarm.start()
        history.write([written()])
        alarm.join()
    assert caplog.messages == []
    assert Recall(file).totals()["requests"] == 1


def test_who_opens_it_does_not_wait_forever(
    history: History, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tables, "BUSY", 0.05)
    with closing(sqlite3.connect(file, isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")
        history.write([written()])
    assert "database is locked" in caplog.text
    history.write([])
    assert Recall(file).totals()["requests"] == 1


def test_a_process_that_is_killed_loses_no_more_than_the_last_second(file: Path) -> None:
    with writer(file, 100_000, pace=0.002) as process:
        assert process.stdout is not None
        times: list[float] = []
        while not times or times[-1] - times[0] < 1.6:
            assert process.stdout.readline()
            times.append(time.monotonic())
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        process.stdout.read()
    entered_by_then = sum(moment < killed - 1 for moment in times)
    assert entered_by_then > 10
    assert Recall(file).totals()["requests"] >= entered_by_then
    assert ask(file, "PRAGMA integrity_check") == [("ok",)]


# ---- files that fail


def corrupt(file: Path) -> Path:
    file.write_bytes(b"this is no database" * 1000)
    return file


def somebody_elses(file: Path) -> Path:
    ask(file, "CREATE TABLE theirs (x)")
    return file


def of_another_version(file: Path) -> Path:
    ask(file, f"PRAGMA application_id = {OURS - 1}")
    ask(file, "CREATE TABLE entry (number INTEGER PRIMARY KEY)")
    return file


def somebody_elses_and_empty(file: Path) -> Path:
    ask(file, "PRAGMA application_id = 1")
    return file


def without_its_folder(file: Path) -> Path:
    return file.parent / "nowhere" / file.name


def a_folder(file: Path) -> Path:
    file.mkdir()
    return file


def read_only(file: Path) -> Path:
    return Path("/proc") / file.name  # not even for root


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (corrupt, "file is not a database"),
        (
            somebody_elses,
            "it is not a history of this version of Oxy; move it away, or name another file in PROXY_HISTORY",
        ),
        (
            somebody_elses_and_empty,
            "it is not a history of this version of Oxy; move it away, or name another file in PROXY_HISTORY",
        ),
        (
            of_another_version,
            "it is not a history of this version of Oxy; move it away, or name another file in PROXY_HISTORY",
        ),
        (without_its_folder, "No such file or directory"),
        (a_folder, "Is a directory"),
        (read_only, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_costs_the_history_and_says_so_once(
    file: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, spoilt: Any, reason: str
) -> None:
    monkeypatch.setattr(room, "RETRY", 0.0)
    path = spoilt(file)
    before = path.read_bytes() if path.is_file() else None
    history = History(path, days=30)
    for _ in range(3):
        history.write([written()])
    assert repr(history) == f"<History {path}, 3 unwritten, 0 dropped>"
    (line,) = told
    assert line.startswith(f"the history {path} cannot be written: ")
    assert reason in line
    assert before is None or path.read_bytes() == before
    history.close(0)


def test_a_file_of_another_version_that_is_moved_away_is_made_anew(history: History, file: Path) -> None:
    of_another_version(file)
    history.write([written()])
    file.rename(file.with_suffix(".old"))
    history.write([])
    assert Recall(file).totals()["requests"] == 1


def test_what_could_not_be_written_is_written_once_it_can_be(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "RETRY", 0.0)
    monkeypatch.setattr(room, "MOST_UNWRITTEN", 3)
    file = tmp_path / "folder" / "history.sqlite"
    history = History(file, days=30)
    history.write([written(id=str(number)) for number in range(4)])
    history.write([written(id="4")])
    assert history.dropped == 2
    file.parent.mkdir()
    history.write([])
    assert [found["id"] for found in Recall(file).newest()] == ["4", "3", "2"]
    assert told[1:] == [f"the history {file} is written again; 2 entries are missing in it"]
    history.close(0)


def test_at_the_end_it_is_tried_once_more(file: Path, told: list[str]) -> None:
    history = History(without_its_folder(file), days=30)
    history.write([written()])
    (file.parent / "nowhere").mkdir()
    history.close(0)
    assert Recall(file.parent / "nowhere" / file.name).totals()["requests"] == 1
    lost = History(without_its_folder(file.parent / "elsewhere" / file.name), days=30)
    lost.write([written()])
    lost.close(0)
    assert told[-1].endswith("lacks the last 1 entries")


def test_a_name_that_sqlite_would_understand_otherwise_is_a_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    history = History(Path(":memory:"), days=30)
    history.write([written()])
    history.close(0)
    assert Recall(tmp_path / ":memory:").totals()["requests"] == 1


def test_it_is_tried_again_only_after_a_while(file: Path, told: list[str]) -> None:
    history = History(without_its_folder(file), days=30)
    history.write([written()])
    (file.parent / "nowhere").mkdir()
    history.write([written()])
    assert repr(history).endswith("2 unwritten, 0 dropped>")
    assert len(told) == 1
    history.close(0)


def test_a_locked_file_costs_a_wait_and_nothing_more(
    history: History, file: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tables.BUSY", 0.01)
    history.write([written()])
    with closing(sqlite3.connect(file)) as other, other:
        other.execute("BEGIN EXCLUSIVE")
        history.write([written()])
        assert repr(history).endswith("1 unwritten, 0 dropped>")
        other.rollback()
    history.write([])
    assert Recall(file).totals()["requests"] == 2
    assert [line.rpartition(": ")[0].partition(" cannot")[0] for line in told[:1]] == [f"the history {file}"]
    assert "database is locked" in told[0]


def test_an_entry_that_no_table_can_take_costs_only_what_came_with_it(history: History, file: Path) -> None:
    with pytest.raises(OverflowError):
        history.write([written(bytes_in=2**64), written()])
    history.write([written()])
    assert history.dropped == 2
    assert Recall(file).totals()["requests"] == 1


ON_A_FULL_DISK = """
    import logging, resource, sys
    from pathlib import Path
    from proxy.entry import entries
    from proxy.exchange import Exchange, new_id
    from proxy.history import PRUNING, History
    from proxy.redaction import Redaction
    import proxy.history

    proxy.history.RETRY = 0
    history = History(Path(sys.argv[1]), 30)

    def write(count):
        made = [Exchange(id=new_id(), method="POST", path="/", result="success") for _ in range(count)]
        history.write(entries(made, Redaction()))

    write(10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for _ in range(3):
        write(300)
    print(history)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write(1)
    print(history)
"""


def test_a_full_disk_costs_the_history_for_as_long_as_it_is_full(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", dedent(ON_A_FULL_DISK), str(file)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    full, free = done.stdout.splitlines()
    assert full == f"<History {file}, 900 unwritten, 0 dropped>"
    assert free == f"<History {file}, 0 unwritten, 0 dropped>"
    first, second = done.stderr.splitlines()
    assert first.startswith(f"the history {file} cannot be written: ")
    assert second == f"the history {file} is written again; 0 entries are missing in it"
    assert Recall(file).totals()["requests"] == 911


def test_a_time_is_in_a_class_that_is_near_it() -> None:
    for seconds in (1e-6, 0.001, 0.0374, 1, 59.9, 600):
        assert middle_of(time_class(seconds)) == pytest.approx(seconds, rel=0.026)
    assert time_class(0) == time_class(-1) == time_class(1e-6)


def test_nothing_is_lost_where_a_minute_or_an_hour_ends(history: History, file: Path) -> None:
    hour = time.time() // HOUR * HOUR
    history.write([written(began=hour - 1), written(began=hour), written(began=hour + 61)])
    assert ask(file, "SELECT hour - ? FROM times ORDER BY hour", hour) == [(-HOUR,), (0,)]
    assert ask(file, "SELECT moment - ?, requests FROM totals ORDER BY moment", hour) == [(-60, 1), (0, 1), (60, 1)]
    assert os.path.getsize(file) > 0
