"""The official SDK before an upstream that records: its Azure client untouched, its plain one led to Azure's paths."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, Start
from tests.peers import Heard, Upstream, answer
from tests.test_azure import STYLES

MESSAGES: Any = [{"role": "user", "content": "Hallo, Bär"}]
COMPLETION = {
    "id": "c_1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
}
CHUNK = {**COMPLETION, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
EVENTS = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(CHUNK).encode()
SOUND, PICTURE = bytes(range(256)) * 4000, b"\x89PNG" + bytes(range(256)) * 4000
VERSION = b"?api-version=2024-10-21"


@pytest.fixture
def way() -> str:
    """What goes upstream is the same on either way; test_azure looks."""
    return "fast"


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def before_azure(start: Start, style: str) -> AsyncIterator[Running]:
    async with start(**STYLES[style], **SWAP, PROXY_UPSTREAM_AUTH="api-key") as proxy:
        yield proxy


@pytest.fixture
async def azure(before_azure: Running) -> AsyncIterator[openai.AsyncAzureOpenAI]:
    where: Any = {"azure_endpoint": before_azure.url, "api_key": CLIENT_KEY, "api_version": "2025-01-01"}
    async with openai.AsyncAzureOpenAI(**where, max_retries=0) as client:
        yield client


@pytest.fixture
async def plain(before_azure: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    where: Any = {"base_url": f"{before_azure.url}/v1", "api_key": CLIENT_KEY}
    async with openai.AsyncOpenAI(**where, max_retries=0) as client:
        yield client


def told(members: object) -> bytes:
    return answer(headers=[(b"Content-Type", b"application/json")], body=json.dumps(members).encode())


STREAM = answer(headers=[(b"Content-Type", b"text/event-stream")], body=EVENTS)


def heard_by(upstream: Upstream) -> Heard:
    """The one request, which came with the upstream's key as Azure takes it, and with no other."""
    (heard,) = upstream.heard
    assert (heard.all(b"api-key"), heard.all(b"authorization")) == ([UPSTREAM_KEY.encode()], [])
    return heard


async def test_an_azure_client_is_answered_in_every_style(azure: openai.AsyncAzureOpenAI, upstream: Upstream) -> None:
    upstream.says(told(COMPLETION))
    back = await azure.chat.completions.create(model="gpt-4.1", messages=MESSAGES)
    assert back.choices[0].message.content == "Hi"
    heard = heard_by(upstream)
    assert heard.target == b"/openai/deployments/gpt-4.1/chat/completions?api-version=2025-01-01"
    assert json.loads(heard.body)["messages"] == MESSAGES


async def test_an_azure_client_hears_a_stream(azure: openai.AsyncAzureOpenAI, upstream: Upstream) -> None:
    upstream.says(STREAM)
    stream = await azure.chat.completions.create(model="d", messages=MESSAGES, stream=True)
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["Hi"]
    assert heard_by(upstream).target == b"/openai/deployments/d/chat/completions?api-version=2025-01-01"


async def test_an_azure_client_sends_a_recording(azure: openai.AsyncAzureOpenAI, upstream: Upstream) -> None:
    upstream.says(told({"text": "Hi"}))
    assert (await azure.audio.transcriptions.create(model="whisper", file=("a.wav", SOUND))).text == "Hi"
    heard = heard_by(upstream)
    assert heard.target == b"/openai/deployments/whisper/audio/transcriptions?api-version=2025-01-01"
    assert SOUND in heard.body


async def test_an_azure_client_asks_for_what_has_no_deployment(
    azure: openai.AsyncAzureOpenAI, upstream: Upstream
) -> None:
    upstream.says(told({"object": "list", "data": []}))
    assert [model async for model in azure.models.list()] == []
    assert heard_by(upstream).target == b"/openai/models?api-version=2025-01-01"


led = pytest.mark.parametrize("style", ["v1", "deployments"])


def path(style: str, deployment: bytes, operation: bytes) -> bytes:
    if style == "v1":
        return b"/openai/v1" + operation
    return b"/openai/deployments/" + deployment + operation + VERSION


