"""The demo answers in OpenAI's shapes, counts what it says, forgets in time, and refuses as the API would."""

import base64
import io
import json
import math
import struct
import wave
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from proxy.demo import CLIENT_KEY, UPSTREAM_KEY, create_demo, start_demo
from proxy.demo import api as demo_api
from proxy.demo import desk as demo_desk
from proxy.demo.realtime import MOST_ITEMS, Talk
from proxy.demo.voice import sample, tokens

SIGNED = {"authorization": f"Bearer {UPSTREAM_KEY}"}
ASKED = [{"role": "user", "content": "Hello, demo!"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
FUNCTION = {"name": "weather", "parameters": SCHEMA}
TOOL, CHAT_TOOL = {"type": "function", **FUNCTION}, {"type": "function", "function": FUNCTION}
ARGUMENTS = {"city": "demo city", "days": 1}


class Client(httpx.AsyncClient):
    """A client of a demo in this process."""

    async def ask(self, path: str, **body: Any) -> Any:
        answer = await self.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def events(self, path: str, **body: Any) -> list[Any]:
        answer = await self.post(f"/v1/{path}", json={**body, "stream": True})
        return read(answer.text)

    async def refused(self, path: str, **body: Any) -> tuple[int, Any]:
        answer = await self.post(f"/v1/{path}", json=body)
        return answer.status_code, answer.json()["error"]


def read(stream: str) -> list[Any]:
    """Return the events of a stream, each checked to be named as it says; `[DONE]` stays as it is."""
    events: list[Any] = []
    for frame in stream.rstrip("\n").split("\n\n"):
        *names, data = frame.split("\n")
        event = data.removeprefix("data: ")
        events.append(event if event == "[DONE]" else json.loads(event))
        assert not names or names == [f"event: {events[-1]['type']}"]
    return events


@pytest.fixture
async def demo() -> AsyncIterator[Client]:
    wire = httpx.ASGITransport(create_demo(pace=0))
    async with Client(transport=wire, base_url="http://demo", headers=SIGNED) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {UPSTREAM_KEY}"}, 200),
        ({"api-key": UPSTREAM_KEY}, 200),
        ({"authorization": f"Bearer {UPSTREAM_KEY}", "api-key": UPSTREAM_KEY}, 200),
        ({}, 401),
        ({"authorization": f"Bearer {CLIENT_KEY}"}, 401),
        ({"authorization": UPSTREAM_KEY}, 401),
        ({"authorization": f"Bearer {UPSTREAM_KEY}", "api-key": CLIENT_KEY}, 401),
    ],
)
async def test_only_the_upstream_key_opens_the_door(headers: dict[str, str], status: int) -> None:
    async with Client(transport=httpx.ASGITransport(create_demo()), base_url="http://demo") as client:
        answer = await client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/v1/models/error-500"])
async def test_every_answer_carries_openai_s_headers(demo: Client, path: str) -> None:
    answer = await demo.get(path)
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["openai-processing-ms"].isdigit()
    assert answer.headers["openai-version"] == "2020-10-01"


