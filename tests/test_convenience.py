"""The table of the convenience routes: what is theirs, what is not, and the examples that older systems' users have."""

import json
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.conftest import CLIENT_KEY, SWAP, Running, Start
from tests.peers import Upstream, answer, request

SHOWN = (b"X-API-Key", CLIENT_KEY.encode())
BROWSER = (b"Origin", b"https://app.example.com")
EXAMPLES = [
    tuple(example[2:].split("\n", 1))
    for example in (Path(__file__).parent / "examples.sh").read_text(encoding="utf-8").strip().split("\n\n")[1:]
]

one_way = pytest.mark.parametrize("way", ["fast"])  # what is settled before a call takes its way


# ---- what is taken


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", b"/openai", b"POST"),
        ("PUT", b"/chatgpt?a", b"POST"),
        ("OPTIONS", b"/embeddings", b"POST"),
        ("GET", b"/openai/audio/transcriptions", b"POST"),
        ("DELETE", b"/openai2", b"POST"),
        ("GET", b"/openai2/compact", b"POST"),
        ("GET", b"/openai2/input_tokens", b"POST"),
        ("POST", b"/openai2/resp_1", b"GET, DELETE"),
        ("POST", b"/openai2/resp_1/input_items", b"GET"),
        ("GET", b"/openai2/resp_1/cancel", b"POST"),
    ],
)
@one_way
async def test_another_method_is_told_which_there_are(
    proxy: Running, upstream: Upstream, method: str, path: bytes, allow: bytes
) -> None:
    client = await proxy.connect()
    await client.say(request(method, path, [SHOWN, (b"X-Request-Id", b"mine")]))
    back = await client.hear()
    error = json.loads(back.body)["error"]
    assert (back.status, back.get(b"allow")) == (405, allow)
    assert (error["type"], error["code"]) == ("invalid_request_error", "OPENAI_PROXY_METHOD_NOT_ALLOWED")
    assert (error["requestId"].encode(), error["incomingRequestId"]) == (back.get(b"x-proxy-request-id"), "mine")
    assert upstream.accepted == 0


@one_way
async def test_an_id_that_leads_elsewhere_is_none(proxy: Running, upstream: Upstream) -> None:
    ids = (
        *(b"", b"/", b"a/b", b"a%2Fb", b"a%2fb", b"%2F", b"a%5Cb", b"a\\b", b"%255c", b"a%252Fb", b"a%25252Fb"),
        *(b".", b"..", b"%2e", b"%2E%2e", b".%2e", b"%252e%252e", b"%25%32%65", b"..;", b".;a=b", b"..%3B"),
    )
    client = await proxy.connect()
    for id in ids:
        for method, target in (
            ("GET", b"/openai2/%b" % id),
            ("DELETE", b"/openai2/%b" % id),
            ("POST", b"/openai2/%b/cancel" % id),
            ("GET", b"/openai2/%b/input_items" % id),
        ):
            await client.say(request(method, target, [SHOWN]))
            back = await client.hear()
            error = json.loads(back.body)["error"]
            assert (back.status, error["code"]) == (404, "OPENAI_PROXY_NOT_FOUND"), (method, target)
    assert upstream.accepted == 0


