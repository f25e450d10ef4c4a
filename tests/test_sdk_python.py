"""The official Python SDK, sync and async, against proxy and demo: it changes its base URL and nothing else."""

import asyncio
import base64
import json
import operator
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pydantic
import pytest
import pytest_asyncio

from proxy.demo import CLIENT_KEY
from proxy.demo.voice import tokens
from tests.conftest import Running

pytestmark = pytest.mark.asyncio(loop_scope="module")  # an SDK's client is made once: it costs more than all its calls

ASKED = [{"role": "user", "content": "Wie geht's, Bär?"}]
MESSAGE: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Wie geht's, Bär?"}]}
FUNCTION = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Weather(pydantic.BaseModel):
    """An answer's form."""

    city: str
    degrees: int


@dataclass(frozen=True, slots=True)
class Sdk:
    """Either client, called by the name of a method; the one that blocks does so in a thread."""

    client: Any

    async def __call__(self, method: str, *args: Any, **named: Any) -> Any:
        call = operator.attrgetter(method)(self.client)
        if isinstance(self.client, openai.OpenAI):
            return await asyncio.to_thread(call, *args, **named)
        return await call(*args, **named)

    async def every(self, method: str, **named: Any) -> list[Any]:
        """Return all events of a stream, or all members of a list."""
        if isinstance(self.client, openai.OpenAI):
            return await asyncio.to_thread(list, await self(method, **named))
        call = operator.attrgetter(method)(self.client)
        return [one async for one in (call(**named) if method.endswith(".list") else await call(**named))]


@pytest_asyncio.fixture(params=["sync", "async"], scope="module", loop_scope="module")
async def sdk(request: pytest.FixtureRequest, demo_proxy: Running) -> AsyncIterator[Sdk]:
    where: Any = {"base_url": f"{demo_proxy.url}/v1", "api_key": CLIENT_KEY, "max_retries": 0}
    if request.param == "async":
        async with openai.AsyncOpenAI(**where) as client:
            yield Sdk(client)
        return
    with openai.OpenAI(**where) as client:
        yield Sdk(client)


async def test_a_response_is_answered(sdk: Sdk) -> None:
    response = await sdk("responses.create", model="gpt-4o-mini", input="Wie geht's, Bär?")
    assert "Wie geht's, Bär?" in response.output_text
    assert response.usage.output_tokens == len(tokens(response.output_text))
    assert response._request_id.startswith("req_")


async def test_its_heads_come_again(sdk: Sdk, past: list[bytes]) -> None:
    for said in ("one", "two, which is longer", "three"):
        await sdk("responses.create", model="gpt-4o-mini", input=said)
    assert past


