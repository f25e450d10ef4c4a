"""The shapes of OpenAI's answers, as its public API description has them: pure functions from what was said to JSON."""

import time
from collections.abc import Iterable
from itertools import count
from typing import Any
from uuid import uuid4

from proxy.demo.voice import Json, Said, objects, words

# What a response repeats from its request, and what it says where the request says nothing.
REPEATED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)


def new_id(prefix: str) -> str:
    """Return an id in the API's manner, such as `resp_` and 32 hexadecimal digits."""
    return f"{prefix}{uuid4().hex}"


def now() -> int:
    """Return the time as the API writes it, in whole seconds."""
    return int(time.time())


def model_card(name: str) -> Json:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "oxy-demo"}


def chat_usage(heard: int, said: int) -> Json:
    return {
        "prompt_tokens": heard,
        "completion_tokens": said,
        "total_tokens": heard + said,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def usage(heard: int, said: int) -> Json:
    """Return the usage of a response, which has other names for it than chat."""
    return {
        "input_tokens": heard,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": heard + said,
    }


def chat_completion(model: str, said: Said, *, choices: int, usage: Json) -> Json:
    message: Json = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
    if said.tool:
        message |= {"content": None, "tool_calls": [_tool_call(said.tool, said.text)]}
    facts = {"message": message, "logprobs": None, "finish_reason": _finish(said)}
    every = [{"index": index, **facts} for index in range(choices)]
    return {**_chat_head(model, "chat.completion"), "choices": every, "usage": usage}


def chat_chunks(model: str, said: Said, *, choices: int, usage: Json | None) -> list[Json]:
    """Return the events of a streamed chat completion; the last one carries the usage, where it is wanted."""
    head = _chat_head(model, "chat.completion.chunk") | ({} if usage is None else {"usage": None})
    opening: Json = {"role": "assistant", "content": "", "refusal": None}
    if said.tool:
        opening = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_tool_call(said.tool, "")}]}
    deltas = [opening, *(_chat_delta(said, token) for token in said.tokens), {}]
    finishes = [*(None for _ in deltas[1:]), _finish(said)]
    chunks = [
        {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        for delta, finish in zip(deltas, finishes, strict=True)
        for index in range(choices)
    ]
    return chunks if usage is None else [*chunks, {**head, "choices": [], "usage": usage}]


def completion(model: str, every: list[Said], *, usage: Json) -> Json:
    """Return a completion of the older kind, one choice for each thing said."""
    return {**_completion_head(model), "choices": [_text_choice(*one) for one in enumerate(every)], "usage": usage}


def completion_chunks(model: str, every: list[Said], *, usage: Json | None) -> list[Json]:
    head = _completion_head(model)
    chunks = [
        {**head, "choices": [_text_choice(index, said, token)]}
        for index, said in enumerate(every)
        for token in (*said.tokens, "")
    ]
    return chunks if usage is None else [*chunks, {**head, "choices": [], "usage": usage}]


def items(given: object) -> list[Json]:
    """Return the items of an input as the API lists them: with ids, texts as messages, contents as lists of parts."""
    if given is None:
        return []
    return [_item(entry) for entry in (objects(given) if isinstance(given, list) else [{"content": words(given)}])]


def response(body: Json, said: Said, *, heard: int) -> Json:
    ended = now()
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": ended,
        "completed_at": None if said.cut else ended,
        "status": "incomplete" if said.cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if said.cut else None,
        "model": body["model"],
        "output": [_output(said)],
        "service_tier": "default",
        **{name: silent if body.get(name) is None else body[name] for name, silent in REPEATED.items()},
        "usage": usage(heard, len(said.tokens)),
    }


def unfinished(response: Json, status: str) -> Json:
    """Return a response as it looks without an end: in progress, queued or cancelled."""
    return {**response, "status": status, "output": [], "usage": None, "completed_at": None, "incomplete_details": None}


def response_events(response: Json, said: Said) -> list[Json]:
    """Return the events of a streamed response in their order, numbered from 0."""
    begun, item = unfinished(response, "in_progress"), response["output"][0]
    place = {"item_id": item["id"], "output_index": 0}
    inner = _call_events(place, item, said) if said.tool else _message_events(place, item, said)
    events: Iterable[tuple[str, Json]] = (
        ("created", {"response": begun}),
        ("in_progress", {"response": begun}),
        ("output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", **_empty(item)}}),
        *inner,
        ("output_item.done", {"output_index": 0, "item": item}),
        (response["status"], {"response": response}),
    )
    numbers = count()
    return [{"type": f"response.{name}", "sequence_number": next(numbers), **facts} for name, facts in events]


