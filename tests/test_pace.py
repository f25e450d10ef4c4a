"""A thread that computes leaves the loop's its turn."""

import time

import pytest

from proxy.pace import BREATH, in_slices


def test_a_slice_is_as_long_as_asked_and_nothing_is_lost() -> None:
    assert list(in_slices([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(in_slices([], 2)) == []


def test_there_is_a_breath_behind_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    breaths: list[float] = []
    monkeypatch.setattr(time, "sleep", breaths.append)
    assert [(some, len(breaths)) for some in in_slices("abc", 2)] == [("ab", 0), ("c", 1)]
    assert breaths == [BREATH, BREATH]
