"""What `oxy check` sees at a host, and what it says of it: each thing that can be wrong is played once."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy import probes, verdicts
from proxy.errors import Pairs
from proxy.probes import Place, Timed, resolve, wish
from proxy.settings import Settings
from proxy.values import target
from proxy.verdicts import Trouble, of_tls
from tests.peers import PATIENCE, Tunnel, Upstream, answer, chunked
from tests.test_dial import Authority, Secure, authority, hanging, refusing

__all__ = ["authority"]

KEY = [(b"authorization", b"Bearer sk-of-a-test")]
OURS = [(b"X-Proxy-Request-Id", b"1")]
HEAD = b"HTTP/1.1 200 OK\r\nX-Proxy-Request-Id: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[]}\n\n'


def place(url: str, credentials: Pairs | None = None, *, signed: bool = True, ours: bool = False) -> Place:
    key = "PROXY_X_API_KEY" if ours else "OPENAI_API_KEY"
    credentials = KEY if credentials is None else credentials
    return Place(Settings(target=target(url)), credentials, key=key, signed=signed, ours=ours)


async def trouble(place: Place, name: str, **wanted: Any) -> Trouble:
    """What is wrong with a step; those before it, which it needs, are well."""
    try:
        async with asyncio.timeout(PATIENCE):
            for step in place.steps(**{"stream": None, "silence": None, **wanted}):
                if step.name == name:
                    with pytest.raises(Trouble) as told:
                        await step.look()
                    return told.value
                await step.look()
    finally:
        await place.aclose()
    raise AssertionError(f"there is no {name}")


async def said(place: Place, **wanted: Any) -> dict[str, str]:
    """What each step says where all is well."""
    try:
        async with asyncio.timeout(PATIENCE):
            return {step.name: await step.look() for step in place.steps(**{"stream": None, "silence": None, **wanted})}
    finally:
        await place.aclose()


# ---- the way there


async def test_a_name_is_resolved_and_an_address_is_not(upstream: Upstream) -> None:
    upstream.says(answer())
    assert list(await said(place(upstream.url))) == ["tcp", "key", "head"]
    named = await said(place(f"http://localhost:{upstream.port}"))
    assert list(named) == ["dns", "tcp", "key", "head"]
    assert "127.0.0.1" in named["dns"]


async def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    told = await trouble(place("https://api.typo.example"), "dns")
    assert str(told) == "api.typo.example has no address"
    assert "HTTPS_PROXY" in told.advice


async def test_a_resolver_that_hangs_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(PATIENCE) and [])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await resolve("slow.example", 443)
    answered.set()


async def test_a_port_that_refuses() -> None:
    with refusing() as port:
        told = await trouble(place(f"http://127.0.0.1:{port}"), "tcp")
    assert str(told) == f"127.0.0.1 port {port} refuses"


async def test_a_port_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: object) -> None:
        raise OSError(113, "No route to host")

    monkeypatch.setattr(probes, "reach", unreachable)
    told = await trouble(place("http://127.0.0.1:1"), "tcp")
    assert str(told) == "127.0.0.1 port 1 cannot be reached: no route to host"


async def test_a_port_that_never_answers_is_left_when_the_time_is_up() -> None:
    with hanging() as port:
        tcp, *_ = place(f"http://127.0.0.1:{port}").steps(stream=None, silence=None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await tcp.look()


# ---- TLS


async def test_a_handshake_that_is_well(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with Secure(authority.context()).listening() as upstream:
        told = await said(place(f"https://localhost:{upstream.port}"))
    assert told["tls"].startswith("TLSv1.3 in ")
    assert told["tls"].rsplit("certificate until ")[1] > "2100"
    assert told["key"] == "OPENAI_API_KEY is accepted"


async def test_an_authority_that_is_not_known_is_to_be_named(authority: Authority) -> None:
    async with Secure(authority.context()).listening() as upstream:
        told = await trouble(place(f"https://localhost:{upstream.port}"), "tls")
    assert str(told).startswith("not believed: ")
    assert "PROXY_UPSTREAM_CA" in told.advice


async def test_a_certificate_for_another_name(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with Secure(authority.context()).listening("127.0.0.2") as upstream:
        told = await trouble(place(f"https://127.0.0.2:{upstream.port}"), "tls")
    assert "another name than 127.0.0.2" in told.advice


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        *((code, "PROXY_UPSTREAM_CA") for code in (18, 19, 20, 21)),
        *((code, "clock") for code in (9, 10)),
        *((code, "another name than a.example") for code in (62, 64)),
        (23, "openssl s_client"),
    ],
)
def test_certificates_that_are_not_believed(code: int, advice: str) -> None:
    problem = ssl.SSLCertVerificationError()
    problem.verify_code, problem.verify_message = code, "certificate is something"
    assert advice in of_tls(problem, target("https://a.example")).advice


async def test_a_port_that_speaks_no_tls(upstream: Upstream) -> None:
    shaking = asyncio.create_task(trouble(place(f"https://localhost:{upstream.port}"), "tls"))
    await (await upstream.accept()).close()  # the line before
    await (await upstream.accept()).say(answer(400))
    assert "does not speak TLS" in str(await shaking)


async def test_a_handshake_that_is_cut(upstream: Upstream) -> None:
    shaking = asyncio.create_task(trouble(place(f"https://localhost:{upstream.port}"), "tls"))
    await (await upstream.accept()).close()
    (await upstream.accept()).abort()
    assert "closed in the handshake" in str(await shaking)


# ---- the key


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "OPENAI_API_KEY is refused"),
        (403, "OPENAI_API_KEY is known, and not allowed this"),
        (404, "there is no /v1/models"),
        (407, "the outbound proxy asks for a name and password"),
        (429, "OPENAI_API_KEY is known, its limits or its credit are used up"),
        (302, "it leads elsewhere"),
        (418, "the call is refused"),
        (500, "it is not well"),
        (503, "it is not well"),
    ],
)
async def test_a_status_has_its_meaning(upstream: Upstream, status: int, told: str) -> None:
    upstream.says(answer(status, body=b"sk-of-a-test is wrong"))
    problem = await trouble(place(upstream.url), "key")
    assert str(problem) == f"{status}: {told}"
    assert len(problem.advice) > 20
    assert "sk-" not in str(problem) + problem.advice


async def test_the_key_is_shown_and_nothing_is_spent(upstream: Upstream) -> None:
    upstream.says(answer())
    await said(place(upstream.url))
    (heard,) = upstream.heard
    assert heard.start == b"GET /v1/models HTTP/1.1"
    assert heard.get(b"authorization") == b"Bearer sk-of-a-test"


def on_azure(url: str, *, signed: bool = True) -> Place:
    settings = Settings(
        target=target(url),
        azure="deployments",
        azure_version="2024-10-21",
        azure_deployments=(("gpt-4o", "fast"), ("o3", "thinker")),
    )
    return Place(settings, KEY, key="OPENAI_API_KEY", signed=signed, ours=False)


async def test_without_a_key_no_deployment_is_looked_at(upstream: Upstream) -> None:
    upstream.says(answer(401))
    assert [name async for name, _ in taken(on_azure(upstream.url, signed=False))] == ["tcp", "key"]


async def test_each_deployment_is_looked_at_with_a_call_that_costs_nothing(upstream: Upstream) -> None:
    upstream.says_in_turn(answer(), answer(400), answer(400))
    steps = [step async for step in taken(on_azure(upstream.url))]
    assert steps[1:] == [
        ("key", "OPENAI_API_KEY is accepted, api-version 2024-10-21 is known"),
        ("azure", "gpt-4o is deployed as fast"),
        ("azure", "o3 is deployed as thinker"),
    ]
    models, fast, _ = upstream.heard
    assert models.start == b"GET /openai/models?api-version=2024-10-21 HTTP/1.1"
    assert fast.start == b"POST /openai/deployments/fast/chat/completions?api-version=2024-10-21 HTTP/1.1"
    assert fast.body == b'{"model": "gpt-4o"}'  # no messages: nothing to answer


async def taken(place: Place) -> AsyncIterator[tuple[str, str]]:
    """What each step says, but for how long it took."""
    for step in place.steps(stream=None, silence=None):
        if step.name != "head":
            yield step.name, await step.look()
    await place.aclose()


@pytest.mark.parametrize(
    ("status", "told"),
    [(404, "404: there is no deployment fast for gpt-4o"), (429, "429: OPENAI_API_KEY is known, its limits or its")],
)
async def test_a_deployment_that_is_not_there(upstream: Upstream, status: int, told: str) -> None:
    upstream.says_in_turn(answer(), answer(status))
    problem = await trouble(on_azure(upstream.url), "azure")
    assert str(problem).startswith(told)
    assert len(problem.advice) > 20


@pytest.mark.parametrize("status", [400, 404])
async def test_a_version_that_azure_does_not_know(upstream: Upstream, status: int) -> None:
    upstream.says(answer(status))
    problem = await trouble(on_azure(upstream.url), "key")
    assert str(problem) == f"{status}: there is nothing for api-version 2024-10-21"
    assert "OPENAI_API_VERSION" in problem.advice


async def test_without_a_key_it_is_well_to_be_asked_for_one(upstream: Upstream) -> None:
    upstream.says(answer(401))
    told = await said(place(upstream.url, [], signed=False))
    assert told["key"] == "the API answers, and asks for a key: clients bring their own"
    upstream.says(answer())
    told = await said(place(upstream.url, [], signed=False))
    assert told["key"] == "the API answers, and asks for no key"


@pytest.mark.parametrize("body", [b"<html>Sign in to this hotel's network</html>", b"[]"])
async def test_a_page_of_another_is_no_list_of_models(upstream: Upstream, body: bytes) -> None:
    upstream.says(answer(body=body))
    assert str(await trouble(place(upstream.url), "key")) == "200, but what came is no list of models"


async def test_what_is_no_http(upstream: Upstream) -> None:
    upstream.says(b"SSH-2.0-OpenSSH_9.2\r\n")
    assert str(await trouble(place(upstream.url), "key")).startswith("no answer: The upstream's response is not valid")


async def test_a_fault_of_ours_is_not_taken_for_one_of_the_way(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.says(answer())
    monkeypatch.setattr(Timed, "push", None)
    with pytest.raises(TypeError):
        await said(place(upstream.url))


async def test_a_slow_head_is_told(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.says(answer())
    monkeypatch.setattr(probes, "SLOW_HEAD", 0)
    told = await trouble(place(upstream.url), "head")
    assert str(told).endswith(" ms to the head of that answer")
    assert told.advice == verdicts.SLOW


# ---- before the proxy


async def test_what_answers_in_the_place_of_an_oxy_is_found_out(upstream: Upstream) -> None:
    upstream.says(answer(502, body=b"<html>Bad gateway</html>"))
    told = await trouble(place(upstream.url, ours=True), "key")
    assert str(told) == "502, and not from an Oxy: the answer has no X-Proxy-Request-Id"


async def test_a_client_key_that_the_oxy_there_does_not_know(upstream: Upstream) -> None:
    upstream.says(answer(401, OURS, b'{"error": "unauthorized"}'))
    for signed in (True, False):
        told = await trouble(place(upstream.url, signed=signed, ours=True), "key")
        assert str(told) == "401: PROXY_X_API_KEY is refused"


async def test_an_oxy_without_a_key_of_its_own_lets_the_api_ask_for_one(upstream: Upstream) -> None:
    for body in (b'{"error": {"code": "invalid_api_key"}}', b"no JSON"):
        upstream.says(answer(401, OURS, body))
        assert "asks for a key" in (await said(place(upstream.url, signed=False, ours=True)))["key"]


# ---- streams


async def streamed(upstream: Upstream, *pieces: bytes, step: str = "stream") -> asyncio.Task[Trouble]:
    """Ask for a stream, as the last of the steps; send its pieces, each when the one before it has been read."""
    asked: dict[str, Any] = {"stream": "m"} if step == "stream" else {"silence": 1}
    looking = asyncio.create_task(trouble(place(upstream.url, ours=True), step, **asked))
    await (await upstream.accept()).close()  # tcp
    there = await upstream.accept()
    await there.hear()
    await there.say(answer(200, OURS))
    heard = await there.hear()
    assert heard.start == b"POST /v1/chat/completions HTTP/1.1"
    await there.say(HEAD)
    for piece in pieces:
        await there.say(piece)
    if not pieces[-1].endswith(chunked(b"")):
        await there.close()
    return looking


async def test_a_stream_that_comes_all_at_once_was_kept_back(upstream: Upstream) -> None:
    looking = await streamed(upstream, chunked(*[EVENT] * 12, b"data: [DONE]\n\n", b""))
    told = await looking
    assert str(told).startswith("13 events came in ")
    assert told.advice == verdicts.BUFFERED


async def test_a_stream_of_a_few_events_tells_nothing(upstream: Upstream) -> None:
    told = await (await streamed(upstream, chunked(EVENT, b"data: [DONE]\n\n", b"")))
    assert str(told) == "2 events are too few to tell"


async def test_from_so_many_events_on_a_stream_tells_something(upstream: Upstream) -> None:
    told = await (await streamed(upstream, chunked(*[EVENT] * (probes.FEWEST - 1), b"data: [DONE]\n\n", b"")))
    assert told.advice == verdicts.BUFFERED


async def test_a_stream_that_comes_one_by_one_is_well() -> None:
    heard = Timed(type("An answer", (), {"status": 200, "headers": []})())
    for moment in (1.0, 1.5, 1.5001, 2.0, 2.0):
        heard.came.append(moment)
    assert heard.groups == 3
    assert heard.push(b"")
    assert len(heard.came) == 5
    await heard.drain()


async def test_only_so_much_of_an_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MOST_HEARD", 3)
    heard = Timed(type("An answer", (), {"status": 200, "headers": []})())
    for piece in (b"ab", b"cd", b"ef"):
        heard.push(piece)
    assert heard.text == b"abc"
    assert len(heard.came) == 3


async def test_a_model_that_is_not_there(upstream: Upstream) -> None:
    upstream.says_in_turn(answer(), answer(404))
    told = await trouble(place(upstream.url), "stream", stream="gpt-x")
    assert str(told) == "404: there is no model gpt-x for this key"


async def test_a_stream_takes_a_key(upstream: Upstream) -> None:
    upstream.says(answer(401))
    told = await trouble(place(upstream.url, [], signed=False), "stream", stream="gpt-4o-mini")
    assert str(told) == "there is no key to ask for it with"
    assert len(upstream.heard) == 1


async def test_a_stream_that_is_cut_while_it_is_silent(upstream: Upstream) -> None:
    told = await (await streamed(upstream, chunked(EVENT), step="idle"))
    assert str(told).startswith("a stream was cut ")
    assert told.advice == verdicts.CUT


async def test_a_stream_that_is_ended_while_it_is_silent(upstream: Upstream) -> None:
    told = await (await streamed(upstream, chunked(EVENT), chunked(b""), step="idle"))
    assert str(told).endswith("without its end")


def test_what_is_asked_for_is_small() -> None:
    assert b'"max_completion_tokens": 24' in wish("gpt-4o-mini")


# ---- through an outbound proxy


def behind(proxy: str, host: str = "https://localhost:4321") -> Place:
    settings = Settings(target=target(host), outbound_proxy=proxy)
    return Place(settings, KEY, key="OPENAI_API_KEY", signed=True, ours=False)


async def test_a_way_through_an_outbound_proxy_that_is_well(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with (
        Secure(authority.context()).listening() as upstream,
        Tunnel(upstream.port).listening() as tunnel,
    ):
        told = await said(behind(f"http://127.0.0.1:{tunnel.at}"))
    assert list(told) == ["proxy", "tls", "key", "head"]
    assert told["proxy"].startswith("a way to localhost port 4321 in ")
    assert told["tls"].startswith("TLSv1.3 in ")


@pytest.mark.parametrize(
    ("answered", "told", "advice"),
    [
        (answer(407), "407: the outbound proxy asks for a name and password", "HTTPS_PROXY: http://name:password@host"),
        (answer(403), "the outbound proxy opens no way: 403", "localhost port 4321 has to be allowed there"),
        (b"SSH\r\n\r\n", "the outbound proxy ended without an answer, or spoke no HTTP", "a proxy for HTTP?"),
    ],
)
async def test_an_outbound_proxy_that_opens_no_way(upstream: Upstream, answered: bytes, told: str, advice: str) -> None:
    upstream.says(answered)
    seen = await trouble(behind(f"http://me:secret@{upstream.url[7:]}"), "proxy")
    assert str(seen) == told
    assert advice in seen.advice
    assert "secret" not in f"{seen} {seen.advice}"


async def test_an_outbound_proxy_that_opens_no_second_way(upstream: Upstream) -> None:
    upstream.says(answer(429))
    with pytest.raises(Trouble, match="the outbound proxy opens no way: 429"):
        await behind(upstream.url).tls()


async def test_an_outbound_proxy_that_is_not_there() -> None:
    with refusing() as port:
        seen = await trouble(behind(f"http://me:secret@127.0.0.1:{port}"), "proxy")
    assert str(seen).startswith("the outbound proxy cannot be reached: connect")  # each loop has its own words for it
    assert seen.advice == verdicts.UNREACHED


@pytest.mark.parametrize(
    ("proxy", "host"), [("https://127.0.0.1:9", "https://api.example"), ("http://127.0.0.1:9", "http://api.example")]
)
async def test_an_outbound_proxy_without_tunnels_is_left_to_find_the_host(proxy: str, host: str) -> None:
    through = behind(proxy, host)
    assert [step.name for step in through.steps(stream=None, silence=None)] == ["key", "head"]
    assert str(await trouble(through, "key")) == "no answer: Could not connect to the upstream"
