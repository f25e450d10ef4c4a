"""How the demo hears and answers, whatever the endpoint: bodies in, errors and streams out, the door."""

import json
import re
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.demo.shapes import new_id
from proxy.demo.voice import Json

UPSTREAM_KEY = "sk-demo-upstream-key"
CREDENTIALS = {(b"authorization", b"Bearer " + UPSTREAM_KEY.encode()), (b"api-key", UPSTREAM_KEY.encode())}
KEY_ITEM = "openai-insecure-api-key."  # a browser shows its key in a subprotocol
TURNED_AWAY = (
    "Incorrect API key provided. The demo API takes only the key that the proxy holds: call the proxy instead."
)
MAX_BODY = 32 * 1024 * 1024

PAUSE = re.compile(r"pause-(\d{1,3})")
MODELS = re.compile(r"(gpt-|o[134]|text-embedding-|whisper|tts|dall-e|chatgpt|omni-moderation|davinci|babbage).*")
FAULTS: dict[str, tuple[int, str, str | None]] = {
    "error-400": (400, "invalid_request_error", "invalid_value"),
    "error-401": (401, "invalid_request_error", "invalid_api_key"),
    "error-404": (404, "invalid_request_error", "model_not_found"),
    "error-429": (429, "requests", "rate_limit_exceeded"),
    "error-500": (500, "server_error", None),
    "error-503": (503, "server_error", None),
}
PATIENCE = {
    "retry-after": "1",
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6ms",
}
UNROUTED = {
    404: "Invalid URL ({method} {path})",
    405: "Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
}


class Refusal(HTTPException):
    """An error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.error = {"message": message, "type": type, "param": param, "code": code}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it came in a form."""

    name: str
    content: bytes


async def hear(request: Request, *required: str) -> Json:
    """Read a JSON object; raise Refusal if it is none, lacks what is required or names no usable model."""
    return _checked(_parsed(await request.body()), required)


async def hear_form(request: Request, *required: str) -> Json:
    """Read a multipart form, or a JSON object in its place; raise Refusal as above."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await hear(request, *required)
    async with request.form() as form:
        body: Json = {}
        for name, value in form.multi_items():
            content = Upload(value.filename or "", await value.read()) if isinstance(value, UploadFile) else value
            body[name.removesuffix("[]")] = content
    return _checked(body, required)


def admit(model: str) -> None:
    """Let pass the name of a model that exists; raise the error that the name asks for, or 404."""
    if model in FAULTS:
        status, type, code = FAULTS[model]
        message = f"This is the {status} that you asked the demo for with the model name '{model}'."
        raise Refusal(status, message, type=type, code=code, headers=PATIENCE if status == 429 else None)
    if not MODELS.fullmatch(model) and not PAUSE.fullmatch(model):
        message = (
            f"The model '{model}' does not exist or you do not have access to it. The demo knows gpt-4o and its like."
        )
        raise Refusal(404, message, param="model", code="model_not_found")


def silence(model: str) -> float:
    """Return for how many seconds a model is to be silent in the middle of a stream; `pause-5` says 5."""
    named = PAUSE.fullmatch(model)
    return float(named[1]) if named else 0.0


def whole(body: Json, name: str, *, default: int, least: int = 1, most: int) -> int:
    """Return a whole number from `least` to `most`; a form or a query may give it as digits."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        message = f"Invalid value for '{name}': expected a whole number from {least} to {most}."
        raise Refusal(400, message, param=name, code="invalid_value")
    return value


def wants(body: Json, name: str) -> bool:
    """Tell whether a switch is on; a form spells it out."""
    return body.get(name) in (True, "true")


def upload(body: Json, name: str) -> Upload:
    """Return the file in a field of a form."""
    value = body.get(name)
    if not isinstance(value, Upload):
        raise Refusal(400, f"'{name}' must be a file in a multipart form.", param=name, code="invalid_value")
    return value


def pack(value: object) -> bytes:
    """Return compact JSON; a lone surrogate, which JSON can name and UTF-8 cannot, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def tell(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(pack(value), status, headers, "application/json")


def stream(events: AsyncIterable[Json], *, end: bytes = b"") -> Response:
    """Answer with server-sent events, named after their `type` where they have one, and the bytes that end them."""

    async def frames() -> AsyncIterator[bytes]:
        async for event in events:
            name = f"event: {event['type']}\n".encode() if "type" in event else b""
            yield name + b"data: " + pack(event) + b"\n\n"
        yield end

    return StreamingResponse(frames(), headers={"cache-control": "no-cache"}, media_type="text/event-stream")


async def refuse(request: Request, problem: Exception) -> Response:
    """Render an HTTPException: our own, the router's or the form parser's."""
    refusal = problem if isinstance(problem, Refusal) else _refusal(request, cast(HTTPException, problem))
    return tell({"error": refusal.error}, status=refusal.status_code, headers=dict(refusal.headers or {}))


def shows_the_key(scope: Scope) -> bool:
    """Tell whether a request shows the upstream key and no other credential."""
    shown = {pair for pair in scope["headers"] if pair[0] in (b"authorization", b"api-key")}
    items = {item for item in scope.get("subprotocols", ()) if item.startswith(KEY_ITEM)}
    return bool(shown | items) and shown <= CREDENTIALS and items <= {KEY_ITEM + UPSTREAM_KEY}


class Doorman:
    """Lets in who shows the upstream key and no other credential, bounds bodies, puts OpenAI's headers on answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, room = time.perf_counter(), MAX_BODY

        async def bounded() -> Message:
            nonlocal room
            message = await receive()
            room -= len(message.get("body", b""))
            if room < 0:
                raise Refusal(413, f"The demo takes bodies of up to {MAX_BODY} bytes.", code="request_too_large")
            return message

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = round((time.perf_counter() - began) * 1000)
                message["headers"] += [
                    (b"x-request-id", new_id("req_").encode()),
                    (b"openai-processing-ms", str(took).encode()),
                    (b"openai-version", b"2020-10-01"),
                ]
            await send(message)

        app = self._app if shows_the_key(scope) else self._turn_away
        with suppress(ClientDisconnect):  # whoever is gone wants no answer
            await app(scope, bounded, signed)

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await refuse(Request(scope), Refusal(401, TURNED_AWAY, code="invalid_api_key"))
        await answer(scope, receive, send)


def _refusal(request: Request, problem: HTTPException) -> Refusal:
    template = UNROUTED.get(problem.status_code)
    message = template.format(method=request.method, path=request.url.path) if template else problem.detail
    return Refusal(problem.status_code, message, headers=dict(problem.headers or {}))


def _parsed(raw: bytes) -> Json:
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        raise Refusal(400, "We could not parse the JSON body of your request.") from problem
    if not isinstance(body, dict):
        raise Refusal(400, "The JSON body of your request is not an object.")
    return body


def _checked(body: Json, required: tuple[str, ...]) -> Json:
    for name in required:
        if body.get(name) in (None, "", [], {}):
            raise Refusal(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if body.get("model") is not None:
        admit(str(body["model"]))
    return body
