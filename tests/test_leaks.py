"""Keys stay where they belong, whatever an upstream says back, and no request leads elsewhere. On real sockets."""

import gzip
import json
import logging
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest

from proxy.upstream import Upstream as FarBank
from tests import test_faults
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, SettingsOf, Start
from tests.desk import TOKEN
from tests.peers import Upstream, answer, chunked, request
from tests.test_faults import Play

play = test_faults.play  # a fixture
KEYS = (UPSTREAM_KEY.encode(), CLIENT_KEY.encode())
BOTH = b" and ".join(KEYS)
SHOWN = (b"Authorization", b"Bearer " + KEYS[1])
MASKED = b" and ".join(b"*" * len(key) for key in KEYS)


@pytest.mark.parametrize("status", [200, 302, 401, 500])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"location", b"https://elsewhere.example/?key=%b"),
        (b"www-authenticate", b'Bearer realm="%b"'),
        (b"set-cookie", b"key=%b; HttpOnly"),
        (b"x-debug", b"%b%b"),
    ],
)
async def test_keys_in_the_fields_of_an_answer_are_masked(
    play: Play, upstream: Upstream, status: int, name: bytes, value: bytes
) -> None:
    async with play(**SWAP) as stage:
        said = [(name, value.replace(b"%b", key)) for key in KEYS]
        upstream.says(answer(status, said))
        client = await stage.proxy.connect()
        await client.say(request(headers=[SHOWN]))
        back = await client.hear()
        assert back.all(name) == [value.replace(b"%b", b"*" * len(key)) for key in KEYS]
        assert back.status == status
        assert stage.log == []


def cut(said: bytes, size: int) -> bytes:
    return chunked(*(said[at : at + size] for at in range(0, len(said), size)), b"")


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
@pytest.mark.parametrize("framing", ["length", "chunks that cut it", "byte by byte", "until close"])
async def test_keys_in_an_error_are_masked_however_it_comes(
    play: Play, upstream: Upstream, status: int, framing: str
) -> None:
    body = b'{"error": {"message": "Incorrect API key provided: %b"}}' % BOTH
    head = b"HTTP/1.1 %d Whatever\r\nContent-Type: application/json\r\n" % status
    if framing == "until close":
        upstream.says(head + b"\r\n" + body, closes=True)
    elif framing == "length":
        upstream.says(answer(status, body=body))
    else:
        framed = cut(body, 7 if framing.startswith("chunks") else 1)
        pieces = [framed[at : at + 9] for at in range(0, len(framed), 9)]
        upstream.says(head + b"Transfer-Encoding: chunked\r\n\r\n", *pieces)
    async with play(**SWAP) as stage:
        client = await stage.proxy.connect()
        await client.say(request(headers=[SHOWN]))
        back = await client.hear()
        assert (back.status, back.body) == (status, body.replace(BOTH, MASKED))
        assert stage.log == []


@pytest.mark.parametrize("route", [b"/v1/responses", b"/openai2", b"/chatgpt", b"/embeddings"])
async def test_keys_in_a_compressed_error_are_masked_on_every_route(
    play: Play, upstream: Upstream, route: bytes
) -> None:
    body = json.dumps({"error": {"message": BOTH.decode()}}).encode()
    upstream.says(answer(401, [(b"Content-Encoding", b"gzip")], gzip.compress(body)))
    async with play(**SWAP) as stage:
        client = await stage.proxy.connect()
        asked = b'{"prompt": "p", "input": "i", "model": "m"}'
        await client.say(request("POST", route, [SHOWN, (b"Content-Type", b"application/json")], asked))
        back = await client.hear()
        assert (back.status, back.body) == (401, body.replace(BOTH, MASKED))
        assert (back.get(b"content-encoding"), back.get(b"content-length")) == (None, b"%d" % len(body))


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        (b"GZIP", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda body: zlib.compress(body)[2:-4]),  # as some send it
        (b"br", brotli.compress),
    ],
)
async def test_keys_in_an_error_are_masked_in_whatever_coding_can_be_read(
    play: Play, upstream: Upstream, coding: bytes, compress: Callable[[bytes], bytes]
) -> None:
    upstream.says(answer(401, [(b"Content-Encoding", coding)], compress(b"no such key: " + BOTH)))
    async with play(**SWAP) as stage:
        client = await stage.proxy.connect()
        await client.say(request(headers=[SHOWN]))
        assert (await client.hear()).body == b"no such key: " + MASKED


async def test_a_success_passes_untouched_whatever_is_in_it(play: Play, upstream: Upstream) -> None:
    upstream.says(answer(body=BOTH))
    async with play(**SWAP) as stage:
        client = await stage.proxy.connect()
        await client.say(request(headers=[SHOWN]))
        assert (await client.hear()).body == BOTH


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_handed_to_the_client_and_not_followed(play: Play, upstream: Upstream, status: int) -> None:
    async with Upstream().listening() as elsewhere:
        elsewhere.says(answer())
        there = f"{elsewhere.url}/v1/models".encode()
        upstream.says(answer(status, [(b"Location", there)]))
        async with play(**SWAP) as stage:
            client = await stage.proxy.connect()
            await client.say(request(headers=[SHOWN]))
            back = await client.hear()
        assert (back.status, back.get(b"location")) == (status, there)
        assert (elsewhere.accepted, len(upstream.heard)) == (0, 1)