async def test_the_door_lets_what_is_not_http_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await demo_desk.Doorman(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


async def test_the_demo_runs_on_a_port_of_its_own() -> None:
    async with httpx.AsyncClient(base_url=start_demo(pace=0), headers=SIGNED) as client:
        assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_an_error_comes_when_its_name_is_called(demo: Client, status: int) -> None:
    got, error = await demo.refused("chat/completions", model=f"error-{status}", messages=ASKED)
    assert got == status
    assert error.keys() == {"message", "type", "param", "code"}


async def test_too_many_requests_says_when_to_come_again(demo: Client) -> None:
    answer = await demo.get("/v1/models/error-429")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("chat/completions", {"messages": ASKED}, 400, "model", "missing_required_parameter"),
        ("chat/completions", {"model": "gpt-4o", "messages": []}, 400, "messages", "missing_required_parameter"),
        ("chat/completions", {"model": "gpt-4o", "messages": "hello"}, 400, "messages", "invalid_type"),
        ("chat/completions", {"model": "gpt-4o", "messages": ASKED, "n": 129}, 400, "n", "invalid_value"),
        ("chat/completions", {"model": "gpt-4o", "messages": ASKED, "n": True}, 400, "n", "invalid_value"),
        ("chat/completions", {"model": "llama", "messages": ASKED}, 404, "model", "model_not_found"),
        ("completions", {"model": "gpt-4o", "prompt": "x", "max_tokens": "many"}, 400, "max_tokens", "invalid_value"),
        ("responses", {"model": "gpt-4o"}, 400, "input", "missing_required_parameter"),
        ("responses", {"model": "gpt-4o", "input": [5]}, 400, "input", "missing_required_parameter"),
        (
            *("responses", {"model": "gpt-4o", "input": "x", "previous_response_id": "resp_0"}),
            *(400, "previous_response_id", "previous_response_not_found"),
        ),
        ("responses/input_tokens", {}, 400, "input", "missing_required_parameter"),
        ("embeddings", {"model": "text-embedding-3-small", "input": ["x"] * 2049}, 400, "input", "invalid_value"),
        (
            "embeddings",
            {"model": "text-embedding-3-small", "input": "x", "dimensions": 1537},
            *(400, "dimensions"),
            ...,
        ),
        ("audio/transcriptions", {"model": "whisper-1", "file": "not a file"}, 400, "file", "invalid_value"),
        ("files", {"file": "not a file", "purpose": "user_data"}, 400, "file", "invalid_value"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    demo: Client, path: str, body: Any, status: int, param: str, code: str
) -> None:
    got, error = await demo.refused(path, **body)
    assert (got, error["param"]) == (status, param)
    assert code in (error["code"], ...)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_no_json_object_is_400(demo: Client, body: bytes) -> None:
    answer = await demo.post("/v1/responses", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_form_that_is_none_is_400(demo: Client) -> None:
    answer = await demo.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    assert "boundary" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/nothing/{here}", 404, "Invalid URL (GET /v1/nothing/{here})"),
        ("GET", "/v1/models/", 404, "Invalid URL (GET /v1/models/)"),
        ("GET", "/v1/chat/completions", 405, "Not allowed to GET on /v1/chat/completions."),
        ("GET", "/v1/models/llama", 404, "The model 'llama' does not exist"),
        ("GET", "/v1/files/file-0", 404, "No such File object: file-0"),
        ("GET", "/v1/responses/resp_0", 404, "Response with id 'resp_0' not found."),
    ],
)
async def test_what_is_not_there_is_not_there(demo: Client, method: str, path: str, status: int, message: str) -> None:
    answer = await demo.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(message)


async def test_a_body_past_the_bound_is_413(demo: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_desk, "MAX_BODY", 100)
    assert (await demo.refused("responses", model="gpt-4o", input="x" * 100))[0] == 413


async def test_models_are_listed_and_each_is_known(demo: Client) -> None:
    for model in (await demo.get("/v1/models")).json()["data"]:
        assert (await demo.get(f"/v1/models/{model['id']}")).json() == model


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("   ", 0), ("Hello, demo!", 4), ("l'été\n\n100 €", 5), ("a" + " " * 50, 1)]
)
def test_a_token_is_a_word_or_a_mark(text: str, count: int) -> None:
    assert len(tokens(text)) == count
    assert "".join(tokens(text)) == text.rstrip()


