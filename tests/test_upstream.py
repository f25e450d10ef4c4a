"""What goes wrong on the far bank, and what it is called here."""

import asyncio
import json
import logging
import re
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from proxy.errors import Failure
from proxy.exchange import Call, Exchange
from proxy.upstream import TRANSLATION, asked_for, backoff, translated, trust
from proxy.upstream import Upstream as FarBank
from proxy.values import target as read_target
from tests.conftest import CLIENT_KEY, SWAP, SettingsOf, Start
from tests.peers import Upstream, answer, free_port, request
from tests.test_connection import OK
from tests.test_dial import Authority, Secure, found


def every_kind(base: type[httpx.TransportError]) -> list[type[httpx.TransportError]]:
    return [base, *(deeper for kind in base.__subclasses__() for deeper in every_kind(kind))]


@pytest.mark.parametrize("kind", every_kind(httpx.TransportError), ids=lambda kind: kind.__name__)
def test_every_exception_of_a_transport_has_a_name_here(kind: type[httpx.TransportError]) -> None:
    failure = translated(kind("with a secret: sk-secret"))
    assert failure is not None
    assert failure.status == (504 if issubclass(kind, httpx.TimeoutException) else failure.status)
    assert failure.status in (400, 502, 504)
    assert "sk-secret" not in str(failure)


def test_what_http_2_has_against_a_request_is_no_fault_of_the_clients() -> None:
    refused = type("ProtocolError", (Exception,), {"__module__": "h2.exceptions"})
    problem = httpx.LocalProtocolError("Invalid input ConnectionInputs.SEND_HEADERS in state ConnectionState.CLOSED")
    problem.__cause__ = refused("a state of theirs")
    failure = translated(problem)
    assert failure is not None
    assert (failure.status, str(failure)) == (502, "The connection to the upstream broke")


def test_the_table_goes_from_the_most_specific_to_the_general() -> None:
    kinds = [kind for kind, _, _ in TRANSLATION]
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind


async def ask(start: Start, **settings: str) -> tuple[int, dict[str, str]]:
    async with start(**settings) as proxy:
        client = await proxy.connect()
        await client.say(request("POST", headers=[(b"X-Request-Id", b"mine")], body=b'{"model": "m"}'))
        back = await client.hear()
    assert back.get(b"content-type") == b"application/json"
    error = json.loads(back.body)["error"]
    assert error["requestId"] == (back.get(b"x-proxy-request-id") or b"").decode()
    assert error["incomingRequestId"] == "mine"
    return back.status, error


@pytest.mark.parametrize("host", ["name.invalid", "127.0.0.1"], ids=["unknown", "refused"])
async def test_an_upstream_that_cannot_be_reached_is_a_502(start: Start, host: str) -> None:
    status, error = await ask(start, OXY_TARGET=f"http://{host}:{free_port()}")
    assert (status, error["type"], error["code"]) == (502, "upstream_transport", "OPENAI_PROXY_TRANSPORT")


async def test_an_upstream_that_does_not_speak_tls_is_a_502(start: Start, upstream: Upstream) -> None:
    async with start(OXY_TARGET=f"https://127.0.0.1:{upstream.port}") as proxy:
        client = await proxy.connect()
        await client.say(request())
        await (await upstream.accept()).say(b"HTTP/1.1 400 Plain text here\r\n\r\n")
        assert (await client.hear()).status == 502


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 999 Beyond\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
    ],
    ids=["another protocol", "no header", "too large", "no status", "two lengths", "half a head", "nothing"],
)
async def test_an_upstream_that_does_not_speak_http_is_a_502(start: Start, upstream: Upstream, said: bytes) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        await there.say(said)
        await there.close()
        back = await client.hear()
    assert (back.status, json.loads(back.body)["error"]["code"]) == (502, "OPENAI_PROXY_TRANSPORT")


async def test_an_upstream_that_resets_is_a_502(start: Start, upstream: Upstream) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        there.abort()
        assert (await client.hear()).status == 502


