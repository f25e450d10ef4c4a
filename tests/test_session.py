"""What is known of a session when it is over."""

import json
from typing import Any

import pytest

from proxy.session import MAX_EVENT, Flow, Session

REALTIME = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {"text_tokens": 119, "audio_tokens": 13, "cached_tokens": 64},
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
RESPONSES = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 17,
}


def event(usage: Any, kind: str = "response.done") -> str:
    return json.dumps({"type": kind, "response": {"usage": usage}})


def test_usage_is_summed_over_the_responses_of_a_session() -> None:
    session = Session()
    for said in (event(REALTIME), event(RESPONSES, "response.completed"), event(REALTIME)):
        session.learn(said)
    assert session.usage == {
        **{"input": 274, "cached": 132, "output": 249, "reasoning": 3, "total": 523},
        **{"input_text": 238, "input_audio": 26, "output_text": 60, "output_audio": 182},
    }


@pytest.mark.parametrize("kind", ["response.done", "response.completed", "response.incomplete", "response.failed"])
def test_a_response_tells_its_usage_however_it_ends(kind: str) -> None:
    session = Session()
    session.learn(event(RESPONSES, kind))
    assert session.usage == {"input": 10, "cached": 4, "output": 7, "reasoning": 3, "total": 17}


def test_a_transcript_of_what_was_said_tells_its_own_usage() -> None:
    session = Session()
    tokens = {"type": "tokens", "total_tokens": 22, "input_tokens": 13, "output_tokens": 9}
    for usage in (tokens, {"type": "duration", "seconds": 3}):
        kind = "conversation.item.input_audio_transcription.completed"
        session.learn(json.dumps({"type": kind, "item_id": "item_1", "transcript": "Hello", "usage": usage}))
    assert session.usage == {"input": 13, "output": 9, "total": 22}


@pytest.mark.parametrize(
    ("said", "model"),
    [
        ({"type": "session.created", "session": {"model": "gpt-realtime"}}, "gpt-realtime"),
        ({"type": "response.created", "response": {"model": "gpt-5", "usage": None}}, "gpt-5"),
        ({"type": "session.created", "session": {"audio": {"input": {"transcription": {"model": "t"}}}}}, None),
        ({"type": "session.created", "session": {"model": "a\x1b[31m"}}, None),
        ({"type": "session.created", "session": "model"}, None),
        ({"type": ["response.done"], "response": {"model": "m"}}, "m"),
    ],
)
def test_the_model_is_the_one_that_an_event_names(said: Any, model: str | None) -> None:
    session = Session()
    session.learn(json.dumps(said))
    assert session.model == model
    session.learn(json.dumps({"type": "session.updated", "session": {"model": "another"}}))
    assert session.model == (model or "another")


@pytest.mark.parametrize(
    "said",
    [
        event(REALTIME, "response.created"),
        event(None),
        event([1]),
        event({"input_tokens": "7", "output_tokens": True, "total_tokens": -1, "input_token_details": 3}),
        '{"type": "response.done", "usage": ',
        '["response.done", "usage"]',
        '{"type": "response.done", "usage": ' + "[" * 100_000,
        event(REALTIME, "x") + '"response.done"',
        event(REALTIME) + " " * MAX_EVENT,
    ],
    ids=[
        "another event",
        "no usage",
        "a list",
        "no numbers",
        "torn",
        "no object",
        "too deep",
        "more than one",
        "too long",
    ],
)
def test_what_is_no_usage_adds_nothing(said: str) -> None:
    session = Session()
    session.learn(said)
    assert not session.usage


def test_a_flow_counts_messages_and_the_bytes_of_their_payload() -> None:
    flow = Flow()
    for message in ("abc", "ä€", b"\xff\x00", ""):
        flow.count(message)
    assert flow == Flow(messages=4, size=10)
