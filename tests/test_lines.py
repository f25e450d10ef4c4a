"""The logs: whole lines, and a reader that stops reading stops nothing else."""

import errno
import io
import json
import logging
import os
import pty
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO, cast

import pytest

from proxy import lines as room
from proxy.entry import PIPE_BUF, Entry
from proxy.exchange import Exchange
from proxy.lines import Lines, News, log_lines
from proxy.redaction import Redaction
from proxy.values import LogFormat
from tests.test_entry import entry

PATIENCE = 10.0


def written(number: int, path: str = "/v1/models") -> Entry:
    exchange = Exchange(id=str(number), method="GET", path=path, began=0.0, status=200, result="success")
    return entry(exchange, Redaction())


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.005)


class Pipe:
    """A pipe with a reader that reads when it is told to."""

    def __init__(self, flags: int = 0) -> None:
        self.reading, self.writing = os.pipe2(flags)

    def read(self, count: int) -> list[str]:
        """Read until that many lines have come; what it was filled with stands before the first."""
        text = b""
        while text.count(b"\n") < count:
            text += os.read(self.reading, 1 << 20)
        return text.decode().splitlines()


def fill(fd: int) -> None:
    """Leave no room in a pipe."""
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, b" " * PIPE_BUF)
    except BlockingIOError:
        os.set_blocking(fd, True)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reading)  # whoever is stuck at the other end gets an error, and ends


Open = Callable[..., Lines]


@pytest.fixture
def open_lines(pipe: Pipe) -> Iterator[Open]:
    opened: list[Lines] = []

    def open_lines(log_format: LogFormat = "json") -> Lines:
        opened.append(Lines(pipe.writing, log_format))
        return opened[-1]

    yield open_lines
    for lines in opened:
        lines.close(0)


@pytest.mark.parametrize(
    ("log_format", "line"),
    [
        ("json", written(7).json),
        ("text", "1970-01-01T00:00:00.000Z 200 GET /v1/models 0.000 s, 0 B in, 0 B out, relay 7"),
    ],
)
def test_an_entry_is_one_line_in_the_format_that_was_chosen(
    pipe: Pipe, open_lines: Open, log_format: LogFormat, line: str
) -> None:
    lines = open_lines(log_format)
    lines.write([])
    lines.write([written(7)])
    assert pipe.read(1) == [line]
    until(lambda: repr(lines) == "<Lines 0 waiting, 0 dropped>")


def test_lines_go_out_whole_so_that_those_of_several_workers_do_not_mix() -> None:
    pipe = Pipe(os.O_DIRECT)  # each write is one packet
    lines = Lines(pipe.writing, "json")
    lines.write([written(number, "/" + "x" * (number * 37 % 2000)) for number in range(300)])
    numbers: list[str] = []
    while len(numbers) < 300:
        packet = os.read(pipe.reading, 2 * PIPE_BUF)
        assert len(packet) <= PIPE_BUF
        assert packet.endswith(b"\n")
        numbers += [json.loads(line)["id"] for line in packet.splitlines()]
    assert numbers == [str(number) for number in range(300)]
    lines.close(PATIENCE)


@pytest.mark.parametrize(
    ("log_format", "notice"), [("json", '{"dropped_log_entries":5}'), ("text", "5 log entries dropped")]
)
def test_a_reader_that_stops_blocks_nobody_and_hears_what_it_missed(
    pipe: Pipe, open_lines: Open, monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, notice: str
) -> None:
    monkeypatch.setattr(room, "MOST_WAITING", 100)
    fill(pipe.writing)
    lines = open_lines(log_format)
    lines.write([written(0)])
    until(lambda: repr(lines) == "<Lines 0 waiting, 0 dropped>")  # it is stuck with this one
    lines.write([written(number) for number in range(1, 106)])
    lines.write([])
    assert repr(lines) == "<Lines 100 waiting, 5 dropped>"
    heard = [line.strip() for line in pipe.read(102)]
    assert heard[1] == notice
    assert len(heard) == 102
    lines.write([written(200)])
    assert len(pipe.read(1)) == 1
    assert lines.dropped == 5


