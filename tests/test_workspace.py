"""The workspace: private while the proxy runs, gone afterwards, be it that the next start removes it."""

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.figures import DIRECTORY
from proxy.tally import VARIABLE
from proxy.workspace import MARK, lock, remove_abandoned, stay, workspace
from tests.conftest import SettingsOf


@pytest.mark.parametrize("workers", ["1", "3"])
def test_it_is_private_and_gone_afterwards(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv(DIRECTORY, "/of-another-program")
    monkeypatch.setenv(VARIABLE, "/of-another-program")
    settings = settings_of(PROXY_WORKERS=workers)
    with workspace(settings) as inside:
        assert inside.history is not None
        folder = inside.history.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert replace(inside, history=None) == settings
        assert os.environ.get(DIRECTORY) == (str(folder / "metrics") if workers == "3" else None)
        assert (folder / "metrics").exists() == (workers == "3")
        assert Path(os.environ.get(VARIABLE, "none")).exists() == (VARIABLE in os.environ) == (workers == "3")
        inside.history.touch()
    assert not folder.exists()
    assert os.environ.keys().isdisjoint((DIRECTORY, VARIABLE))


def test_without_a_temporary_folder_there_is_none_and_that_is_noted(
    settings_of: SettingsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that one is looked for
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    monkeypatch.setenv(DIRECTORY, "/of-another-program")
    settings = settings_of(PROXY_WORKERS="2")
    with workspace(settings) as inside:
        assert inside.history is None
        assert replace(inside, notes=()) == settings
        (note,) = inside.notes
        assert note.startswith("no temporary folder (")
        assert DIRECTORY not in os.environ
    kept = settings_of(PROXY_HISTORY=str(tmp_path / "kept"))
    with workspace(kept) as inside:
        assert inside.history == kept.history


def test_a_history_that_is_to_be_kept_is_elsewhere(settings_of: SettingsOf, tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    file.touch()
    with workspace(settings_of(PROXY_HISTORY=str(file))) as inside:
        assert inside.history == file
    assert file.exists()


Left = Callable[[str], Path]


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Left:
    """Make the folder of a run that was killed, in a temporary folder of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def left(name: str) -> Path:
        folder = tmp_path / name
        (folder / "metrics").mkdir(parents=True)
        (folder / MARK).touch()
        return folder

    return left


def test_what_a_killed_run_has_left_is_removed_at_the_next_start(settings_of: SettingsOf, left: Left) -> None:
    killed = left("oxy-1")
    with workspace(settings_of()) as inside:
        assert not killed.exists()
        assert inside.history is not None
        assert inside.history.parent.exists()


def test_what_is_cut_off_while_it_removes_leaves_the_mark(
    settings_of: SettingsOf, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, unlink, beside = [left("oxy-1")], os.unlink, {}

    def unlinked(path: str | Path, *, dir_fd: int | None = None) -> None:
        if Path(path).name == MARK:
            beside.update({folder: os.listdir(folder) for folder in folders if folder.exists()})
        unlink(path, dir_fd=dir_fd)

    with workspace(settings_of(PROXY_WORKERS="2")) as inside:
        assert inside.history is not None
        folders = [left("oxy-2"), inside.history.parent]
        for folder in folders:
            for number in range(20):  # in which order they go is the file system's affair
                (folder / f"history-{number}").touch()
        monkeypatch.setattr(os, "unlink", unlinked)
        remove_abandoned()
        folders.pop(0)
    assert [*beside.values()] == [[MARK], [MARK]]


def test_what_a_link_leads_to_stays(left: Left, tmp_path: Path) -> None:
    theirs = left("theirs")
    (tmp_path / "oxy-1").symlink_to(theirs)
    assert lock(tmp_path / "oxy-1", alone=True) is None
    remove_abandoned()
    assert (theirs / MARK).exists()


def test_what_another_run_uses_stays(settings_of: SettingsOf, left: Left) -> None:
    left("oxy-1")
    with workspace(settings_of()) as one, workspace(settings_of()) as other:
        assert one.history is not None
        assert other.history is not None
        assert one.history.parent.exists()
        remove_abandoned()
        assert other.history.parent.exists()


def test_what_a_worker_uses_stays_when_its_supervisor_is_gone(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = left("oxy-1")
    monkeypatch.setenv(DIRECTORY, str(folder / "metrics"))
    held = stay()
    assert held is not None
    remove_abandoned()
    assert folder.exists()
    os.close(held)  # as the end of the process does
    remove_abandoned()
    assert not folder.exists()


def test_nothing_is_removed_that_is_not_ours(left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, unmarked = left("elsewhere"), left("oxy-that-is-just-being-made")
    (unmarked / MARK).unlink()
    (tmp_path / "oxy-link").symlink_to(elsewhere)
    (tmp_path / "oxy-file").touch()
    there = sorted(tmp_path.rglob("*"))
    remove_abandoned()
    assert sorted(tmp_path.rglob("*")) == there
    another_s = left("oxy-1")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_abandoned()
    assert another_s.exists()


def test_where_there_are_no_locks_the_folder_is_private_all_the_same_and_others_are_left_alone(
    settings_of: SettingsOf, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = left("oxy-1")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with workspace(settings_of()) as inside:
        assert inside.history is not None
        folder = inside.history.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    assert killed.exists()