async def test_a_response_streams(sdk: Sdk) -> None:
    events = await sdk.every("responses.create", model="gpt-4o-mini", input="Hello", stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(deltas) == events[-1].response.output_text
    assert len(deltas) == events[-1].response.usage.output_tokens > 10


async def test_a_response_calls_a_tool_and_hears_its_result(sdk: Sdk) -> None:
    tools = [{"type": "function", **FUNCTION}]
    first = await sdk("responses.create", model="gpt-4o", input="Hello", tools=tools)
    (call,) = first.output
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "demo city"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = await sdk("responses.create", model="gpt-4o", input=[result], previous_response_id=first.id)
    assert "sunny" in second.output_text


async def test_a_response_takes_a_form(sdk: Sdk) -> None:
    response = await sdk("responses.parse", model="gpt-4o", input="Hello", text_format=Weather)
    assert response.output_parsed == Weather(city="demo city", degrees=1)


async def test_a_response_is_fetched_listed_counted_compacted_and_deleted(sdk: Sdk) -> None:
    response = await sdk("responses.create", model="gpt-4o", input="one two three")
    assert (await sdk("responses.retrieve", response.id)).output == response.output
    (item,) = (await sdk("responses.input_items.list", response.id)).data
    assert item.content[0].text == "one two three"
    assert (await sdk("responses.input_tokens.count", model="gpt-4o", input="one two three")).input_tokens == 3
    assert (await sdk("responses.compact", model="gpt-4o", previous_response_id=response.id)).output
    await sdk("responses.delete", response.id)
    with pytest.raises(openai.NotFoundError):
        await sdk("responses.retrieve", response.id)


async def test_a_response_in_the_background_is_cancelled(sdk: Sdk) -> None:
    response = await sdk("responses.create", model="gpt-4o", input="Hello", background=True)
    assert response.status == "queued"
    assert (await sdk("responses.cancel", response.id)).status == "cancelled"


async def test_chat_is_answered(sdk: Sdk) -> None:
    answer = await sdk("chat.completions.create", model="gpt-4o", messages=ASKED, n=2)
    first, second = answer.choices
    assert first.message.content == second.message.content
    assert "Wie geht's, Bär?" in first.message.content
    assert answer._request_id.startswith("req_")


async def test_chat_streams(sdk: Sdk) -> None:
    *chunks, last = await sdk.every(
        "chat.completions.create",
        model="gpt-4o",
        messages=ASKED,
        stream=True,
        stream_options={"include_usage": True},
    )
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "Wie geht's, Bär?" in "".join(deltas)
    assert last.usage.completion_tokens == len(deltas) > 10


async def test_chat_calls_a_tool_and_hears_its_result(sdk: Sdk) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    asked = {"model": "gpt-4o", "tools": tools}
    first = await sdk("chat.completions.create", messages=ASKED, **asked)
    said = first.choices[0].message
    (call,) = said.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "demo city"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    second = await sdk("chat.completions.create", messages=[*ASKED, said, result], **asked)
    assert "sunny" in second.choices[0].message.content


async def test_chat_streams_a_tool_call(sdk: Sdk) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    chunks = await sdk.every("chat.completions.create", model="gpt-4o", messages=ASKED, tools=tools, stream=True)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert calls[0].function.name == "weather"
    assert json.loads("".join(call.function.arguments for call in calls)) == {"city": "demo city"}


async def test_chat_takes_a_form(sdk: Sdk) -> None:
    answer = await sdk("chat.completions.parse", model="gpt-4o", messages=ASKED, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="demo city", degrees=1)


async def test_a_completion_of_the_older_kind_is_answered(sdk: Sdk) -> None:
    answer = await sdk("completions.create", model="gpt-3.5-turbo-instruct", prompt="Hello")
    chunks = await sdk.every("completions.create", model="gpt-3.5-turbo-instruct", prompt="Hello", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


async def test_embeddings_are_the_same_in_either_encoding(sdk: Sdk) -> None:
    asked = {"model": "text-embedding-3-small", "input": ["one", "two"]}
    packed = await sdk("embeddings.create", **asked)
    floats = await sdk("embeddings.create", **asked, encoding_format="float")
    assert [len(one.embedding) for one in packed.data] == [1536, 1536]
    assert packed.data[1].embedding == pytest.approx(floats.data[1].embedding)


async def test_a_file_goes_up_and_comes_back(sdk: Sdk) -> None:
    content = bytes(range(256)) * 1024
    file = await sdk("files.create", file=("bär.bin", content), purpose="user_data")
    assert (file.filename, file.bytes) == ("bär.bin", len(content))
    assert file.id in [one.id for one in await sdk.every("files.list", limit=1)]
    assert (await sdk("files.retrieve", file.id)).id == file.id
    assert (await sdk("files.content", file.id)).content == content
    assert (await sdk("files.delete", file.id)).deleted


async def test_an_image_is_drawn(sdk: Sdk) -> None:
    drawn = await sdk("images.generate", model="gpt-image-1", prompt="a bear")
    picture = base64.b64decode(drawn.data[0].b64_json)
    assert picture.startswith(b"\x89PNG")
    edited = await sdk("images.edit", model="gpt-image-1", prompt="a bear", image=("bear.png", picture, "image/png"))
    assert base64.b64decode(edited.data[0].b64_json) == picture


@pytest.mark.filterwarnings(
    "ignore:deprecated:DeprecationWarning"
)  # the SDK on translations; clients still ask for them
@pytest.mark.parametrize("method", ["audio.transcriptions.create", "audio.translations.create"])
async def test_a_recording_is_heard(sdk: Sdk, method: str) -> None:
    asked = {"model": "whisper-1", "file": ("bear.wav", b"\0" * 100_000)}
    assert "bear.wav arrived, all 100000 bytes" in (await sdk(method, **asked)).text
    assert (await sdk(method, **asked, response_format="srt")).startswith("1\n00:00:00,000 --> 00:00:07,000\n")
    assert (await sdk(method, **asked, response_format="verbose_json")).duration == 7


async def test_a_transcription_streams(sdk: Sdk) -> None:
    asked = {"model": "gpt-4o-transcribe", "file": ("bear.wav", b"\0"), "stream": True}
    *deltas, done = await sdk.every("audio.transcriptions.create", **asked)
    assert "".join(event.delta for event in deltas) == done.text


async def test_speech_is_binary(sdk: Sdk) -> None:
    speech = await sdk("audio.speech.create", model="tts-1", input="Hello", voice="alloy")
    assert speech.content[:4] == b"RIFF"
    assert speech.response.headers["content-type"] == "audio/wav"


async def test_models_are_listed(sdk: Sdk) -> None:
    names = [model.id for model in await sdk.every("models.list")]
    assert (await sdk("models.retrieve", names[0])).id == names[0]


async def test_moderations_are_judged(sdk: Sdk) -> None:
    assert [one.flagged for one in (await sdk("moderations.create", input="Hello")).results] == [False]


@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("error-400", openai.BadRequestError, 400),
        ("error-401", openai.AuthenticationError, 401),
        ("error-404", openai.NotFoundError, 404),
        ("unknown", openai.NotFoundError, 404),
        ("error-429", openai.RateLimitError, 429),
        ("error-500", openai.InternalServerError, 500),
        ("error-503", openai.InternalServerError, 503),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_error_of_the_upstream_is_the_sdk_s_own(
    sdk: Sdk, model: str, kind: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        await sdk("responses.create", model=model, input="Hello", stream=stream)
    assert caught.value.status_code == status
    assert model in caught.value.message
    assert str(caught.value.request_id).startswith("req_")


async def test_a_rate_limit_comes_with_its_headers(sdk: Sdk) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk("chat.completions.create", model="error-429", messages=ASKED)
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("api_key", ["wrong", f"{CLIENT_KEY}x"])
async def test_a_wrong_client_key_is_an_authentication_error(sdk: Sdk, api_key: str) -> None:
    stranger = Sdk(sdk.client.with_options(api_key=api_key))
    with pytest.raises(openai.AuthenticationError) as caught:
        await stranger("responses.create", model="gpt-4o", input="Hello")
    assert caught.value.body == "unauthorized"
    assert api_key not in str(caught.value)


async def test_the_headers_of_both_the_api_and_the_proxy_arrive(sdk: Sdk) -> None:
    raw = await sdk("models.with_raw_response.list")
    assert raw.headers["openai-version"] == "2020-10-01"
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-proxy-request-id"]


# ---- realtime


HEARD = ["conversation.item.added", "conversation.item.done", "response.created", "response.output_item.added"]


# The SDK's blocking client calls the library as it was before version 17.
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
@pytest.mark.parametrize("way", [{}, {"extra_query": {"security_key": CLIENT_KEY}}], ids=["header", "query too"])
async def test_a_realtime_talk(sdk: Sdk, way: dict[str, Any]) -> None:
    def blocking() -> list[Any]:
        with sdk.client.realtime.connect(model="gpt-realtime", **way) as talk:
            heard = [talk.recv()]
            talk.conversation.item.create(item=MESSAGE)
            talk.response.create()
            while heard[-1].type != "response.done":
                heard.append(talk.recv())
            return heard

    async def waiting() -> list[Any]:
        async with sdk.client.realtime.connect(model="gpt-realtime", **way) as talk:
            heard = [await talk.recv()]
            await talk.conversation.item.create(item=MESSAGE)
            await talk.response.create()
            while heard[-1].type != "response.done":
                heard.append(await talk.recv())
            return heard

    heard = await (asyncio.to_thread(blocking) if isinstance(sdk.client, openai.OpenAI) else waiting())
    assert [event.type for event in heard[:5]] == ["session.created", *HEARD]
    said = heard[-1].response.output[0].content[0].transcript
    assert "Wie geht's, Bär?" in said
    deltas = [event.delta for event in heard if event.type == "response.output_audio_transcript.delta"]
    assert "".join(deltas) == said
    assert heard[-1].response.usage.output_tokens == len(deltas)
