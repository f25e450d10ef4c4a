"""What the history has to say: the newest entries by every filter, totals, minutes, usage."""

import json
import os
import sqlite3
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import pytest

from proxy.board import CLASSES
from proxy.entry import failed, status_class
from proxy.errors import Result
from proxy.history import History
from proxy.recall import By, NoHistory, Recall
from proxy.tables import MAXIMA, OURS, SUMS
from proxy.wanted import ANY, Wanted
from tests.test_entry import Usage
from tests.test_history import written

HOUR = 3600
NOW = 2_000_000_000 // HOUR * HOUR + 1800.0


@pytest.fixture
def recall(tmp_path: Path) -> Recall:
    """A history of six exchanges in two hours."""
    file = tmp_path / "a history?#%.sqlite"
    history = History(file, days=10**6)
    history.write(
        [
            written(id="1", began=NOW - HOUR, duration=1.0, model="m-1", key="a", usage=Usage(input=10, output=1)),
            written(id="2", began=NOW, duration=2.0, first_byte=0.5, model="m-1", usage=Usage(input=1000, total=None)),
            written(id="3", began=NOW, duration=3.0, first_byte=1.5, model="m-2", key="a", usage=None, bytes_in=7),
            written(id="4", began=NOW, status=503, result="proxy_overloaded", overloaded=True, route="openai"),
            written(id="5", began=NOW + 60, status=499, result="client_cancelled", cancelled=True, bytes_out=9),
            written(id="6", began=NOW + 60, status=404, result="upstream_api_error", incoming_id="mine", retries=2),
        ]
    )
    history.close(0)
    return Recall(file)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, "654321"),
        ({"limit": 2}, "65"),
        ({"after": 4}, "65"),
        ({"route": "openai"}, "4"),
        ({"model": "m-1"}, "21"),
        ({"status": "4xx"}, "65"),
        ({"result": "client_cancelled"}, "5"),
        ({"key": "a"}, "31"),
        ({"key": "a", "model": "m-2", "result": "success"}, "3"),
        ({"failed": True}, "64"),
        ({"request_id": "3"}, "3"),
        ({"request_id": "mine"}, "6"),
        ({"request_id": "other"}, ""),
        ({"route": "relay", "status": "2xx", "model": "m-2"}, "3"),
        ({"failed": True, "route": "relay", "request_id": "mine", "after": 1, "limit": 1}, "6"),
        ({"model": "' OR 1=1 --"}, ""),
    ],
    ids=str,
)
def test_the_newest_entries_are_found_by_every_filter(recall: Recall, filters: dict[str, Any], ids: str) -> None:
    limits = {name: filters.pop(name) for name in ("limit", "after") if name in filters}
    found = recall.newest(Wanted(**filters), **limits)
    assert "".join(each["id"] for each in found) == ids
    assert [each["number"] for each in found] == [int(each["id"]) for each in found]


def test_a_model_that_was_only_asked_for_is_found_and_in_no_sum(tmp_path: Path) -> None:
    history = History(file := tmp_path / "history.sqlite", days=10**6)
    history.write([written(id="1", began=NOW, asked="m-1"), written(id="2", began=NOW, model="m-2", asked="m-1")])
    history.close(0)
    recall = Recall(file)
    found = {model: [each["id"] for each in recall.newest(Wanted(model=model))] for model in ("m-1", "m-2")}
    assert found == {"m-1": ["1"], "m-2": ["2"]}
    assert {row["model"] for row in recall.usage("model")} == {"", "m-2"}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [None, *range(100, 1000, 50), *range(199, 1000, 100)])
def test_an_entry_is_found_by_the_class_of_its_status_alone(tmp_path: Path, status: int | None, stream: bool) -> None:
    history = History(file := tmp_path / "history.sqlite", days=30)
    history.write([written(status=status, stream=stream)])
    history.close(0)
    assert [kind for kind in CLASSES if Recall(file).newest(Wanted(status=kind))] == [status_class(status)]


@pytest.mark.parametrize("result", get_args(Result))
def test_an_entry_failed_if_its_result_says_so(tmp_path: Path, result: Result) -> None:
    history = History(file := tmp_path / "history.sqlite", days=30)
    history.write([entry := written(result=result)])
    history.close(0)
    assert bool(Recall(file).newest(Wanted(failed=True))) == failed(entry.exchange)


