"""The totals and charts at the top of the log pages."""

from collections.abc import Callable
from typing import NamedTuple

from proxy.charts import Drawing
from proxy.markup import Html, View, joined
from proxy.readable import count, share, size, span
from proxy.recall import Recall, Row
from proxy.tables import TOKENS


class InFlight(NamedTuple):
    """Exchanges under way in all workers: now, and the most that there were at once."""

    now: int
    most: int


Figure = tuple[str, str, str]  # what it is, its value, and what else there is to say of it


class Overview:
    """Shows the totals of all that the history keeps. `in_flight` is asked for what the history does not know."""

    def __init__(self, recall: Recall, in_flight: Callable[[], InFlight] | None) -> None:
        self._recall = recall
        self._in_flight = in_flight
        self._draw = Drawing()
        self._overview, self._group, self._figure = View("overview"), View("figures"), View("figure")

    def __call__(self) -> Html:
        """Return it as HTML. Reads the file; raises `NoHistory`."""
        totals = self._recall.totals()
        groups = {"Exchanges": self._exchanges(totals), "Time": times(totals), "Tokens": tokens(totals)}
        figures = [self._show(title, group) for title, group in groups.items()]
        return self._overview(figures=joined(*figures), charts=self._draw(self._recall.minutes()))

    def _show(self, title: str, group: list[Figure]) -> Html:
        figures = [self._figure(name=name, value=value, note=note) for name, value, note in group]
        return self._group(title=title, figures=joined(*figures))

    def _exchanges(self, totals: Row) -> list[Figure]:
        in_flight = self._in_flight() if self._in_flight else None
        now = [("In flight", count(in_flight.now), f"at most {count(in_flight.most)}")] if in_flight else []
        return [
            ("Requests", count(totals["requests"]), f"{count(totals['retries'])} retries"),
            *now,
            ("Errors", count(totals["errors"]), share(totals["errors"], totals["requests"])),
            ("Overloads", count(totals["overloads"]), ""),
            ("Cancellations", count(totals["cancellations"]), ""),
            ("Bytes out", size(totals["bytes_out"]), f"{size(totals['bytes_in'])} in"),
        ]


def times(totals: Row) -> list[Figure]:
    """Return how long exchanges took."""
    return [
        ("Average", span(totals["average"]), ""),
        ("p50", span(totals["p50"]), ""),
        ("p99", span(totals["p99"]), ""),
        ("Longest", span(totals["longest"]), ""),
        ("First byte", span(totals["average_first_byte"]), f"at most {span(totals['longest_first_byte'])}"),
    ]


def tokens(totals: Row) -> list[Figure]:
    """Return how many tokens were used, and the most in one exchange."""
    return [(kind.capitalize(), count(totals[kind]), f"at most {count(totals[f'most_{kind}'])}") for kind in TOKENS]
