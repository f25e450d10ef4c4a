"""How often one address may ask, and that remembering it is bounded."""

import time
from typing import Any

import pytest

from proxy import ratelimit
from proxy.errors import RateLimited
from proxy.ratelimit import RateLimit, address


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def scope(host: str | None) -> dict[str, Any]:
    return {"client": (host, 1234) if host else None}


def refused(limit: RateLimit, host: str) -> int | None:
    """After how many seconds the address may ask again, None if it may now."""
    try:
        limit.count(scope(host))
    except RateLimited as failure:
        return int(dict(failure.headers)[b"retry-after"])
    return None


def test_each_address_may_ask_so_often_in_a_minute_and_then_again(clock: Clock) -> None:
    limit = RateLimit(3)
    for seconds, host, wait in (
        (0, "10.0.0.1", None),
        (10, "10.0.0.1", None),
        (10, "10.0.0.1", None),
        (0.5, "10.0.0.1", 40),
        (0, "10.0.0.2", None),
        (39, "10.0.0.1", 1),
        (0.5, "10.0.0.1", None),
        (0, "10.0.0.1", None),
        (0, "10.0.0.1", None),
        (0, "10.0.0.1", 60),
    ):
        clock.now += seconds
        assert refused(limit, host) == wait


def test_one_who_is_refused_is_not_kept_waiting_for_longer(clock: Clock) -> None:
    limit = RateLimit(1)
    assert [refused(limit, "10.0.0.1") for _ in range(4)] == [None, 60, 60, 60]
    clock.now += 60
    assert refused(limit, "10.0.0.1") is None


def test_addresses_are_forgotten_after_their_minute_and_beyond_a_bound(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimit, "MOST_ADDRESSES", 100)
    limit = RateLimit(1)
    for number in range(1000):
        limit.count(scope(f"10.0.{number // 250}.{number % 250}"))
    assert repr(limit) == "<RateLimit 1 a minute, 100 addresses>"
    clock.now += 61
    limit.count(scope("10.9.9.9"))
    assert repr(limit) == "<RateLimit 1 a minute, 1 addresses>"


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b", "a:b"),  # what a server in front may make of a forwarded address
        (None, ""),
    ],
)
def test_an_ipv6_network_is_one_client(host: str | None, client: str) -> None:
    assert address(scope(host)) == client