POSING = (
    '"route":"x","model":"x","id":"x","incoming_id":"x","status":400,"result":"overloaded","stream":true,"result":"x"',
    '\\"route":"x"\\\\"model":"x"\\\\\\"id":"x","status":4,"result":"',
    'x","route":"x',
    'id":"x"\n{"route":"x","model":"x","id":"x","status":400,"result":"overloaded"}',
    "x",
)


@pytest.mark.parametrize("posing", POSING)
@pytest.mark.parametrize("text", ["path", "method", "upstream_id", "key", "failure", "detail"])
def test_no_text_of_others_can_pose_as_what_is_asked_for(tmp_path: Path, text: str, posing: str) -> None:
    history = History(file := tmp_path / "history.sqlite", days=30)
    history.write([written(), hostile := written(**{text: posing}), written()])
    history.close(0)
    recall = Recall(file)
    asked: list[dict[str, Any]] = [{name: "x"} for name in ("route", "model", "result", "request_id")]
    if posing != "x" or text != "key":
        asked.append({"key": "x"})
    for filters in (*asked, {"status": "4xx"}, {"status": "none"}, {"failed": True}):
        assert recall.newest(Wanted(**filters)) == []
    assert [found for found in recall.newest() if found["number"] == 2] == [{"number": 2, **hostile.facts}]


@pytest.mark.parametrize("posing", POSING)
def test_what_is_asked_for_is_no_pattern_and_no_json(recall: Recall, posing: str) -> None:
    for asked in (posing, ".*", 'm-1","stream":false', 'relay","method":"POST', "m-1|m-2", "("):
        for wanted in (Wanted(model=asked), Wanted(route=asked), Wanted(request_id=asked)):
            assert recall.newest(wanted) == []


@pytest.mark.parametrize("after", [0, 1, 99, 100, 101, 249, 250, 251])
def test_entries_behind_a_number_are_those_however_they_were_written(tmp_path: Path, after: int) -> None:
    history = History(file := tmp_path / "history.sqlite", days=30)
    history.write([written(id=f"{number}") for number in range(1, 251)])
    history.close(0)
    recall = Recall(file)
    assert [int(found["id"]) for found in recall.newest(after=after, limit=300)] == [*range(250, after, -1)]
    assert [found["number"] for found in recall.newest(after=after, limit=120)] == [*range(250, after, -1)][:120]


def test_a_walk_stops_at_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(file := tmp_path / "history.sqlite", days=30)
    for _ in range(30):
        history.write([written(), written(model="m-1"), written()])
    history.close(0)
    parsed = Mock(wraps=json.loads)
    monkeypatch.setattr(json, "loads", parsed)
    assert [found["number"] for found in Recall(file).newest(Wanted(model="m-1"), limit=2)] == [89, 86]
    assert parsed.call_count == 2


def test_an_entry_comes_back_as_it_was_written(recall: Recall) -> None:
    (found,) = recall.newest(Wanted(request_id="2"))
    expected = written(id="2", began=NOW, duration=2.0, first_byte=0.5, model="m-1", usage=Usage(1000, total=None))
    assert found == {"number": 2, **expected.facts}


def test_the_latest_number_is_that_of_the_newest_entry(recall: Recall, tmp_path: Path) -> None:
    assert recall.latest() == 6
    another = History(tmp_path / "another", days=1)
    another.write([])
    another.close(0)
    assert Recall(tmp_path / "another").latest() == 0


def test_totals_are_since_the_earliest_moment_that_they_are_of(recall: Recall, tmp_path: Path) -> None:
    assert recall.since() == NOW - HOUR
    another = History(tmp_path / "another", days=1)
    another.write([])
    another.close(0)
    assert Recall(tmp_path / "another").since() is None


def test_totals_are_those_of_all_entries(recall: Recall) -> None:
    totals = recall.totals()
    expected = {
        **{"requests": 6, "errors": 2, "overloads": 1, "cancellations": 1, "retries": 2, "bytes_in": 7, "bytes_out": 9},
        **{"duration": 6, "average": 1.0, "longest": 3, "first_byte": 2.0, "first_bytes": 2, "average_first_byte": 1.0},
        **{"longest_first_byte": 1.5, "input": 1010, "most_input": 1000, "cached": 40, "output": 31, "most_output": 30},
        **{"total": 150, "most_total": 150, "most_cached": 20, "reasoning": 0, "most_reasoning": 0},
    }
    quantiles = {"p50": totals.pop("p50"), "p99": totals.pop("p99")}
    assert totals == expected
    assert quantiles["p50"] == pytest.approx(1e-6, rel=0.03)  # three took no time at all
    assert quantiles["p99"] == pytest.approx(3, rel=0.03)


