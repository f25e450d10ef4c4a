"""The form route on real sockets: what the upstream hears of a form, and when; what waits, and that it is let go."""

import itertools
import json
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import IO, Any

import openai
import pytest

from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, Start
from tests.peers import Heard, Pairs, Peer, Upstream, answer, chunked, request
from tests.test_connection import until

PATH = b"/openai/audio/transcriptions"
KEY = CLIENT_KEY.encode()
SHOWN = (b"X-API-Key", KEY)
FORM = (b"Content-Type", b"multipart/form-data; boundary=cut")
END = b"--cut--\r\n"
AUDIO = bytes(range(256)) * 8 + b"\r\n--cu\r\n-cut\n--cut\r\r\n"

one_way = pytest.mark.parametrize("way", ["fast"])  # what is settled before a call takes its way


def part(name: str, value: bytes) -> bytes:
    return b'--cut\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


def file_part(content: bytes) -> bytes:
    head = (
        b'content-disposition: form-data; filename="\xc3\xa4 b"; name="file"\r\nContent-Type: audio/x-odd\r\nX-Odd: 1'
    )
    return b"--cut\r\n%b\r\n\r\n%b\r\n" % (head, content)


FILE, SECURED = file_part(AUDIO), part("security_key", KEY)
DEFAULTS = {"model": b"whisper-1", "response_format": b"json", "temperature": b"0"}
ADDED = b"".join(itertools.starmap(part, DEFAULTS.items()))


def said(*parts: bytes, fields: Pairs | None = None) -> bytes:
    return request("POST", PATH, [FORM, *(fields or [])], b"".join(parts))


async def ask(proxy: Running, *pieces: bytes) -> Heard:
    client = await proxy.connect()
    await client.say(*pieces)
    return await client.hear()


def error(heard: Heard) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(heard.body)["error"]
    return found


@pytest.fixture
def spools(monkeypatch: pytest.MonkeyPatch) -> list[IO[bytes]]:
    """Every file on disk in which a form waited."""
    made: list[IO[bytes]] = []

    def make() -> IO[bytes]:
        made.append(TemporaryFile())  # noqa: SIM115  whoever asks for it closes it
        return made[-1]

    monkeypatch.setattr("proxy.spool.TemporaryFile", make)
    monkeypatch.setattr("proxy.spool.IN_MEMORY", 1000)
    return made


# ---- what goes up


async def test_the_upstream_hears_the_form_less_what_is_ours_in_any_order(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer(body=b'{"text": "x"}'))
    own = [SECURED, part("timeout", b"5000"), part("project", b"proj-1")]
    client = await proxy.connect()
    for parts in itertools.permutations([*own, FILE, part("language", b"en")]):
        await client.say(said(*parts, END))
        back = await client.hear()
        assert (back.status, back.body) == (200, b'{"text": "x"}')
        heard = upstream.heard.pop()
        assert heard.body == b"".join([*(one for one in parts if one not in own), ADDED, END])
        assert heard.start == b"POST /v1/audio/transcriptions HTTP/1.1"
        assert heard.headers[1:] == [
            (b"openai-project", b"proj-1"),
            (b"authorization", b"Bearer " + UPSTREAM_KEY.encode()),
            (b"content-type", FORM[1]),
            (b"content-length", str(len(heard.body)).encode()),
        ]


CARRIED: list[tuple[bytes, Pairs, list[bytes]]] = [
    (b"", [SHOWN], []),
    (b"", [(b"Authorization", b"Bearer " + KEY)], []),
    (b"", [(b"api-key", KEY)], [part("security_key", b"wrong")]),
    (b"?security_key=" + KEY, [], []),
    (b"", [(b"X-API-Key", b"wrong")], [SECURED]),
    (b"", [SHOWN], [SECURED]),
]


@pytest.mark.parametrize(("query", "fields", "parts"), CARRIED)
async def test_the_key_opens_wherever_it_is_shown_and_goes_nowhere(
    proxy: Running, upstream: Upstream, query: bytes, fields: Pairs, parts: list[bytes]
) -> None:
    upstream.says(answer())
    for before, after in ((parts, []), ([], parts)):
        body = b"".join([*before, FILE, *after, END])
        assert (await ask(proxy, request("POST", PATH + query, [FORM, *fields], body))).status == 200
    for heard in upstream.heard:
        assert (heard.target, heard.body) == (b"/v1/audio/transcriptions", FILE + ADDED + END)
        assert heard.all(b"authorization") == [b"Bearer " + UPSTREAM_KEY.encode()]
        assert not [pair for pair in heard.headers if KEY in pair[1] or b"wrong" in pair[1]]


