"""What the tap tells of an answer: of each shape of the API in every form, and of what is none of them."""

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import brotli  # type: ignore[import-untyped]
import pytest

from proxy.tap import Tap
from proxy.usage import Usage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Record = dict[str, Any]
Told = tuple[Usage | None, str | None]
CHUNKED = (b"transfer-encoding", b"chunked")
UNKNOWN: Told = (None, None)

CHAT = {
    "prompt_tokens": 19,
    "completion_tokens": 310,
    "total_tokens": 329,
    "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 3, "text_tokens": 12, "image_tokens": 4},
    "completion_tokens_details": {
        "reasoning_tokens": 100,
        "audio_tokens": 5,
        "text_tokens": 205,
        "accepted_prediction_tokens": 1,
        "rejected_prediction_tokens": 2,
    },
}
CHAT_USAGE = Usage(
    input=19,
    cached=7,
    output=310,
    reasoning=100,
    total=329,
    input_text=12,
    input_audio=3,
    input_image=4,
    output_text=205,
    output_audio=5,
)
RESPONSE = {
    "input_tokens": 328,
    "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 0},
    "output_tokens": 52,
    "output_tokens_details": {"reasoning_tokens": 11},
    "total_tokens": 380,
}
RESPONSE_USAGE = Usage(input=328, cached=128, output=52, reasoning=11, total=380)
IMAGE = {
    "total_tokens": 100,
    "input_tokens": 50,
    "output_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}
IMAGE_USAGE = Usage(input=50, output=50, total=100, input_text=10, input_image=40)
TRANSCRIPT = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
    "output_tokens": 31,
    "total_tokens": 45,
}
TRANSCRIPT_USAGE = Usage(input=14, output=31, total=45, input_text=10, input_audio=4)