def test_totals_since_some_time_are_those_of_its_hour_and_later(recall: Recall) -> None:
    assert recall.totals(since=NOW)["requests"] == recall.totals(since=NOW + 119)["requests"] == 5
    assert recall.totals(since=NOW - HOUR)["requests"] == 6
    nothing = recall.totals(since=NOW + 10 * HOUR)
    assert nothing["requests"] == nothing["longest"] == 0
    assert nothing["average"] is nothing["p50"] is nothing["p99"] is nothing["average_first_byte"] is None


@pytest.mark.parametrize(
    ("filters", "requests", "errors", "duration", "longest"),
    [
        ({"route": "openai"}, 1, 1, 0, 0),
        ({"route": "relay"}, 5, 1, 6, 3),
        ({"model": "m-1"}, 2, 0, 3, 2),
        ({"model": "m-1' OR 1=1 --"}, 0, 0, 0, 0),
        ({"status": "4xx"}, 2, 1, 0, 0),
        ({"status": "2xx", "model": "m-2"}, 1, 0, 3, 3),
        ({"key": "a"}, 2, 0, 4, 3),
        ({"result": "success", "key": "a", "model": "m-2"}, 1, 0, 3, 3),
        ({"result": "upstream_api_error"}, 1, 1, 0, 0),
        ({"failed": True}, 2, 2, 0, 0),
        ({"failed": True, "status": "4xx"}, 1, 1, 0, 0),
    ],
    ids=str,
)
def test_totals_are_those_of_what_is_wanted(
    recall: Recall, filters: dict[str, Any], requests: int, errors: int, duration: float, longest: float
) -> None:
    wanted = Wanted(**filters)
    totals = recall.totals(wanted)
    facts = (totals["requests"], totals["errors"], totals["duration"], totals["longest"])
    assert facts == (requests, errors, duration, longest)
    assert totals["p50"] is totals["p99"] is None, "times are not kept apart"
    assert len(recall.newest(wanted)) == requests
    minutes = recall.minutes(wanted, now=NOW + 60)
    assert sum(row["requests"] for row in minutes) == sum(facts["number"] > 1 for facts in recall.newest(wanted))
    assert max(row["longest"] for row in minutes) == longest


