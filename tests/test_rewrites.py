"""Which call becomes of which request: the pure rewrites, from text to text. Forms have a file of their own."""

import base64
import json
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequest, UpstreamUnreachable
from proxy.jsontext import Members, read, write
from proxy.rewrites import chat, responses
from proxy.rewrites.chat import told
from proxy.rewrites.embeddings import embedding

# A busy machine is no failure.
pure = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
URL = '{"url":"https://x/i.png"}'
PART = '{"type": "image_url", "image_url": {"url": "https://x/i.png"}}'
NEW = f'{{"role":"user","content":[{PART}]}}'
SYSTEM = '{"role": "system", "content": "You are an AI assistant."}'


def prompt(members: Members) -> Members:
    return chat.prompt(members, default_model="gpt-4o-mini")


def called(rewrite: Callable[[Members], Members], body: str) -> str:
    """The body of the call that becomes of that of a request."""
    members, complaint = read(body.encode())
    assert complaint is None
    return write(rewrite(members))


def refused(rewrite: Callable[[Members], Members], body: str) -> str:
    """What a client hears whose request cannot be made a call."""
    with pytest.raises(BadRequest) as problem:
        called(rewrite, body)
    return str(problem.value)


# ---- /openai


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"model":"gpt-4o","messages":[ {"role":"user", "content":"\\u00e9"} ],"temperature":0.70,"seed":1E2}',
        '{"messages":"not an array","model":7}',  # the upstream knows best
        '{"z":{"image":1},"stream":false,"a":123456789012345678901234567890}',
        '{"stream":null,"stream_options":{}}',
    ],
)
def test_a_completion_without_an_image_goes_on_as_it_is(body: str) -> None:
    assert called(chat.completion, body) == body


@pytest.mark.parametrize(
    ("messages", "grown"),
    [
        ("[]", f"[{NEW}]"),
        ("[ ]", f"[{NEW}]"),
        ("null", f"[{NEW}]"),
        (
            '[{"role":"user","content":"What\\u0020is \\"this\\"?"}]',
            f'[{{"role":"user","content":[{{"type":"text","text":"What\\u0020is \\"this\\"?"}},{PART}]}}]',
        ),
        ('[{"role":"user","content":""}]', f'[{{"role":"user","content":[{{"type":"text","text":""}},{PART}]}}]'),
        ('[{"role":"user","content":[]}]', f'[{{"role":"user","content":[{PART}]}}]'),
        (
            '[{"role":"user","content":[ {"type":"text","text":"a"} , {"n":1.50} ]}]',
            f'[{{"role":"user","content":[{{"type":"text","text":"a"}},{{"n":1.50}},{PART}]}}]',
        ),
        (
            '[{"content":[1],"name":"n","role":"user","x":1E5}]',
            f'[{{"content":[1,{PART}],"name":"n","role":"user","x":1E5}}]',
        ),
        (
            '[{"role":"system","content":"s","n":1.50}, {"role":"user","content":"u"}]',
            '[{"role":"system","content":"s","n":1.50},'
            f'{{"role":"user","content":[{{"type":"text","text":"u"}},{PART}]}}]',
        ),
        ('[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]',) * 2,
        ('[{"role":"system","content":"s"}]',) * 2,
        ('[{"role":"User","content":"u"}]',) * 2,
        ('[{"role":"user"}]',) * 2,
        ('[{"role":"user","content":null}]',) * 2,
        ('[{"role":"user","content":7}]',) * 2,
        ('[{"content":"u"}]',) * 2,
        ('["user"]',) * 2,
        ("[[]]",) * 2,
        ("[1.50]",) * 2,
    ],
)
def test_an_image_joins_the_users_last_message_or_makes_a_new_one(messages: str, grown: str) -> None:
    if grown == messages:
        grown = f"{messages[:-1]},{NEW}]"
    body = f'{{"model":"m","messages":{messages},"image":{URL},"n":1.50}}'
    assert called(chat.completion, body) == f'{{"model":"m","messages":{grown},"n":1.50}}'


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (f'{{"image":{URL}}}', f'{{"messages":[{NEW}]}}'),
        (f'{{"image":{URL},"a":1,"messages":[],"b":2}}', f'{{"a":1,"messages":[{NEW}],"b":2}}'),
        (f'{{"b":1,"image":{URL},"a":2}}', f'{{"b":1,"a":2,"messages":[{NEW}]}}'),
        ('{"a":1,"image":null,"messages":[ ]}', '{"a":1,"messages":[ ]}'),
        (f'{{"\\u0069mage":{URL},"m\\u0065ssages":[]}}', f'{{"messages":[{NEW}]}}'),
    ],
)
def test_an_image_leaves_its_place_and_the_messages_keep_theirs(body: str, call: str) -> None:
    assert called(chat.completion, body) == call


IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "jpeg"),
    (b"\xff\xd8\xff\xdb", "jpeg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"RIFF\x24\x00\x00\x00WEBPVP8 ", "webp"),
    (b"RIFF\x24\x00\x00\x00WAVEfmt ", "png"),
    (b"RIFF", "png"),
    (b"\x89PNX\r\n\x1a\n", "png"),
    (b"\xff\xd9\xff", "png"),
    (b"GIF9", "png"),
    (b"BM\x00\x00", "png"),
    (b"<svg", "png"),
)


@pytest.mark.parametrize(("beginning", "kind"), IMAGES)
@pytest.mark.parametrize("lines", [False, True], ids=["one line", "in lines"])
def test_the_kind_of_an_image_is_told_from_its_first_bytes(beginning: bytes, kind: str, lines: bool) -> None:
    content = beginning + bytes(100)
    text = base64.b64encode(content).decode()
    said = " \r\n\t".join(text[at : at + 5] for at in range(0, len(text), 5)) if lines else text
    assert chat.image_url({"base64": said}) == f"data:image/{kind};base64,{text}"


@pytest.mark.parametrize("text", ["A", "iVBO", "/9j/", "R0lGODlh", "====", "é", "\u2028é", "*", "iVBORw0KGgo"])
def test_any_other_text_is_left_for_the_upstream_to_judge(text: str) -> None:
    kind = {"/9j/": "jpeg", "R0lGODlh": "gif"}.get(text, "png")
    assert chat.image_url({"base64": text}) == f"data:image/{kind};base64,{''.join(text.split())}"


@pytest.mark.parametrize(
    ("image", "url"),
    [
        ({"url": "https://x/i.png"}, "https://x/i.png"),
        ({"url": "data:image/png;base64,AA"}, "data:image/png;base64,AA"),
        ({"url": "whatever it is"}, "whatever it is"),
        ({"base64": "data:image/avif;base64,A A"}, "data:image/avif;base64,A A"),
        ({"base64": "data:,"}, "data:,"),
        ({"url": "https://x/i.png", "base64": PNG}, "https://x/i.png"),
        ({"url": "https://x/i.png", "base64": None}, "https://x/i.png"),
        ({"url": None, "base64": PNG}, f"data:image/png;base64,{PNG}"),
        ({"url": "", "base64": PNG}, f"data:image/png;base64,{PNG}"),
        ({"base64": PNG, "detail": "low"}, f"data:image/png;base64,{PNG}"),
    ],
)
def test_an_image_has_one_url(image: object, url: str) -> None:
    assert chat.image_url(image) == url


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        *(
            (text, "image: an object with url or base64 is expected")
            for text in ('"https://x"', "[]", "1", "true", '""')
        ),
        *(
            (text, "image: url or base64 is missing")
            for text in ("{}", '{"URL":"x"}', '{"url":null}', '{"url":"","base64":""}', '{"base64":" \\n"}')
        ),
        *((f'{{"url":{text}}}', "image.url: a string is expected") for text in ("1", "false", "[]", '{"a":1}')),
        *((f'{{"base64":{text}}}', "image.base64: a string is expected") for text in ("0", "true", "[]", "{}")),
        ('{"url":"https://x","base64":1}', "image.base64: a string is expected"),
    ],
)
def test_what_is_no_image_is_refused(image: str, complaint: str) -> None:
    assert refused(chat.completion, f'{{"image":{image},"messages":[]}}') == complaint


@pytest.mark.parametrize("messages", ['"hello"', "{}", "1", "true", '""'])
def test_an_image_needs_messages_to_go_to(messages: str) -> None:
    assert refused(chat.completion, f'{{"image":{URL},"messages":{messages}}}') == "messages: an array is expected"


@pytest.mark.parametrize("rewrite", [chat.completion, prompt])
@pytest.mark.parametrize(
    ("stream", "why"),
    [
        ("true", "this route does not stream; leave it out, or call /v1/chat/completions or /openai2"),
        *((text, "true or false is expected") for text in ('"true"', "1", "0", "-0.0", "[]", "{}", '""')),
    ],
)
def test_a_stream_is_refused(rewrite: Callable[[Members], Members], stream: str, why: str) -> None:
    assert refused(rewrite, f'{{"prompt":"p","messages":[],"stream":{stream}}}') == f"stream: {why}"


jsonish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé"\\ \n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    jsonish | st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant"))}, optional={"content": jsonish}),
    max_size=4,
)


