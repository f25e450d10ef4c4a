"""Figures that several processes add up: counters, histograms and gauges as plain numbers.

A process that shares its figures keeps them in a file of its own, which it replaces as a whole, so that whoever reads
finds them as they were at one moment. What a process has counted stays in the sum when it is gone; its gauges do not.
"""

import json
import os
import uuid
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TypeVar

from proxy.tally import lives

DIRECTORY = "OXY_METRICS_DIRECTORY"  # tells workers, which are processes of their own, where they meet

Labels = tuple[str, ...]
Numbers = defaultdict[str, dict[Labels, float]]
Buckets = defaultdict[str, dict[Labels, list[float]]]
Value = TypeVar("Value")
Otherwise = Mapping[str, Callable[[Sequence[float]], float]]  # by the name of a gauge, what becomes of several values


class Figures:
    """Values by name and labels. A histogram is its counts up to each bound, the count of all, and their sum."""

    def __init__(self) -> None:
        self.counters: Numbers = defaultdict(dict)
        self.gauges: Numbers = defaultdict(dict)
        self.histograms: Buckets = defaultdict(dict)

    def count(self, name: str, labels: Labels, amount: float) -> None:
        """Add to a counter."""
        counter = self.counters[name]
        counter[labels] = counter.get(labels, 0) + amount

    def observe(self, name: str, labels: Labels, values: Sequence[float], bounds: Sequence[float]) -> None:
        """Add values to a histogram, all at once: that takes one look for each bound instead of one for each value."""
        if values:
            ordered = sorted(values)
            counts = [bisect_right(ordered, bound) for bound in bounds]
            self._add(name, labels, [*counts, len(ordered), sum(ordered)])

    def add(self, other: "Figures", *, lives: bool, otherwise: Otherwise) -> None:
        """Add those of another process, its gauges only if it lives; `otherwise` tells which are not to be added up."""
        for name, labels, amount in _series(other.counters):
            self.count(name, labels, amount)
        for name, labels, values in _series(other.histograms):
            self._add(name, labels, values)
        for name, labels, value in _series(other.gauges) if lives else ():
            gauge, together = self.gauges[name], otherwise.get(name, sum)
            gauge[labels] = together((gauge[labels], value)) if labels in gauge else value

    def _add(self, name: str, labels: Labels, values: Sequence[float]) -> None:
        histogram = self.histograms[name]
        before = histogram.get(labels, [0] * len(values))
        histogram[labels] = [one + other for one, other in zip(before, values, strict=True)]


def _series(kind: Mapping[str, Mapping[Labels, Value]]) -> Iterator[tuple[str, Labels, Value]]:
    for name, values in kind.items():
        for labels, value in values.items():
            yield name, labels, value


class SharedFile:
    """Where a process keeps its figures for the others in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / f"{os.getpid()}-{uuid.uuid4().hex}.json"  # a number of a process comes again
        self._ended: set[str] = set()  # files of processes that have ended
        self._left = Figures()  # what those have counted
        self._reading = Lock()

    def write(self, figures: Figures) -> None:
        """Replace what is there, or raise `OSError` and leave it."""
        kinds = (figures.counters, figures.gauges, figures.histograms)
        new = self._file.with_suffix(".new")
        try:
            new.write_text(json.dumps([list(_series(kind)) for kind in kinds]), encoding="utf-8")
            new.replace(self._file)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def together(self, otherwise: Otherwise) -> Figures:
        """Return the figures of all processes that ever shared theirs in this folder, as each did last, added up.

        What those have left that have ended is read once, since it changes no more.
        """
        together = Figures()
        with self._reading:
            for file in self._folder.glob("*.json"):
                if file.name in self._ended:
                    continue
                alive = lives(int(file.name.partition("-")[0]))  # asked first: then nothing is written behind our back
                figures = _read(file)
                if alive:
                    together.add(figures, lives=True, otherwise=otherwise)
                else:
                    self._left.add(figures, lives=False, otherwise=otherwise)
                    self._ended.add(file.name)
            together.add(self._left, lives=False, otherwise=otherwise)
        return together


def _read(file: Path) -> Figures:
    figures = Figures()
    counters, gauges, histograms = json.loads(file.read_text(encoding="utf-8"))
    for name, labels, value in counters:
        figures.counters[name][tuple(labels)] = value
    for name, labels, value in gauges:
        figures.gauges[name][tuple(labels)] = value
    for name, labels, values in histograms:
        figures.histograms[name][tuple(labels)] = values
    return figures