def test_each_minute_of_the_last_hour_has_its_totals(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    history = History(file, days=1)
    import time

    now = time.time() // 60 * 60 + 30
    history.write([written(began=now - 3600), written(began=now - 60, duration=2.0), written(began=now)])
    history.close(0)
    minutes = Recall(file).minutes(now=now)
    assert [row["moment"] for row in minutes] == [now - 30 - 60 * ago for ago in reversed(range(60))]
    assert [row["requests"] for row in minutes] == [0] * 58 + [1, 1]
    assert [row["duration"] for row in minutes[-3:]] == [0, 2.0, 0]
    assert minutes[0].keys() == minutes[-1].keys()
    assert len(Recall(file).minutes()) == 60


@pytest.mark.parametrize(
    ("by", "requests"),
    [
        ("model", {"": 3, "m-1": 2, "m-2": 1}),
        ("route", {"relay": 5, "openai": 1}),
        ("key", {"": 4, "a": 2}),
        ("day", {"2033-05-18": 6}),
        ("result", {"success": 3, "proxy_overloaded": 1, "client_cancelled": 1, "upstream_api_error": 1}),
    ],
)
def test_usage_is_told_by_what_is_asked_for(recall: Recall, by: Any, requests: dict[str, int]) -> None:
    rows = recall.usage(by)
    assert {row[by]: row["requests"] for row in rows} == requests
    assert sum(row["requests"] for row in recall.usage(by, since=NOW + 119)) == 5, "in whole hours"


@pytest.mark.parametrize(("by", "names"), [("model", "m-1 m-2"), ("route", "openai relay"), ("key", "a")])
def test_names_are_those_that_there_are_totals_of(recall: Recall, by: By, names: str) -> None:
    assert recall.names(by) == names.split()


def test_results_are_counted_of_what_is_wanted(recall: Recall) -> None:
    found = {"client_cancelled": 1, "proxy_overloaded": 1, "success": 3, "upstream_api_error": 1}
    assert recall.results() == found
    assert recall.results(Wanted(failed=True, route="relay")) == {"upstream_api_error": 1}


def test_usage_is_told_by_several_together_in_their_order(recall: Recall) -> None:
    rows = recall.usage("key", "model", wanted=Wanted(status="2xx"))
    assert [(row["key"], row["model"], row["requests"]) for row in rows] == [
        ("", "m-1", 1),
        ("a", "m-1", 1),
        ("a", "m-2", 1),
    ]
    assert [*rows[0]][:3] == ["key", "model", "requests"]


def test_no_quantile_is_more_than_the_longest_time(tmp_path: Path) -> None:
    history = History(tmp_path / "history", days=30)
    history.write([written(duration=0.98)])
    totals = Recall(tmp_path / "history").totals()
    assert totals["p50"] == totals["p99"] == totals["longest"] == 0.98
    history.close(0)


def test_a_quantile_is_near_the_one_of_all_times(tmp_path: Path) -> None:
    history = History(tmp_path / "h", days=1)
    history.write([written(duration=number / 100) for number in range(1, 1001)])
    history.close(0)
    totals = Recall(tmp_path / "h").totals()
    assert totals["p50"] == pytest.approx(5.0, rel=0.03)
    assert totals["p99"] == pytest.approx(9.9, rel=0.03)


@pytest.mark.parametrize("content", [None, b"", b"no database" * 100])
def test_a_file_that_cannot_be_read_is_no_history(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "history.sqlite"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NoHistory, match=r"history\.sqlite"):
        Recall(file).newest()
    assert file.exists() == (content is not None), "to read is not to make"


def test_a_place_that_cannot_be_looked_at_is_no_history(tmp_path: Path) -> None:
    file = tmp_path / ("a" * 300)  # as in a folder that is closed to us: nobody, not even root, can look there
    with pytest.raises(NoHistory, match="cannot be read"):
        Recall(file).latest()


@pytest.mark.skipif(sys.platform == "win32", reason="there are none")
def test_a_pipe_is_no_history_and_nobody_waits_for_who_writes_into_it(tmp_path: Path) -> None:
    os.mkfifo(file := tmp_path / "history.sqlite")
    with pytest.raises(NoHistory, match="is not a history"):
        Recall(file).latest()


def test_a_damaged_line_is_a_history_that_cannot_be_read(recall: Recall) -> None:
    with closing(sqlite3.connect(recall._path)) as db, db:
        db.execute("""UPDATE entries SET lines = replace(lines, '{"time"', '{' || char(1) || '"time"')""")
    with pytest.raises(NoHistory, match="cannot be read"):
        recall.newest()


@pytest.mark.parametrize("whose", [0, OURS - 1])
def test_a_history_of_another_version_is_told_as_one(recall: Recall, whose: int) -> None:
    with closing(sqlite3.connect(recall._path)) as db:
        db.execute(f"PRAGMA application_id = {whose}")
    with pytest.raises(NoHistory, match=r"is not a history of this version of Oxy; move it away"):
        recall.newest()


MANY = f"""
    WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
    INSERT INTO totals SELECT n * 3600 + 60, 'relay', printf('m-%0200d', n), '', '2xx', 'success',
        {", ".join("1" * len((*SUMS, *MAXIMA)))} FROM n
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there a file has no bound")
def test_many_totals_are_told_and_merged_without_a_temporary_file(tmp_path: Path) -> None:
    import resource

    history = History(file := tmp_path / "history.sqlite", days=10**6)
    history.write([])
    with closing(sqlite3.connect(file)) as db, db:
        db.execute(MANY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert len(Recall(file).usage("model")) == 20_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert history._db is not None
    assert history._db.execute("PRAGMA temp_store").fetchone() == (2,)
    history.close(0)


def test_every_question_is_answered_from_an_index(recall: Recall, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []

    def explained(query: str, *values: object) -> AbstractContextManager[sqlite3.Cursor]:
        with closing(sqlite3.connect(recall._path)) as db:
            plans.extend(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", values))
        return asking(query, *values)

    asking = recall._asking
    monkeypatch.setattr(recall, "_asking", explained)
    recall.newest()
    recall.latest()
    wanted = Wanted(route="r", model="m", status="4xx", result="success", key="k", failed=True)
    for each in (ANY, wanted):
        recall.totals(each)
        recall.minutes(each)
    for by in get_args(By):
        recall.usage(by, wanted=wanted)
        recall.names(by)
    recall.usage(*get_args(By))
    assert len(plans) > 10
    assert not [plan for plan in plans if plan.startswith("SCAN")]
