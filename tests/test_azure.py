"""Azure OpenAI: where each call goes, which model's deployment it goes to, and that its bytes stay as they are."""

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.azure import MOST_MARKS, MOST_OF_A_MODEL, InForm, InObject, Reader
from proxy.errors import BadRequest
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, SettingsOf, Start
from tests.peers import Heard, Pairs, Upstream, answer, chunked, request

V1 = {"PROXY_AZURE": "v1"}
DEPLOYMENTS = {
    "PROXY_AZURE": "deployments",
    "OPENAI_API_VERSION": "2024-10-21",
    "PROXY_AZURE_DEPLOYMENTS": "gpt-4o=prod-4o,text-embedding-3-small=emb/1 ä",
}
STYLES = {"off": {}, "v1": V1, "deployments": DEPLOYMENTS}
KEY = CLIENT_KEY.encode()
SHOWN = (b"X-API-Key", KEY)
FORM = (b"Content-Type", b"multipart/form-data; boundary=cut")
VERSION = b"api-version=2024-10-21"
GPT = b'{"model":"gpt-4o"}'

one_way = pytest.mark.parametrize("way", ["fast"])  # what is settled before a call takes its way


def part(name: str, value: bytes) -> bytes:
    return b'--cut\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


async def ask(proxy: Running, *pieces: bytes) -> Heard:
    client = await proxy.connect()
    await client.say(*pieces)
    return await client.hear()


# ---- where a call goes


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"/v1/chat/completions", b"/openai/v1/chat/completions"),
        (b"/v1/responses/resp_1?include=a&b", b"/openai/v1/responses/resp_1?include=a&b"),
        (b"/v1/responses?api-version=preview", b"/openai/v1/responses?api-version=preview"),
        (b"/v1/files/%2F//..;a?", b"/openai/v1/files/%2F//..;a?"),
        (b"/api/openai/v1/models", b"/openai/v1/models"),
        (b"/openai/v1/responses", b"/openai/v1/responses"),
        (b"/openai/deployments/d/embeddings?api-version=1", b"/openai/deployments/d/embeddings?api-version=1"),
        (b"/v1", b"/v1"),
        (b"/v10/models", b"/v10/models"),
    ],
)
@one_way
async def test_in_the_style_of_v1_a_path_goes_below_openai(
    start: Start, upstream: Upstream, said: bytes, heard: bytes
) -> None:
    upstream.says(answer())
    async with start(**V1) as proxy:
        for method, body in (("GET", None), ("POST", b"no JSON"), ("DELETE", None)):
            assert (await ask(proxy, request(method, said, body=body))).status == 200
    assert [one.target for one in upstream.heard] == [heard] * 3
    assert upstream.heard[1].body == b"no JSON"


@pytest.mark.parametrize(
    "operation",
    [
        *("chat/completions", "completions", "embeddings", "images/generations", "images/edits", "images/variations"),
        *("audio/transcriptions", "audio/translations", "audio/speech"),
    ],
)
@one_way
async def test_what_azure_has_below_deployments_goes_there(start: Start, upstream: Upstream, operation: str) -> None:
    upstream.says(answer())
    path = f"/openai/deployments/prod-4o/{operation}?".encode() + VERSION
    async with start(**DEPLOYMENTS) as proxy:
        await ask(proxy, request("POST", f"/v1/{operation}".encode(), body=GPT))
        await ask(proxy, request("POST", f"/v1/{operation}".encode(), [FORM], part("model", b"gpt-4o") + b"--cut--"))
    assert [one.target for one in upstream.heard] == [path, path]