# Each usage of the API's public description that the tap is to read: the object that has it, and what is to be told.
# "..." stands for the long part of an answer.
SHAPES: dict[str, tuple[Record, Usage | None, str | None]] = {
    "chat completion": (
        {
            "id": "chatcmpl-1",
            "model": "gpt-4o-mini",
            "choices": [{"m": "..."}],
            "usage": CHAT,
            "service_tier": "default",
        },
        CHAT_USAGE,
        "gpt-4o-mini",
    ),
    "completion": (
        {
            "id": "cmpl-1",
            "model": "gpt-3.5-turbo-instruct",
            "choices": [{"text": "..."}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        },
        Usage(input=5, output=7, total=12),
        "gpt-3.5-turbo-instruct",
    ),
    "response": (
        {"id": "resp_1", "model": "gpt-5", "output": [{"t": "..."}], "usage": RESPONSE, "user": None, "metadata": {}},
        RESPONSE_USAGE,
        "gpt-5",
    ),
    "response with long instructions": (
        {"id": "resp_1", "instructions": "...", "usage": RESPONSE, "metadata": {"a": "b"}},
        RESPONSE_USAGE,
        None,
    ),
    "compacted response": ({"id": "resp_1", "output": ["..."], "usage": RESPONSE}, RESPONSE_USAGE, None),
    "embeddings": (
        {
            "object": "list",
            "data": [{"embedding": "..."}],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        Usage(input=8, total=8),
        "text-embedding-3-small",
    ),
    "images": (
        {
            "created": 1,
            "data": [{"b64_json": "..."}],
            "usage": {**IMAGE, "output_tokens_details": {"image_tokens": 48, "text_tokens": 2}},
        },
        Usage(input=50, output=50, total=100, input_text=10, input_image=40, output_text=2, output_image=48),
        None,
    ),
    "image event": (
        {"type": "image_generation.completed", "b64_json": "...", "usage": IMAGE},
        IMAGE_USAGE,
        None,
    ),
    "transcription": ({"text": "...", "usage": TRANSCRIPT}, TRANSCRIPT_USAGE, None),
    "transcription by time": ({"text": "...", "usage": {"type": "duration", "seconds": 43}}, None, None),
    "transcription event": (
        {"type": "transcript.text.done", "text": "...", "usage": TRANSCRIPT},
        TRANSCRIPT_USAGE,
        None,
    ),
    "speech event": (
        {"type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}},
        Usage(input=14, output=101, total=115),
        None,
    ),
    "batch": (
        {"id": "batch_1", "model": "gpt-5", "errors": ["..."], "usage": RESPONSE, "metadata": {"a": "b"}},
        RESPONSE_USAGE,
        "gpt-5",
    ),
    "assistant's run": (
        {
            "id": "run_1",
            "model": "gpt-4o",
            "instructions": "...",
            "usage": {"prompt_tokens": 123, "completion_tokens": 456, "total_tokens": 579},
            "temperature": 1.0,
        },
        Usage(input=123, output=456, total=579),
        "gpt-4o",
    ),
}
LONG = 'a \\"usage\\" that is \n none, é, {[ ' * 1200


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


CODINGS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "plain": (b"", bytes),
    "gzip": (b"gzip", gzip.compress),
    "deflate": (b"deflate", zlib.compress),
    "bare deflate": (b"Deflate", raw_deflate),
    "br": (b"br", partial(brotli.compress, quality=3)),
    "zstd": (b"zstd", zstd.compress),
}


def as_json(record: Record) -> bytes:
    return json.dumps(record).encode()


def as_pretty_json(record: Record) -> bytes:
    return json.dumps(record, indent=4, ensure_ascii=False).encode() + b"\n"


def as_event(record: Record) -> bytes:
    """The record as the last event that says something; a response as its API repeats it there."""
    delta = {"type": "response.output_text.delta", "delta": "_tokens", "usage": None}
    if record.get("id") == "resp_1":
        record = {"type": "response.completed", "sequence_number": 3, "response": record}
    return b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (as_json(delta), as_json(record))


FORMS: dict[str, tuple[bytes, Callable[[Record], bytes]]] = {
    "JSON": (b"application/json", as_json),
    "indented JSON": (b"application/json; charset=utf-8", as_pretty_json),
    "SSE": (b"text/event-stream; charset=utf-8", as_event),
    "SSE with CRLF": (b"Text/Event-Stream", lambda record: as_event(record).replace(b"\n", b"\r\n")),
    "SSE with CR": (b"text/event-stream", lambda record: as_event(record).replace(b"\n", b"\r")),
    "SSE without spaces": (b"text/event-stream", lambda record: as_event(record).replace(b"data: ", b"data:")),
    "SSE with names and comments": (
        b"text/event-stream",
        lambda record: b": hello\n\n" + as_event(record).replace(b"data: {", b"event: e\n: c\nid: 1\ndata: {"),
    ),
    "SSE in several lines": (
        b"text/event-stream",
        lambda record: as_event(record).replace(b', "', b',\ndata: "'),
    ),
}
JSON, SSE = FORMS["JSON"][0], FORMS["SSE"][0]


def heard(media_type: bytes, *pieces: bytes, coding: bytes = b"", complete: bool = True) -> Told:
    tap = Tap([CHUNKED, (b"content-type", media_type), *([(b"content-encoding", coding)] if coding else [])])
    for piece in pieces:
        tap.hear(piece)
    return tap.told(complete=complete)


def cut(body: bytes, places: list[int]) -> Iterator[bytes]:
    start = 0
    for place in sorted(place % (len(body) + 1) for place in places):
        yield body[start:place]
        start = place
    yield body[start:]


def in_pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def grown(record: Any, text: str) -> Any:
    if isinstance(record, dict):
        return {name: grown(value, text) for name, value in record.items()}
    if isinstance(record, list):
        return [grown(value, text) for value in record]
    return text if record == "..." else record


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_usage_of_the_api_is_read_in_every_form(shape: str, form: str) -> None:
    record, usage, model = SHAPES[shape]
    media_type, said = FORMS[form]
    for text in ("short", LONG):
        body = said(grown(record, text))
        for coding, encode in CODINGS.values():
            assert heard(media_type, encode(body), coding=coding) == (usage, model)
            assert heard(media_type, *in_pieces(encode(body), 1000), coding=coding) == (usage, model)