@pure
@given(messages, st.booleans(), st.sampled_from((None, 1)))
def test_an_image_changes_nothing_of_what_was_said_before(said: list[object], ascii: bool, indent: int | None) -> None:
    body = json.dumps({"messages": said, "image": {"url": "https://x/i.png"}}, ensure_ascii=ascii, indent=indent)
    heard = json.loads(called(chat.completion, body))["messages"]
    *before, last = heard
    assert last["role"] == "user"
    assert last["content"][-1] == json.loads(PART)
    del last["content"][-1]
    if len(heard) > len(said):
        assert (before, last) == (said, {"role": "user", "content": []})
    else:
        if isinstance(said[-1], dict) and isinstance(said[-1]["content"], str):
            last["content"] = last["content"][0]["text"]
        assert heard == said


# ---- /chatgpt


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('{"prompt":"p"}', '"gpt-4o-mini",P,"temperature":1,"top_p":1'),
        ('{"temperature":0.80,"prompt":"p","model":"m\\u0020"}', '"m\\u0020",P,"temperature":0.80,"top_p":1'),
        ('{"prompt":"p","top_p":1e-1,"temperature":2}', '"gpt-4o-mini",P,"temperature":2,"top_p":1e-1'),
        ('{"prompt":"p","top_p":0,"temperature":0}', '"gpt-4o-mini",P,"temperature":0,"top_p":0'),
        ('{"prompt":"p","top_p":1.0,"temperature":2.00}', '"gpt-4o-mini",P,"temperature":2.00,"top_p":1.0'),
        ('{"prompt":"p","top_p":-0.0,"temperature":1e-999}', '"gpt-4o-mini",P,"temperature":1e-999,"top_p":-0.0'),
        (
            '{"max_completion_tokens":5,"max_tokens":1e2,"prompt":"p"}',
            '"gpt-4o-mini",P,"temperature":1,"top_p":1,"max_tokens":1e2,"max_completion_tokens":5',
        ),
        (
            '{"prompt":"p","model":null,"temperature":null,"top_p":null,"max_tokens":null,"stream":null}',
            '"gpt-4o-mini",P,"temperature":1,"top_p":1',
        ),
        ('{"prompt":"p","stream":false,"tools":[],"messages":[],"n":5}', '"gpt-4o-mini",P,"temperature":1,"top_p":1'),
    ],
)
def test_a_prompt_becomes_a_completion(body: str, call: str) -> None:
    call = call.replace("P", f'"messages":[{SYSTEM},{{"role":"user","content":"p"}}]')
    assert called(prompt, body) == f'{{"model":{call}}}'


def test_a_prompt_keeps_its_escapes() -> None:
    text = '"\\u0041 \\"b\\" \\ud83d\\ude00 é\\n"'
    assert f'{{"role":"user","content":{text}}}]' in called(prompt, f'{{"prompt":{text}}}')


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("{}", "prompt: it is missing"),
        ('{"prompt":null,"model":"m"}', "prompt: it is missing"),
        *(
            (f'{{"prompt":{text}}}', "prompt: a string is expected, and not an empty one")
            for text in ('""', "1", "true", "[]", '["p"]', "{}")
        ),
        *(
            (f'{{"prompt":"p","model":{text}}}', "model: a string is expected, and not an empty one")
            for text in ('""', "1", "false", "[]", "{}")
        ),
        *(
            (f'{{"prompt":"p","{name}":{text}}}', f"{name}: a number from 0 to {most} is expected")
            for name, most, beyond in (("temperature", 2, "2.01"), ("top_p", 1, "1.000001"))
            for text in (beyond, "-0.1", "-1", "1" + "0" * 400, "1e300", '"1"', "true", "false", "[]", "{}", '""')
        ),
    ],
)
def test_what_is_no_prompt_is_refused(body: str, complaint: str) -> None:
    assert refused(prompt, body) == complaint


def completion(message: str, id: str = '"c-1"') -> str:
    return f'{{"id":{id}, "choices":[{{"message":{message}}}], "usage":{{"n":1.50}}}}'


@pytest.mark.parametrize(
    ("detail", "id", "text"),
    [
        (completion('{"role":"assistant","content":"Hello \\u00e9 😀"}'), "c-1", "Hello é 😀"),
        (" \n" + completion('{"content":"a"}') + "\r\n", "c-1", "a"),
        (completion('{"content":null,"refusal":"no"}'), "c-1", ""),
        (completion('{"content":""}', "null"), None, ""),
        (completion('{"content":"a"}, "n":' + "9" * 4000), "c-1", "a"),
        ('{"choices":[{"message":{"content":"\\ud800"}},{"message":{"content":"b"}}]}', None, "\ud800"),
    ],
)
def test_a_completion_is_told_as_one_answer(detail: str, id: str | None, text: str) -> None:
    body = told(detail.encode()).decode()
    assert body.endswith(f', "detail": {detail.strip()}}}')
    answer = json.loads(body)
    assert list(answer) == ["id", "role", "text", "parentMessageId", "conversationId", "detail"]
    assert (answer["id"], answer["role"], answer["text"]) == (id, "assistant", text)
    assert answer["detail"] == json.loads(detail)
    assert UUID(answer["parentMessageId"]) != UUID(answer["conversationId"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\xff",
        b"null",
        b"7",
        b'"choices"',
        b"[]",
        b"{}",
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":{}}',
        b'{"choices":["message"]}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":null}]}',
        b'{"choices":[{"message":{}}]}',
        b'{"choices":[{"message":{"content":"a"}}]} more',
        b"[" * 100_000,
    ],
)
def test_what_is_no_completion_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"^The upstream's response is not a chat completion$"):
        told(body)