@pytest.mark.parametrize(
    ("heard", "count"),
    [
        ("one two", 2),
        ([{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:,x"}}], 1),
        (None, 0),
    ],
)
async def test_chat_counts_what_it_heard_and_said(demo: Client, heard: Any, count: int) -> None:
    answer = await demo.ask("chat/completions", model="gpt-4o", messages=[{"role": "user", "content": heard}])
    message, usage = answer["choices"][0]["message"], answer["usage"]
    assert usage["prompt_tokens"] == count
    assert usage["completion_tokens"] == len(tokens(message["content"]))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_chat_streams_the_same_words_one_by_one(demo: Client) -> None:
    body = {"model": "gpt-4o", "messages": ASKED, "n": 2}
    whole = await demo.ask("chat/completions", **body)
    *chunks, last, done = await demo.events("chat/completions", **body, stream_options={"include_usage": True})
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(one["delta"].get("content", "") for one in mine) == whole["choices"][index]["message"]["content"]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == ["stop"]
    assert (last["choices"], last["usage"], done) == ([], whole["usage"], "[DONE]")


async def test_a_limit_cuts_the_answer(demo: Client) -> None:
    answer = await demo.ask("chat/completions", model="gpt-4o", messages=ASKED, max_tokens=9, max_completion_tokens=3)
    assert answer["choices"][0]["message"]["content"] == "Hello from the"
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 3)
    answer = await demo.ask("responses", model="gpt-4o", input="Hello", max_output_tokens=3)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (answer["status"], answer["usage"]["output_tokens"]) == ("incomplete", 3)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (ASKED, 'You said: "Hello, demo!".'),
        ([{"role": "user"}], "You sent no text."),
        ([{"role": "system", "content": "Be brief"}], 'You said: "Be brief".'),
        ([{"role": "user", "content": "word " * 100}], "word word ..."),
        ([*ASKED, {"role": "assistant", "content": "Yes?"}, *ASKED], "That was message 2 of our talk."),
        ([*ASKED, {"role": "tool", "content": "sunny"}], 'The tool answered: "sunny".'),
        ([{"role": "user", "content": "half \ud83d a pair"}], 'You said: "half ? a pair".'),
    ],
)
async def test_the_answer_repeats_what_was_said(demo: Client, messages: Any, part: str) -> None:
    sent = json.dumps({"model": "gpt-4o", "messages": messages})
    answer = (await demo.post("/v1/chat/completions", content=sent)).json()
    assert part in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("auto", "weather"),
        ({"type": "function", "function": {"name": "clock"}}, "clock"),
        ({"type": "function", "function": {"name": "unknown"}}, None),
        ("none", None),
    ],
)
async def test_chat_calls_the_function_of_choice(demo: Client, choice: Any, name: str | None) -> None:
    tools = [{"type": "custom"}, CHAT_TOOL, {"type": "function", "function": {"name": "clock"}}]
    answer = await demo.ask("chat/completions", model="gpt-4o", messages=ASKED, tools=tools, tool_choice=choice)
    calls = answer["choices"][0]["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == ([name] if name else [])
    assert [json.loads(call["function"]["arguments"]) for call in calls if name == "weather"] in ([], [ARGUMENTS])


async def test_chat_streams_a_call_s_arguments(demo: Client) -> None:
    first, *chunks, end, _ = await demo.events("chat/completions", model="gpt-4o", messages=ASKED, tools=[CHAT_TOOL])
    call = first["choices"][0]["delta"]["tool_calls"][0]
    pieces = [chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for chunk in chunks]
    assert (call["function"], call["type"]) == ({"name": "weather", "arguments": ""}, "function")
    assert json.loads("".join(pieces)) == ARGUMENTS
    assert len(pieces) > 2
    assert end["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, ARGUMENTS),
        ({"type": "json_object"}, {"answer": "demo answer"}),
    ],
)
async def test_an_answer_takes_the_form_asked_for(demo: Client, form: Any, content: Any) -> None:
    answer = await demo.ask("chat/completions", model="gpt-4o", messages=ASKED, response_format=form)
    assert json.loads(answer["choices"][0]["message"]["content"]) == content


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "demo value"),
        ({"type": "integer", "minimum": 18}, 18),
        ({"type": "number"}, 1),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["string", "null"]}, "demo value"),
        ({"type": "array", "items": {"type": "integer"}}, [1]),
        ({"type": "object"}, {}),
        ({"const": 7}, 7),
        ({"enum": ["celsius", "fahrenheit"], "type": "string"}, "celsius"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
        ({"anyOf": []}, {}),
        ({"$ref": "#/$defs/Day", "$defs": {"Day": {"type": "boolean"}}}, True),
        ({"$ref": "#/$defs/Lost"}, None),
        ({"type": "array", "items": {"$ref": "#"}}, [None]),
        ({"type": "array", "items": {"type": "array", "items": {"type": "array"}}}, [[[None]]]),
        (True, None),
    ],
)
def test_a_sample_fits_its_schema(schema: Any, value: Any) -> None:
    assert sample(schema) == value