@pytest.mark.parametrize("setting", ["OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS", "OPENAI_PROXY_UPSTREAM_TIMEOUT_MS"])
async def test_an_upstream_that_does_not_shake_hands_in_time_is_a_504(
    start: Start, upstream: Upstream, setting: str
) -> None:
    status, error = await ask(start, OXY_TARGET=f"https://127.0.0.1:{upstream.port}", **{setting: "50"})
    assert (status, error["message"]) == (504, "Timeout while connecting to the upstream")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"connect": 3.0, "read": 5.0, "write": 5.0, "pool": 3.0}),
        (9.0, {"connect": 3.0, "read": 9.0, "write": 9.0, "pool": 3.0}),
        (2.0, dict.fromkeys(("connect", "read", "write", "pool"), 2.0)),
    ],
)
async def test_to_connect_takes_its_share_of_the_time_to_the_head(
    settings_of: SettingsOf, given: float | None, expected: dict[str, float]
) -> None:
    heard: list[dict[str, float]] = []

    def hear(asked: httpx.Request) -> httpx.Response:
        heard.append(asked.extensions["timeout"])
        return httpx.Response(200, stream=httpx.ByteStream(b""))

    times = {"OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS": "3000", "OPENAI_PROXY_UPSTREAM_TIMEOUT_MS": "5000"}
    bank = FarBank(settings_of(**times), httpx.MockTransport(hear))
    call = Call("GET", b"/v1/models", [], None, timeout=given)
    await (await bank.open(Exchange(id="1", method="GET", path="/v1/models"), call)).close()
    assert heard == [expected]


async def test_an_upstream_that_is_silent_is_a_504(start: Start, upstream: Upstream) -> None:
    status, error = await ask(start, OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="50")
    assert (status, error["type"], error["code"]) == (504, "upstream_timeout", "OPENAI_PROXY_TIMEOUT")


async def test_an_upstream_that_does_not_come_to_its_head_is_a_504(start: Start, upstream: Upstream) -> None:
    async with start(OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="100") as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        answered = asyncio.ensure_future(client.hear())
        for _ in range(100):  # of which each is a sign of life
            if not answered.done():
                await there.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                await asyncio.wait([answered], timeout=0.02)
        assert answered.done(), "it was waited for as long as something came"
        assert answered.result().status == 504
        await there.closed()


async def test_a_stream_that_stalls_is_left_torn(start: Start, upstream: Upstream) -> None:
    async with start(OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="100") as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        await there.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert await client.until(b"3\r\nabc\r\n")
        assert await client.rest() == b""
        await there.closed()


async def test_after_a_failure_the_next_exchange_is_right(start: Start, upstream: Upstream) -> None:
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        there.abort()
        assert (await client.hear()).status == 502
        upstream.says(answer(body=b"right"))
        await client.say(request())
        assert (await client.hear()).body == b"right"


def test_a_failure_without_a_transport_is_an_internal_one() -> None:
    assert (Failure().status, Failure().code) == (500, "OPENAI_PROXY_INTERNAL")


