"""What the tap tells of an answer: of each shape of the API in every form, and of what is none of them."""

import gzip
import json
import random
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import brotli  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import codings
from proxy.errors import Pairs
from proxy.tap import HEAD, MOST, TAIL, TRIES, Tap
from proxy.usage import KINDS, Usage, is_counted, usage_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Record = dict[str, Any]
Told = tuple[Usage | None, str | None]
CHUNKED = (b"transfer-encoding", b"chunked")
FRAMED: Pairs = [CHUNKED]
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
CACHED = {"cached_tokens": 4}
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
    "gzip": (b"gzip", partial(gzip.compress, mtime=0)),
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


def tapped(
    media_type: bytes, *pieces: bytes, coding: bytes = b"", complete: bool = True, framing: Pairs = FRAMED
) -> Tap:
    headers = [*framing, (b"content-type", media_type)]
    tap = Tap(dict([*headers, (b"content-encoding", coding)] if coding else headers))
    for piece in pieces:
        tap.hear(piece)
    tap.end(complete=complete)
    return tap


def heard(
    media_type: bytes, *pieces: bytes, coding: bytes = b"", complete: bool = True, framing: Pairs = FRAMED
) -> Told:
    return tapped(media_type, *pieces, coding=coding, complete=complete, framing=framing).told()


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


shapes, forms, encodings = (
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(sorted(CODINGS)),
)
texts = st.sampled_from(["short", LONG])
places = st.lists(st.integers(0, 10**6), max_size=20)


@given(shapes, forms, encodings, texts, places)
def test_an_answer_tells_the_same_however_it_is_cut(
    shape: str, form: str, encoding: str, text: str, places: list[int]
) -> None:
    record, usage, model = SHAPES[shape]
    (media_type, said), (coding, encode) = FORMS[form], CODINGS[encoding]
    body = encode(said(grown(record, text)))
    assert heard(media_type, *cut(body, places), coding=coding) == (usage, model)


DECOY = {"usage": {"total_tokens": 666}, "model": "decoy"}
DECOYS: dict[str, Any] = {
    "in a text": json.dumps(DECOY),
    "in a text twice over": json.dumps(json.dumps(DECOY)),
    "in a list": [DECOY, DECOY],
    "deeper": {"result": DECOY},
    "in the name of a member": {
        'x,"usage": {"total_tokens": 666}, "model': "decoy",
        '"model"': "decoy",
        '"usage"': DECOY,
    },
    "as a response": {"response": DECOY},
    "where something like it ends": {"x": DECOY, "y": '"usage"', "model": '"model"'},
}
each_decoy = pytest.mark.parametrize("decoy", DECOYS)


@each_decoy
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["short", LONG], ids=["short", "long"])
def test_what_a_nested_object_says_is_not_believed(decoy: str, form: str, text: str) -> None:
    media_type, said = FORMS[form]
    around = {"id": "resp_1", "first": DECOYS[decoy], "text": text}
    for said_last in ({}, {"last": DECOYS[decoy]}, {"last": [text, DECOYS[decoy]]}):
        assert heard(media_type, said({**around, **said_last})) == UNKNOWN
        told, model = heard(media_type, said({**around, "usage": RESPONSE, "model": "m", **said_last}))
        assert told in (RESPONSE_USAGE, None)
        assert model in ("m", None)
        assert said_last or told is not None


def test_a_nested_response_is_believed_in_the_last_event_of_its_api_alone() -> None:
    for record in (
        {"item": DECOY},
        {"type": "response.done", "response": DECOY},
        {"type": "x", "response": 1, "y": DECOY},
    ):
        long = {"type": "other", **record, "text": LONG, "z": {"response": DECOY}}
        assert heard(SSE, b"data: %b\n\n" % as_json(long)) == UNKNOWN
        assert heard(JSON, as_json(record)) == UNKNOWN


