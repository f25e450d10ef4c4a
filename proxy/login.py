"""Who may see the operator's pages: whoever shows ACCESS_TOKEN, or the cookie that was given in return for it.

The cookie does not hold the token: it is the end of its own life and the HMAC of that (RFC 2104), keyed with the token.
So each worker knows it, a restart does not end it, and another token does. To log out takes it from the browser: there
is no list of those that are good.
"""

import hashlib
import hmac
import time
from urllib.parse import parse_qs, unquote_plus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from proxy.errors import BodyTooLarge, Forbidden
from proxy.headers import OPERATOR_COOKIE
from proxy.markup import asks_for_html

COOKIE = OPERATOR_COOKIE.decode()
FIELD, LEAVE = "access_token", "log_out"  # of the two forms
LIFE = 7 * 24 * 3600  # seconds
MOST_OF_A_FORM = 4096  # bytes


class WrongToken(Forbidden):
    """A token was shown that is not the ACCESS_TOKEN."""


class Login:
    """Checks the token. `paths` are where the cookie is sent to, and what is below them.

    That is relayed, without the cookie.
    """

    def __init__(self, token: str, paths: tuple[str, ...]) -> None:
        self._token = token.encode()
        self._paths = paths

    async def check(self, request: Request) -> Response | None:
        """Return None if the request may pass; a redirection if it brings the token in a form, or a browser's query.

        In a browser's history, and what it tells other pages, no token is to stay; others may keep no cookie. Who has
        a cookie and posts that he leaves is led to the same page without it.
        Raises `Forbidden` if it may not, `WrongToken` if it seems to be a guess.
        """
        if request.method == "POST":
            form = await _posted(request)
            return self._let_out(request) if LEAVE in form else self._let_in(request, form.get(FIELD, [""])[-1])
        if (token := request.query_params.get(FIELD)) is not None:
            if not asks_for_html(request.headers.get("accept", "")):
                self._expect_token(token)
                return None
            return self._let_in(request, token)
        if self._has_cookie(request):
            return None
        if not (borne := _borne(request)):
            raise Forbidden("This page wants the ACCESS_TOKEN of the proxy")
        self._expect_token(borne)
        return None

    def _let_in(self, request: Request, token: str) -> Response:
        self._expect_token(token)
        return self._led_on(request, self._cookie(int(time.time()) + LIFE), LIFE)

    def _let_out(self, request: Request) -> Response:
        # A form on another site could take the cookie away, too; but the browser would not send it along from there.
        if not self._has_cookie(request):
            raise Forbidden("Nobody is logged in here")
        return self._led_on(request, "", 0)

    def _led_on(self, request: Request, cookie: str, life: int) -> Response:
        # Where it leads is the page that was asked for, and not for a link or a Host field to say; without a token that
        # stood in its query, which might be an old one, or let in again who leaves.
        page = request.scope["raw_path"].decode("latin-1")
        pieces = request.scope["query_string"].decode("latin-1").split("&")
        query = "&".join(each for each in pieces if _name(each) != FIELD)
        response = RedirectResponse(f"{page}?{query}" if query else page, 303)
        # Where TLS ends before us, the server that ends it says so.
        secure = "https" in (request.scope["scheme"], request.headers.get("x-forwarded-proto"))
        for path in self._paths:
            response.set_cookie(COOKIE, cookie, life, path=path, secure=secure, httponly=True, samesite="strict")
        return response

    def _expect_token(self, given: str) -> None:
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
            raise WrongToken("This is not the ACCESS_TOKEN of the proxy")

    def _has_cookie(self, request: Request) -> bool:
        given = request.cookies.get(COOKIE, "")
        end = given.partition(".")[0]
        if not (end.isascii() and end.isdigit() and len(end) < 16):
            return False
        return hmac.compare_digest(given.encode("latin-1", "replace"), self._cookie(int(end)).encode()) and (
            int(end) > time.time()
        )

    def _cookie(self, end: int) -> str:
        return f"{end}.{hmac.digest(self._token, f'{COOKIE} {end}'.encode(), hashlib.sha256).hex()}"


def _name(piece: str) -> str:
    """Return the name in a piece of a query."""
    return unquote_plus(piece.partition("=")[0])


def _borne(request: Request) -> str:
    """Return what is shown as a bearer token (RFC 6750 2.1)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _posted(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_OF_A_FORM:
            raise BodyTooLarge("This form has one field, and that is short")
    return parse_qs(body.decode("latin-1"))
