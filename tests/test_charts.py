"""The charts of the last hour."""

import re
import xml.etree.ElementTree as ET
from typing import Any

from proxy.charts import CHARTS, HEIGHT, Drawing
from proxy.tables import MAXIMA, SUMS


def minute(**facts: float) -> dict[str, Any]:
    return {**dict.fromkeys((*SUMS, *MAXIMA), 0), **facts}


def drawn(*minutes: dict[str, Any]) -> list[ET.Element]:
    """The figures, each of them well-formed."""
    return list(ET.fromstring(f"<all>{Drawing()(minutes)}</all>"))


def columns(figure: ET.Element, style: str) -> list[tuple[float, float, float]]:
    """Place, top and height of each column of one colour."""
    found = [rect.attrib for rect in figure.iter("rect") if rect.get("class") == style]
    return [(float(each["x"]), float(each["y"]), float(each["height"])) for each in found]


def test_the_tallest_minute_fills_the_chart_and_the_others_are_in_proportion() -> None:
    requests, errors, _, _ = drawn(minute(requests=5), minute(), minute(requests=10, errors=1))
    assert columns(requests, "a") == [(0, HEIGHT / 2, HEIGHT / 2), (20, 0, HEIGHT)]
    assert columns(errors, "bad") == [(20, 0, HEIGHT)]


def test_what_is_little_is_still_to_be_seen() -> None:
    requests, *_ = drawn(minute(requests=1), minute(requests=10_000))
    assert columns(requests, "a")[0] == (0, HEIGHT - 1, 1)


def test_tokens_stand_on_top_of_one_another() -> None:
    tokens = drawn(minute(input=30, output=10))[3]
    assert columns(tokens, "a") == [(0, HEIGHT / 4, HEIGHT * 3 / 4)]
    assert columns(tokens, "b") == [(0, 0, HEIGHT / 4)]


def test_the_time_is_parted_at_the_first_byte() -> None:
    times = drawn(minute(requests=2, duration=4.0, first_byte=1.0), minute(requests=1, duration=1.0))[2]
    assert columns(times, "a") == [(0, HEIGHT * 3 / 4, HEIGHT / 4)]
    assert columns(times, "b") == [(0, 0, HEIGHT * 3 / 4), (10, HEIGHT / 2, HEIGHT / 2)]


def test_the_average_is_that_of_all_also_where_few_came_to_a_first_byte() -> None:
    nine_were_refused_at_once = minute(requests=10, duration=2.0, first_byte=1.5, first_bytes=1)
    (svg,) = drawn(nine_were_refused_at_once)[2].iter("svg")
    assert svg.get("aria-label") == "Average time over the last hour: at most 200 ms, this minute 200 ms"


def test_a_chart_says_in_words_what_it_shows() -> None:
    figures = drawn(minute(requests=7, duration=10.5), minute(requests=3, duration=0.75))
    told = [svg.get("aria-label") for figure in figures for svg in figure.iter("svg")]
    assert told == [
        "Requests a minute over the last hour: at most 7, this minute 3",
        "Errors a minute over the last hour: at most 0, this minute 0",
        "Average time over the last hour: at most 1.5 s, this minute 250 ms",
        "Tokens a minute over the last hour: at most 0, this minute 0",
    ]


def test_of_a_minute_without_requests_there_is_no_average() -> None:
    (svg,) = drawn(minute(requests=7, duration=10.5), minute())[2].iter("svg")
    assert svg.get("aria-label") == "Average time over the last hour: at most 1.5 s, this minute \N{EN DASH}"


def test_where_each_request_failed_errors_are_drawn_once() -> None:
    figures = ET.fromstring(f"<all>{Drawing()([minute(requests=1, errors=1)], failed=True)}</all>")
    assert [title.text for title in figures.iter("b")] == ["Errors a minute", "Average time", "Tokens a minute"]


def test_only_charts_of_several_colours_have_a_legend() -> None:
    legends = ["".join(figure.find("figcaption/span").itertext()) for figure in drawn(minute())]  # type: ignore[union-attr]
    assert [re.split(r"\s{1,9}(?=[io])", legend.strip()) for legend in legends[3:]] == [["input", "output"]]
    assert legends[:2] == ["", ""]
    assert len(CHARTS) == len(legends)
