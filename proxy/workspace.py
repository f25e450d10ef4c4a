"""A private folder for as long as the proxy runs: where workers meet, and a history that nobody wants kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from proxy.figures import DIRECTORY
from proxy.settings import Settings


@contextmanager
def workspace(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with a history; several workers, which are started inside, share their metrics.

    The folder is its owner's alone, and gone afterwards.
    """
    with TemporaryDirectory(prefix="oxy-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ.pop(DIRECTORY, None)  # figures of another run are not to be added to ours
        if settings.workers > 1:
            (folder / "metrics").mkdir()
            os.environ[DIRECTORY] = str(folder / "metrics")
        try:
            yield replace(settings, history=settings.history or folder / "history.sqlite")
        finally:
            os.environ.pop(DIRECTORY, None)