@given(shapes, forms, encodings, texts, st.sampled_from(sorted(DECOYS)), st.integers(0, 10**6), st.booleans())
def test_a_torn_answer_tells_the_same_or_less(
    shape: str, form: str, encoding: str, text: str, decoy: str, place: int, complete: bool
) -> None:
    record, usage, model = SHAPES[shape]
    (media_type, said), (coding, encode) = FORMS[form], CODINGS[encoding]
    body = encode(said(grown({"decoy": DECOYS[decoy], **record}, text)))
    torn = body[: place % len(body)]
    # Either it is known to be torn, or its end is the connection's end.
    told = heard(media_type, torn, coding=coding, complete=complete, framing=[] if complete else FRAMED)
    assert told[0] in (usage, None)
    assert told[1] in (model, None)


def test_a_body_torn_where_a_nested_object_ends_is_not_believed() -> None:
    for text in ("short", LONG):
        torn = b'{"model": "m", "a": [{"text": "%b", "usage": {"total_tokens": 666}}' % text.encode().replace(b'"', b"")
        torn = torn.replace(b"\n", b"").replace(b"\\", b"")
        assert heard(JSON, torn, complete=False) == (None, "m")
        assert heard(JSON, torn, framing=[]) == (None, "m")
        assert heard(SSE, b"data: " + torn, framing=[])[0] is None
        torn = gzip.compress(torn)[:-8]  # the framing is whole, but what it frames is not
        assert heard(JSON, torn, coding=b"gzip") == (None, "m")