def test_a_sample_of_an_endless_schema_ends() -> None:
    tree = {"type": "object", "properties": {"leaf": {"$ref": "#/$defs/tree"}}}
    text = json.dumps(sample({**tree, "$defs": {"tree": tree}}))
    assert text.endswith('{"leaf": null}}}}}')


async def test_completions_answer_every_prompt(demo: Client) -> None:
    body: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": ["one", "two"], "n": 2}
    answer = await demo.ask("completions", **body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert ['"two"' in choice["text"] for choice in answer["choices"]] == [False, False, True, True]
    assert answer["usage"]["prompt_tokens"] == 2
    *chunks, last, done = await demo.events("completions", **body, stream_options={"include_usage": True})
    for choice in answer["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == "stop"
    assert (last["usage"], done) == (answer["usage"], "[DONE]")
    assert "usage" not in (await demo.events("completions", **body))[-2]


async def test_a_response_streams_its_events_in_order(demo: Client) -> None:
    events = await demo.events("responses", model="gpt-4o", input="Hello")
    names = [event["type"].removeprefix("response.") for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[4:-4] == ["output_text.delta"] * len(deltas)
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    assert "".join(deltas) == events[-4]["text"] == response["output"][0]["content"][0]["text"]
    assert response["usage"]["output_tokens"] == len(deltas)


async def test_a_response_streams_a_call_s_arguments(demo: Client) -> None:
    events = await demo.events("responses", model="gpt-4o", input="Hello", tools=[TOOL])
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[2] == "output_item.added"
    assert names[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert set(names[3:-3]) == {"function_call_arguments.delta"}
    assert "".join(event["delta"] for event in events[3:-3]) == events[-3]["arguments"]
    assert json.loads(events[-3]["arguments"]) == ARGUMENTS


async def test_a_tool_s_result_is_answered_in_words(demo: Client) -> None:
    called = await demo.ask("responses", model="gpt-4o", input="Hello", tools=[TOOL])
    call = called["output"][0]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    answer = await demo.ask(
        "responses", model="gpt-4o", input=[result], tools=[TOOL], previous_response_id=called["id"]
    )
    assert 'The tool answered: "sunny"' in answer["output"][0]["content"][0]["text"]


async def test_a_response_goes_on_from_the_one_before(demo: Client) -> None:
    first = await demo.ask("responses", model="gpt-4o", input="one", instructions="Be brief.")
    second = await demo.ask("responses", model="gpt-4o", input="two", previous_response_id=first["id"])
    assert "message 2 of our talk" in second["output"][0]["content"][0]["text"]
    assert second["usage"]["input_tokens"] == 1 + first["usage"]["output_tokens"] + 1
    assert first["usage"]["input_tokens"] == 1 + len(tokens("Be brief."))


async def test_a_response_is_kept_until_it_is_deleted(demo: Client) -> None:
    response = await demo.ask("responses", model="gpt-4o", input="one", metadata={"a": "b"})
    where = f"/v1/responses/{response['id']}"
    assert (await demo.get(where)).json() == response
    assert response["metadata"] == {"a": "b"}
    assert (await demo.delete(where)).json() == {"id": response["id"], "object": "response", "deleted": True}
    assert (await demo.get(where)).status_code == 404


async def test_a_response_that_is_not_to_be_stored_is_not(demo: Client) -> None:
    response = await demo.ask("responses", model="gpt-4o", input="one", store=False)
    assert (await demo.get(f"/v1/responses/{response['id']}")).status_code == 404


async def test_a_kept_response_streams_again_from_where_it_broke(demo: Client) -> None:
    *_, last = events = await demo.events("responses", model="gpt-4o", input="Hello")
    where = f"/v1/responses/{last['response']['id']}"
    assert read((await demo.get(where, params={"stream": "true"})).text) == events
    assert read((await demo.get(where, params={"stream": "true", "starting_after": 0})).text) == events[1:]


async def test_a_response_in_the_background_can_be_cancelled(demo: Client) -> None:
    queued = await demo.ask("responses", model="gpt-4o", input="one", background=True)
    assert (queued["status"], queued["output"]) == ("queued", [])
    where = f"/v1/responses/{queued['id']}"
    assert (await demo.get(where)).json()["status"] == "completed"
    assert (await demo.post(f"{where}/cancel")).json()["status"] == "cancelled"
    assert (await demo.get(where, params={"stream": "true"})).json()["status"] == "cancelled"


async def test_a_response_in_the_foreground_cannot(demo: Client) -> None:
    response = await demo.ask("responses", model="gpt-4o", input="one")
    assert (await demo.refused(f"responses/{response['id']}/cancel"))[0] == 400


async def test_input_items_are_listed_in_pages(demo: Client) -> None:
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
    response = await demo.ask("responses", model="gpt-4o", input=[*said, call])
    where = f"/v1/responses/{response['id']}/input_items"
    first = (await demo.get(where, params={"limit": 2})).json()
    assert [item["type"] for item in first["data"]] == ["function_call", "message"]
    assert (first["has_more"], first["last_id"]) == (True, first["data"][1]["id"])
    second = (await demo.get(where, params={"after": first["last_id"]})).json()
    assert [item["content"][0] for item in second["data"]] == [{"type": "input_text", "text": "one"}]
    assert second["has_more"] is False
    upwards = (await demo.get(where, params={"order": "asc"})).json()
    assert upwards["data"] == (first["data"] + second["data"])[::-1]
    assert (await demo.get(where, params={"limit": 0})).status_code == 400


async def test_the_oldest_responses_make_room(demo: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_api, "RESPONSES", 2)
    monkeypatch.setattr(demo_api, "RESPONSE_BYTES", 1000)
    ids = [(await demo.ask("responses", model="gpt-4o", input="x" * size))["id"] for size in (1, 1, 1, 900)]
    assert [(await demo.get(f"/v1/responses/{id}")).status_code for id in ids] == [404, 404, 200, 200]


async def test_input_tokens_are_those_that_the_answer_would_tell(demo: Client) -> None:
    body = {"model": "gpt-4o", "input": [{"role": "user", "content": "Hello, demo!"}], "instructions": "Be brief."}
    told = await demo.ask("responses/input_tokens", **body)
    answer = await demo.ask("responses", **body)
    assert told == {"object": "response.input_tokens", "input_tokens": answer["usage"]["input_tokens"]}


async def test_a_compacted_talk_keeps_the_user_s_words(demo: Client) -> None:
    first = await demo.ask("responses", model="gpt-4o", input="one")
    compacted = await demo.ask("responses/compact", model="gpt-4o", previous_response_id=first["id"])
    message, item = compacted["output"]
    assert compacted["object"] == "response.compaction"
    assert (message["role"], message["content"][0]["text"], item["type"]) == ("user", "one", "compaction")
    assert base64.b64decode(item["encrypted_content"]).startswith(b"one Hello from the Oxy demo!")
    assert (await demo.ask("responses", model="gpt-4o", input=compacted["output"]))["status"] == "completed"


@pytest.mark.parametrize(
    ("model", "asked", "size"),
    [
        ("text-embedding-3-small", {}, 1536),
        ("text-embedding-3-large", {}, 3072),
        ("text-embedding-3-large", {"dimensions": 64}, 64),
    ],
)
async def test_embeddings_are_unit_vectors_of_the_text(demo: Client, model: str, asked: Any, size: int) -> None:
    answer = await demo.ask("embeddings", model=model, input=["a text", "another", "a text"], **asked)
    first, second, third = (one["embedding"] for one in answer["data"])
    assert first == third != second
    assert len(first) == size
    assert math.hypot(*first) == pytest.approx(1)
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_embeddings_in_base64_are_the_same_vectors(demo: Client) -> None:
    body = {"model": "text-embedding-3-small", "input": "a text", "dimensions": 8}
    floats = (await demo.ask("embeddings", **body))["data"][0]["embedding"]
    packed = (await demo.ask("embeddings", **body, encoding_format="base64"))["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(floats)


@pytest.mark.parametrize(("given", "vectors"), [([1, 2, 3], 1), ([[1, 2], [3]], 2)])
async def test_embeddings_take_ready_made_tokens(demo: Client, given: Any, vectors: int) -> None:
    answer = await demo.ask("embeddings", model="text-embedding-3-small", input=given)
    assert (len(answer["data"]), answer["usage"]["total_tokens"]) == (vectors, 3)


SPOKEN = "This is the Oxy demo. Your file été.mp3 arrived, all 20000 bytes of it."


async def transcribe(demo: Client, *, task: str = "transcriptions", **fields: str) -> httpx.Response:
    audio = {"file": ("été.mp3", b"\0" * 20_000)}
    return await demo.post(f"/v1/audio/{task}", data={"model": "whisper-1", **fields}, files=audio)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("text", f"{SPOKEN}\n"),
        ("srt", f"1\n00:00:00,000 --> 00:00:02,000\n{SPOKEN}\n\n"),
        ("vtt", f"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{SPOKEN}\n\n"),
    ],
)
async def test_a_transcription_comes_as_text(demo: Client, layout: str, text: str) -> None:
    answer = await transcribe(demo, response_format=layout)
    assert answer.text == text
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(("task", "verb"), [("transcriptions", "transcribe"), ("translations", "translate")])
async def test_a_transcription_comes_as_json(demo: Client, task: str, verb: str) -> None:
    brief = (await transcribe(demo, task=task)).json()
    verbose = (await transcribe(demo, task=task, response_format="verbose_json")).json()
    assert brief == {"text": SPOKEN, "usage": {"type": "duration", "seconds": 2}}
    assert (verbose["task"], verbose["text"], verbose["duration"]) == (verb, SPOKEN, 2.0)
    assert verbose["segments"][0]["end"] == 2.0


async def test_a_transcription_streams(demo: Client) -> None:
    *deltas, done = read((await transcribe(demo, stream="true", prompt="Two words")).text)
    assert "".join(event["delta"] for event in deltas) == done["text"] == SPOKEN
    assert (done["usage"]["input_tokens"], done["usage"]["output_tokens"]) == (2, len(deltas))


async def test_speech_is_a_tone(demo: Client) -> None:
    answer = await demo.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello", "voice": "alloy"})
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as track:
        assert track.getnframes() / track.getframerate() == 0.5


async def test_images_are_pictures_that_the_prompt_decides(demo: Client) -> None:
    answer = await demo.ask("images/generations", model="gpt-image-1", prompt="a red cat", n=2)
    other = await demo.ask("images/generations", prompt="a blue cat", response_format="url")
    first, second = (base64.b64decode(one["b64_json"]) for one in answer["data"])
    assert first == second
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", first[16:24]) == (1024, 1024)
    assert base64.b64decode(other["data"][0]["url"].removeprefix("data:image/png;base64,")) != first
    assert answer["usage"]["input_tokens"] == 3


@pytest.mark.parametrize(("path", "kind"), [("generations", "image_generation"), ("edits", "image_edit")])
async def test_an_image_comes_as_an_event(demo: Client, path: str, kind: str) -> None:
    form = {"image[]": ("cat.png", b"png")}
    answer = await demo.post(f"/v1/images/{path}", data={"prompt": "a cat", "stream": "true", "n": "1"}, files=form)
    (event,) = read(answer.text)
    assert event["type"] == f"{kind}.completed"
    assert base64.b64decode(event["b64_json"]).startswith(b"\x89PNG")


async def keep(demo: Client, content: bytes, purpose: str = "user_data") -> httpx.Response:
    return await demo.post("/v1/files", data={"purpose": purpose}, files={"file": ("ein Töpfchen.txt", content)})


async def test_a_file_is_kept_listed_and_given_back(demo: Client) -> None:
    first, second = [(await keep(demo, content, content.decode())).json() for content in (b"batch", b"vision")]
    assert (first["filename"], first["bytes"], first["purpose"]) == ("ein Töpfchen.txt", 5, "batch")
    assert (await demo.get("/v1/files")).json()["data"] == [second, first]
    assert (await demo.get("/v1/files", params={"purpose": "batch"})).json()["data"] == [first]
    assert (await demo.get(f"/v1/files/{first['id']}")).json() == first
    content = await demo.get(f"/v1/files/{first['id']}/content")
    assert content.content == b"batch"
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''ein%20T%C3%B6pfchen.txt"


async def test_a_file_can_be_deleted(demo: Client) -> None:
    file = (await keep(demo, b"x")).json()
    deleted = await demo.delete(f"/v1/files/{file['id']}")
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    empty = (await demo.get("/v1/files")).json()
    assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)


@pytest.mark.parametrize(("bound", "most"), [("FILES", 1), ("FILE_BYTES", 5)])
async def test_files_past_the_bound_are_refused(
    demo: Client, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(demo_api, bound, most)
    kept, refused = await keep(demo, b"xxx"), await keep(demo, b"xxx")
    assert (kept.status_code, refused.status_code) == (200, 413)
    assert refused.json()["error"]["code"] == "storage_limit_exceeded"


async def test_moderations_find_no_fault(demo: Client) -> None:
    answer = await demo.ask("moderations", input=["one", "two"])
    assert answer["model"] == "omni-moderation-latest"
    assert [result["flagged"] for result in answer["results"]] == [False, False]


async def test_a_client_that_hangs_up_in_its_upload_is_no_error() -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        raise AssertionError(f"nobody is left to hear {message}")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + UPSTREAM_KEY.encode()), (b"content-length", b"9")],
    }
    await create_demo(pace=0)(scope, receive, send)


