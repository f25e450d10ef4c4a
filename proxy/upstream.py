"""The far bank: where calls go, with which timeouts, and what its failures are called here.

Calls go through our own pool, or through one of httpx's transports (see `through_httpx`).
"""

import asyncio
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

import httpx

from proxy.access import CREDENTIALS
from proxy.azure import placing
from proxy.dial import Resuming
from proxy.entra import Entra
from proxy.errors import BadRequest, Failure, Pairs, UpstreamTimeout, UpstreamUnreachable
from proxy.exchange import Answer, Body, Call, Exchange, Timeouts
from proxy.headers import first
from proxy.heads import Shaped
from proxy.settings import Settings
from proxy.through_httpx import ThroughHttpx, own_transport
from proxy.tunnel import way_out
from proxy.values import Target
from proxy.whole import Whole

log = logging.getLogger("oxy")

# Most specific first; a test holds it against all of httpx's transport exceptions.
TRANSLATION: tuple[tuple[type[httpx.TransportError], type[Failure], str], ...] = (
    (httpx.ConnectTimeout, UpstreamTimeout, "Timeout while connecting to the upstream"),
    (httpx.PoolTimeout, UpstreamTimeout, "Timeout while waiting for a connection to the upstream"),
    (httpx.WriteTimeout, UpstreamTimeout, "Timeout while sending the request to the upstream"),
    (httpx.TimeoutException, UpstreamTimeout, "Timeout while waiting for the upstream's response"),
    (httpx.ConnectError, UpstreamUnreachable, "Could not connect to the upstream"),
    (httpx.ProxyError, UpstreamUnreachable, "The outbound proxy did not let the connection through"),
    (httpx.LocalProtocolError, BadRequest, "The request cannot be sent on: a header or the target is malformed"),
    (httpx.RemoteProtocolError, UpstreamUnreachable, "The upstream's response is not valid HTTP, or ended too early"),
    (httpx.TransportError, UpstreamUnreachable, "The connection to the upstream broke"),
)

# Of an idempotent call, as OpenAI's own SDKs have it: how often it goes out again, and after how many seconds.
RETRIES = 2
SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
NO_ANSWER = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)


class Bank(Protocol):
    """What takes a request to the target and brings the answer, one way or the other. Raises httpx's exceptions."""

    @property
    def connections(self) -> tuple[int, int]: ...
    async def open(
        self, method: str, target: bytes, headers: Pairs, body: Body | None, timeouts: Timeouts, shaped: Shaped | None
    ) -> Answer: ...
    async def aclose(self) -> None: ...