def test_what_stands_before_and_behind_a_part_that_was_left_out_is_no_text() -> None:
    before = b'{"model": "m", "text": "%b", "x": {"a": 1, "usage": {"total_tokens": 666}, "b": [' % (b"x" * MOST)
    behind = b'0]}, "c": [' + b"0," * TAIL
    end = b"0," * (TAIL // 2 - 2) + b"0]} "
    assert len(end) == TAIL
    json.loads(before + behind + end)
    assert heard(JSON, *in_pieces(before, 5000), behind + end) == (None, "m")


def test_of_a_long_piece_all_that_a_usage_could_stand_in_is_looked_at() -> None:
    body = as_json({"model": "m", "text": "x" * 2 * MOST, "usage": RESPONSE, "metadata": "x" * (TAIL - 500)})
    assert heard(JSON, body[: MOST + 1], body[MOST + 1 :]) == (RESPONSE_USAGE, "m")


@given(shapes, forms, encodings, texts, st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_elsewhere_changes_no_number(
    shape: str, form: str, encoding: str, text: str, place: int, bit: int
) -> None:
    record, usage, _ = SHAPES[shape]
    (media_type, said), (coding, encode) = FORMS[form], CODINGS[encoding]
    plain = said(grown(record, text))
    body = bytearray(encode(plain))
    place %= len(body)
    body[place] ^= 1 << bit
    told, _ = heard(media_type, bytes(body), coding=coding)
    own = range(plain.rfind(b'"usage"'), len(plain))  # a flipped digit is a digit
    assert told in (usage, None) or (encoding == "plain" and place in own) or encoding in ("bare deflate", "br", "zstd")


@pytest.mark.parametrize(
    "count",
    ["-1", "true", '"9"', "9.0", "1e3", "NaN", "Infinity", "null", "[]", "{}", str(2**53), "9" * 4000, "9" * 5000],
)
def test_a_count_that_is_none_is_unknown(count: str) -> None:
    body = b'{"model": "m", "usage": {"prompt_tokens": %b, "output_tokens": 7}}' % count.encode()
    told = (None if count == "9" * 5000 else Usage(output=7), "m")
    assert heard(JSON, body) == told
    assert heard(JSON, body, framing=[])[0] == told[0]


@pytest.mark.parametrize(
    "usage", ["null", "[]", "{}", "7", '"x"', '{"prompt_tokens_details": 7}', '{"total_tokens": {}}']
)
def test_a_usage_that_counts_nothing_is_unknown(usage: str) -> None:
    body = b'{"model": "m", "usage": %b}' % usage.encode()
    assert heard(JSON, body) == (None, "m")
    assert heard(SSE, b"data: %b\n\n" % body) == (None, "m")


@pytest.mark.parametrize("name", [7, None, "", "a\x1b[31m", "a\nb", "m" * 257, ["m"]])
def test_a_model_that_cannot_be_shown_is_unknown(name: object) -> None:
    for media_type, said in FORMS.values():
        assert heard(media_type, said({"id": "1", "model": name, "usage": RESPONSE})) == (RESPONSE_USAGE, None)
    for raw in (b"\xff\x1b", b"\\ud800"):
        assert heard(JSON, b'{"model": "%b", "usage": {"total_tokens": 1}}' % raw) == (Usage(total=1), None)


HOSTILE = {
    "nothing": b"",
    "no JSON": b"\x00\xff\xfe" * 50_000,
    "nested too deep": b'{"usage":' * 20_000,
    "nested too deep at the end": b'{"a":1,"usage":{"total_tokens":' + b"[" * 14_000 + b"1" + b"]" * 14_000 + b"}}",
    "a list": b'[{"model": "m", "usage": {"total_tokens": 1}}]',
    "no more than a name": b'"usage"',
    "names without end": b',"usage"' * 100_000,
    "a line without end": b"data: " + b"x" * 10_000_000,
    "lines without end": b"\n" * 1_000_000,
    "counts without end": b'data: "_tokens"\n\n' * 5_000,
    "backslashes": b'{"model": "' + b"\\" * 100_000,
    "brackets in the beginning": b'{"a": [' + b"{}," * 20_000,
}


@pytest.mark.untraced
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_no_bytes_are_too_strange(body: bytes) -> None:
    for media_type, _ in FORMS.values():
        for framing in ([], FRAMED):
            assert heard(media_type, body, framing=framing)[0] is None
            assert heard(media_type, *in_pieces(body[:100_000], 7), framing=framing)[0] is None
        for coding, _ in list(CODINGS.values())[1:]:
            assert heard(media_type, body, coding=coding) == UNKNOWN


@pytest.mark.parametrize(("names", "known"), [(TRIES - 1, (Usage(total=1), None)), (TRIES, UNKNOWN)])
def test_usage_is_not_looked_for_without_end(names: int, known: Told) -> None:
    body = b'{"usage": {"total_tokens": 1}, "a": [0%b]}' % (b',"usage"' * names)
    assert heard(JSON, body) == known


def test_usage_is_found_behind_the_white_space_of_its_line() -> None:
    body = b'{"a": "%b",\n%b"usage": {"total_tokens": 1}}' % (b"x" * MOST, b" " * 32)
    assert heard(JSON, body) == (Usage(total=1), None)


def test_the_newest_event_with_usage_counts() -> None:
    events = [b'data: {"model": "m", "usage": {"total_tokens": %d}}\n\n' % n for n in range(2000)]
    assert heard(SSE, *events) == (Usage(total=1999), "m")
    assert heard(SSE, *events, b'data: {"model": "m", "usage": null}\n\n') == (Usage(total=1999), "m")


def test_a_stream_without_usage_names_its_model() -> None:
    chunk = b'data: {"id": "1", "model": "gpt-4o", "choices": [{"delta": {"content": "a_tokens"}}], "usage": null}\n\n'
    assert heard(SSE, *[chunk] * 1000, complete=False) == (None, "gpt-4o")
    created = {"type": "response.created", "response": {"model": "gpt-5", "max_output_tokens": None, "usage": None}}
    assert heard(SSE, b"event: e\ndata: %b\n\n" % as_json(created), complete=False) == (None, "gpt-5")
    other = b'data: {"item": {"model": "whisper-1"}}\n\n'
    assert heard(SSE, chunk.replace(b"_tokens", b""), other, other) == (None, "gpt-4o")


def test_an_event_that_is_not_over_is_believed_only_where_it_is_known_to_be_whole() -> None:
    body = as_event(grown(SHAPES["response"][0], LONG)).partition(b"\n\ndata: [DONE]")[0]
    assert heard(SSE, body, complete=False) == UNKNOWN
    assert heard(SSE, body) == (RESPONSE_USAGE, "gpt-5")
    assert heard(SSE, body + b"\n\n", complete=False) == (RESPONSE_USAGE, "gpt-5")


def test_a_line_that_is_no_data_is_not_believed() -> None:
    comment = b": %b" % as_json({"a": LONG, "usage": RESPONSE})
    assert heard(SSE, comment + b"\n\n") == UNKNOWN
    whole = b'data: {"model": "m", "usage": {"total_tokens": 1}}\n\n'
    assert heard(SSE, b": " + b"x" * 100_000 + b"\n\n" + whole) == (Usage(total=1), "m")


@pytest.mark.parametrize("text", ["short", LONG], ids=["short", "long"])
def test_a_name_that_ends_alike_is_another_name(text: str) -> None:
    record = {"text": [[[text]]], '"usage': {"total_tokens": 666}, '"model': "decoy"}
    assert heard(JSON, as_json(record)) == UNKNOWN


def test_each_long_event_is_known_by_its_own_beginning() -> None:
    deltas = b"data: %b\n\n" % as_json({"type": "delta", "delta": LONG})
    assert heard(SSE, deltas, as_event(grown(SHAPES["response"][0], LONG))) == (RESPONSE_USAGE, "gpt-5")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("place", range(-5, 6))
def test_no_event_is_taken_for_another_where_the_copy_begins_between_them(place: int, end: bytes) -> None:
    before = b'data: {"type": "response.completed", "response": {"id": 1}}\n\n'.replace(b"\n", end)
    after = b'data: {"text": "%b", "x": {"a": 1, "usage": {"total_tokens": 666}}}\n\n' % (b"x" * 4 * TAIL)
    stream = before + after.replace(b"\n", end)
    start = len(before) + place + TAIL
    assert heard(SSE, stream[:start], stream[start:]) == UNKNOWN


def test_a_comment_that_the_copy_cuts_into_is_not_believed() -> None:
    comment = b": %b" % (b"x" * 200) + b',"usage":{"total_tokens":666}}\n\n'
    stream = comment + b'data: {"x": 1}\n\n' * 4000
    assert heard(SSE, stream[: 100 + TAIL], stream[100 + TAIL : 100 + 2 * TAIL]) == UNKNOWN


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_comment_within_an_event_is_not_believed_wherever_the_copy_begins(end: bytes) -> None:
    data, told = b'data: {"model":"m"}\n', b',"usage":{"total_tokens":666}}\n'
    for long in (data + b": " + 40_000 * b"x", data[:-2] + b',"a":"%b"}\n: ' % (2 * HEAD * b"x") + 40_000 * b"x"):
        event = (long + told + b"\n").replace(b"\n", end)
        assert heard(SSE, event) == heard(SSE, *in_pieces(event, 1000)) == (None, "m")
    event = (data + b": x" + told + b"data: 1\n\n").replace(b"\n", end)
    stream = event + b'data: {"x": 1}\n\n'.replace(b"\n", end) * 4000
    for start in range(TAIL, TAIL + len(event)):
        assert heard(SSE, stream[:start], stream[start : start + TAIL])[0] is None


def running(count: int, **more: Any) -> bytes:
    """A chunk of a chat completion with the usage up to it, as `continuous_usage_stats` asks for."""
    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    chunk = {"model": "m", "choices": [{"delta": {"content": "a"}, "finish_reason": None}], "usage": usage, **more}
    return b"data: %b\n\n" % as_json(chunk)


@pytest.mark.parametrize("events", [5, 1000])
def test_a_torn_stream_with_running_usage_names_its_model_alone(events: int) -> None:
    chunks = b"".join(running(count) for count in range(events))
    total = Usage(input=3, output=events - 1, total=3 + events - 1)
    assert heard(SSE, chunks) == (total, "m")
    for torn in (chunks, chunks + b'data: {"model": "m", "ch', chunks + running(7, choices=[])[:-3]):
        assert heard(SSE, torn, complete=False) == (None, "m")
        assert heard(SSE, torn, framing=[]) == (None, "m")
    for whole in (chunks + running(events - 1, choices=[]), chunks + b"data: [DONE]", chunks + b"data:[DONE]\r\n\r\n"):
        assert heard(SSE, whole, complete=False) == (total, "m")
    for torn in (b'data: {"choices": [{"delta": {"content": "[DONE]', b"data: [DONE", b": [DONE]\n\n"):
        assert heard(SSE, chunks + torn, complete=False) == (None, "m")


@pytest.mark.parametrize("text", ["short", LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("response.completed", True),
        ("response.incomplete", True),
        ("response.failed", True),
        ("response.in_progress", False),
        ("image_generation.partial_image", False),
        ("image_generation.completed", True),
        ("image_edit.completed", True),
        ("transcript.text.delta", False),
        ("transcript.text.done", True),
        ("speech.audio.done", True),
        (7, False),
        (None, False),
    ],
)
def test_of_a_torn_stream_only_an_event_that_ends_it_tells_usage(kind: object, ends: bool, text: str) -> None:
    said: Record = {"model": "m", "text": text, "usage": RESPONSE}
    response = isinstance(kind, str) and kind.startswith("response.")
    record = {"type": kind, "response": said} if response else {"type": kind, **said}
    event = b"data: %b\n\n" % as_json(record)
    assert heard(SSE, event, complete=False)[0] == (RESPONSE_USAGE if ends else None)
    if ends or text == "short":
        assert heard(SSE, event) == (RESPONSE_USAGE, "m")


WORD = b'data: {"choices": [{"delta": {"content": "error"}}]}'
LONG_WORD = b'data: {"type": "error.not", "text": "%b"}' % (b'"error": {' * 9000).replace(b'"', b"'")


@pytest.mark.parametrize("before", [[], [WORD], [LONG_WORD]], ids=["alone", "behind a word", "behind a long one"])
@pytest.mark.parametrize(
    ("last", "failed"),
    [
        (b'data: {"error": {"message": "overloaded"}}', True),
        (b'data:{ "error":{"message": "%b"}}' % (b"x" * 3 * TAIL), True),
        (b'event: error\ndata: {"message": "overloaded"}', True),
        (b'event: error\ndata: "%b"' % (b"x" * 3 * TAIL), True),
        (b'data: {"type": "error", "message": "overloaded"}', True),
        (b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{}}}', True),
        (b'data: {"type":"response.failed","response":{"text":"%b"}}' % (b"x" * 3 * TAIL), True),
        (b'event: response.completed\ndata: {"type":"response.completed","response":{"error":null}}', False),
        (b'data: {"error": null}', False),
        (b'data: {"text": "data: {\\"error\\": {", "error": {}}', False),
        (b"event: error.not\ndata: {}", False),
        (b"event: errors\ndata: {}", False),
        (b"", False),
        (LONG_WORD, False),
    ],
)
def test_a_stream_that_ends_with_an_error_has_failed(last: bytes, failed: bool, before: list[bytes]) -> None:
    done = b"\n\ndata: [DONE]"
    for end in (b"", b"\n\n", done + b"\n\n", b"\n\ndata:[DONE]", done + b"\n" * 99, b"\n\n" + done):
        said = b"\n\n".join([*before, last]) + end
        for line_end in (b"\n", b"\r\n", b"\r"):
            assert tapped(SSE, *in_pieces(said.replace(b"\n", line_end), 5000)).failed() == failed
        assert tapped(SSE, gzip.compress(said), coding=b"gzip").failed() == failed


def test_an_error_that_is_not_the_last_word_is_none() -> None:
    error = b'data: {"error": {"message": "again"}}'
    assert not tapped(SSE, error + b"\n\n" + WORD + b"\n\n").failed()
    assert not tapped(JSON, b'{"error": {}}').failed()
    assert not tapped(JSON, b"\n" + error).failed()
    assert not tapped(SSE, error, coding=b"unknown").failed()


def held(tap: Tap) -> int:
    return sum(sys.getsizeof(getattr(tap, slot)) for slot in Tap.__slots__)


@pytest.mark.untraced
@pytest.mark.parametrize("size", [1, 1000, TAIL + 1, 10_000_000])
@pytest.mark.parametrize("form", ["JSON", "SSE"])
def test_what_is_held_does_not_grow_with_the_answer(form: str, size: int) -> None:
    tap = Tap(dict([CHUNKED, (b"content-type", FORMS[form][0])]))
    line = b"data: " + b"x" * 300 + b"\n\n"
    body = line * (300 if size == 1 else 30_000)
    most = 0
    for piece in in_pieces(body, size):
        tap.hear(piece)
        most = max(most, held(tap))
    assert TAIL < most < 1.2 * MOST + HEAD + 1000 < 64 * 1024


@pytest.mark.parametrize("encoding", [name for name in CODINGS if name != "plain"])
@pytest.mark.parametrize("body", [as_json({"usage": {"input_tokens": 7}}), b"not JSON, and not coded"])
def test_what_waits_to_be_looked_into_is_its_stated_size_and_no_decoder(
    encoding: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    coding, encode = CODINGS[encoding]
    made: list[weakref.ref[object]] = []

    def decoder(coding: bytes) -> codings.Decoder | None:
        one = codings.decoder(coding)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr("proxy.tap.decoder", decoder)
    tap = Tap(dict([CHUNKED, (b"content-type", JSON), (b"content-encoding", coding)]))
    tap.hear(encode(body) if body.startswith(b"{") else body)
    tap.end(complete=True)
    assert [one() for one in made] == [None]
    assert tap.size == (len(body) if body.startswith(b"{") else 0)


@pytest.mark.parametrize("encoding", [name for name in CODINGS if name != "plain"])
def test_a_body_that_unfolds_without_end_is_given_up(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codings, "MOST_STEPS", 10)
    coding, encode = CODINGS[encoding]
    body = encode(as_json({"a": " " * 1_000_000, "model": "m", "usage": RESPONSE}))
    assert heard(JSON, body, coding=coding) == UNKNOWN
    as_it_comes = encoding not in ("br", "zstd")
    assert heard(JSON, *in_pieces(body, 50), coding=coding) == ((RESPONSE_USAGE, "m") if as_it_comes else UNKNOWN)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("level", [0, 6], ids=["stored", "compressed"])
def test_a_piece_may_unfold_in_as_many_steps_as_there_are(encoding: str, level: int) -> None:
    encode = partial(gzip.compress, mtime=0) if encoding == "gzip" else zlib.compress
    most = codings.MOST_STEPS * codings.STEP
    inflater = codings.Inflater()
    assert sum(map(len, inflater.decode(encode(b" " * most, level)))) == most
    assert inflater.whole
    with pytest.raises(ValueError, match="too far"):
        list(codings.Inflater().decode(encode(b" " * (most + 1), level)))


def random_text(size: int) -> bytes:
    return json.dumps(random.Random(7).randbytes(2 * size).hex()).encode()


@pytest.mark.parametrize("encoding", ["br", "zstd"])
def test_more_coded_bytes_than_are_kept_are_given_up(encoding: str) -> None:
    coding, encode = CODINGS[encoding]
    assert heard(JSON, *in_pieces(encode(random_text(codings.MOST_CODED)), 1000), coding=coding) == UNKNOWN


@pytest.mark.parametrize("encoding", [name for name in CODINGS if name != "plain"])
def test_nothing_may_follow_the_end_of_the_coded_bytes(encoding: str) -> None:
    coding, encode = CODINGS[encoding]
    body = encode(as_json(SHAPES["response"][0]))
    assert heard(JSON, body, coding=coding)[0] == RESPONSE_USAGE
    assert heard(JSON, body + body, coding=coding) == UNKNOWN
    assert heard(JSON, body, b"x", coding=coding) == UNKNOWN
    assert heard(JSON, b"", coding=coding) == UNKNOWN


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"audio/mpeg")],
        [(b"content-type", b"text/html; charset=application/json")],
        [(b"content-type", b"application/json"), (b"content-encoding", b"gzip, br")],
        [(b"content-type", b"application/json"), (b"content-encoding", b"compress")],
    ],
)
def test_other_answers_are_not_listened_to(headers: Pairs) -> None:
    tap = Tap(dict([CHUNKED, *headers]))
    tap.hear(as_json(SHAPES["response"][0]))
    assert held(tap) < 1000
    tap.end(complete=True)
    assert tap.told() == UNKNOWN