async def test_what_the_form_says_takes_the_place_of_a_default_and_the_rest_passes(
    proxy: Running, upstream: Upstream
) -> None:
    upstream.says(answer())
    granular = part("timestamp_granularities[]", b"word") + part("timestamp_granularities[]", b"segment")
    chosen = part("model", b"gpt-4o-transcribe") + part("response_format", b"srt") + granular
    await ask(proxy, said(b"said before\r\n", FILE, chosen, SECURED, END))
    assert upstream.heard[0].body == FILE + chosen + part("temperature", b"0") + END


async def test_a_form_in_chunks_goes_on(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    whole = b"".join([FILE, SECURED, END])
    head = b"POST %b HTTP/1.1\r\nHost: h\r\n%b: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % (PATH, *FORM)
    assert (await ask(proxy, head, chunked(*(whole[at : at + 7] for at in range(0, len(whole), 7)), b""))).status == 200
    assert upstream.heard[0].body == FILE + ADDED + END


@pytest.mark.parametrize(
    ("settings", "fields", "own", "credentials"),
    [
        ({}, [(b"authorization", b"Bearer sk-theirs")], b"", [b"Bearer sk-theirs"]),
        ({}, [], part("openai_api_key", b"sk-form"), [b"Bearer sk-form"]),
        ({}, [], b"", []),
        (SWAP, [SHOWN], part("openai_api_key", b"sk-form"), [b"Bearer sk-form"]),
        ({"SECURITY_KEY": CLIENT_KEY}, [(b"authorization", b"Bearer sk-theirs")], SECURED, [b"Bearer sk-theirs"]),
        ({"SECURITY_KEY": CLIENT_KEY}, [SHOWN], part("openai_api_key", b"sk-form"), [b"Bearer sk-form"]),
        ({"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_OPEN": "1"}, [], b"", [b"Bearer " + UPSTREAM_KEY.encode()]),
    ],
)
@one_way
async def test_which_credentials_go_on(
    start: Start, upstream: Upstream, settings: dict[str, str], fields: Pairs, own: bytes, credentials: list[bytes]
) -> None:
    upstream.says(answer())
    async with start(**settings) as proxy:
        assert (await ask(proxy, said(own, FILE, END, fields=fields))).status == 200
    assert upstream.heard[0].all(b"authorization") == credentials
    assert upstream.heard[0].body == FILE + ADDED + END


# ---- when it goes up


async def test_with_the_key_in_a_header_the_file_goes_on_as_it_comes(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    head, tail = said(part("language", b"en"), FILE, SECURED, END, fields=[SHOWN]).split(AUDIO)
    await client.say(head, b"the first of it")
    there = await upstream.accept()
    heard = await there.head()
    assert heard.get(b"transfer-encoding") == b"chunked"
    await there.until(b"the first of it")
    await client.say(AUDIO[15:], tail)
    assert (await there.until(b"\r\n0\r\n\r\n")).endswith(b"%b\r\n0\r\n\r\n" % END)
    await there.say(answer())
    assert (await client.hear()).status == 200


@pytest.mark.parametrize("content", [AUDIO, AUDIO * 10], ids=["in memory", "on disk"])
async def test_with_the_key_in_the_form_nothing_goes_on_before_all_is_there(
    proxy: Running, upstream: Upstream, spools: list[IO[bytes]], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.spool.IN_MEMORY", 4000)
    upstream.says(answer())
    client = await proxy.connect()
    whole = said(file_part(content), SECURED, END)
    await client.say(whole[:-1])
    assert (await ask(proxy, request("GET", b"/health"))).status == 200
    assert upstream.accepted == 0
    await client.say(whole[-1:])
    assert (await client.hear()).status == 200
    assert upstream.heard[0].body == file_part(content) + ADDED + END
    assert [file.closed for file in spools] == [True] * (content != AUDIO)


@one_way  # httpx says all before it listens
async def test_an_answer_before_the_end_of_the_upload_passes(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    head, tail = said(FILE, END, fields=[SHOWN]).split(AUDIO)
    await client.say(head, AUDIO[:100])
    there = await upstream.accept()
    await there.until(AUDIO[:90])
    await there.say(answer(401, body=b"no"))
    assert (await client.hear()).body == b"no"
    await client.say(AUDIO[100:], tail, request("GET", b"/health"))
    assert (await client.hear()).status == 200


async def test_a_client_that_hangs_up_while_its_form_goes_on_ends_the_call(
    proxy: Running, upstream: Upstream, spools: list[IO[bytes]]
) -> None:
    client = await proxy.connect()
    await client.say(said(part("prompt", b"x" * 5000), FILE, END, fields=[SHOWN])[:-200])
    there = await upstream.accept()
    await there.head()
    await client.close()
    assert b"\r\n0\r\n" not in await there.rest()
    await until(lambda: [file.closed for file in spools] == [True])


async def test_a_client_that_hangs_up_while_its_form_waits_leaves_nothing(
    start: Start, upstream: Upstream, spools: list[IO[bytes]]
) -> None:
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        await client.say(said(file_part(b"x" * 100_000), SECURED, END)[:-1])
        assert (await ask(proxy, request("GET", b"/health"))).status == 200
        await client.close()
    assert upstream.accepted == 0  # and no exchange outlived its client
    await until(lambda: all(file.closed for file in spools))


@pytest.mark.parametrize("fields", [[], [SHOWN]], ids=["spooled", "streamed"])
async def test_an_upstream_that_breaks_off_is_a_502_and_the_spool_is_let_go(
    proxy: Running, upstream: Upstream, spools: list[IO[bytes]], fields: Pairs
) -> None:
    client = await proxy.connect()
    await client.say(said(part("prompt", b"x" * 5000), FILE, SECURED, END, fields=fields))
    there = await upstream.accept()
    await there.until(END)
    await there.close()
    assert (await client.hear()).status == 502
    assert [file.closed for file in spools] == [True]


@pytest.mark.parametrize("own", [part("timeout", b"100"), b""], ids=["in the form", "in the query"])
async def test_the_upstream_has_the_time_that_the_caller_gives_it(
    proxy: Running, upstream: Upstream, own: bytes
) -> None:
    client = await proxy.connect()
    path = PATH if own else PATH + b"?timeout=100"
    await client.say(request("POST", path, [FORM, SHOWN], own + FILE + END))
    there = await upstream.accept()
    await there.until(END)
    assert (await client.hear()).status == 504


# ---- what is refused

BAD: list[tuple[bytes, bytes, str]] = [
    (FORM[1], b"", "The body is empty"),
    (FORM[1], END, "file: the form has no such field"),
    (FORM[1], part("model", b"x") + END, "file: the form has no such field"),
    (FORM[1], FILE, "breaks off"),
    (FORM[1], FILE + b"--cut-", "breaks off"),
    (FORM[1], FILE[:-500], "breaks off"),
    (FORM[1], b"--other\r\n\r\nx\r\n--other--\r\n", "breaks off"),
    (FORM[1], FILE + b"--cut\r\nContent-Type: x\r\n\r\nx\r\n" + END, "one Content-Disposition"),
    (FORM[1], FILE + b"--cut\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, "has no name"),
    (FORM[1], FILE + b"--cut\r\nbad line\r\n\r\nx\r\n" + END, "cannot be read"),
    (FORM[1], SECURED + FILE + SECURED + END, "security_key: given twice"),
    (FORM[1], FILE + part("openai_api_key", b"a b") + END, "openai_api_key"),
    (FORM[1], FILE + part("project", b"x" * 9000) + END, "project: the value is longer"),
    (FORM[1], FILE + part("project", b"\xff") + END, "project: the value is not UTF-8"),
    (b"multipart/form-data", FILE + END, "boundary"),
    (b"multipart/form-data; boundary=", FILE + END, "boundary"),
    (b"multipart/mixed; boundary=cut", FILE + END, "multipart/form-data"),
    (b"application/json", b"{}", "multipart/form-data"),
]


@pytest.mark.parametrize(("kind", "body", "why"), BAD)
@one_way
async def test_bad_input_is_told_to_those_who_may_call_and_goes_nowhere(
    proxy: Running, upstream: Upstream, kind: bytes, body: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    content_type = (b"Content-Type", kind)
    named = body if SECURED in body else SECURED + body
    for fields, form in (([], named), ([SHOWN], body)):
        if not fields and (kind != FORM[1] or not body or b"other" in body):
            continue  # a key in a form that cannot be read is none
        client = await proxy.connect()
        await client.say(request("POST", PATH, [content_type, *fields], form))
        back = await client.hear()
        assert (back.status, error(back)["code"]) == (400, "OPENAI_PROXY_BAD_REQUEST")
        assert why in error(back)["message"]
    stranger = await ask(proxy, request("POST", PATH, [content_type], body.replace(KEY, b"wrong")))
    assert (stranger.status, error(stranger)["code"]) == (403, "OPENAI_PROXY_FORBIDDEN")
    while upstream.accepted:  # with the key in a header the call may have begun; then it has no end
        upstream.accepted -= 1
        assert not (await (await upstream.accept()).rest()).endswith(b"0\r\n\r\n")
    assert not caplog.records


@one_way
async def test_a_compressed_form_is_not_taken(proxy: Running, upstream: Upstream) -> None:
    back = await ask(proxy, said(FILE, END, fields=[SHOWN, (b"Content-Encoding", b"gzip")]))
    assert (back.status, error(back)["message"]) == (400, "Content-Encoding: a form is taken without one")
    assert upstream.accepted == 0


@pytest.mark.parametrize("before", [b"", part("project", b"q")], ids=["alone", "again"])
async def test_credentials_behind_the_file_come_too_late_where_the_file_has_gone_on(
    proxy: Running, upstream: Upstream, before: bytes
) -> None:
    client = await proxy.connect()
    head, tail = said(before, FILE, part("project", b"p"), END, fields=[SHOWN]).split(AUDIO)
    await client.say(head, AUDIO[:100])
    there = await upstream.accept()
    await there.until(AUDIO[:90])
    await client.say(AUDIO[100:], tail)
    back = await client.hear()
    assert (back.status, "project: it has to come before the file" in error(back)["message"]) == (400, True)
    assert not (await there.rest()).endswith(b"0\r\n\r\n")


async def test_a_form_that_breaks_off_reaches_the_upstream_torn(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    head, _ = said(FILE, fields=[SHOWN]).split(AUDIO)
    await client.say(head, AUDIO[:100])
    there = await upstream.accept()
    await there.until(AUDIO[:90])
    await client.say(AUDIO[100:], b"\r\n")
    back = await client.hear()
    assert (back.status, "breaks off" in error(back)["message"]) == (400, True)
    assert not (await there.rest()).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("fields", [[], [SHOWN]], ids=["spooled", "streamed"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_form_over_the_limit_is_413(
    start: Start,
    upstream: Upstream,
    spools: list[IO[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    fields: Pairs,
    framing: str,
) -> None:
    monkeypatch.setattr("proxy.forms.MOST_OF_A_FORM", 2**20)
    upstream.says(answer())
    form = [file_part(b"x" * 2**20), SECURED, END]
    lines = b"".join(b"%b: %b\r\n" % pair for pair in [FORM, *fields])
    head = b"POST %b HTTP/1.1\r\nHost: h\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (PATH, lines)
    async with start(**SWAP) as proxy:
        back = await ask(proxy, said(*form, fields=fields) if framing == "length" else head + chunked(*form, b""))
        assert (back.status, error(back)["code"]) == (413, "OPENAI_PROXY_BODY_TOO_LARGE")
        fitting = [file_part(b"x" * 1000_000), SECURED, END]
        assert (await ask(proxy, said(*fitting, fields=fields))).status == 200
    assert len(upstream.heard) == 1
    assert all(file.closed for file in spools)
    assert framing == "chunked" or upstream.accepted == 1  # its length alone said enough


@one_way
async def test_a_form_over_the_limit_is_refused_by_its_length_alone(proxy: Running, upstream: Upstream) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: h\r\n%b: %b\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert (await ask(proxy, head % (PATH, *FORM, 512 * 2**20 + 1))).status == 413


# ---- what comes back


@pytest.mark.parametrize("kind", [b"text/plain; charset=utf-8", b"application/x-subrip", b"text/vtt"])
async def test_an_answer_that_is_no_json_passes_as_it_is(proxy: Running, upstream: Upstream, kind: bytes) -> None:
    upstream.says(answer(headers=[(b"Content-Type", kind)], body=b"WEBVTT\n\n\xff"))
    back = await ask(proxy, said(FILE, SECURED, END))
    assert (back.status, back.get(b"content-type"), back.body) == (200, kind, b"WEBVTT\n\n\xff")


async def test_an_error_of_the_upstream_passes_as_it_is(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer(429, [(b"Retry-After", b"7")], b"slow down"))
    back = await ask(proxy, said(FILE, SECURED, END))
    assert (back.status, back.get(b"retry-after"), back.body) == (429, b"7", b"slow down")


async def test_a_transcription_streams_as_it_is_said(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(said(FILE, part("stream", b"true"), SECURED, END))
    there: Peer = await upstream.accept()
    await there.hear()
    await there.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"data: one\n\n"))
    await client.head()
    assert await client.chunk() == b"data: one\n\n"
    await there.say(chunked(b""))
    assert await client.chunk() == b""


@pytest.fixture(scope="module")
def sdk(demo_proxy: Running) -> Iterator[openai.OpenAI]:
    where = f"{demo_proxy.url}/openai"
    with openai.OpenAI(base_url=where, api_key=demo_proxy.settings.client_keys[0], max_retries=0) as client:
        yield client


def test_the_sdk_gets_its_file_transcribed(sdk: openai.OpenAI) -> None:
    create: Any = sdk.audio.transcriptions.create
    file = ("hello.mp3", b"x" * 3_000_000)
    brief, verbose = (create(model="whisper-1", file=file, response_format=form) for form in ("json", "verbose_json"))
    assert brief.text == verbose.text
    assert "hello.mp3 arrived, all 3000000 bytes" in brief.text
    assert create(model="whisper-1", file=file, response_format="text") == f"{brief.text}\n"
    assert create(model="whisper-1", file=file, response_format="vtt").startswith("WEBVTT")
    assert brief.text in create(model="whisper-1", file=file, response_format="srt")
    assert [event.type for event in create(model="whisper-1", file=file, stream=True)][-1] == "transcript.text.done"
