"""The workspace: private while the proxy runs, gone afterwards."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.figures import DIRECTORY
from proxy.workspace import workspace
from tests.conftest import SettingsOf


@pytest.mark.parametrize("workers", ["1", "3"])
def test_it_is_private_and_gone_afterwards(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv(DIRECTORY, "/of-another-program")
    settings = settings_of(PROXY_WORKERS=workers)
    with workspace(settings) as inside:
        assert inside.history is not None
        folder = inside.history.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert replace(inside, history=None) == settings
        assert os.environ.get(DIRECTORY) == (str(folder / "metrics") if workers == "3" else None)
        assert (folder / "metrics").exists() == (workers == "3")
        inside.history.touch()
    assert not folder.exists()
    assert DIRECTORY not in os.environ


def test_a_history_that_is_to_be_kept_is_elsewhere(settings_of: SettingsOf, tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    file.touch()
    with workspace(settings_of(PROXY_HISTORY=str(file))) as inside:
        assert inside.history == file
    assert file.exists()