@pytest.mark.parametrize("name", [None, "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_public_authorities_are_trusted_unless_the_operator_names_others(
    name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for cleared in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(cleared, raising=False)
    if name is not None:
        monkeypatch.setenv(name, str(tmp_path if name == "SSL_CERT_DIR" else Path(__file__).with_name("authority.pem")))
    context = trust(read_target("https://api.openai.com"))
    found = context.cert_store_stats()["x509_ca"]
    assert found > 100 if name is None else found <= 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return found(tmp_path_factory.mktemp("authority"))


async def test_a_target_with_tls_is_believed_if_a_named_authority_vouches_for_its_name(
    start: Start, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with Secure(authority.context()).listening() as secure:
        async with start(OXY_TARGET=f"https://localhost:{secure.port}") as proxy:
            client = await proxy.connect()
            for said in (OK + b"Connection: close\r\nContent-Length: 4\r\n\r\nfrom", answer(body=b"afar")):
                secure.said = said
                await client.say(request("POST", body=b"{}"))
                assert (await client.hear()).body in (b"from", b"afar")
        assert secure.names == ["localhost", "localhost"]
        assert secure.resumed == [False, True]


@pytest.mark.parametrize("known", [False, True], ids=["an unknown authority", "another name"])
async def test_a_target_with_tls_that_nobody_vouches_for_is_a_502(
    start: Start, authority: Authority, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with Secure(authority.context()).listening("127.0.0.1" if not known else "127.0.0.2") as secure:
        status, error = await ask(start, OXY_TARGET=f"https://{secure.host}:{secure.port}")
    assert (status, error["code"]) == (502, "OPENAI_PROXY_TRANSPORT")
    assert secure.peers.empty()


async def test_an_authority_of_the_operator_s_own_is_believed_besides_the_others(
    start: Start, authority: Authority
) -> None:
    others = trust(read_target("https://api.openai.com")).cert_store_stats()["x509_ca"]
    context = trust(read_target("https://api.openai.com"), authority.file)
    assert context.cert_store_stats()["x509_ca"] == others + 1
    async with Secure(authority.context()).listening() as secure:
        target = f"https://localhost:{secure.port}"
        async with start(OXY_TARGET=target, PROXY_UPSTREAM_CA=str(authority.file)) as proxy:
            client = await proxy.connect()
            await client.say(request())
            assert (await client.hear()).status == 200


def test_a_target_without_tls_trusts_nobody() -> None:
    context = trust(read_target("http://127.0.0.1:1"))
    assert (context.cert_store_stats()["x509_ca"], context.verify_mode) == (0, ssl.CERT_REQUIRED)


@pytest.mark.parametrize("way", ["auto"], indirect=True)
async def test_an_outbound_proxy_is_asked_with_the_target_as_it_came(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(OXY_TARGET="http://api.example/base", HTTP_PROXY=upstream.url) as proxy:
        client = await proxy.connect()
        await client.say(request(target=b"/v1/a%2Fb//?x=%20&&"))
        assert (await client.hear()).status == 200
    assert upstream.heard[0].target == b"http://api.example/base/v1/a%2Fb//?x=%20&&"
    assert upstream.heard[0].get(b"host") == b"api.example"


@pytest.mark.parametrize("way", ["auto"], indirect=True)
async def test_an_outbound_proxy_that_refuses_is_a_502(start: Start, upstream: Upstream) -> None:
    upstream.says(answer(403))
    async with start(OXY_TARGET="https://api.example", HTTPS_PROXY=upstream.url) as proxy:
        client = await proxy.connect()
        await client.say(request())
        assert (await client.hear()).status == 502
    assert upstream.heard[0].start == b"CONNECT api.example:443 HTTP/1.1"


# ---- once more


SAFE = [
    request("POST", b"/openai2/input_tokens", [(b"X-API-Key", CLIENT_KEY.encode())], b'{"model": "m", "input": "i"}'),
    request("GET", b"/openai2/resp_1?include=a&security_key=" + CLIENT_KEY.encode()),
    request("GET", b"/openai2/resp_1/input_items", [(b"X-API-Key", CLIENT_KEY.encode())]),
    request("DELETE", b"/openai2/resp_1", [(b"X-API-Key", CLIENT_KEY.encode())]),
]
UNSAFE = [
    request("POST", path, [(b"X-API-Key", CLIENT_KEY.encode())], body)
    for path, body in [
        (b"/openai2", b"{}"),
        (b"/openai2/compact", b"{}"),
        (b"/openai2/resp_1/cancel", b""),
        (b"/openai", b"{}"),
        (b"/chatgpt", b'{"prompt": "p"}'),
        (b"/embeddings", b"{}"),
        (b"/v1/responses", b"{}"),
    ]
] + [request("GET", b"/v1/models", [(b"X-API-Key", CLIENT_KEY.encode())])]
TRIES = [408, 409, 429, 500, 503, 529]


def line(said: bytes) -> str:
    return " ".join(said.decode().split(" ")[:2]).partition("?")[0]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause worth the name."""
    monkeypatch.setattr("proxy.upstream.SHORTEST_PAUSE", 0.001)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", SAFE, ids=line)
async def test_a_safe_call_goes_out_up_to_twice_more_as_it_was(
    start: Start, upstream: Upstream, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    upstream.says_in_turn(answer(429, body=b"slowly"), answer(503), answer(200, body=b"well"))
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        log = logging.getLogger("oxy")
        log.addHandler(caplog.handler)
        await client.say(said)
        assert (await client.hear()).body == b"well"
        log.removeHandler(caplog.handler)
    first, *others = upstream.heard
    assert [(other.start, other.headers, other.body) for other in others] == 2 * [
        (first.start, first.headers, first.body)
    ]
    retries = [message.partition("): ")[2] for message in caplog.messages if "attempt" in message]
    assert [re.sub(r"\d\.\d s", "some s", retry) for retry in retries] == [
        "attempt 2 of 3 in some s after status 429",
        "attempt 3 of 3 in some s after status 503",
    ]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", TRIES)
async def test_what_fails_three_times_is_told_as_it_is(start: Start, upstream: Upstream, status: int) -> None:
    upstream.says_in_turn(*(answer(status, body=bytes([number])) for number in b"123"))
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        await client.say(SAFE[0])
        back = await client.hear()
    assert (back.status, back.body, len(upstream.heard)) == (status, b"3", 3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("broken", ["refused", "closed", "not HTTP"])
async def test_a_safe_call_that_got_no_answer_goes_out_again(start: Start, upstream: Upstream, broken: str) -> None:
    async with start(
        **SWAP, **({"OXY_TARGET": f"http://127.0.0.1:{free_port()}"} if broken == "refused" else {})
    ) as proxy:
        client = await proxy.connect()
        await client.say(SAFE[0])
        if broken != "refused":
            for _ in range(2):
                far = await upstream.accept()
                await far.head()
                await far.say(b"" if broken == "closed" else b"SSH-2.0\r\n\r\n")
                far.writer.close()
            upstream.says(answer(200, body=b"well"))
            assert (await client.hear()).body == b"well"
        else:
            assert (await client.hear()).status == 502


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", UNSAFE, ids=line)
@pytest.mark.parametrize("status", [429, 500])
async def test_no_other_call_goes_out_twice(start: Start, upstream: Upstream, said: bytes, status: int) -> None:
    upstream.says(answer(status, body=b"no"))
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        await client.say(said)
        back = await client.hear()
    assert (back.status, back.body, len(upstream.heard)) == (status, b"no", 1)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "word", "times"), [(500, b"false", 1), (400, b"true", 3), (404, b"", 1), (200, b"true", 1)]
)
async def test_the_upstreams_own_word_counts_most(
    start: Start, upstream: Upstream, status: int, word: bytes, times: int
) -> None:
    for _ in range(times):
        upstream.says(answer(status, [(b"X-Should-Retry", word)]))
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        await client.say(SAFE[0])
        assert (await client.hear()).status == status
    assert len(upstream.heard) == times


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ([(b"retry-after", b"2")], 2.0),
        ([(b"retry-after-ms", b"1500"), (b"retry-after", b"9")], 1.5),
        ([(b"retry-after", b"61")], None),
        ([(b"retry-after", b"0")], None),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"Fri, 31 Dec 1999 23:59:59 GMT")], None),
        ([(b"retry-after", b"Fri, 31 Dec 2199 23:59:59 GMT")], None),
        ([(b"retry-after", b"Fri, 31 Dec 99999 23:59:59 GMT")], None),
        ([(b"retry-after", b"Mon, 01 Jan 2024 00:00:00 +99999999999999999999")], None),
        ([(b"retry-after", b"Fri, 31 Foo 1999 23:59:59 GMT")], None),
        ([(b"retry-after", b"\xff")], None),
        ([], None),
    ],
)
def test_a_pause_is_as_long_as_the_upstream_asks_within_reason(
    headers: list[tuple[bytes, bytes]], pause: float | None
) -> None:
    assert asked_for(headers) == pause


def test_a_pause_may_be_asked_for_by_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True).encode()
    assert 28 < (asked_for([(b"retry-after", soon)]) or 0) <= 30


def test_pauses_grow_and_differ() -> None:
    pauses = [{backoff(retries) for _ in range(20)} for retries in (0, 1)]
    assert all(len(each) > 1 for each in pauses)
    assert 0.375 <= min(pauses[0]) <= max(pauses[0]) <= 0.5
    assert 0.75 <= min(pauses[1]) <= max(pauses[1]) <= 1


@pytest.mark.parametrize(("status", "told"), [(599, 599), (600, 502), (999, 502)])
async def test_a_status_beyond_all_classes_is_no_answer(
    start: Start, upstream: Upstream, status: int, told: int
) -> None:
    upstream.says(answer(status))
    async with start() as proxy:
        client = await proxy.connect()
        await client.say(request())
        back = await client.hear()
    assert back.status == told
    assert told == status or f"status {status}, which is none".encode() in back.body
