"""What goes wrong on the far bank, and what it is called here."""

import json
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from proxy.errors import Failure
from proxy.upstream import TRANSLATION, translated, trust
from proxy.values import target as read_target
from tests.conftest import Start
from tests.peers import Upstream, answer, request
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


def test_the_table_goes_from_the_most_specific_to_the_general() -> None:
    kinds = [kind for kind, _, _ in TRANSLATION]
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


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


async def test_an_upstream_that_is_silent_is_a_504(start: Start, upstream: Upstream) -> None:
    status, error = await ask(start, OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="50")
    assert (status, error["type"], error["code"]) == (504, "upstream_timeout", "OPENAI_PROXY_TIMEOUT")


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
