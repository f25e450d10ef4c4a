"""Tokens of Microsoft Entra ID, in place of a key: one for all exchanges, renewed before it runs out.

The library looks for an identity where it runs (environment, workload, managed identity, a developer's tools). It
blocks, and so it works in a thread.
"""

import asyncio
import logging
import time
from typing import Any

from proxy.errors import UpstreamUnreachable

AHEAD = 300.0  # seconds before its end at which a token is renewed, while it is used on
PATIENCE = 30.0  # seconds in which there has to be one

log = logging.getLogger("oxy")


class Entra:
    """The token for one scope."""

    def __init__(self, scope: str) -> None:
        from azure.identity import DefaultAzureCredential  # an extra: only who asks for it has to have it

        self._credential: Any = DefaultAzureCredential()
        self._scope = scope
        self._token = b""
        self._ends = 0.0  # seconds since 1970
        self._renewing: asyncio.Task[None] | None = None

    async def token(self) -> bytes:
        """Return a token that is good for now. Raises `UpstreamUnreachable` if there is none to be had."""
        now = time.time()
        if now >= self._ends - AHEAD and self._renewing is None:
            self._renewing = asyncio.ensure_future(self._renew())
        if now >= self._ends and self._renewing is not None:
            await asyncio.wait([self._renewing], timeout=PATIENCE)
        if time.time() >= self._ends:
            raise UpstreamUnreachable("No token could be had from Entra ID; the proxy's log says why")
        return self._token

    async def _renew(self) -> None:
        try:
            got = await asyncio.to_thread(self._credential.get_token, self._scope)
            self._token, self._ends = got.token.encode(), float(got.expires_on)
        except Exception as problem:  # whatever the library raises, its text may hold what nobody is to read
            log.warning("no token for %s from Entra ID: %s", self._scope, type(problem).__name__)
        finally:
            self._renewing = None

    async def aclose(self) -> None:
        """Let go of what the library keeps."""
        if self._renewing is not None:
            await asyncio.wait([self._renewing], timeout=1)
        await asyncio.to_thread(self._credential.close)
