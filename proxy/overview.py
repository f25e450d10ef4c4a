"""The totals and charts at the top of the log pages."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from proxy.charts import Drawing
from proxy.entry import WELL
from proxy.markup import Html, View, joined
from proxy.readable import count, share, size, span
from proxy.recall import Recall, Row
from proxy.tables import MOST_MODELS, TOKENS
from proxy.wanted import Wanted


class InFlight(NamedTuple):
    """Exchanges under way in all workers: now, and the most that there were at once."""

    now: int
    most: int


Figure = tuple[str, str, str]  # what it is, its value, and what else there is to say of it


class Overview:
    """Shows the totals of what is wanted. `in_flight` is asked for what the history does not know."""

    def __init__(self, recall: Recall, in_flight: Callable[[], InFlight] | None) -> None:
        self._recall = recall
        self._in_flight = in_flight
        self._draw = Drawing()
        self._overview, self._group, self._figure = View("overview"), View("figures"), View("figure")
        self._note = View("note")

    def __call__(self, wanted: Wanted) -> Html:
        """Return it as HTML. Reads the file; raises `NoHistory`."""
        if wanted.request_id is not None:
            return self._note(text="A request id has no totals and no charts.")
        totals = self._recall.totals(wanted)
        groups = self._errors(wanted, totals) if wanted.failed else self._exchanges(wanted, totals)
        figures = [self._show(title, group) for title, group in groups.items()]
        charts = self._draw(self._recall.minutes(wanted), failed=wanted.failed)
        note = self._note(text=" ".join(notes(wanted, self._recall.since())))
        return self._overview(note=note, figures=joined(*figures), charts=charts)

    def _show(self, title: str, group: list[Figure]) -> Html:
        figures = [self._figure(name=name, value=value, note=note) for name, value, note in group]
        return self._group(title=title, figures=joined(*figures))

    def _exchanges(self, wanted: Wanted, totals: Row) -> dict[str, list[Figure]]:
        exchanges = [
            ("Requests", count(totals["requests"]), f"{count(totals['retries'])} retries"),
            *self._now(wanted),
            ("Errors", count(totals["errors"]), share(totals["errors"], totals["requests"])),
            ("Overloads", count(totals["overloads"]), ""),
            ("Cancellations", count(totals["cancellations"]), ""),
            ("Bytes out", size(totals["bytes_out"]), f"{size(totals['bytes_in'])} in"),
        ]
        return {"Exchanges": exchanges, "Time": times(totals), "Tokens": tokens(totals)}

    def _errors(self, wanted: Wanted, totals: Row) -> dict[str, list[Figure]]:
        errors = totals["errors"]
        results = self._recall.results(replace(wanted, failed=False, result=None))
        requests = sum(results.values())
        failures = {result: number for result, number in results.items() if result not in WELL}
        if wanted.result is not None:
            failures = {wanted.result: errors}
        figures = [
            ("Errors", count(errors), f"{share(errors, requests)} of {count(requests)}"),
            *self._now(wanted),
            ("Overloads", count(totals["overloads"]), ""),
            ("Retries", count(totals["retries"]), ""),
            ("Bytes out", size(totals["bytes_out"]), f"{size(totals['bytes_in'])} in"),
        ]
        why = [
            (result.replace("_", " "), count(number), share(number, errors))
            for result, number in sorted(failures.items(), key=lambda failure: -failure[1])
        ]
        return {"Errors": figures, **({"Why": why} if why else {}), "Time": times(totals)}

    def _now(self, wanted: Wanted) -> list[Figure]:
        if self._in_flight is None or wanted.chosen():  # what is in flight has no model yet, and no status
            return []
        in_flight = self._in_flight()
        return [("In flight", count(in_flight.now), f"at most {count(in_flight.most)}")]


def notes(wanted: Wanted, since: int | None) -> Iterator[str]:
    """Say what totals and charts are of, and what they cannot tell apart."""
    if since is not None:
        yield f"Totals are of all since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M} UTC."
    yield "An exchange is counted once it has ended, and drawn in the minute in which it began."
    chosen = wanted.chosen()
    if chosen:
        yield f"Totals and charts: only {', '.join(f'{name} {value}' for name, value in chosen.items())}."
    if "model" in chosen:
        yield f"A model's are those of answers that named it. Beyond the first {MOST_MODELS} models all are “other”."


def times(totals: Row) -> list[Figure]:
    """Return how long exchanges took."""
    whole = "only of all" if totals["requests"] and totals["p50"] is None else ""
    longest = totals["longest"] if totals["requests"] else None
    at_most = f"at most {span(totals['longest_first_byte'])}" if totals["first_bytes"] else ""
    return [
        ("Average", span(totals["average"]), ""),
        ("p50", span(totals["p50"]), whole),
        ("p99", span(totals["p99"]), whole),
        ("Longest", span(longest), ""),
        ("First byte", span(totals["average_first_byte"]), at_most),
    ]


def tokens(totals: Row) -> list[Figure]:
    """Return how many tokens were used, and the most in one exchange."""
    return [(kind.capitalize(), count(totals[kind]), f"at most {count(totals[f'most_{kind}'])}") for kind in TOKENS]