# ---- /embeddings


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (
            '{"input":"\\u00e9","dimensions":512}',
            '{"input":"\\u00e9","dimensions":512,"model":"text-embedding-3-large"}',
        ),
        ('{"model":"m","input":[1.50,2]}', '{"model":"m","input":[1.50,2]}'),
        ('{"model":null,"input":"a"}', '{"model":"text-embedding-3-large","input":"a"}'),
        ('{"input":"a","model":"","x":1E5}', '{"input":"a","model":"text-embedding-3-large","x":1E5}'),
        ('{"model":7,"encoding_format":"base64"}',) * 2,
        ('{"model":false}',) * 2,
        ("{}", '{"model":"text-embedding-3-large"}'),
    ],
)
def test_embeddings_have_a_model(body: str, call: str) -> None:
    assert called(embedding, body) == call


# ---- /openai2


@pytest.mark.parametrize(
    ("path", "offered", "target"),
    [
        (b"/openai2", {"POST": "openai2"}, b"/v1/responses"),
        (b"/openai2/compact", {"POST": "openai2.compact"}, b"/v1/responses/compact"),
        (b"/openai2/input_tokens", {"POST": "openai2.input_tokens"}, b"/v1/responses/input_tokens"),
        (b"/openai2/resp_1", {"GET": "openai2.retrieve", "DELETE": "openai2.delete"}, b"/v1/responses/resp_1"),
        (b"/openai2/resp_1/input_items", {"GET": "openai2.input_items"}, b"/v1/responses/resp_1/input_items"),
        (b"/openai2/resp_1/cancel", {"POST": "openai2.cancel"}, b"/v1/responses/resp_1/cancel"),
        (b"/openai2/cancel", {"GET": "openai2.retrieve", "DELETE": "openai2.delete"}, b"/v1/responses/cancel"),
        (b"/openai2/r%C3%A9%20+;=%3f/cancel", {"POST": "openai2.cancel"}, b"/v1/responses/r%C3%A9%20+;=%3f/cancel"),
        (b"/openai2/...", {"GET": "openai2.retrieve", "DELETE": "openai2.delete"}, b"/v1/responses/..."),
    ],
)
def test_a_path_offers_operations_and_leads_somewhere(path: bytes, offered: dict[str, str], target: bytes) -> None:
    assert {method: found.name for method, found in responses.operations(path).items()} == offered
    assert responses.target(path) == target


@pytest.mark.parametrize(
    "path",
    [
        b"/openai2/",
        b"/openai2//",
        b"/openai2//cancel",
        b"/openai2/a/",
        b"/openai2/a/b",
        b"/openai2/a/cancel/",
        b"/openai2/a/b/cancel",
        b"/openai2/compact/",
        b"/openai2/.",
        b"/openai2/..",
        b"/openai2/../cancel",
        b"/openai2/./input_items",
        b"/openai2/%2e",
        b"/openai2/%2E%2e/cancel",
        b"/openai2/.%2e",
        b"/openai2/a%2Fb",
        b"/openai2/a#",
        b"/openai2/a#/input_items",
        b"/openai2/a%2fb/cancel",
        b"/openai2/%2F",
        b"/openai2/a\\b",
        b"/openai2/a%5Cb/input_items",
        b"/openai2/..%5c",
    ],
)
def test_a_path_that_is_none_offers_nothing(path: bytes) -> None:
    assert responses.operations(path) == {}


def test_operations_differ_in_what_an_empty_body_means_and_whether_they_may_be_repeated() -> None:
    operations = [found for _, offered in responses.OPERATIONS for found in offered.values()]
    assert len({found.name for found in operations}) == 7
    assert {found.name: found.empty for found in operations if found.empty != "refused"} == {
        "openai2.input_tokens": "object",
        "openai2.cancel": "nothing",
    }
    assert {found.name for found in operations if found.idempotent} == {
        "openai2.input_tokens",
        "openai2.retrieve",
        "openai2.input_items",
        "openai2.delete",
    }