class Upstream:
    """Sends calls to the one target that the settings name, and nowhere else.

    `transport` is one of httpx's to use instead of our own. `tell` is told of tokens that stand in place of a key.
    """

    def __init__(
        self,
        settings: Settings,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        tell: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        target = settings.target
        self._bank = bank(settings, transport)
        self._host = (b"host", target.authority.encode())
        self._prefix = target.path.encode()
        self._azure = placing(settings)
        self._entra = Entra(settings.entra_scope, tell) if settings.upstream_auth == "entra" else None
        self.prepares = settings.azure != "off" or self._entra is not None
        self._last_segment = self._prefix[self._prefix.rfind(b"/") :]
        self._connect_timeout = settings.connect_timeout
        self.timeouts = self._within(settings.upstream_timeout)  # of a call that has none of its own

    async def open(self, exchange: Exchange, call: Call) -> Answer:
        """Send the call; return its answer when the head is there.

        An idempotent call goes out again, after a pause, where it came to nothing or the upstream asks for patience.
        Raises `Failure`, or httpx's exceptions, as reading the answer does; `translated` says what they mean.
        """
        if call.timeout is None:
            exchange.timeout = self.timeouts.read
        if self.prepares:
            call.shaped = None
            await self.prepare(call)
        body = call.body
        while call.idempotent and exchange.retries < RETRIES:
            if isinstance(body, Whole):
                call.body = body.again()  # a Whole keeps nothing that was taken: the last try takes the body itself
            try:
                answer = await self._open(call)
            except NO_ANSWER as problem:
                reason, pause = type(problem).__name__, backoff(exchange.retries)
            else:
                if not worth_another(answer):
                    return answer
                await answer.close()
                reason, pause = f"status {answer.status}", asked_for(answer.headers) or backoff(exchange.retries)
            attempt = f"attempt {exchange.retries + 2} of {RETRIES + 1}"
            log.info("exchange %s (%s): %s in %.1f s after %s", exchange.id, exchange.route, attempt, pause, reason)
            await asyncio.sleep(pause)
            exchange.retries += 1  # not before: the client may be gone by then
        call.body = body
        return await self._open(call)

    async def prepare(self, call: Call) -> None:
        """Make the call fit for Azure, where that is the target. Raises `Failure`."""
        if self._azure is not None:
            await self._azure.place(call)
        if self._entra is not None and not any(name in CREDENTIALS for name, _ in call.headers):
            call.headers = [*call.headers, (b"authorization", b"Bearer " + await self._entra.token())]

    async def _open(self, call: Call) -> Answer:
        headers = [self._host, *call.headers]
        timeouts = self.timeouts if call.timeout is None else self._within(call.timeout)
        target = self.place(call.target)
        answer = await self._bank.open(call.method, target, headers, call.body, timeouts, call.shaped)
        if not 200 <= answer.status <= 599:  # RFC 9110 15: no other status can be a final one
            await answer.close()
            raise UpstreamUnreachable(f"The upstream answered with status {answer.status}, which is none")
        return answer

    def _within(self, seconds: float) -> Timeouts:
        # Connecting is on the way to the head: whoever gives that so little time does not want to wait longer for it.
        connect = min(self._connect_timeout, seconds)
        return Timeouts(connect=connect, read=seconds, write=seconds, pool=connect)

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are open, and how many of them are idle; none are known of another's transport."""
        return self._bank.connections

    async def aclose(self) -> None:
        """Close all connections."""
        await self._bank.aclose()
        if self._entra is not None:
            await self._entra.aclose()

    def place(self, target: bytes) -> bytes:
        """Put the target's own path before the request's, but never its last segment twice.

        `OPENAI_BASE_URL` is often written with a `/v1` that the request path brings along too.
        """
        if target == b"*":  # RFC 9112 3.2.4: OPTIONS for the server as a whole
            return target
        last = self._last_segment
        if last and target.startswith(last) and target[len(last) : len(last) + 1] in (b"", b"/", b"?"):
            return self._prefix[: -len(last)] + target
        return self._prefix + target


def worth_another(answer: Answer) -> bool:
    """Tell whether the same call may well have another answer soon. The API's own word for it counts most."""
    if answer.status < 400:
        return False
    asked = first(answer.headers, b"x-should-retry")
    if asked in (b"true", b"false"):
        return asked == b"true"
    return answer.status in (408, 409, 429) or answer.status >= 500


def asked_for(headers: Pairs) -> float | None:
    """Return the pause, in seconds, that an answer asks for; None for none, or for one beyond reason.

    It may be a number or, in `Retry-After`, a date (RFC 9110 10.2.3).
    """
    for name, unit in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        given = first(headers, name) or b""
        number = re.fullmatch(rb"\d{1,6}(\.\d{1,6})?", given)
        pause = float(given) * unit if number else until(given)
        if 0 < pause <= LONGEST_PAUSE:
            return pause
    return None


def until(date: bytes) -> float:
    """Return the seconds until a date of HTTP, 0 for what is none."""
    try:
        return parsedate_to_datetime(date.decode("ascii")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def backoff(retries: int) -> float:
    """Return a pause in seconds: twice as long each time, and not the same for all who failed at once."""
    pause: float = SHORTEST_PAUSE * 2**retries
    return pause * random.uniform(0.75, 1)  # noqa: S311  no secret hangs on it


def bank(settings: Settings, transport: httpx.AsyncBaseTransport | None) -> Bank:
    """Return the way to the target: our own, unless there is a reason for httpx's."""
    target = settings.target
    if transport is not None:
        return ThroughHttpx(target, transport)
    if settings.way == "fast":
        from proxy.pool import Pool  # it takes httptools, which is not everywhere

        tls = trust(target, settings.upstream_ca) if target.scheme == "https" else None
        return Pool(target.host, target.port, tls=tls, by=way_out(settings.outbound_proxy))
    tls = trust(target, settings.upstream_ca)
    return ThroughHttpx(target, own_transport(tls, http2=settings.http2, proxy=settings.outbound_proxy))


def trust(target: Target, authorities: Path | None = None) -> ssl.SSLContext:
    """Return whom we believe to be the target: the system's authorities and those that Python clients ship with.

    `authorities` is a file of more of them. Where `SSL_CERT_FILE` or `SSL_CERT_DIR` names authorities, those alone and
    these. A target without TLS needs none, and reading them would take longer than the rest of the start.
    """
    if target.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = httpx.create_ssl_context()
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        context.load_default_certs()
    if authorities is not None:
        context.load_verify_locations(authorities)
    return Resuming.of(context)


def translated(problem: Exception, *, begun: bool = False) -> Failure | None:
    """Return the failure that a transport's exception means here, None for any other exception.

    `begun` is whether the answer had.
    """
    if not isinstance(problem, httpx.TransportError):
        return None
    failure = next(failure(message) for kind, failure, message in TRANSLATION if isinstance(problem, kind))
    if isinstance(failure, BadRequest) and type(root(problem)).__module__.startswith("h2."):
        # Of HTTP/2 these are no words about the request: the connection was about to end, or in no state for it.
        failure = UpstreamUnreachable("The connection to the upstream broke")
    if begun and isinstance(problem, httpx.ReadTimeout):
        failure = UpstreamTimeout("Timeout while waiting for the upstream's response to go on")
    failure.detail = type(problem).__name__
    if isinstance(problem, httpx.ConnectError):  # nothing was sent or heard yet, so that nothing secret can be in it
        failure.detail += f": {root(problem)}"
    if isinstance(problem, httpx.ProxyError):  # its words may quote what it was told, which is secret
        status = re.match(r"\d{3}\b", str(problem))
        failure.detail = f"ProxyError: {status[0]}" if status else "ProxyError"
    return failure


def root(problem: BaseException) -> BaseException:
    """Return the exception at the bottom of the chain: the system's own word for what went wrong."""
    while (deeper := problem.__cause__ or problem.__context__) is not None:
        problem = deeper
    return problem
