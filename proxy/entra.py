"""Tokens of Microsoft Entra ID, in place of a key: one for all exchanges, renewed before it runs out.

The library looks for an identity where it is run (environment, workload, managed identity, developer tools). It blocks,
and so runs in a thread.
"""

import asyncio
import logging
import time
from typing import Protocol

from proxy.errors import UpstreamUnreachable

AHEAD = 300.0  # seconds before its end at which a token is renewed, while it is used on

log = logging.getLogger("oxy")


class Token(Protocol):
    """What the library gives: `token`, and when it ends (seconds since 1970)."""

    @property
    def token(self) -> str: ...
    @property
    def expires_on(self) -> int: ...


class Entra:
    """The token for one scope."""

    def __init__(self, scope: str) -> None:
        # Only who asks for it loads it, and has to have it.
        from azure.identity import DefaultAzureCredential

        self._credential = DefaultAzureCredential()
        self._scope = scope
        self._token: Token | None = None
        self._renewing: asyncio.Task[Token] | None = None

    async def token(self) -> bytes:
        """Return a token that is good for now. Raises `UpstreamUnreachable` if there is none to be had."""
        left = self._token.expires_on - time.time() if self._token is not None else 0.0
        if left < AHEAD and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
            self._renewing.add_done_callback(self._renewed)
        if self._token is None or left <= 0:
            if self._renewing is None:  # pragma: no cover  # it was begun above
                raise AssertionError
            await asyncio.wait([self._renewing])
        ...
