"""The operator's pages together, and the door before them: a bound on how often one may ask, and the ACCESS_TOKEN."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.board import boards
from proxy.errors import Failure, Forbidden, MethodNotAllowed, RateLimited
from proxy.fresh import Fresh
from proxy.login import Login, WrongToken
from proxy.markup import ASSETS, ASSETS_AT, asks_for_html, asset
from proxy.metrics import CONTENT_TYPE
from proxy.overview import InFlight, Overview
from proxy.pages import Page, refusal
from proxy.ratelimit import RateLimit, address
from proxy.recall import Recall
from proxy.runtime import Runtime
from proxy.settings import Settings
from proxy.shell import HEADERS, Shell

METHODS = ("GET", "HEAD", "POST")
OFTEN, PROBES = 60, 1200  # requests a minute from one address
SAID = 1  # lines of the log a minute about one that guesses
UPSTREAM_LIFE = 10.0  # seconds
COOKIE_PATHS = ("/log", "/log_errors", "/debug/runtime", "/metrics", "/health2")
FOR_GOOD = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}

log = logging.getLogger("oxy")

Render = Callable[[Request], Awaitable[Response]]
AskUpstream = Callable[[], Awaitable[tuple[int, float]]]


def operator_pages(
    settings: Settings,
    recall: Recall,
    exposition: Callable[[], bytes],
    ask_upstream: AskUpstream,
    in_flight: Callable[[], InFlight] | None = None,
) -> dict[bytes, ASGIApp]:
    """Return the applications of the operator's pages by their paths.

    `ask_upstream` asks for `GET /v1/models` and returns status and seconds; it raises `Failure` where there is no
    answer. `exposition` and `in_flight` may block: they are called in threads. Without the latter nothing is shown
    of it.
    """
    shell = Shell()
    login = Login(settings.access_token, COOKIE_PATHS) if settings.access_token else None
    entries, errors = boards(recall, shell, Overview(recall, in_flight))
    often, said = RateLimit(OFTEN), RateLimit(SAID)
    pages: dict[bytes, Render] = {
        b"/log": entries.page,
        b"/log/live": entries.live,
        b"/log_errors": errors.page,
        b"/log_errors/live": errors.live,
        b"/debug/runtime": Runtime(settings, shell).page,
        b"/health2": upstream_health(ask_upstream),
    }
    doors: dict[bytes, ASGIApp] = {path: Door(render, login, often, said, shell) for path, render in pages.items()}
    # Prometheus may scrape often; but whoever guesses tokens is not to guess as often as he likes.
    metrics = Door(exposed(exposition), login, RateLimit(PROBES), said, shell)
    files = {f"{ASSETS_AT}{name}".encode(): file(name) for name in ASSETS}
    return {**doors, b"/metrics": metrics, **files, **{f"{path}/".encode(): moved(path) for path in COOKIE_PATHS}}


class Door:
    """An ASGI endpoint for a page that only the operator may see. A stream counts once, when it begins.

    `limit` is how often an address may ask, `said` how often the log says of one that it showed a wrong token.
    """

    def __init__(self, render: Render, login: Login | None, limit: RateLimit, said: RateLimit, shell: Shell) -> None:
        self._render = render
        self._login = login
        self._limit = limit
        self._said = said
        self._shell = shell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the page, or say why not."""
        request = Request(scope, receive)
        try:
            self._limit.count(scope)
            response = await self._answer(request)
        except ClientDisconnect:  # only under a server that is not ours, which cancels nothing
            return
        except Failure as failure:
            if isinstance(failure, WrongToken):
                self._say_so(scope)
            response = self._refuse(request, failure)
        response.headers.update(HEADERS)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self._login is None:
            raise Forbidden("No ACCESS_TOKEN is set for this proxy: set one, and whoever has it may see this page")
        if request.method not in METHODS:
            raise MethodNotAllowed("This page is only to be read", allow=", ".join(METHODS))
        return await self._login.check(request) or await self._render(request)

    def _say_so(self, scope: Scope) -> None:
        with suppress(RateLimited):
            self._said.count(scope)
            log.warning("a wrong ACCESS_TOKEN came from %s; said once a minute", address(scope))

    def _refuse(self, request: Request, failure: Failure) -> Response:
        """Return a refusal: JSON, or for a browser a page, with the form for the token where that is what lacks."""
        response = refusal(request, failure)
        if not asks_for_html(request.headers.get("accept", "")):
            return response
        if isinstance(failure, Forbidden) and self._login is not None:
            page = self._shell.form(str(failure))
        else:
            page = self._shell.notice("Not now" if failure.status == 429 else "Not here", str(failure))
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return HTMLResponse(page, failure.status, kept)


class Limited:
    """Wraps an ASGI application that anyone may ask, but not as often as he likes."""

    def __init__(self, app: ASGIApp, requests: int) -> None:
        self._app = app
        self._limit = RateLimit(requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        try:
            self._limit.count(scope)
        except RateLimited as failure:
            await refusal(Request(scope), failure)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def upstream_health(ask_upstream: AskUpstream) -> Render:
    """Return the page at `/health2`: whether the upstream answers, with which status, and in how many milliseconds."""

    async def ask() -> tuple[dict[str, object], int]:
        try:
            status, seconds = await ask_upstream()
        except Failure as failure:
            return {"status": "unreachable", "code": failure.code}, 503
        word, ours = ("ok", 200) if status < 500 else ("failing", 503)
        return {"status": word, "upstream_status": status, "time_ms": round(seconds * 1000, 1)}, ours

    shared = Fresh(ask, UPSTREAM_LIFE)

    async def render(_: Request) -> Response:
        return JSONResponse(*await shared())

    return render


def exposed(exposition: Callable[[], bytes]) -> Render:
    """Return the page at `/metrics`."""

    async def render(_: Request) -> Response:
        return Response(await asyncio.to_thread(exposition), headers={"content-type": CONTENT_TYPE})

    return render


def moved(path: str) -> Page:
    """Return what leads from a page's path with a slash at its end to the page.

    It would be relayed otherwise, and with it a token that stands in the query.
    """

    def render(request: Request) -> Response:
        query = request.scope["query_string"].decode("latin-1")
        return RedirectResponse(f"{path}?{query}" if query else path, 308, HEADERS)

    return Page(render)


def file(name: str) -> Page:
    """Return what serves a file of the pages. There is nothing in it that nobody may see, and the form needs it."""
    content = asset(name)
    return Page(lambda _: Response(content, headers=FOR_GOOD, media_type=ASSETS[name]))
