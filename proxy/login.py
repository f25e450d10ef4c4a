"""Who may see the operator's pages: whoever shows ACCESS_TOKEN, or the cookie that was given in return for it.

The cookie does not hold the token: it is the end of its own life and the HMAC of that (RFC 2104), keyed with the token.
So each worker knows it, a restart does not end it, and another token does.
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
FIELD = "access_token"
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

        In a browser's history, and what it tells other pages, no token is to stay; others may keep no cookie.
        Raises `Forbidden` if it may not, `WrongToken` if it seems to be a guess.
        """
        query = request.scope["query_string"].decode("latin-1")
        if request.method == "POST":
            return self._let_in(request, await _posted(request), query)
        if (token := request.query_params.get(FIELD)) is not None:
            if not asks_for_html(request.headers.get("accept", "")):
                self._expect_token(token)
                return None
            pieces = query.split("&")
            return self._let_in(request, token, "&".join(each for each in pieces if _name(each) != FIELD))
        if self._is_cookie(request.cookies.get(COOKIE, "")):
            return None
        if not (borne := _borne(request)):
            raise Forbidden("This page wants the ACCESS_TOKEN of the proxy")
        self._expect_token(borne)
        return None

    def _let_in(self, request: Request, token: str, query: str) -> Response:
        self._expect_token(token)
        # Where it leads is the page that was asked for, and not for a link or a Host field to say.
        page = request.scope["raw_path"].decode("latin-1")
        response = RedirectResponse(f"{page}?{query}" if query else page, 303)
        # Where TLS ends before us, the server that ends it says so.
        secure = "https" in (request.scope["scheme"], request.headers.get("x-forwarded-proto"))
        value = self._cookie(int(time.time()) + LIFE)
        for path in self._paths:
            response.set_cookie(COOKIE, value, LIFE, path=path, secure=secure, httponly=True, samesite="strict")
        return response

    def _expect_token(self, given: str) -> None:
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
            raise WrongToken("This is not the ACCESS_TOKEN of the proxy")

    def _is_cookie(self, given: str) -> bool:
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


async def _posted(request: Request) -> str:
    """Return the token in a form."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_OF_A_FORM:
            raise BodyTooLarge("This form has one field, and that is short")
    return parse_qs(body.decode("latin-1")).get(FIELD, [""])[-1]
