"""Cross-origin requests from browsers: preflights are answered here, an answer's own CORS fields are replaced."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.errors import Pairs
from proxy.headers import first

ANY = "*"
VARY = (b"vary", b"Origin")


class Cors:
    """Wraps an ASGI application; steps aside at once where a request has no `Origin`.

    `origins` are those that may read answers, as browsers send them (`https://app.example.com`), or `("*",)` for all.
    Follows the Fetch standard, section 3.3. Credentials in the sense of cookies are not offered: keys are headers.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._any = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on and put our CORS fields onto its answer."""
        origin = scope["fields"].get(b"origin") if scope["type"] == "http" else None
        if origin is None:
            await self._app(scope, receive, send)
            return
        requested = first(scope["headers"], b"access-control-request-method")
        if scope["method"] == "OPTIONS" and requested is not None:
            await send({"type": "http.response.start", "status": 204, "headers": self._preflight(scope, origin)})
            await send({"type": "http.response.body"})
            return

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if not pair[0].startswith(b"access-control-")]
                message["headers"] = [*kept, *self._allowed(origin), (b"access-control-expose-headers", b"*")]
            await send(message)

        await self._app(scope, receive, send_with_cors)

    def _allowed(self, origin: bytes) -> Pairs:
        if self._any:
            return [(b"access-control-allow-origin", b"*")]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), VARY]
        return [VARY]

    def _preflight(self, scope: Scope, origin: bytes) -> Pairs:
        # What is asked for is granted by name: `*` would not cover Authorization (Fetch 3.3.4).
        granted = [
            (b"access-control-allow-" + what, value)
            for what, asked in ((b"methods", b"method"), (b"headers", b"headers"))
            if (value := first(scope["headers"], b"access-control-request-" + asked))
        ]
        return [*self._allowed(origin), *granted, (b"access-control-max-age", b"86400")]
