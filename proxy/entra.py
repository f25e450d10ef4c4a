"""Tokens of Microsoft Entra ID, in place of a key: one for all exchanges, renewed before it runs out.

The library looks for an identity where it runs (environment, workload, managed identity, a developer's tools). It
blocks, and so it works in a thread.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any

from proxy import values
from proxy.errors import UpstreamUnreachable

AHEAD = 300.0  # seconds before its end at which a token is renewed, while it is used on
PATIENCE = 30.0  # seconds in which there has to be one
PAUSE = 5.0  # seconds between two attempts: without it, each exchange would make its own
# Seconds for one request of the library, which repeats it: a mute endpoint must not keep the only attempt for ever.
TIMES = {"connection_timeout": 5, "read_timeout": 5}

# What identities are made of, as the library reads it, and the look of a token (RFC 7519).
SECRETS = (
    "IDENTITY_HEADER",
    "MSI_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_PASSWORD",
)
TOKEN = re.compile(r"eyJ[\w-]+\.[\w.-]+")
MOST_OF_A_REASON = 4000

log = logging.getLogger("oxy")
# What goes wrong they raise as well, and it is written down below, without secrets.
for name in ("azure", "msal"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class Entra:
    """The token for one scope. `tell` is told of each, before it is used."""

    def __init__(self, scope: str, tell: Callable[[bytes], None]) -> None:
        from azure.identity import DefaultAzureCredential  # an extra: only who asks for it has to have it

        self._credential: Any = DefaultAzureCredential(**TIMES)
        self._scope = scope
        self._tell = tell
        self._token = b""
        self._ends = 0.0  # seconds since 1970
        self._rests = 0.0  # until this time of the monotonic clock no attempt is made
        self._renewing: asyncio.Task[None] | None = None

    async def token(self) -> bytes:
        """Return a token that is good for now. Raises `UpstreamUnreachable` if there is none to be had."""
        now = time.time()
        if now >= self._ends - AHEAD and self._renewing is None and time.monotonic() >= self._rests:
            self._renewing = asyncio.ensure_future(self._renew())
        if now >= self._ends and self._renewing is not None:
            await asyncio.wait([self._renewing], timeout=PATIENCE)  # whoever gives up leaves it to the others
        if time.time() >= self._ends:
            raise UpstreamUnreachable("No token could be had from Entra ID; the proxy's log says why")
        return self._token

    async def _renew(self) -> None:
        try:
            got = await asyncio.to_thread(self._credential.get_token, self._scope)
            token, ends = values.key(got.token).encode(), float(got.expires_on)
            if time.time() >= ends:
                raise ValueError("the token has ended already; the clock of this machine may be wrong")
            self._tell(token)
            self._token, self._ends = token, ends
        except Exception as problem:  # whatever the library raises, and what is wrong with a token
            log.warning("no token for %s from Entra ID: %s", self._scope, reason(problem))
        finally:
            self._renewing, self._rests = None, time.monotonic() + PAUSE

    async def aclose(self) -> None:
        """Let go of what the library keeps."""
        if self._renewing is not None:
            await asyncio.wait([self._renewing], timeout=1)
        await asyncio.to_thread(self._credential.close)


def reason(problem: Exception) -> str:
    """Return what an exception says, in one line and without secrets; an endpoint may say back what it was sent."""
    text = " ".join(f"{type(problem).__name__}: {problem}".split())
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "***")
    return TOKEN.sub("***", text)[:MOST_OF_A_REASON]
