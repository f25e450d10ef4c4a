"""Where every failure meets: what nobody foresaw is told to the log, and to the client only that it happened."""

import json
import logging

import httpx
import pytest
from starlette.types import Message

from proxy.app import relay_app
from proxy.errors import Pairs
from tests.conftest import SettingsOf

SECRET = "sk-secret-in-an-exception"


class Broken(httpx.AsyncBaseTransport):
    """A transport with a defect: it fails in a way that no transport should, before the head or after it."""

    def __init__(self, *, after_the_head: bool) -> None:
        self._after_the_head = after_the_head

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._after_the_head:
            raise ZeroDivisionError(SECRET)
        return httpx.Response(200, stream=BreaksOff())


class BreaksOff(httpx.AsyncByteStream):
    async def __aiter__(self):  # type: ignore[no-untyped-def]
        yield b"half"
        raise ZeroDivisionError(SECRET)


async def ask(app: object, headers: Pairs | None = None) -> list[Message]:
    """All that an application sends on one GET, by hand."""
    sent: list[Message] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/models",
        "raw_path": b"/v1/models",
        "target": b"/v1/models",
        "query_string": b"",
        "headers": headers or [],
        "fields": dict(headers or []),
        "line": Present(),
        "sink": Gathered(sent),
        "client": None,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[operator]
    return sent


async def test_what_nobody_foresaw_is_a_500_with_its_traceback_in_the_log_alone(
    settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
) -> None:
    start, body = await ask(relay_app(settings_of(), Broken(after_the_head=False)))
    error = json.loads(body["body"])["error"]
    assert (start["status"], error["code"], error["type"]) == (500, "OPENAI_PROXY_INTERNAL", "internal_error")
    assert SECRET not in body["body"].decode()
    assert "ZeroDivisionError" in caplog.text


async def test_what_nobody_foresaw_in_a_stream_leaves_it_torn(settings_of: SettingsOf) -> None:
    sent = await ask(relay_app(settings_of(), Broken(after_the_head=True)))
    assert [message.get("body") for message in sent] == [None, b"half"]
    assert sent[-1]["more_body"]


async def test_a_client_of_unknown_address_is_served_all_the_same(settings_of: SettingsOf) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=request.headers, stream=Nothing()))
    start, *_ = await ask(relay_app(settings_of(PROXY_FORWARDED="append"), transport))
    assert start["status"] == 200
    assert b"x-forwarded-for" not in dict(start["headers"])


class Nothing(httpx.AsyncByteStream):
    async def __aiter__(self):  # type: ignore[no-untyped-def]
        return
        yield


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (httpx.ReadError(f"after {SECRET}"), "502: The connection to the upstream broke (ReadError)"),
        (
            httpx.ConnectError("no route to host"),
            "502: Could not connect to the upstream (ConnectError: no route to host)",
        ),
    ],
)
async def test_a_failure_is_one_line_in_the_log(
    settings_of: SettingsOf, caplog: pytest.LogCaptureFixture, problem: Exception, words: str
) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise problem

    start, body = await ask(relay_app(settings_of(), httpx.MockTransport(fail)))
    assert start["status"] == 502
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert words in record.getMessage()
    assert SECRET not in caplog.text
    assert str(problem) not in body["body"].decode()


class Present:
    """The line of a client that is there."""

    gone = False


class Gathered:
    """A sink that notes what is pushed as if it had been sent."""

    def __init__(self, sent: list[Message]) -> None:
        self._sent = sent

    def push(self, piece: bytes) -> bool:
        self._sent.append({"type": "http.response.body", "body": piece, "more_body": True})
        return False

    async def drain(self) -> None:
        """Return at once."""
