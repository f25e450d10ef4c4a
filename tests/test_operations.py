"""Every operation of the OpenAI API crosses byte for byte, and comes back byte for byte.

`operations.json` was made once from OpenAI's public description of its API, whose paths stand below `/v1`. Its columns:
method, path template, content type of the request or null, content type of the answer or null (where several are
offered: the request's first, the answer's first that is not JSON).
"""

import gzip
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from proxy.settings import load
from tests.conftest import WAYS, Running, going, running
from tests.peers import Pairs, Upstream, chunked

T = TypeVar("T")
Operation = tuple[str, str, str | None, str | None]

OPERATIONS: list[Operation] = [
    tuple(row) for row in json.loads(Path(__file__).with_name("operations.json").read_text())
]
TOMORROW: list[Operation] = [
    ("POST", "/not/yet/thought/of", "application/octet-stream", "application/octet-stream"),
    ("PUT", "/recordings/{id}", "audio/wav", "audio/mpeg"),
    ("PATCH", "/{kind}//{id}/", "application/merge-patch+json", "application/json"),
    ("DELETE", "/{kind}", "application/json", None),
    ("GET", "/search", "application/json", "text/event-stream"),
    ("OPTIONS", "/models", None, None),
    ("REPORT", "/usage", "text/xml", "application/json"),
]

