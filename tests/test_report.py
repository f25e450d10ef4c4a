"""`oxy usage`: the table, its JSON, and what it says where there is nothing to tell."""

import json
from pathlib import Path

import pytest

from proxy.__main__ import main
from proxy.history import History
from proxy.recall import NoHistory
from proxy.report import usage
from tests.test_entry import Usage
from tests.test_history import written

FEW = Usage(input=1200, cached=0, output=34, reasoning=None, total=1234)
MANY = Usage(input=1_000_000, cached=5, output=1, reasoning=1, total=1_000_001)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "history.sqlite"
    history = History(file, days=10**6)
    history.write(
        [
            written(began=100_000.0, duration=1.0, model="a-model", usage=FEW),
            written(began=200_000.0, duration=2.0, model="another-model", usage=MANY, key="team"),
            written(began=200_000.0, duration=3.0, status=500, result="upstream_api_error"),
        ]
    )
    history.close(0)
    return file


def test_the_table_has_the_greatest_first_and_the_sum_last(file: Path) -> None:
    assert usage([], file).splitlines() == [
        "model          requests  errors      input  cached  output  reasoning      total  average",
        "another-model         1       0  1,000,000       5       1          1  1,000,001  2.000 s",
        "a-model               1       0      1,200       0      34          0      1,234  1.000 s",
        "-                     1       1          0       0       0          0          0  3.000 s",
        "all                   3       1  1,001,200       5      35          1  1,001,235  2.000 s",
    ]


def test_days_come_in_their_order(file: Path) -> None:
    assert [line.split()[:2] for line in usage(["--by", "day"], file).splitlines()] == [
        ["day", "requests"],
        ["1970-01-02", "1"],
        ["1970-01-03", "2"],
        ["all", "3"],
    ]


def test_several_groups_stand_side_by_side_and_what_belongs_together_does(file: Path) -> None:
    history = History(file, days=10**6)
    history.write([written(began=200_000.0, duration=2.0, model="a-model", usage=FEW, key="team")])
    history.close(0)
    assert usage(["--by", "key,model"], file).splitlines() == [
        "key   model          requests  errors      input  cached  output  reasoning      total  average",
        "team  another-model         1       0  1,000,000       5       1          1  1,000,001  2.000 s",
        "team  a-model               1       0      1,200       0      34          0      1,234  2.000 s",
        "-     a-model               1       0      1,200       0      34          0      1,234  1.000 s",
        "-     -                     1       1          0       0       0          0          0  3.000 s",
        "all                         4       1  1,002,400       5      69          1  1,002,469  2.000 s",
    ]
    told = [(row["model"], row["key"]) for row in json.loads(usage(["--by", "model, key", "--json"], file))]
    assert told == [("another-model", "team"), ("a-model", ""), ("a-model", "team"), ("", "")]
    days = [line.split()[:2] for line in usage(["--by", "day,result"], file).splitlines()[1:-1]]
    first, second = "1970-01-02", "1970-01-03"
    assert days == [[first, "success"], [second, "success"], [second, "upstream_api_error"]]


def test_the_average_of_the_sum_is_that_of_all_exchanges(file: Path) -> None:
    history = History(file, days=10**6)
    history.write([written(duration=0.0, model="a-model")] * 3)
    history.close(0)
    assert usage([], file).endswith(" 1.000 s"), "six took six seconds, the rows 0.25, 2 and 3"


def test_an_average_is_written_as_all_numbers_are(tmp_path: Path) -> None:
    file = tmp_path / "long.sqlite"
    history = History(file, days=1)
    history.write([written(duration=3613.9)])
    history.close(0)
    assert usage([], file).endswith(" 3,613.900 s")


def test_one_row_needs_no_sum(file: Path) -> None:
    assert len(usage(["--by", "route"], file).splitlines()) == 2


def test_as_json_it_has_every_total(file: Path) -> None:
    first, second = json.loads(usage(["--by", "key", "--json"], file))
    assert (first["key"], first["requests"], first["most_input"], first["average"]) == ("team", 1, 1_000_000, 2.0)
    assert (second["key"], second["requests"]) == ("", 2)


@pytest.mark.parametrize("span", ["90m", "12h", "7d", "2w"])
def test_only_the_last_of_it_is_told(file: Path, span: str) -> None:
    assert usage(["--since", span], file).splitlines()[1:] == []
    assert len(usage(["--since", "999999d"], file).splitlines()) == 5
    assert json.loads(usage(["--since", span, "--json"], file)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "7"],
        ["--since", "d"],
        ["--since", "-1d"],
        ["--since", "0d"],
        ["--by", "colour"],
        ["--by", "key,"],
        ["--by", "key,key"],
        ["--by", "key,colour"],
        ["--by", ""],
    ],
)
def test_what_cannot_be_understood_ends_with_status_2(
    file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        usage(arguments, file)
    assert "oxy usage: error: argument --" in capsys.readouterr().err


def test_without_a_history_it_says_how_to_keep_one() -> None:
    with pytest.raises(NoHistory, match="set PROXY_HISTORY"):
        usage([], None)


def test_the_command_line_prints_what_a_history_tells(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROXY_HISTORY", str(file))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-alone")  # with which no proxy would start
    assert main(["usage", "--by", "key"]) == 0
    assert "team" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["oxy", "usage", "--json"])
    assert main() == 0
    assert "another-model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "status", "words"),
    [("PROXY_HISTORY", "", 1, "PROXY_HISTORY"), ("PROXY_HISTORY", "a\x01b", 2, "cannot be printed")],
)
def test_where_there_is_none_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, status: int, words: str
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["usage"]) == status
    told = capsys.readouterr().err
    assert told.startswith("oxy usage: ")
    assert words in told
