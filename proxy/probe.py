"""Asks the upstream whether it is there, with the cheapest request that there is."""

import asyncio
import time

from proxy.access import Access
from proxy.errors import UpstreamTimeout
from proxy.exchange import Call, Exchange, new_id
from proxy.upstream import Upstream, translated

PATIENCE = 10.0  # seconds


class Probe:
    """`GET /v1/models`, with the server's key where there is one. It is billed by nobody."""

    def __init__(self, upstream: Upstream, access: Access) -> None:
        self._upstream = upstream
        self._access = access

    async def __call__(self) -> tuple[int, float]:
        """Return the status of the answer, and the seconds until it began. Raises `Failure`."""
        exchange = Exchange(id=new_id(), method="GET", path="/v1/models")
        call = Call(method="GET", target=b"/v1/models", headers=self._access.signature([]), body=None)
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._upstream.open(exchange, call)
        except TimeoutError as problem:
            raise UpstreamTimeout("The upstream did not begin its answer in time") from problem
        except Exception as problem:
            if (failure := translated(problem)) is None:
                raise
            raise failure from problem
        await answer.close()
        return answer.status, time.monotonic() - began
