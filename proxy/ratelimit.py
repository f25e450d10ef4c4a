"""How often one client address may ask. Each worker counts what comes to it."""

import ipaddress
import math
import time
from typing import NamedTuple

from starlette.types import Scope

from proxy.errors import RateLimited

WINDOW = 60.0  # seconds
MOST_ADDRESSES = 10_000


class Window(NamedTuple):
    """A minute that began with an address's first request in it, and how many there have been since."""

    began: float
    requests: int


class RateLimit:
    """Allows each client address so many requests a minute.

    Addresses are kept for their minute, and only so many: beyond, the one that came first is forgotten.
    """

    def __init__(self, requests: int) -> None:
        self._most = requests
        self._windows: dict[str, Window] = {}  # the oldest first

    def __repr__(self) -> str:
        return f"<RateLimit {self._most} a minute, {len(self._windows)} addresses>"

    def count(self, scope: Scope) -> None:
        """Count a request. Raises `RateLimited` if it is one too many."""
        now = time.monotonic()
        self._forget(now)
        client = address(scope)
        window = self._windows.get(client) or Window(now, 0)
        if window.requests >= self._most:
            wait = math.ceil(window.began + WINDOW - now)
            raise RateLimited(f"More than {self._most} requests in a minute", retry_after=max(1, wait))
        self._windows[client] = Window(window.began, window.requests + 1)

    def _forget(self, now: float) -> None:
        while self._windows:
            oldest = next(iter(self._windows))
            if now - self._windows[oldest].began < WINDOW and len(self._windows) < MOST_ADDRESSES:
                return
            del self._windows[oldest]


def address(scope: Scope) -> str:
    """Return who counts as one client: an IPv4 address, or an IPv6 network of 64 bits, which one host has to itself."""
    host: str = scope["client"][0] if scope["client"] else ""
    if ":" not in host:
        return host
    try:
        number = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:  # another server's word for it
        return host
    return str(number.ipv4_mapped or ipaddress.IPv6Network((int(number) >> 64 << 64, 64)))