@one_way
async def test_an_id_goes_on_in_its_own_spelling(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    ids = (b"resp_1", b"resp%5f1", b"%C3%BC", b"a..b", b"...", b"100%25", b"a+b", b"a:b@c", b"a;b")
    for id in ids:
        await client.say(request("GET", b"/openai2/" + id, [SHOWN]))
        assert (await client.hear()).status == 200
    assert [heard.target for heard in upstream.heard] == [b"/v1/responses/" + id for id in ids]


@pytest.mark.parametrize(
    "target",
    [
        b"/openai/",
        b"//openai",
        b"/openai%3F",
        b"/OpenAI",
        b"/%6Fpenai",
        b"/openai/deployments/d/chat/completions?api-version=1",
        b"/openai/v1/responses",
        b"/openai/audio/transcriptions/",
        b"/openai/audio/speech",
        b"/openai2x",
        b"/%6fpenai2/resp_1",
        b"/chatgpt/",
        b"/embeddings/x",
        b"/v1/embeddings",
    ],
)
@one_way
async def test_only_the_exact_paths_are_taken(proxy: Running, upstream: Upstream, target: bytes) -> None:
    upstream.says(answer())
    client, body = await proxy.connect(), b'{"security_key": 1 '
    await client.say(request("POST", target, [SHOWN], body))
    assert (await client.hear()).status == 200
    assert (upstream.heard[0].target, upstream.heard[0].body) == (target, body)


# ---- browsers


@one_way
async def test_a_page_may_call_and_read_refusals_too(start: Start, upstream: Upstream) -> None:
    upstream.says(answer(headers=[(b"Access-Control-Allow-Origin", b"https://other.example")]))
    asked = [BROWSER, (b"Access-Control-Request-Method", b"POST"), (b"Access-Control-Request-Headers", b"content-type")]
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        for path in (b"/openai", b"/openai2", b"/openai2/resp_1", b"/chatgpt", b"/openai/audio/transcriptions"):
            await client.say(request("OPTIONS", path, asked))
            granted = await client.hear()
            assert (granted.status, granted.get(b"access-control-allow-headers")) == (204, b"content-type")
        for key, status in ((SHOWN, 200), (BROWSER, 403)):
            await client.say(request("POST", b"/openai2", [BROWSER, key], b"{}"))
            back = await client.hear()
            assert (back.status, back.all(b"access-control-allow-origin")) == (status, [b"*"])
    assert len(upstream.heard) == 1


# ---- the examples of the documents, and an SDK


NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would read all authorities for each request


def by_curl(arguments: list[str]) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(["curl", "-sS", *arguments], check=True, capture_output=True, text=True, timeout=10)
    return done.stdout


def by_httpx(arguments: list[str]) -> str:
    """Send what curl would send, as far as the examples go."""
    method, headers, fields, body, url = "GET", {}, {}, None, ""
    words = iter(arguments)
    for word in words:
        match word:
            case "-X":
                method = next(words)
            case "-H":
                name, value = next(words).split(": ")
                headers[name] = value
            case "-F":
                name, value = next(words).split("=")
                file = Path(value.removeprefix("@"))
                fields[name] = (file.name, file.read_bytes()) if value.startswith("@") else (None, value.encode())
            case "-d":
                body = next(words).replace("\n", "").encode()
            case _:
                url = word
    return httpx.request(method, url, headers=headers, content=body, files=fields or None, verify=NO_TLS).text


def stored_response(proxy: Running) -> str:
    """Have a response made in the background, which can be asked for, cancelled and deleted; return its id."""
    said = {"security_key": proxy.settings.client_keys[0], "model": "gpt-4o", "input": "Hello", "background": True}
    return str(httpx.post(f"{proxy.url}/openai2", json=said, verify=NO_TLS).json()["id"])


@pytest.mark.parametrize("send", [by_curl, by_httpx])
@pytest.mark.parametrize(("expected", "example"), EXAMPLES, ids=[example.split("\n")[0] for _, example in EXAMPLES])
def test_an_example_of_the_documents_works_as_it_stands(
    demo_proxy: Running, send: Callable[[list[str]], str], expected: str, example: str, tmp_path: Path
) -> None:
    (key,) = demo_proxy.settings.client_keys
    (tmp_path / "audio.mp3").write_bytes(b"ID3 of a test")
    command = re.sub(r"http://localhost:\d+", demo_proxy.url, example).replace("your-secret-key", key)
    if "resp_abc123" in command:
        command = re.sub(r"resp_abc123(\.\.\.)?", stored_response(demo_proxy), command)
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    if "your-secret-key" not in example:  # the third document's proxy was open to all
        arguments += ["-H", f"X-API-Key: {key}"]
    assert program == "curl"
    assert expected in send(arguments)


def test_the_sdk_parses_what_the_responses_route_streams(demo_proxy: Running) -> None:
    body = {"model": "gpt-4o", "input": "Hello", "stream": True}
    kind: Any = openai.Stream[ResponseStreamEvent]
    client: Any
    with openai.OpenAI(base_url=demo_proxy.url, api_key=demo_proxy.settings.client_keys[0], max_retries=0) as client:
        events = list(client.post("/openai2", cast_to=Response, body=body, stream=True, stream_cls=kind))
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == events[-1].response.output_text
        kept = client.get(f"/openai2/{events[-1].response.id}", cast_to=Response)
        assert kept.output_text == events[-1].response.output_text
        later = {"params": {"stream": True, "starting_after": 3}}
        again = client.get(f"/openai2/{kept.id}", cast_to=Response, options=later, stream=True, stream_cls=kind)
        assert [event.sequence_number for event in again] == [event.sequence_number for event in events[4:]]
