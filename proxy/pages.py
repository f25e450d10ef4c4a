"""The proxy's own pages: the welcome at `/` and `/health`. Neither needs a key or asks the upstream."""

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from proxy import __version__
from proxy.errors import Failure, MethodNotAllowed
from proxy.exchange import LONGEST_ID, Exchange, as_answer, new_id
from proxy.markup import View, asks_for_html
from proxy.settings import Mode, Settings

WELCOME = "Welcome to the OpenAI Reverse Proxy!"
NO_STORE = {"cache-control": "no-store"}
PAGE_HEADERS = {
    "vary": "Accept",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}

# What stands where an SDK wants an api_key, and what to say about it.
KEY_HINTS: dict[Mode, tuple[str, str]] = {
    "transparent": ("your OpenAI key", "Your own key goes through to the API untouched."),
    "swap": ("your client key", "The client key is checked here and swapped for the server's own key."),
    "guarded": ("your OpenAI key", "Send the client key as X-API-Key and your own OpenAI key as Authorization."),
    "open": ("any text", "No key is asked for: the server's own key is put in."),
}

# What clients say besides where both keys are wanted.
BOTH_KEYS = {
    "python_besides": ', default_headers={"X-API-Key": "your client key"}',
    "node_besides": '\n  defaultHeaders: { "X-API-Key": "your client key" },',
    "curl_besides": ' -H "X-API-Key: your client key"',
}


class Page:
    """An ASGI endpoint for one page: GET and HEAD are served, any other method is refused with 405."""

    def __init__(self, render: Callable[[Request], Response]) -> None:
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the page."""
        request = Request(scope)
        if request.method in ("GET", "HEAD"):
            response = self._render(request)
        else:
            response = refusal(request, MethodNotAllowed("This page is only to be read", allow="GET, HEAD"))
        await response(scope, receive, send)


def refusal(request: Request, failure: Failure) -> Response:
    """Return the answer to a request for a page that is not served."""
    given = request.headers.get("x-request-id")
    incoming_id = given if given is not None and len(given) <= LONGEST_ID else None
    fields, body = as_answer(failure, Exchange(id=new_id(), method="", path="", incoming_id=incoming_id))
    return Response(body, failure.status, {name.decode("latin-1"): value.decode("latin-1") for name, value in fields})


def welcome(settings: Settings) -> Page:
    """Return the page at `/`: HTML for a browser, one line of text for anything that does not ask for HTML."""
    view = View("welcome")
    api_key, key_hint = KEY_HINTS[settings.mode]
    besides = BOTH_KEYS if settings.mode == "guarded" else dict.fromkeys(BOTH_KEYS, "")
    state = {"version": __version__, "mode": settings.mode, "target": settings.target.authority}

    def render(request: Request) -> Response:
        if not asks_for_html(request.headers.get("accept", "")):
            return PlainTextResponse(WELCOME, headers=PAGE_HEADERS)
        base_url = str(request.base_url).rstrip("/")
        page = view(base_url=base_url, api_key=api_key, key_hint=key_hint, **besides, **state)
        return HTMLResponse(page, headers=PAGE_HEADERS)

    return Page(render)


def health() -> Page:
    """Return the page at `/health`: that this process is alive, which version it is, and for how long (seconds).

    One that finishes what is under way and then ends says so with 503.
    """
    began = time.monotonic()

    def render(request: Request) -> Response:
        draining: bool = request.scope["line"].stopping
        facts = {
            "status": "draining" if draining else "ok",
            "version": __version__,
            "uptime": round(time.monotonic() - began, 3),
        }
        return JSONResponse(facts, 503 if draining else 200, headers=NO_STORE)

    return Page(render)