# ---- realtime


def talk(demo_url: str, query: str = "model=gpt-realtime", *, path: str = "/v1/realtime", **options: Any) -> connect:
    headers = options.pop("headers", {"Authorization": f"Bearer {UPSTREAM_KEY}"})
    url = demo_url.replace("http://", "ws://") + f"{path}?{query}"
    return connect(url, proxy=None, compression=None, additional_headers=headers, **options)


@pytest.fixture(scope="module")
def demo_url() -> str:
    return start_demo(pace=0)


async def say(line: ClientConnection, *events: dict[str, Any], until: str) -> list[Any]:
    """Say these events; return what comes, up to the first event of that kind."""
    for event in events:
        await line.send(json.dumps(event))
    heard: list[Any] = []
    while not heard or heard[-1]["type"] != until:
        heard.append(json.loads(await line.recv()))
    return heard


def item(text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}


RESPOND = {"type": "response.create"}


async def test_a_talk_begins_with_its_session_and_counts_what_was_said(demo_url: str) -> None:
    async with talk(demo_url) as line:
        [created] = await say(line, until="session.created")
        assert (created["session"]["model"], created["session"]["object"]) == ("gpt-realtime", "realtime.session")
        heard = await say(line, item("Hello, demo!"), RESPOND, until="response.done")
        again = await say(line, item("And again"), RESPOND, until="response.done")
    deltas = [event["delta"] for event in heard if event["type"] == "response.output_audio_transcript.delta"]
    [message] = heard[-1]["response"]["output"]
    assert "".join(deltas) == message["content"][0]["transcript"]
    assert 'You said: "Hello, demo!"' in "".join(deltas)
    usage = heard[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (len(tokens("Hello, demo!")), len(deltas))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert again[0]["previous_item_id"] == message["id"]
    assert "That was message 2 of our talk." in again[-1]["response"]["output"][0]["content"][0]["transcript"]
    assert all(event["event_id"].startswith("event_") for event in heard)


@pytest.mark.parametrize("where", ["session", "response"])
async def test_a_talk_can_be_had_in_text(demo_url: str, where: str) -> None:
    wish = {"output_modalities": ["text"]}
    async with talk(demo_url) as line:
        if where == "session":
            heard = await say(line, {"type": "session.update", "session": wish}, until="session.updated")
            assert heard[-1]["session"]["output_modalities"] == ["text"]
            wish = {}
        heard = await say(line, item("Hello"), {**RESPOND, "response": wish}, until="response.done")
    deltas = [event["delta"] for event in heard if event["type"] == "response.output_text.delta"]
    assert heard[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "".join(deltas)}]


