"""Chat completions: `/openai` with an image beside the messages, `/chatgpt` with one prompt in and one answer out."""

import base64
import binascii
import json
from uuid import uuid4

from proxy.errors import BadRequest, UpstreamUnreachable
from proxy.jsontext import Member, Members, elements_of, member, members_of, write

TARGET = b"/v1/chat/completions"
INSTRUCTIONS = "You are an AI assistant."
RANGES = {"temperature": 2, "top_p": 1}
PASSED_ON = ("max_tokens", "max_completion_tokens")
SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),  # and WEBP from the ninth byte on
)


def completion(members: Members) -> Members:
    """Return the members of a chat completion, with `image` made a part of the messages. Raises `BadRequest`."""
    refuse_stream(members)
    call = dict(members)
    image = call.pop("image", None)
    if image is None or image.value is None:
        return call
    part = {"type": "image_url", "image_url": {"url": image_url(image.value)}}
    messages = call.get("messages")
    call["messages"] = Member('"messages"', with_image(messages, json.dumps(part)), None)
    return call


def refuse_stream(members: Members) -> None:
    """Raise `BadRequest` if a stream is asked for, or if that cannot be told."""
    stream = members.get("stream")
    if stream is None or stream.value is None or stream.value is False:  # 0 equals False, and is none
        return
    if stream.value is not True:
        raise BadRequest("stream: true or false is expected")
    raise BadRequest("stream: this route does not stream; leave it out, or call /v1/chat/completions or /openai2")


def image_url(image: object) -> str:
    """Return the URL that an `image` object stands for. Raises `BadRequest`."""
    if not isinstance(image, dict):
        raise BadRequest("image: an object with url or base64 is expected")
    for name in ("url", "base64"):
        value = image.get(name)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"image.{name}: a string is expected")
    if url := image.get("url"):
        return str(url)
    data = image.get("base64") or ""
    if data[:5].lower() == "data:":
        return str(data)
    data = "".join(data.split())  # base64 is often broken into lines
    if not data:
        raise BadRequest("image: url or base64 is missing")
    return f"data:{media_type(data)};base64,{data}"


def media_type(data: str) -> str:
    """Tell from its first bytes what kind of image is in base64 text: PNG where they are those of none that we know."""
    try:
        beginning = base64.b64decode(data[:16])
    except (binascii.Error, ValueError):
        return "image/png"
    if beginning.startswith(b"RIFF") and beginning[8:] != b"WEBP":
        return "image/png"
    return next((kind for signature, kind in SIGNATURES if beginning.startswith(signature)), "image/png")


def with_image(messages: Member | None, part: str) -> str:
    """Return the text of the messages with a part more: in the last of them if it is the user's, else in a new one."""
    if messages is None or messages.value is None:
        return f'[{{"role":"user","content":[{part}]}}]'
    if not isinstance(messages.value, list):
        raise BadRequest("messages: an array is expected")
    elements = elements_of(messages.text)
    said = messages.value[-1] if elements else None
    if isinstance(said, dict) and said.get("role") == "user" and isinstance(said.get("content"), str | list):
        elements[-1] = _grown(elements[-1], part)
    else:
        elements.append(f'{{"role":"user","content":[{part}]}}')
    return "[" + ",".join(elements) + "]"


def _grown(message: str, part: str) -> str:
    """Return a message with a part more behind its content."""
    members = members_of(message)
    content = members["content"]
    parts = elements_of(content.text) if content.text[0] == "[" else [f'{{"type":"text","text":{content.text}}}']
    members["content"] = Member(content.name, "[" + ",".join([*parts, part]) + "]", None)
    return write(members)


def prompt(members: Members, default_model: str) -> Members:
    """Return the members of the chat completion that a `/chatgpt` request stands for. Raises `BadRequest`."""
    refuse_stream(members)
    given = {name: found for name, found in members.items() if found.value is not None}
    if "prompt" not in given:
        raise BadRequest("prompt: it is missing")
    text = given["prompt"]
    if not isinstance(text.value, str) or not text.value:
        raise BadRequest("prompt: a string is expected, and not an empty one")
    model = given.get("model") or member("model", default_model)
    if not isinstance(model.value, str) or not model.value:
        raise BadRequest("model: a string is expected, and not an empty one")
    system = json.dumps({"role": "system", "content": INSTRUCTIONS})
    messages = f'[{system},{{"role":"user","content":{text.text}}}]'
    call = {"model": model, "messages": Member('"messages"', messages, None)}
    call |= {name: _within(given.get(name), name, most) for name, most in RANGES.items()}
    return call | {name: given[name] for name in PASSED_ON if name in given}


def _within(found: Member | None, name: str, most: int) -> Member:
    if found is None:
        return member(name, 1)
    value = found.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BadRequest(f"{name}: a number from 0 to {most} is expected")
    return found


def told(completion: bytes) -> bytes:
    """Return the body that answers a `/chatgpt` request, made of the whole completion.

    Raises `UpstreamUnreachable` if that is none.
    """
    try:
        detail = completion.decode()
        members = members_of(detail)  # in steps, between which others have their turn
        content = members["choices"].value[0]["message"]["content"]  # type: ignore[index]  # or it is none
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UpstreamUnreachable("The upstream's response is not a chat completion") from None
    answer = {
        "id": members["id"].value if "id" in members else None,
        "role": "assistant",
        "text": content or "",
        "parentMessageId": str(uuid4()),
        "conversationId": str(uuid4()),
    }
    return f'{json.dumps(answer)[:-1]}, "detail": {detail.strip()}}}'.encode()
