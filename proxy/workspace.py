"""A private folder for as long as the proxy runs: where workers meet, and a history that nobody wants kept.

Every process that uses it has it locked. One that is killed removes nothing, and so the next start removes whatever
nobody has locked any more.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from proxy.figures import DIRECTORY
from proxy.settings import Settings
from proxy.tally import VARIABLE, laid_out, place

PREFIX = "oxy-"
MARK = "made-by-oxy"  # a file in it; put there once it is locked, so that none is taken for abandoned before that
WITHOUT = (
    "no temporary folder ({}): no history but that of PROXY_HISTORY, each worker counts for itself, and what would "
    "have to wait on disk fails. TMPDIR may name another folder"
)


@contextmanager
def workspace(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with a history; several workers, which are started inside, share their metrics and bounds.

    The folder is its owner's alone, and gone afterwards. Where there is room for none, that is noted in the settings.
    """
    for variable in (DIRECTORY, VARIABLE):  # what another run has counted is not to be added to ours
        os.environ.pop(variable, None)
    try:
        remove_abandoned()
        made = TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    except OSError as problem:  # a full disk, a container whose files are read-only
        yield replace(settings, notes=(*settings.notes, WITHOUT.format(problem.strerror)))
        return
    with made as name, ExitStack() as kept:
        folder = Path(name)
        held = lock(folder, alone=False)
        (folder / MARK).touch()
        if settings.workers > 1:
            (folder / "metrics").mkdir()
            os.environ[DIRECTORY] = str(folder / "metrics")
            kept.enter_context(laid_out(folder) if os.name == "posix" else nullcontext())
        try:
            yield replace(settings, history=settings.history or folder / "history.sqlite")
        finally:
            os.environ.pop(DIRECTORY, None)
            clear(folder)
            if held is not None:
                os.close(held)


def stay() -> int | None:
    """Keep the folder until this process, a worker, ends, which may be after its supervisor; return what holds it."""
    shared = os.environ.get(DIRECTORY)
    return lock(Path(shared).parent, alone=False) if shared is not None else None


def remove_abandoned() -> None:
    """Remove the folders of ours that no process uses: those that had them were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # Not is_file, which raises where the folder is somebody else's and cannot be looked into.
        if os.path.isfile(folder / MARK) and (held := lock(folder, alone=True)) is not None:
            if os.fstat(held).st_uid == os.geteuid():
                with suppress(OSError):
                    place(folder).unlink(missing_ok=True)
                clear(folder)
                shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def clear(folder: Path) -> None:
    """Remove all but the mark, which is to go last: without it, what is cut off in the middle would stay for ever."""
    with suppress(OSError):
        for found in folder.iterdir():
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            elif found.name != MARK:
                found.unlink()


def lock(folder: Path, *, alone: bool) -> int | None:
    """Lock a folder, alone or together with others, and return the descriptor that holds the lock.

    None where it is no folder, where others have it locked, and on Windows, which has no such locks.
    """
    try:
        import fcntl

        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(held, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held