async def test_sound_is_heard_by_its_length(demo_url: str) -> None:
    append = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(300)).decode()}
    commit, clear = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}
    async with talk(demo_url) as line:
        await say(line, append, clear, until="input_audio_buffer.cleared")
        heard = await say(line, append, append, commit, RESPOND, until="response.done")
    assert heard[1]["type"] == "conversation.item.added"
    assert heard[0]["item_id"] == heard[1]["item"]["id"]
    assert "600 bytes of sound" in heard[-1]["response"]["output"][0]["content"][0]["transcript"]


async def test_a_response_to_nothing_says_so(demo_url: str) -> None:
    async with talk(demo_url) as line:
        heard = await say(line, RESPOND, until="response.done")
    assert "You sent no text." in heard[-1]["response"]["output"][0]["content"][0]["transcript"]


@pytest.mark.parametrize(
    "said", ["{", "[]", '{"type": 7}', '{"type": "response.dance", "event_id": "mine"}', "[" * 99_999]
)
async def test_an_event_that_the_demo_does_not_know_is_an_error_and_the_talk_goes_on(demo_url: str, said: str) -> None:
    async with talk(demo_url) as line:
        await say(line, until="session.created")
        await line.send(said)
        error = json.loads(await line.recv())
        assert error["error"]["type"] == "invalid_request_error"
        assert error["error"]["event_id"] == ("mine" if "mine" in said else None)
        assert await say(line, RESPOND, until="response.done")


