"""Small charts of the last hour, minute by minute, as SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.markup import Html, View, joined
from proxy.readable import count, span

Row = dict[str, Any]
HEIGHT = 72
STEP, WIDTH = 10, 8  # of a column with the gap beside it, and without


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What one colour of a chart stands for, and where its numbers are."""

    name: str
    style: str
    value: Callable[[Row], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of columns; those of several series stand on top of one another."""

    title: str
    series: Sequence[Series]
    readable: Callable[[float], str] = count


CHARTS = (
    Chart(title="Requests a minute", series=[Series(name="requests", style="a", value=lambda row: row["requests"])]),
    Chart(title="Errors a minute", series=[Series(name="errors", style="bad", value=lambda row: row["errors"])]),
    Chart(
        title="Average time",
        series=[
            # Of all requests, which make the average: the first byte's own one is of those that came to it.
            Series(name="first byte", style="a", value=lambda row: row["first_byte"] / (row["requests"] or 1)),
            Series(
                name="the rest",
                style="b",
                value=lambda row: (row["duration"] - row["first_byte"]) / (row["requests"] or 1),
            ),
        ],
        readable=lambda seconds: span(seconds or None),  # where nothing was, there is no average
    ),
    Chart(
        title="Tokens a minute",
        series=[
            Series(name="input", style="a", value=lambda row: row["input"]),
            Series(name="output", style="b", value=lambda row: row["output"]),
        ],
    ),
)


class Drawing:
    """Draws the charts."""

    def __init__(self) -> None:
        self._chart, self._column, self._legend = View("chart"), View("column"), View("legend")

    def __call__(self, minutes: Sequence[Row], *, failed: bool = False) -> Html:
        """Return all of them for these minutes, the oldest first; but the first where each request of them failed."""
        return joined(*(self._draw(chart, minutes) for chart in CHARTS[failed:]))

    def _draw(self, chart: Chart, minutes: Sequence[Row]) -> Html:
        heights = [[series.value(row) for series in chart.series] for row in minutes]
        sums = [sum(values) for values in heights]
        most = max(sums)
        columns = [
            column
            for place, values in enumerate(heights)
            for column in self._stacked(chart, place * STEP, values, HEIGHT / (most or 1))
        ]
        legend = [self._legend(name=series.name, style=series.style) for series in chart.series]
        return self._chart(
            title=chart.title,
            most=chart.readable(most),
            latest=chart.readable(sums[-1]),
            columns=joined(*columns),
            legend=joined(*(legend if len(legend) > 1 else ())),
            width=len(minutes) * STEP,
            height=HEIGHT,
        )

    def _stacked(self, chart: Chart, x: int, values: Sequence[float], scale: float) -> list[Html]:
        columns, top = [], float(HEIGHT)
        for series, value in zip(chart.series, values, strict=True):
            if value > 0:
                height = max(1.0, value * scale)  # what is little is still to be seen
                top -= height
                columns.append(
                    self._column(style=series.style, x=x, y=f"{top:.1f}", width=WIDTH, height=f"{height:.1f}")
                )
        return columns