@led
@pytest.mark.parametrize("stream", [False, True])
async def test_a_plain_client_talks_to_a_deployment(
    plain: openai.AsyncOpenAI, upstream: Upstream, style: str, stream: bool
) -> None:
    upstream.says(STREAM if stream else told(COMPLETION))
    back: Any = await plain.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=stream)
    if stream:
        assert [chunk.choices[0].delta.content async for chunk in back] == ["Hi"]
    else:
        assert back.choices[0].message.content == "Hi"
    heard = heard_by(upstream)
    assert heard.target == path(style, b"prod-4o", b"/chat/completions")
    assert json.loads(heard.body)["model"] == "gpt-4o"


@led
async def test_a_plain_client_s_recording_arrives(plain: openai.AsyncOpenAI, upstream: Upstream, style: str) -> None:
    upstream.says(told({"text": "Hi"}))
    back = await plain.audio.transcriptions.create(model="whisper-1.5", file=("a.wav", SOUND), language="de")
    assert back.text == "Hi"
    heard = heard_by(upstream)
    assert heard.target == path(style, b"whisper-15", b"/audio/transcriptions")
    assert SOUND in heard.body


@led
async def test_a_plain_client_s_pictures_arrive(plain: openai.AsyncOpenAI, upstream: Upstream, style: str) -> None:
    upstream.says(told({"created": 1, "data": [{"b64_json": "aGk="}]}))
    files: Any = [("a.png", PICTURE), ("b.png", PICTURE)]
    await plain.images.edit(model="gpt-image-1.5", prompt="a bear", image=files)
    await plain.images.generate(model="gpt-image-1", prompt="a bear")
    edited, drawn = upstream.heard
    assert edited.target == path(style, b"gpt-image-15", b"/images/edits")
    assert edited.body.count(PICTURE) == 2
    assert drawn.target == path(style, b"gpt-image-1", b"/images/generations")


@led
async def test_a_plain_client_s_responses_are_the_resource_s(
    plain: openai.AsyncOpenAI, upstream: Upstream, style: str
) -> None:
    upstream.says(told({"id": "resp_1", "object": "response", "output": []}))
    assert (await plain.responses.create(model="prod-4o", input="Hi")).id == "resp_1"
    where = {"v1": b"/openai/v1/responses", "deployments": b"/openai/responses" + VERSION}
    assert heard_by(upstream).target == where[style]


@led
async def test_a_plain_client_may_choose_its_version(plain: openai.AsyncOpenAI, upstream: Upstream, style: str) -> None:
    upstream.says(told(COMPLETION))
    chosen = plain.with_options(default_query={"api-version": "preview"})
    await chosen.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert heard_by(upstream).target == path(style, b"prod-4o", b"/chat/completions").partition(b"?")[0] + (
        b"?api-version=preview"
    )


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").partition("## Azure OpenAI")[2]
SNIPPETS = re.findall(r"<!-- azure -->\n```python\n(.*?)```", README, re.DOTALL)
SETTINGS = dict(re.findall(r"^    ([A-Z_]+)=(.*)$", README.partition("**Entra")[0], re.MULTILINE))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["Azure's client", "OpenAI's client"])
async def test_a_snippet_of_the_readme_runs_with_its_settings(
    start: Start, upstream: Upstream, capsys: pytest.CaptureFixture[str], snippet: str
) -> None:
    upstream.says(told(COMPLETION))
    settings = {**SETTINGS, "AZURE_OPENAI_ENDPOINT": upstream.url, "PROXY_UPSTREAM_AUTH": "api-key"}
    async with start(**settings) as proxy:
        program: dict[str, Any] = {}
        await asyncio.to_thread(exec, snippet.replace("http://127.0.0.1:18443", proxy.url), program)
        program["client"].close()  # as the end of a program does
    assert capsys.readouterr().out == "Hi\n"
    (heard,) = upstream.heard
    assert heard.target == b"/openai/deployments/prod-4o/chat/completions" + VERSION
    assert heard.get(b"api-key") == SETTINGS["AZURE_OPENAI_API_KEY"].encode()


def test_the_snippets_and_their_settings_are_there() -> None:
    assert len(SNIPPETS) == 2
    assert SETTINGS["PROXY_AZURE"] == "deployments"