@pytest.mark.parametrize("settings", [{}, SWAP], ids=["transparent", "swap"])
async def test_the_operators_cookie_ends_here_and_no_other_does(
    start: Start, upstream: Upstream, settings: dict[str, str]
) -> None:
    upstream.says(answer())
    async with start(ACCESS_TOKEN=TOKEN, **settings) as proxy:
        client = await proxy.connect()
        await client.say(request("GET", b"/log?access_token=" + TOKEN.encode(), [(b"Accept", b"text/html")]))
        ours = (await client.hear()).all(b"set-cookie")[0].partition(b";")[0]
        for sent, target in ((ours, b"/log/below"), (b"a=1; " + ours + b"; b=2", b"/metrics/below")):
            await client.say(request("GET", target, [SHOWN, (b"Cookie", sent), (b"Cookie", b"c=3")]))
            assert (await client.hear()).status == 200
        asked = b'{"model": "m", "messages": [{"role": "user", "content": "?"}]}'
        await client.say(request("POST", b"/openai", [SHOWN, (b"Cookie", ours)], body=asked))
        await client.hear()
    assert [each.all(b"cookie") for each in upstream.heard] == [[b"c=3"], [b"a=1; b=2", b"c=3"], []]


async def test_neither_log_nor_traceback_nor_answer_of_a_fault_of_ours_has_a_key(
    play: Play, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(self: FarBank, exchange: object, call: object) -> None:
        raise ZeroDivisionError("a fault")

    async with play(**SWAP) as stage:
        monkeypatch.setattr(FarBank, "open", breaks)
        logging.getLogger("oxy").addHandler(caplog.handler)
        client = await stage.proxy.connect()
        target = b"/v1/models?security_key=" + KEYS[1]
        await client.say(request("POST", target, [SHOWN, (b"Cookie", b"a=b")], body=BOTH))
        back = await client.hear()
        logging.getLogger("oxy").removeHandler(caplog.handler)
        assert back.status == 500
        assert "ZeroDivisionError" in caplog.text
        for written in (caplog.text, str(back), repr(stage.proxy.settings), str(stage.proxy.settings)):
            assert not any(key.decode() in written for key in KEYS)


@pytest.mark.parametrize("fault", ["refused", "garbage"])
async def test_the_line_of_a_failure_has_no_key(play: Play, upstream: Upstream, fault: str) -> None:
    upstream.says(b"HTTP/1.1 200 OK\r\n" + BOTH + b"\r\n\r\n")
    target = {"OXY_TARGET": "http://127.0.0.1:1"} if fault == "refused" else {}
    async with play(**SWAP, **target) as stage:
        client = await stage.proxy.connect()
        await client.say(request("POST", b"/v1/x?security_key=" + KEYS[1], [SHOWN], body=BOTH))
        back = await client.hear()
        assert stage.failures() == [502]
        assert not any(key in back.body or key.decode() in repr(stage.entries) for key in KEYS)


# ---- no request leads elsewhere


@pytest.mark.parametrize("route", ["relay", "convenience"])
@pytest.mark.parametrize(
    "said",
    [
        b"GET http://%b/v1/models HTTP/1.1\r\nHost: %b\r\n",
        b"GET HTTP://user:secret@%b/v1/models HTTP/1.1\r\nHost: %b\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: %b\r\n",
        b"GET //%b/v1/models HTTP/1.1\r\nHost: h\r\n",
        b"GET ///%b/v1/models HTTP/1.1\r\nHost: h\r\n",
        b"GET /@%b/v1/models HTTP/1.1\r\nHost: h\r\n",
        b"GET /\\%b/v1/models HTTP/1.1\r\nHost: h\r\n",
        b"GET /http://%b/v1/models HTTP/1.1\r\nHost: h\r\n",
        b"GET /v1/models?url=http://%b/#@%b HTTP/1.1\r\nHost: h\r\n",
        b"GET /%%0d%%0aHost:%%20%b%%0d%%0a HTTP/1.1\r\nHost: h\r\n",
        b"GET /v1/models%%20HTTP/1.1%%0d%%0aHost:%b HTTP/1.1\r\nHost: h\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX-Forwarded-Host: %b\r\nForwarded: host=%b\r\nX-Original-URL: http://%b\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: host\r\n",
        b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n",
        b"GET :443/ HTTP/1.1\r\nHost: %b\r\n",
        b"GET @%b/ HTTP/1.1\r\nHost: h\r\n",
        b"GET ?url=http://%b HTTP/1.1\r\nHost: h\r\n",
    ],
)
async def test_no_request_chooses_another_host(start: Start, upstream: Upstream, said: bytes, route: str) -> None:
    async with Upstream().listening() as elsewhere:
        elsewhere.says(answer())
        upstream.says(answer())
        other = f"127.0.0.1:{elsewhere.port}".encode()
        line = said.replace(b"%b", other).replace(b"%%", b"%")
        if route == "convenience":
            line = line.replace(b"/v1/models", b"/openai2/resp_1")
        async with start(OXY_TARGET=upstream.url + "/base") as proxy:
            client = await proxy.connect()
            await client.say(line, b"\r\n")
            back = await client.hear()
        assert elsewhere.accepted == 0
        assert len(upstream.heard) == (back.status == 200)
        for heard in upstream.heard:
            assert heard.all(b"host") == [f"127.0.0.1:{upstream.port}".encode()]
            assert heard.target.startswith(b"/base/")


def test_settings_say_no_key(settings_of: SettingsOf) -> None:
    settings = settings_of(**SWAP, SECURITY_KEY="another-client-key", HTTPS_PROXY="http://u:a-password@127.0.0.1:1")
    secrets = (*SWAP.values(), "another-client-key", "a-password")
    assert not [secret for secret in secrets for text in (repr(settings), str(settings)) if secret in text]