def compaction(turns: list[Json], *, summary: str, usage: Json) -> Json:
    """Return a compacted conversation: the user's messages, and all of it in one item that is not even encrypted."""
    kept = [turn for turn in turns if turn.get("role") == "user"]
    item = {"id": new_id("cmp_"), "type": "compaction", "encrypted_content": summary}
    head = {"id": new_id("resp_"), "object": "response.compaction", "created_at": now()}
    return {**head, "output": [*kept, item], "usage": usage}


def transcript(text: str, *, task: str, seconds: int) -> Json:
    """Return a transcription in its verbose form."""
    segment = {"id": 0, "seek": 0, "start": 0.0, "end": float(seconds), "text": text, "tokens": []}
    segment |= {"temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}
    head = {"task": task, "language": "english", "duration": float(seconds), "text": text}
    return {**head, "segments": [segment], "usage": {"type": "duration", "seconds": seconds}}


def transcript_events(said: list[str], *, heard: int) -> list[Json]:
    details = {"text_tokens": heard, "audio_tokens": 0}
    counts = {"input_tokens": heard, "input_token_details": details, "output_tokens": len(said)}
    total = {"type": "tokens", **counts, "total_tokens": heard + len(said)}
    deltas = [{"type": "transcript.text.delta", "delta": token} for token in said]
    return [*deltas, {"type": "transcript.text.done", "text": "".join(said), "usage": total}]


def moderation(model: str, count: int) -> Json:
    """Return a verdict that finds no fault with anything: the demo does not look."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(CATEGORIES, False),
        "category_scores": dict.fromkeys(CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }
    return {"id": new_id("modr-"), "model": model, "results": [result] * count}


def _chat_head(model: str, kind: str) -> Json:
    head = {"id": new_id("chatcmpl-"), "object": kind, "created": now(), "model": model}
    return {**head, "service_tier": "default", "system_fingerprint": "fp_oxy_demo"}


def _tool_call(name: str, arguments: str) -> Json:
    return {"id": new_id("call_"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _chat_delta(said: Said, token: str) -> Json:
    return {"tool_calls": [{"index": 0, "function": {"arguments": token}}]} if said.tool else {"content": token}


def _finish(said: Said) -> str:
    return "length" if said.cut else "tool_calls" if said.tool else "stop"


def _completion_head(model: str) -> Json:
    return {"id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": model}


def _text_choice(index: int, said: Said, token: str | None = None) -> Json:
    """Return a choice whole, or one token of it; an empty token ends it."""
    text, finish = (said.text if token is None else token), (None if token else _finish(said))
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _item(entry: Json) -> Json:
    if entry.get("type", "message") != "message":
        return {"id": new_id("item_"), **entry}
    role, content = entry.get("role", "user"), entry.get("content")
    if isinstance(content, str):
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    return {"id": new_id("msg_"), "type": "message", "status": "completed", "role": role, **entry, "content": content}


def _output(said: Said) -> Json:
    status = "incomplete" if said.cut else "completed"
    if said.tool:
        call = {"id": new_id("fc_"), "type": "function_call", "call_id": new_id("call_"), "name": said.tool}
        return {**call, "arguments": said.text, "status": status}
    content = [_text_part(said.text)]
    return {"id": new_id("msg_"), "type": "message", "role": "assistant", "status": status, "content": content}


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _empty(item: Json) -> dict[str, Any]:
    return {"arguments": ""} if item["type"] == "function_call" else {"content": []}


def _message_events(place: Json, item: Json, said: Said) -> list[tuple[str, Json]]:
    place = {**place, "content_index": 0}
    return [
        ("content_part.added", {**place, "part": _text_part("")}),
        *(("output_text.delta", {**place, "delta": token, "logprobs": []}) for token in said.tokens),
        ("output_text.done", {**place, "text": said.text, "logprobs": []}),
        ("content_part.done", {**place, "part": item["content"][0]}),
    ]


def _call_events(place: Json, item: Json, said: Said) -> list[tuple[str, Json]]:
    return [
        *(("function_call_arguments.delta", {**place, "delta": token}) for token in said.tokens),
        ("function_call_arguments.done", {**place, "name": item["name"], "arguments": item["arguments"]}),
    ]