@pytest.mark.parametrize(
    ("method", "said", "heard"),
    [
        ("GET", b"/v1/models", b"/openai/models?" + VERSION),
        ("GET", b"/v1/models?", b"/openai/models?" + VERSION),
        ("GET", b"/v1/files?a=1&&b=%20", b"/openai/files?a=1&&b=%20&" + VERSION),
        ("GET", b"/v1/chat/completions", b"/openai/chat/completions?" + VERSION),
        ("DELETE", b"/v1/files/file_1", b"/openai/files/file_1?" + VERSION),
        ("POST", b"/v1/responses", b"/openai/responses?" + VERSION),
        ("POST", b"/v1/chat/completions/c_1", b"/openai/chat/completions/c_1?" + VERSION),
        ("GET", b"/api/openai/v1/models", b"/openai/models?" + VERSION),
        # a client's own version wins, however it is spelled
        ("GET", b"/v1/models?api-version=1", b"/openai/models?api-version=1"),
        ("GET", b"/v1/models?a&api-version=1", b"/openai/models?a&api-version=1"),
        ("GET", b"/v1/models?API-Version=1", b"/openai/models?API-Version=1"),
        ("GET", b"/v1/models?api%2Dversion=1", b"/openai/models?api%2Dversion=1"),
        ("GET", b"/v1/models?%61pi-version=1", b"/openai/models?%61pi-version=1"),
        ("GET", b"/v1/models?api-version", b"/openai/models?api-version"),
        # and what only looks like one is none
        ("GET", b"/v1/models?my-api-version=1", b"/openai/models?my-api-version=1&" + VERSION),
        ("GET", b"/v1/models?a=api-version=1", b"/openai/models?a=api-version=1&" + VERSION),
        # Azure's own
        ("GET", b"/openai/models?api-version=1", b"/openai/models?api-version=1"),
        ("POST", b"/openai/deployments/d/chat/completions", b"/openai/deployments/d/chat/completions"),
        ("POST", b"/openai/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("GET", b"/v1", b"/v1"),
    ],
)
@one_way
async def test_all_else_is_the_resource_s_own_and_has_a_version(
    start: Start, upstream: Upstream, method: str, said: bytes, heard: bytes
) -> None:
    upstream.says(answer())
    async with start(**DEPLOYMENTS) as proxy:
        assert (await ask(proxy, request(method, said, body=b"no JSON" if method == "POST" else None))).status == 200
    assert upstream.heard[0].target == heard


@pytest.mark.parametrize(
    ("model", "deployment"),
    [
        ("gpt-4o", b"prod-4o"),
        ("text-embedding-3-small", b"emb%2F1%20%C3%A4"),
        ("gpt-3.5-turbo", b"gpt-35-turbo"),
        ("GPT-4o", b"GPT-4o"),
        ("ft:gpt-4o:a/b", b"ft%3Agpt-4o%3Aa%2Fb"),
        ("../../x", b"%2F%2Fx"),
        ("a?b#c d%20\u00e4\U0001f43b\n", b"a%3Fb%23c%20d%2520%C3%A4%F0%9F%90%BB%0A"),
    ],
)
@one_way
async def test_a_model_is_its_deployment_or_its_name_without_dots(
    start: Start, upstream: Upstream, model: str, deployment: bytes
) -> None:
    upstream.says(answer())
    bodies = [json.dumps({"model": model}).encode(), json.dumps({"model": model}, ensure_ascii=False).encode()]
    async with start(**DEPLOYMENTS) as proxy:
        for body in bodies:
            assert (await ask(proxy, request("POST", b"/v1/embeddings?a=1", body=body))).status == 200
    path = b"/openai/deployments/" + deployment + b"/embeddings?a=1&" + VERSION
    assert [(heard.target, heard.body) for heard in upstream.heard] == [(path, body) for body in bodies]


@one_way
async def test_a_version_goes_into_the_query_as_it_can(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(PROXY_AZURE="deployments", OPENAI_API_VERSION="a&b=c#d") as proxy:
        await ask(proxy, request())
    assert upstream.heard[0].target == b"/openai/models?api-version=a%26b%3Dc%23d"


@one_way
async def test_a_path_of_the_target_stands_before_azure_s(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    for style in (V1, DEPLOYMENTS):
        for path in ("/gate", "/gate/openai"):
            async with start(**style, OXY_TARGET=upstream.url + path) as proxy:
                await ask(proxy, request())
    before = [b"/gate/openai/v1/models", b"/gate/openai/models?" + VERSION]
    assert [heard.target for heard in upstream.heard] == [before[0]] * 2 + [before[1]] * 2


@one_way
async def test_the_list_of_endpoints_is_about_the_client_s_path(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(**DEPLOYMENTS, PROXY_ENDPOINTS="/v1/chat/*") as proxy:
        statuses = [
            (await ask(proxy, request("POST", target, body=GPT))).status
            for target in (b"/v1/chat/completions", b"/v1/embeddings", b"/openai/deployments/prod-4o/chat/completions")
        ]
    assert statuses == [200, 404, 404]
    assert len(upstream.heard) == 1


# ---- the bytes of a body


@pytest.mark.parametrize("size", [0, 100_000, 3_000_000])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_stays_as_it_is_wherever_its_model_stands(
    start: Start, upstream: Upstream, size: int, framing: str
) -> None:
    upstream.says(answer())
    filling = bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"") * (size // 93)
    body = (
        b'\t{ "input" : "' + filling + b'",\r\n"mod\\u0065l" : "gpt-4o" , "n":1.0e0, "model":"other"}' + filling + b"\n"
    )
    async with start(**DEPLOYMENTS) as proxy:
        if framing == "length":
            await ask(proxy, request("POST", b"/v1/embeddings", body=body))
        else:
            head = request("POST", b"/v1/embeddings", [(b"Transfer-Encoding", b"chunked")])
            pieces = (body[at : at + 70_001] for at in range(0, len(body), 70_001))
            await ask(proxy, head, chunked(*pieces, b""))
    (heard,) = upstream.heard
    assert heard.target == b"/openai/deployments/prod-4o/embeddings?" + VERSION
    assert heard.body == body
    length, coding = heard.all(b"content-length"), heard.all(b"transfer-encoding")
    assert (length, coding) == (([str(len(body)).encode()], []) if framing == "length" else ([], [b"chunked"]))


async def test_a_form_stays_as_it_is_wherever_its_model_stands(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    file, model = part("file", bytes(range(256)) * 8000), part("model", b"gpt-4o")
    forms = [b"preamble\r\n" + model + file + b"--cut--\r\nepilogue", file + model + b"--cut--\r\n"]
    async with start(**DEPLOYMENTS) as proxy:
        for form in forms:
            await ask(proxy, request("POST", b"/v1/audio/transcriptions", [FORM], form))
    path = b"/openai/deployments/prod-4o/audio/transcriptions?" + VERSION
    assert [(heard.target, heard.body) for heard in upstream.heard] == [(path, form) for form in forms]
    assert [heard.get(b"content-type") for heard in upstream.heard] == [FORM[1]] * 2


@pytest.mark.parametrize("framing", [(b"Content-Length", b"50000"), (b"Transfer-Encoding", b"chunked")])
async def test_once_the_model_is_known_the_body_streams(
    start: Start, upstream: Upstream, framing: tuple[bytes, bytes]
) -> None:
    in_chunks = framing[1] == b"chunked"
    begun, rest = b'{"model":"gpt-4o","input":"', b"x" * (50_000 - 27)
    async with start(**DEPLOYMENTS) as proxy:
        client = await proxy.connect()
        await client.say(request("POST", b"/v1/embeddings", [framing]), chunked(begun) if in_chunks else begun)
        there = await upstream.accept()
        assert (await there.head()).target == b"/openai/deployments/prod-4o/embeddings?" + VERSION
        if not in_chunks:  # which may wait for more, up to what goes out with the head
            assert await there.reader.readexactly(len(begun)) == begun
            await client.say(rest)
            assert await there.reader.readexactly(len(rest)) == rest
        else:
            assert await there.chunk() == begun
            await client.say(chunked(rest, b""))
            assert await there.chunk() == rest
            assert await there.chunk() == b""
        await there.say(answer())
        assert (await client.hear()).status == 200


@pytest.mark.parametrize(
    ("fields", "body", "complaint"),
    [
        ([], None, "model: it is missing"),
        ([], b"", "model: it is missing"),
        ([], b"{}", "model: it is missing"),
        ([], b"no JSON", "model: it is missing"),
        ([], b'{"a":{"model":"gpt-4o"},"b":["model","gpt-4o"],"c":"\\"model\\":\\"gpt-4o\\""}', "model: it is missing"),
        ([], b'["model", "gpt-4o"]', "model: it is missing"),
        ([], b'"model"', "model: it is missing"),
        *(
            ([], b'{"model":%b}' % odd, "model: it is missing")
            for odd in (b"null", b"1", b'["a"]', b'{"a":"b"}', b'""')
        ),
        ([], b'{"model":"%b"}' % (b"x" * (MOST_OF_A_MODEL + 1)), "model: it is missing"),
        ([], b'{"model":"\\ud800"}', "model: it is missing"),
        ([], b'{"model":"\xff"}', "model: it is missing"),
        ([], b'{"model":"\\x"}', "model: it is missing"),
        ([], '{"model":"gpt-4o"}'.encode("utf-16"), "model: it is missing"),
        ([], b'{"a":[' + b"{}," * (MOST_MARKS // 2) + b'0],"model":"gpt-4o"}', "model: it is missing"),
        ([], b'{"model":"gpt-4o', "model: it is missing"),
        ([], b'{"model":"..."}', "model: it names no deployment"),
        ([FORM], part("other", b"gpt-4o") + b"--cut--\r\n", "model: it is missing"),
        ([FORM], part("model", b"") + b"--cut--\r\n", "model: it is missing"),
        ([FORM], part("model", b"\xff") + b"--cut--\r\n", "model: the value is not UTF-8"),
        ([FORM], b"--cut\r\nbroken", "model: it is missing"),
        ([FORM], b"--cut\r\n: \r\n\r\n", "part 1 of the form"),
        ([(b"Content-Type", b"multipart/form-data")], b"--cut--\r\n", "Content-Type: it needs a boundary"),
        ([(b"Content-Encoding", b"gzip")], GPT, "Content-Encoding: "),
    ],
)
@one_way
async def test_without_a_model_that_can_be_read_nothing_goes_upstream(
    start: Start, upstream: Upstream, fields: Pairs, body: bytes | None, complaint: str
) -> None:
    async with start(**DEPLOYMENTS) as proxy:
        back = await ask(proxy, request("POST", b"/v1/chat/completions", fields, body))
        told = json.loads(back.body)["error"]
        assert (back.status, told["code"]) == (400, "OPENAI_PROXY_BAD_REQUEST")
        assert told["message"].startswith(complaint)
        assert (await ask(proxy, request("GET", b"/health"))).status == 200
    assert upstream.accepted == 0


@one_way
async def test_a_body_in_the_identity_coding_is_plain(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(**DEPLOYMENTS) as proxy:
        coded = request("POST", b"/v1/embeddings", [(b"Content-Encoding", b"Identity")], GPT)
        assert (await ask(proxy, coded)).status == 200


@one_way
async def test_whoever_may_not_call_is_not_listened_to(start: Start, upstream: Upstream) -> None:
    async with start(**DEPLOYMENTS, **SWAP) as proxy:
        assert (await ask(proxy, request("POST", b"/v1/embeddings", body=b"{}"))).status == 401
    assert upstream.accepted == 0


# ---- the convenience routes


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        (b"/openai", b'{"model":"gpt-4o","messages":[]}', b"/chat/completions"),
        (b"/chatgpt", b'{"model":"gpt-4o","prompt":"Hi"}', b"/chat/completions"),
        (b"/embeddings", b'{"input":"Hi","model":"gpt-4o"}', b"/embeddings"),
        (b"/openai2", b'{"model":"gpt-4o","input":"Hi"}', b"/responses"),
        (b"/openai2/input_tokens", b'{"model":"gpt-4o","input":"Hi"}', b"/responses/input_tokens"),
        (b"/openai/audio/transcriptions", None, b"/audio/transcriptions"),
    ],
)
@one_way
async def test_a_convenience_route_leads_to_azure_too(
    start: Start, upstream: Upstream, style: str, path: bytes, body: bytes | None, operation: bytes
) -> None:
    upstream.says(answer(body=b'{"choices":[{"message":{"content":"Hi"}}]}'))
    form = part("file", b"sound") + part("model", b"gpt-4o") + b"--cut--\r\n"
    said = request("POST", path, [SHOWN] if body else [SHOWN, FORM], body or form)
    async with start(**STYLES[style], **SWAP) as proxy:
        assert (await ask(proxy, said)).status == 200
    deployed = operation if operation.startswith(b"/responses") else b"/deployments/prod-4o" + operation
    leads = {"off": b"/v1" + operation, "v1": b"/openai/v1" + operation}
    (heard,) = upstream.heard
    assert heard.target == leads.get(style, b"/openai" + deployed + b"?" + VERSION)
    assert b"gpt-4o" in heard.body
    assert int(heard.get(b"content-length") or len(heard.body)) == len(heard.body)


@pytest.mark.parametrize("style", STYLES)
@one_way
async def test_a_request_s_own_key_is_shown_as_azure_wants_it(start: Start, upstream: Upstream, style: str) -> None:
    upstream.says(answer())
    said = {"security_key": CLIENT_KEY, "openai_api_key": "own", "model": "gpt-4o", "input": "Hi"}
    async with start(**STYLES[style], **SWAP, PROXY_UPSTREAM_AUTH="api-key") as proxy:
        await ask(proxy, request("POST", b"/embeddings", body=json.dumps(said).encode()))
    (heard,) = upstream.heard
    assert (heard.all(b"api-key"), heard.all(b"authorization")) == ([b"own"], [])


# ---- the field of the key


AZURE = [
    f"{sub}.{service}.azure.{cloud}"
    for sub, service, cloud in (
        *(("r", service, "com") for service in ("openai", "cognitiveservices", "services.ai")),
        *(("r", service, "us") for service in ("openai", "cognitiveservices", "services.ai")),
        *(("r", service, "cn") for service in ("openai", "cognitiveservices", "services.ai")),
        ("a.b", "openai", "com"),
        ("R", "OpenAI", "COM"),
        ("r", "openai", "com."),
    )
]
OTHERS = [
    *("api.openai.com", "localhost", "openai.azure.com", "evilopenai.azure.com", "r.openai.azure.com.evil.example"),
    *("openai.azure.com.evil.example", "r.openai.azure.com-evil.example", "r.openai.azure.de", "r.azure.com"),
    *("r-openai.azure.com", "r.openai.azurexcom", "evilservices.ai.azure.com", "r.openai.azure.com.."),
]


@pytest.mark.parametrize(
    ("host", "auth", "field"),
    [
        *((host, "auto", b"api-key") for host in AZURE),
        *((host, "auto", b"authorization") for host in OTHERS if not host.endswith("..")),
        ("r.openai.azure.com", "bearer", b"authorization"),
        ("r.openai.azure.com", "api-key", b"api-key"),
        ("r.openai.azure.com:8443", "AUTO", b"api-key"),
        ("localhost:9000", "Api-Key", b"api-key"),
        ("localhost:9000", "bearer", b"authorization"),
        ("r.openai.azure.com", "entra", b"api-key"),  # that of a request which brings one
        ("localhost:9000", "entra", b"authorization"),
    ],
)
def test_the_host_and_the_setting_choose_the_field(settings_of: SettingsOf, host: str, auth: str, field: bytes) -> None:
    settings = settings_of(OXY_TARGET=f"https://{host}/openai", PROXY_UPSTREAM_AUTH=auth, PROXY_OPEN="1")
    assert settings.key_field == field


@pytest.mark.parametrize("shown", [(b"api-key", KEY), (b"Authorization", b"Bearer " + KEY), SHOWN])
@pytest.mark.parametrize(
    ("auth", "signed"),
    [
        ("auto", [(b"authorization", b"Bearer " + UPSTREAM_KEY.encode())]),
        ("bearer", [(b"authorization", b"Bearer " + UPSTREAM_KEY.encode())]),
        ("api-key", [(b"api-key", UPSTREAM_KEY.encode())]),
    ],
)
async def test_the_client_s_key_ends_here_and_the_upstream_s_goes_on(
    start: Start, upstream: Upstream, shown: tuple[bytes, bytes], auth: str, signed: Pairs
) -> None:
    upstream.says(answer())
    async with start(**SWAP, PROXY_UPSTREAM_AUTH=auth) as proxy:
        assert (await ask(proxy, request(target=b"/openai/deployments/d/x", headers=[shown]))).status == 200
    assert upstream.heard[0].headers[1:] == signed


# ---- the model in a body


def found(reader: Reader, body: bytes, cuts: list[int]) -> str | None:
    at = 0
    for cut in [*sorted(cuts), len(body)]:
        if reader.model is None and body[at:cut]:
            reader.feed(body[at:cut])
        at = max(at, cut)
    return reader.model


DECOYS = st.sampled_from(["model", '"model":"x"', '{"model":"x"}', "\\", '\\"', "}", "]", ",", ":", "mod\x00el", "ü"])
TEXTS = st.text(max_size=8) | DECOYS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
NAMES = TEXTS | st.just("model")


def written(draw: st.DrawFn, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    if isinstance(value, str) and draw(st.booleans()):
        text = '"' + "".join(f"\\u{ord(one):04x}" if ord(one) < 0x10000 else one for one in value) + '"'
    return text


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """A JSON object, and the first of its models: none where there is none, empty where it is no text."""
    members = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    members.insert(draw(st.integers(0, len(members))), draw(st.tuples(NAMES, TEXTS)))
    blank = draw(st.sampled_from(["", " ", "\r\n\t"]))
    pairs = (f"{blank}{written(draw, name)}{blank}:{blank}{written(draw, value)}{blank}" for name, value in members)
    model = next((value if isinstance(value, str) else "" for name, value in members if name == "model"), None)
    return ("{" + ",".join(pairs) + "}").encode(), model


CUTS = st.lists(st.integers(0, 200), max_size=8)


@given(objects(), CUTS)
@example((b'{"model":"a\\"b"}', 'a"b'), [12])
@example((b'{"a":[{"model":"x"}],"model":"y"}', "y"), [9, 10, 11])
def test_the_model_is_the_first_at_the_top_however_the_body_is_cut(
    body: tuple[bytes, str | None], cuts: list[int]
) -> None:
    text, model = body
    assert isinstance(json.loads(text), dict)
    assert found(InObject(), text, cuts) == model


JUNK = st.lists(st.sampled_from([*b'{}[]:,"\\ a\n\x00\xff', *b"mod"]).map(lambda one: bytes([one])), max_size=40)


@given(st.binary() | (JUNK | st.lists(st.sampled_from([b'"model"', b":", b"{", b'"x"']))).map(b"".join), CUTS)
def test_what_is_no_json_is_read_alike_however_it_is_cut(body: bytes, cuts: list[int]) -> None:
    whole = found(InObject(), body, [])
    assert found(InObject(), body, cuts) == whole
    assert found(InObject(), body, [*range(len(body))]) == whole


@pytest.mark.untraced
@pytest.mark.parametrize("begun", [b"", b"{", b'{"a":[', b'{"a":"', b'{"a":["', b'{"model":"', b'{"'])
@pytest.mark.parametrize("hostile", [b"\\", b'"', b"[", b"{}", b":", b'"",', b"x", b"\\n"])
def test_little_is_held_of_a_body_however_long(begun: bytes, hostile: bytes) -> None:
    reader = InObject()
    reader.feed(begun)
    for _ in range(200):
        reader.feed(hostile * 100)
    assert sum(map(sys.getsizeof, vars(reader).values())) < 4 * MOST_OF_A_MODEL


@pytest.mark.parametrize("hostile", [b"[", b'""', b"}", b",", b":"])
def test_a_reader_gives_up_behind_too_many_marks(monkeypatch: pytest.MonkeyPatch, hostile: bytes) -> None:
    monkeypatch.setattr("proxy.azure.MOST_MARKS", 1000)
    reader = InObject()
    reader.feed(b"{" + hostile * 999)
    assert reader.model is None
    reader.feed(hostile)
    assert reader.model == ""


def test_ten_megabytes_of_one_string_are_looked_through_once() -> None:
    for begun in (b'{"a":"', b'{"a":["'):
        reader = InObject()
        reader.feed(begun + b"\\" * 10_000_000)  # all of it in one piece: by the square it would take for ever
        assert reader.model is None


@given(st.text(max_size=20), CUTS)
def test_the_model_of_a_form_is_its_field(model: str, cuts: list[int]) -> None:
    form = part("file", b'{"model":"x"}') + part("model", model.encode()) + part("model", b"other") + b"--cut--\r\n"
    reader = InForm(FORM[1])
    assert found(reader, form, cuts) == model


def test_a_form_of_nothing_but_parts_is_refused() -> None:
    with pytest.raises(BadRequest):
        InForm(FORM[1]).feed(part("a", b"") * 1100)