async def test_odd_items_and_sessions_are_taken_as_they_are(demo_url: str) -> None:
    odd = {"type": "conversation.item.create", "item": "no object"}
    async with talk(demo_url) as line:
        heard = await say(line, odd, {"type": "session.update", "session": 7}, RESPOND, until="response.done")
    assert heard[-1]["response"]["status"] == "completed"


async def test_a_talk_takes_the_key_as_browsers_show_it_and_chooses_their_subprotocol(demo_url: str) -> None:
    offered = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{UPSTREAM_KEY}")]
    async with talk(demo_url, headers={}, subprotocols=offered) as line:
        assert line.subprotocol == "realtime"


@pytest.mark.parametrize(
    ("query", "options", "status", "code"),
    [
        ("", {"headers": {}}, 401, "invalid_api_key"),
        ("", {"headers": {"Authorization": f"Bearer {CLIENT_KEY}"}}, 401, "invalid_api_key"),
        ("", {"subprotocols": [Subprotocol("openai-insecure-api-key.other")]}, 401, "invalid_api_key"),
        ("model=error-429", {}, 429, "rate_limit_exceeded"),
        ("model=parrot", {}, 404, "model_not_found"),
    ],
)
async def test_a_talk_is_refused_as_a_request_is(
    demo_url: str, query: str, options: dict[str, Any], status: int, code: str
) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with talk(demo_url, query, **options):
            pass
    response = refusal.value.response
    assert (response.status_code, json.loads(response.body)["error"]["code"]) == (status, code)
    assert status != 429 or response.headers["retry-after"] == "1"


async def test_a_talk_at_another_path_is_told_where_there_is_one(demo_url: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with talk(demo_url, path="/v1/responses"):
            pass
    response = refusal.value.response
    told = "Invalid URL (GET /v1/responses). The demo speaks WebSocket at /v1/realtime alone."
    assert (response.status_code, json.loads(response.body)["error"]["message"]) == (404, told)


def test_a_long_talk_forgets_its_beginning() -> None:
    conversation = Talk("gpt-realtime")
    for number in range(3 * MOST_ITEMS):
        list(conversation.hear(json.dumps(item(f"word{number}"))))
    *_, done = conversation.hear(json.dumps(RESPOND))
    assert done["response"]["usage"]["input_tokens"] == MOST_ITEMS
