"""Numbers as people read them."""

import pytest

from proxy.readable import UNKNOWN, count, share, size, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, UNKNOWN),
        (0, "0"),
        (999, "999"),
        (9_999, "9,999"),
        (10_000, "10 k"),
        (123_456, "123 k"),
        (999_600, "1 M"),
        (1_234_567, "1.23 M"),
        (5e9, "5 G"),
        (1e15, "1,000,000 G"),
    ],
)
def test_a_count_has_few_digits(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, UNKNOWN),
        (0, "0 ms"),
        (0.00123, "1.23 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_a_time_has_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1.5e6, "1.5 MB"), (2e9, "2 GB"), (3e12, "3 TB")]
)
def test_a_size_has_the_unit_that_fits(value: float, text: str) -> None:
    assert size(value) == text


def test_a_share_of_nothing_is_unknown() -> None:
    assert (share(1, 8), share(0, 0)) == ("12.5%", UNKNOWN)
