"""What of a run is measured: coverage on Python 3.11 makes all that runs take twice as long, not our code alone."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import proxy

if TYPE_CHECKING:
    from _typeshed import TraceFunction

# They look at the whole from outside, or at no code that runs: each line has a test of its own besides.
UNTRACED = (
    *("test_architecture", "test_browser", "test_cost", "test_deploy", "test_docs", "test_flatness"),
    *("test_leaks", "test_mutations", "test_operations", "test_readme"),
    *("test_sdk_azure", "test_sdk_node", "test_sdk_python"),
)

# What is above the ways that a call can take is measured on the first; `pure` takes others, and has all measured.
AGAIN = "httpx"
TOLD_OF_IT = ("test_downstream", "test_faults", "test_relay", "test_upstream")

MEASURED = "COVERAGE_PROCESS_CONFIG"  # coverage's sign to the processes that a test starts


def import_all() -> None:
    """Import every room: its first lines run but once, and here they are traced."""
    for room in walk_packages(proxy.__path__, "proxy."):
        import_module(room.name)


def is_untraced(item: pytest.Item) -> bool:
    """Tell whether a test is left out: those that say so, and what runs only if chance would have it proves nothing."""
    by_chance = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    said = item.path.stem in UNTRACED or item.get_closest_marker("untraced") is not None
    params = item.callspec.params if hasattr(item, "callspec") else {}
    again = params.get("way") == AGAIN and item.path.stem not in TOLD_OF_IT
    return by_chance or said or again


class Tracing(NamedTuple):
    """What traces: here, in threads that begin, and in processes that begin."""

    here: "TraceFunction | None" = None
    threads: "TraceFunction | None" = None
    processes: str | None = None


_put_aside: list[Tracing] = []


@contextmanager
def untraced() -> Iterator[None]:
    """Trace nothing meanwhile, neither here nor in threads and processes that begin.

    pytest-cov's marker `no_cover` stops one of the three tracers that it and coverage put into each worker, upon which
    the next one goes on.
    """
    _put_aside.append(_trace(Tracing()))
    try:
        yield
    finally:
        _forget()
        _trace(_put_aside.pop())


@contextmanager
def traced() -> Iterator[None]:
    """Trace meanwhile as around the innermost `untraced`: in a test that is left out, where two are, nothing."""
    before = _trace(_put_aside[-1])
    try:
        yield
    finally:
        _trace(before)


def _trace(chosen: Tracing) -> Tracing:
    """Trace so from here on; return how it was."""
    before = Tracing(sys.gettrace(), threading.gettrace(), os.environ.pop(MEASURED, None))
    if chosen.processes is not None:
        os.environ[MEASURED] = chosen.processes
    threading.settrace(chosen.threads)
    sys.settrace(chosen.here)
    return before


def _forget() -> None:
    # A result that is remembered from here would spare a test that is traced the lines that found it.
    for function in _remembering():
        function.cache_clear()


@cache
def _remembering() -> list[Any]:
    """Return what remembers results in all rooms; to look for it takes longer than most tests."""
    rooms = [module for name, module in sys.modules.items() if name.startswith("proxy.")]
    return [thing for room in rooms for thing in vars(room).values() if hasattr(thing, "cache_clear")]