EVERY_BYTE = bytes(range(256))
IDENTIFIERS = (
    b"resp_68f0c1",
    b"a%2Fb",
    b"%E2%82%AC%F0%9F%98%80",
    b"a+b;c=d",
    b"%252e%2E",
    b"100%",
    b"~(x:y@z),'w'!*$&",
    b"%00%0d%0A",
    b"..",
)
QUERIES = (
    b"",
    b"?",
    b"?a=1&b=2&a=3&a=1",
    b"?a=&=b&&c&=",
    b"?a=1;b=2;;c",
    b"?q=a+b%2Bc%20d",
    b"?next=%2Fv1%2Fx&next=%2fv1%2fx",
    b"?url=//x//y/../z",
    b"?order=asc?",
    b'?include[]=a&x={"y":[1]}|^`<>\\',
    b"?%E4%f6=%00&%=%zz",
)
FIELDS = (
    (b"X-Twice", b"one"),
    (b"Authorization", b"Bearer sk-the-clients-own"),
    (b"X-Twice", b"two, three"),
    (b"Accept-Encoding", b"gzip;q=1.0, identity; q=0.5, *;q=0"),
    (b"x-twice", b"one"),
    (b"Cookie", b"a=1; b=2"),
    (b"X-Latin", b"\x85caf\xe9 \xff\xa0"),
    (b"X-Empty", b""),
    (b"Cookie", b'c="3"'),
    (b"X-Tab", b"a\tb  c"),
    (b"X-Long", b"4 KB, " * 682 + b"long"),
    (b"!#$%&'*+-.^_`|~09aZ", b':"(){}[]<>@,;\\/?='),
    (b"User-Agent", b"OpenAI/Python 9.9"),
    (b"X-Stainless-Retry-Count", b"0"),
    (b"OpenAI-Beta", b"assistants=v2"),
)
ANSWERED = (
    (b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
    (b"Set-Cookie", b"a=1; Path=/; HttpOnly"),
    (b"Server", b"cloudflare"),
    (b"set-cookie", b"a=1; Path=/; HttpOnly"),
    (b"X-RateLimit-Remaining-Tokens", b"149984"),
    (b"Set-Cookie", b"b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT"),
    (b"X-Request-ID", b"req_of_the_upstream"),
    (b"X-Latin", b"\xa0gr\xfc\xdfe \xff\x85"),
    (b"X-Empty", b""),
    (b"Retry-After", b"1"),
    (b"X-Tab", b"a\tb  c"),
    (b"Vary", b"Accept"),
    (b"X-Long", b"4 KB, " * 682 + b"long"),
    (b"Vary", b"Origin"),
    (b"!#$%&'*+-.^_`|~09aZ", b':"(){}[]<>@,;\\/?='),
    (b"Access-Control-Expose-Headers", b"X-Request-ID"),
    (b"Location", b"//elsewhere.example/v1/x?y"),
)
STATUSES = (200, 201, 204, 206, 304, 400, 404, 429, 500, 503, 529)
BODILESS = (204, 304)

ODD_JSON = (
    b'\xef\xbb\xbf { "model" :\t"m\\u00e9\\ud83d\\ude00\xe2\x82\xac\\/", "n": 123456789012345678901234567890,\r\n'
    b' "x": 1.0E+2, "y": -0.0, "x": [ ], "stream":true,"z": "\\u0000\\ud800" }\n\n'
)
EVENTS = (
    b': hello\r\n\r\nevent: response.created\ndata: {"n":1}\n\nid:\ndata\r\rdata:  a\ndata:\n\n'
    b"data: \xff\n\ndata: [DONE]\n\n"
)
FORM = b"\r\n".join(
    (
        b"a preamble",
        b"--=_b",
        b'Content-Disposition: form-data; name="model"',
        b"",
        b"whisper-1",
        b"--=_b",
        b"content-disposition:form-data; name=file; filename*=UTF-8''%e2%82%ac.wav; filename=\"\xe2\x82\xac.wav\"",
        b"Content-Type: audio/wav",
        b"",
        b"RIFF" + EVERY_BYTE * 300 + b"\r\n--=_\r\n--=_bb\r\n --=_b--\r\n\r\n--\r\n",
        b"--=_b--",
        b"an epilogue",
    )
)
OPAQUE = EVERY_BYTE * 400  # of any other content type; longer than one read of a socket
CONTENT: dict[str | None, bytes] = {
    "application/json": ODD_JSON,
    "application/merge-patch+json": ODD_JSON,
    "multipart/form-data": FORM,
    "text/event-stream": EVENTS,
    None: b"",
}
HOST, CLOSE = (b"Host", b"proxy.example"), (b"Connection", b"close")
FRAMING = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One upstream for all the operations, and a transparent proxy for each way of reaching it."""

    upstream: Upstream
    fast: Running
    httpx: Running
    pure: Running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder, started = tmp_path_factory.mktemp("nowhere"), {}
    async with Upstream().listening() as upstream, AsyncExitStack() as ways:
        for way in WAYS:
            with going(way) as setting:
                settings = load({"OXY_TARGET": upstream.url, "OXY_TRANSPORT": setting}, folder)
                started[way] = await ways.enter_async_context(running(settings))
        yield Stage(upstream=upstream, **started)


def target(template: str, number: int) -> bytes:
    """The path with awkward identifiers, and an awkward query behind it."""
    identifiers = turned(IDENTIFIERS, number)
    path = re.sub(rb"\{\w+\}", lambda _: identifiers.pop(0), b"/v1" + template.encode())
    query = QUERIES[number % len(QUERIES)]
    return path + (query.replace(b"?", b"&", 1) if b"?" in path else query)


def turned(row: Sequence[T], number: int) -> list[T]:
    """The row as a ring, begun at another place for each operation."""
    turn = number % len(row)
    return [*row[turn:], *row[:turn]]


def typed(content_type: str | None, fields: Pairs) -> Pairs:
    if content_type is None:
        return fields
    boundary = b'; Boundary="=_b"' if content_type.startswith("multipart") else b""
    return [*fields, (b"Content-Type", content_type.encode() + boundary)]


def encoded(content: bytes, number: int) -> tuple[Pairs, bytes]:
    """Content in an encoding, in none, or said to be in one that it is not: it is nobody's business here."""
    return (
        ([(b"Content-Encoding", b"gzip")], gzip.compress(content, mtime=0)),
        ([], content),
        ([(b"Content-Encoding", b"gzip, br")], content),
    )[number % 3]


def framed(body: bytes, *, in_chunks: bool) -> Pairs:
    return [(b"Transfer-Encoding", b"chunked")] if in_chunks else [(b"Content-Length", b"%d" % len(body))]


def said(start: bytes, fields: Pairs, framing: Pairs, body: bytes) -> bytes:
    """A message as bytes; its framing stands amid the other fields."""
    middle = len(fields) // 2
    lines = [b"%s: %s" % pair for pair in (*fields[:middle], *framing, *fields[middle:])]
    pieces = [piece for piece in (body[:1], body[1:4000], body[4000:]) if piece]
    in_chunks = (b"Transfer-Encoding", b"chunked") in framing
    return b"\r\n".join((start, *lines, b"", chunked(*pieces, b"") if in_chunks else body))


def lowered(fields: Pairs) -> Pairs:
    return [(name.lower(), value) for name, value in fields]


def less(fields: Pairs, *names: bytes) -> Pairs:
    return [(name, value) for name, value in fields if name not in names]


def only(fields: Pairs, *names: bytes) -> Pairs:
    return [(name, value) for name, value in fields if name in names]


def test_the_description_of_the_api_has_288_operations() -> None:
    assert len({(method, template) for method, template, _, _ in OPERATIONS}) == len(OPERATIONS) == 288


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("number", "operation"),
    list(enumerate(OPERATIONS + TOMORROW)),
    ids=[f"{method} {template}" for method, template, _, _ in OPERATIONS + TOMORROW],
)
async def test_an_operation_crosses_byte_for_byte_and_back(stage: Stage, number: int, operation: Operation) -> None:
    method, template, asked, answered = operation
    start = b"%s %s HTTP/1.1" % (method.encode(), target(template, number))
    fields = typed(asked, turned(FIELDS, number))
    body = CONTENT.get(asked, OPAQUE)
    framing = framed(body, in_chunks=number % 2 == 0) if asked or method == "POST" else []

    status = STATUSES[number % len(STATUSES)]
    encoding, content = encoded(CONTENT.get(answered, OPAQUE), number)
    back_fields = typed(answered, turned([*ANSWERED, *encoding], number))
    back_framing = framed(content, in_chunks=number // 2 % 2 == 0)
    back_body = content
    if status in BODILESS:  # a 304 states the length of what it does not send
        back_framing, back_body = framed(content, in_chunks=False) if status == 304 else [], b""

    stage.upstream.says(said(b"HTTP/1.1 %d As The Upstream Says" % status, back_fields, back_framing, back_body))
    proxy = {0: stage.httpx, 1: stage.pure}.get(number % 5, stage.fast)
    client = await proxy.connect()
    await client.say(said(start, [HOST, *fields, CLOSE], framing, body))
    back = await client.hear()

    heard = stage.upstream.heard.pop()
    assert heard.start == start
    assert heard.all(b"host") == [stage.upstream.url.removeprefix("http://").encode()]
    assert less(heard.headers, b"host", *FRAMING) == lowered(fields)
    assert only(heard.headers, *FRAMING) == lowered(framing)
    assert heard.body == body
    assert not stage.upstream.heard

    assert back.status == status
    assert less(back.headers, b"x-proxy-request-id", b"connection", *FRAMING) == lowered(back_fields)
    assert only(back.headers, *FRAMING) == lowered(back_framing)
    assert len(back.all(b"x-proxy-request-id")) == 1
    assert back.body == back_body
    assert await client.rest() == b""
    await client.close()