def test_a_reader_that_is_gone_costs_lines(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RETRY", 0.001)
    full = os.open("/dev/full", os.O_WRONLY)
    lines = Lines(full, "json")
    lines.write([written(1), written(2)])
    until(lambda: lines.dropped == 2)
    lines.write([written(3)])
    os.dup2(pipe.writing, full)  # there is room again
    heard = pipe.read(2)
    assert json.loads(heard[0]) == {"dropped_log_entries": 2}
    lines.close(PATIENCE)


def test_a_line_of_which_a_part_went_out_is_lost_and_spoils_no_other(
    pipe: Pipe, open_lines: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "RETRY", 0.001)
    write, first = os.write, written(1, "/" + "x" * 3000)
    room_left = [len(first.json) + 4, 0, 0, 1, 9]  # bytes that the disk takes: of the second line, of what mends it

    def full_disk(fd: int, piece: bytes) -> int:
        if fd != pipe.writing or not room_left:
            return write(fd, piece)
        if not (some := room_left.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        room_left.insert(0, 0)
        return write(fd, piece[:some])

    monkeypatch.setattr(os, "write", full_disk)
    lines = open_lines()
    lines.write([first, written(2), written(3)])
    until(lambda: lines.dropped == 2)
    lines.write([written(4)])
    heard = pipe.read(5)
    assert heard == [first.json, written(2).json[:3], '{"dropped', '{"dropped_log_entries":2}', written(4).json]
    assert lines.dropped == 2


def test_what_is_written_while_the_writer_looks_away_goes_out_before_the_end(pipe: Pipe, open_lines: Open) -> None:
    lines = open_lines()
    outlet = lines._outlet
    drain = outlet._drain

    def drain_and_be_interrupted() -> None:
        drain()
        outlet._drain = drain  # type: ignore[method-assign]
        lines.write([written(2)])
        threading.Thread(target=lines.close, args=(PATIENCE,)).start()
        assert outlet._closing.wait(PATIENCE)

    outlet._drain = drain_and_be_interrupted  # type: ignore[method-assign]
    lines.write([written(1)])
    assert [json.loads(line)["id"] for line in pipe.read(2)] == ["1", "2"]


def test_a_stream_that_takes_nothing_is_given_up_at_the_end() -> None:
    lines = Lines(os.open("/dev/full", os.O_WRONLY), "json")
    lines.write([written(1)])
    until(lambda: lines.dropped == 1)
    lines.write([written(2)])
    began = time.monotonic()
    lines.close(PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for(pipe: Pipe, open_lines: Open) -> None:
    fill(pipe.writing)
    os.set_blocking(pipe.writing, False)
    lines = open_lines()
    lines.write([written(1)])
    until(lambda: repr(lines) == "<Lines 0 waiting, 0 dropped>")
    assert json.loads(pipe.read(1)[0].strip())["id"] == "1"


def test_closing_writes_what_waits(pipe: Pipe, open_lines: Open, told: list[str]) -> None:
    lines = open_lines()
    lines.write([written(number) for number in range(50)])
    lines.close(PATIENCE)
    assert len(pipe.read(50)) == 50
    assert told == []


def test_closing_does_not_wait_for_a_stuck_reader_beyond_its_patience_and_says_what_is_lost(
    pipe: Pipe, open_lines: Open, told: list[str]
) -> None:
    fill(pipe.writing)
    lines = open_lines()
    lines.write([written(0)])
    until(lambda: repr(lines) == "<Lines 0 waiting, 0 dropped>")
    lines.write([written(1), written(2)])
    lines.close(0.01)
    assert told == ["the log on stdout lacks its last lines, at least 2"]


@pytest.mark.parametrize(
    ("environ", "coloured"), [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)], ids=str
)
def test_on_a_terminal_text_is_coloured_unless_nobody_wants_that(environ: dict[str, str], coloured: bool) -> None:
    reading, writing = pty.openpty()
    with open(writing, "w") as terminal:
        lines = cast(Lines, log_lines(terminal, "text", environ))
        lines.write([written(1)])
        heard = b""
        while b"\n" not in heard:
            heard += os.read(reading, 4096)
        lines.close(PATIENCE)
    os.close(reading)
    assert (b"\x1b[32m200\x1b[0m" in heard) == coloured


def test_elsewhere_text_has_no_colour(pipe: Pipe) -> None:
    with open(pipe.writing, "w") as stream:
        lines = cast(Lines, log_lines(stream, "text", {}))
        lines.write([written(1)])
        assert "\x1b" not in pipe.read(1)[0]
        lines.close(PATIENCE)


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "none of the system's"])
def test_where_nobody_can_read_stdout_there_is_no_book_that_could_lack_something(stream: TextIO | None) -> None:
    assert log_lines(stream, "json", {}) is None


@pytest.fixture
def news(pipe: Pipe) -> Iterator[News]:
    """A handler before a pipe."""
    with open(pipe.writing, "w", closefd=False) as stream:
        news = News(stream)
        yield news
        news._outlet.close(0)


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("oxy", logging.INFO, "", 0, message, values, None)


def test_records_are_lines_that_are_out_when_the_handler_is_closed(pipe: Pipe, news: News) -> None:
    for number in range(50):
        news.handle(record("number %s \ud800", number))
    news.close()
    assert pipe.read(50) == [f"number {number} \\ud800" for number in range(50)]


def test_whoever_logs_to_a_reader_that_stops_goes_on_and_the_reader_hears_what_it_missed(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, news: News
) -> None:
    monkeypatch.setattr(news._outlet, "_most", 100)
    news.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    fill(pipe.writing)
    news.handle(record("first"))
    until(lambda: repr(news) == "<News 0 waiting, 0 dropped>")  # it is stuck with this one
    for number in range(105):
        news.handle(record("number %s", number))
    assert repr(news) == "<News 100 waiting, 5 dropped>"
    heard = [line.strip() for line in pipe.read(102)]
    assert heard[:3] == ["INFO first", "WARNING 5 lines of this log were dropped", "INFO number 0"]
    assert heard[-1] == "INFO number 99"


def test_a_record_that_cannot_be_spelled_is_told_of_as_logging_tells_it(
    news: News, capsys: pytest.CaptureFixture[str]
) -> None:
    news.handle(record("%d", "x"))
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_stream_that_was_closed_is_left_alone(pipe: Pipe) -> None:
    with open(os.dup(pipe.writing), "w") as stream:
        news = News(stream)
    news.handle(record("late"))
    assert repr(news) == "<News 0 waiting, 0 dropped>"
    news.close()


def test_a_stream_without_a_descriptor_has_no_outlet() -> None:
    with pytest.raises(OSError, match="fileno"):
        News(io.StringIO())
