"""A tally of several processes: it adds up, and what the dead had in it is struck out."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import tally
from proxy.tally import COUNTS, IN_FLIGHT, MOST, OWNERS, RELAYED, Tally, begun, laid_out


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    with laid_out(tmp_path):
        yield Path(os.environ[tally.VARIABLE])


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_it_is_its_owners_alone_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MEMORY", tmp_path / "missing")
    with laid_out(tmp_path):
        file = Path(os.environ[tally.VARIABLE])
        assert (file.parent, stat.S_IMODE(file.stat().st_mode)) == (tmp_path, 0o600)
    assert tally.VARIABLE not in os.environ
    assert not file.exists()


def test_where_there_is_no_room_for_it_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with laid_out(tmp_path):
        assert tally.VARIABLE not in os.environ
    assert not tally.place(tmp_path).exists()
    assert not [*tmp_path.iterdir()]


def test_what_stands_in_its_place_already_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    assert not begun(tmp_path / "link")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_each_has_a_row_and_their_numbers_add_up(file: Path) -> None:
    first, second = Tally(file), Tally(file)
    assert [repr(first), repr(second)] == ["<Tally row 0 of 2>", "<Tally row 1 of 2>"]
    first.column(RELAYED).put(3)
    second.column(RELAYED).put(4)
    second.column(RELAYED).put(2)
    second.column(IN_FLIGHT).put(9)
    assert first.column(RELAYED).total() == second.column(RELAYED).total() == 5
    assert first.column(RELAYED).own == 3


@pytest.mark.parametrize("how", ["its row is taken", "somebody would be refused"])
def test_what_the_dead_had_is_struck_out_and_what_they_saw_stays(file: Path, dead: int, how: str) -> None:
    living, other = Tally(file), Tally(file)
    other.column(OWNERS).put(dead)
    for number in (*COUNTS, MOST):
        living.column(number).put(1)
        other.column(number).put(5)
    if how == "its row is taken":
        assert Tally(file).row == other.row
        assert living.column(RELAYED).total() == 1
    assert living.column(RELAYED).total_of_the_living() == 1
    assert [living.column(number).total() for number in COUNTS] == [1, 1, 1]
    assert living.column(MOST).greatest() == 5


def test_where_a_row_before_others_is_taken_anew_they_count_on(file: Path, dead: int) -> None:
    before, last = Tally(file), Tally(file)
    before.column(OWNERS).put(dead)
    first = Tally(file)
    last.column(RELAYED).put(2)
    assert (repr(first), first.column(RELAYED).total()) == ("<Tally row 0 of 2>", 2)


def test_who_would_refuse_somebody_does_not_wait_for_another_who_strikes_out(file: Path, dead: int) -> None:
    living, other = Tally(file), Tally(file)
    other.column(OWNERS).put(dead)
    other.column(RELAYED).put(5)
    with other._alone():
        assert living.column(RELAYED).total_of_the_living() == 5
    assert living.column(RELAYED).total_of_the_living() == 0
