"""The limit of open files: raised as far as it has to be, and as it may be."""

import resource
import sys
from collections.abc import Callable

import pytest

from proxy.openfiles import allow

ANY = resource.RLIM_INFINITY
Limits = tuple[int, int]
LimitedTo = Callable[[int, int], list[Limits]]


@pytest.fixture
def limited_to(monkeypatch: pytest.MonkeyPatch) -> LimitedTo:
    """Say what the limits are, soft and hard; what they are set to then gets into the list that is returned."""

    def limited_to(soft: int, hard: int) -> list[Limits]:
        told: list[Limits] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, limits: told.append(limits))
        return told

    return limited_to


@pytest.mark.parametrize(
    ("limits", "allowed", "set_to"),
    [
        ((1024, 4096), 2312, [(2312, 4096)]),
        ((1024, ANY), 2312, [(2312, ANY)]),
        ((1024, 2000), 2000, [(2000, 2000)]),
        ((2000, 2000), 2000, []),
        ((2312, 4096), 2312, []),
        ((65536, 65536), 2312, []),
        ((ANY, ANY), 2312, []),
    ],
    ids=[
        "raised",
        "to what is needed",
        "to the hard limit",
        "there already",
        "enough",
        "more than enough",
        "no limit at all",
    ],
)
def test_the_limit_is_raised_to_what_is_needed_and_never_lowered(
    limited_to: LimitedTo, limits: Limits, allowed: int, set_to: list[Limits]
) -> None:
    told = limited_to(*limits)
    assert allow(2312) == allowed
    assert told == set_to


def test_where_it_may_not_be_raised_it_stays(limited_to: LimitedTo, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    limited_to(1024, 4096)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert allow(2312) == 1024


def test_where_there_is_no_such_limit_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert allow(2312) == 2312