@pytest.mark.parametrize("coding", [b"", b" ", b"identity", b"Identity", b" IDENTITY "])
def test_what_is_named_identity_is_not_coded(coding: bytes) -> None:
    for media_type in (JSON, SSE):
        tap = Tap(dict([CHUNKED, (b"content-type", media_type), (b"content-encoding", coding)]))
        tap.hear(FORMS["JSON" if media_type == JSON else "SSE"][1](SHAPES["response"][0]))
        tap.end(complete=True)
        assert tap.told() == (RESPONSE_USAGE, "gpt-5")


@pytest.mark.parametrize("count", [-1, 10**9, 10**400, True, 1.5, "1", None, {}, [1]])
def test_what_is_no_count_of_tokens_is_left_out(count: Any) -> None:
    details = {"cached_tokens": count, "audio_tokens": 3}
    said = {"input_tokens": count, "output_tokens": 7, "input_tokens_details": details, "other": 1}
    assert usage_of(said) == {"output": 7, "input_audio": 3}
    assert usage_of({"input_tokens": count, "input_tokens_details": count}) is None


def test_of_two_names_for_one_count_the_larger_is_believed() -> None:
    openai = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": CACHED}
    others = {"input_tokens": 0, "output_tokens": 0, "input_tokens_details": {"cached_tokens": 0}}
    for said in (openai | others, others | openai):
        assert usage_of(said) == {"input": 10, "cached": 4, "output": 5, "total": 15}
    assert usage_of(others) == {"input": 0, "cached": 0, "output": 0}


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ("/v1/chat/completions", True),
        ("/v1/chat/completions/", True),
        ("/v1/chat/completions/chatcmpl-1", False),
        ("/v1/chat/completions/chatcmpl-1/", False),
        ("/a/prefix/chat/completions/1", False),
        ("/openai/deployments/runs/chat/completions", True),
        ("/openai/deployments/cancel/embeddings", True),
        ("/openai/deployments/d/chat/completions/chatcmpl-1", False),
        ("/v1/responses", True),
        ("/v1/responses/compact", True),
        ("/v1/responses/resp_1/cancel", False),
        ("/v1/batches/batch_1/cancel", False),
        ("/v1/threads/runs", True),
        ("/v1/threads/thread_1/runs", True),
        ("/v1/threads/thread_1/runs/run_1", False),
        ("/v1/threads/thread_1/runs/run_1/cancel", False),
        ("/v1/threads/thread_1/runs/run_1/submit_tool_outputs", True),
    ],
)
def test_only_what_makes_an_answer_is_counted(path: str, counted: bool) -> None:
    for query in ("", "?", "?api-version=1", "?a=/runs/run_1", "?a=/cancel"):
        assert is_counted("POST", f"{path}{query}".encode()) == counted
        assert not is_counted("GET", f"{path}{query}".encode())


def test_every_kind_of_token_has_its_name() -> None:
    seen = [usage_of(shape) for shape in (CHAT, RESPONSE, IMAGE, TRANSCRIPT)]
    assert {kind for usage in seen for kind in usage or ()} | {"output_image"} == set(KINDS)


@pytest.mark.parametrize("encoding", ["br", "zstd"])
def test_a_coding_without_its_library_is_unknown(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("brotli", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    codings.library.cache_clear()
    try:
        coding, encode = CODINGS[encoding]
        assert heard(JSON, encode(as_json(SHAPES["response"][0])), coding=coding) == UNKNOWN
    finally:
        codings.library.cache_clear()
