"""Figures: processes add up, those that are gone too; nobody reads half of a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.figures import Figures, SharedFile

OTHERWISE = {"start": min}


def figures(count: float, *observed: float, gauge: float = 0) -> Figures:
    made = Figures()
    made.count("counter", ("a",), count)
    made.observe("histogram", (), observed, (1, 2))
    made.gauges["gauge"][()] = made.gauges["start"][()] = gauge
    return made


def test_a_histogram_counts_what_is_up_to_each_bound() -> None:
    made = figures(1, 0.5, 1, 1.5, 2.5)
    made.observe("histogram", (), [2.0], (1, 2))
    made.observe("histogram", ("nothing",), [], (1, 2))
    assert made.histograms == {"histogram": {(): [2, 4, 5, 7.5]}}


def test_figures_of_several_files_add_up(tmp_path: Path) -> None:
    for count in (1, 2):  # of one process, as when its number comes again
        SharedFile(tmp_path).write(figures(count, count, gauge=count))
    own = SharedFile(tmp_path)
    own.write(figures(4, 4, gauge=4))
    together = own.together(OTHERWISE)
    assert together.counters == {"counter": {("a",): 7}}
    assert together.histograms == {"histogram": {(): [1, 2, 3, 7]}}
    assert together.gauges == {"gauge": {(): 7}, "start": {(): 1}}


def test_of_the_dead_only_what_they_counted_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    SharedFile(tmp_path).write(figures(7, 1, gauge=7))
    (file,) = tmp_path.iterdir()
    file.rename(file.with_name(file.name.replace(str(os.getpid()), str(process.pid), 1)))
    SharedFile(tmp_path).write(figures(1, gauge=1))
    own = SharedFile(tmp_path)
    for _ in range(3):
        together = own.together(OTHERWISE)
        assert together.counters == {"counter": {("a",): 8}}
        assert together.histograms == {"histogram": {(): [1, 1, 1, 1]}}
        assert together.gauges == {"gauge": {(): 1}, "start": {(): 1}}
        monkeypatch.setattr("proxy.figures.lives", lambda pid: True)  # it may come again, and be another's


def test_what_the_dead_have_left_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.figures.lives", lambda pid: False)
    for count in (1, 2):
        SharedFile(tmp_path).write(figures(count))
    own = SharedFile(tmp_path)
    assert own.together(OTHERWISE).counters == {"counter": {("a",): 3}}
    for file in tmp_path.iterdir():
        file.write_text("no figures")
    SharedFile(tmp_path).write(figures(4))
    assert own.together(OTHERWISE).counters == {"counter": {("a",): 7}}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SharedFile(tmp_path)
    file.write(figures(1))

    def break_off(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(Path, "replace", break_off)
    with pytest.raises(OSError, match="killed"):
        file.write(figures(2))
    assert SharedFile(tmp_path).together(OTHERWISE).counters == {"counter": {("a",): 1}}
    assert len([*tmp_path.iterdir()]) == 1, "what was begun is left behind"
    monkeypatch.undo()
    file.write(figures(3))
    assert SharedFile(tmp_path).together(OTHERWISE).counters == {"counter": {("a",): 3}}
