"""Tokens of Entra ID, from the library itself, which takes them from an App Service's endpoint on loopback."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from proxy import entra
from proxy.entra import Entra, reason
from proxy.errors import UpstreamUnreachable
from tests.conftest import CLIENT_KEY, Running, Start
from tests.peers import Heard, Peer, Upstream, answer, request

SCOPE = "https://scope.example/.default"
SECRET = "the-secret-of-the-identity"
SHOWN = (b"X-API-Key", CLIENT_KEY.encode())
ENTRA = {"PROXY_UPSTREAM_AUTH": "entra", "PROXY_X_API_KEY": CLIENT_KEY, "PROXY_ENTRA_SCOPE": SCOPE}


@pytest.fixture
def way() -> str:
    """The token is there before a call takes its way."""
    return "fast"


def granted(token: str, seconds: float = 3600) -> bytes:
    """An answer with a token that is good for so long."""
    said = {"access_token": token, "expires_on": str(int(time.time() + seconds)), "token_type": "Bearer"}
    return answer(headers=[(b"Content-Type", b"application/json")], body=json.dumps(said).encode())


known: list[bytes] = []  # tokens that a veil would be told of
REFUSED = answer(400, [(b"Content-Type", b"application/json")], b'{"statusCode":400,"message":"%b"}' % SECRET.encode())


@pytest.fixture
async def identity(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Upstream]:
    """The endpoint that gives tokens to whoever knows the secret."""
    async with Upstream().listening() as listening:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{listening.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", SECRET)
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")  # no other is tried
        yield listening


@pytest.fixture
async def tokens(identity: Upstream) -> AsyncIterator[Entra]:
    tokens = Entra(SCOPE, known.append)
    yield tokens
    await tokens.aclose()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt may follow on another without a pause."""
    monkeypatch.setattr(entra, "PAUSE", 0.0)


async def ask(proxy: Running, target: bytes = b"/v1/models") -> Heard:
    client = await proxy.connect()
    await client.say(request(target=target, headers=[SHOWN]))
    return await client.hear()


async def test_all_exchanges_share_one_token(start: Start, upstream: Upstream, identity: Upstream) -> None:
    upstream.says(answer())
    identity.says(granted("first"))
    async with start(**ENTRA) as proxy:
        backs = await asyncio.gather(*(ask(proxy) for _ in range(50)))
    assert {back.status for back in backs} == {200}
    assert [heard.all(b"authorization") for heard in upstream.heard] == [[b"Bearer first"]] * 50
    (asked,) = identity.heard
    assert asked.target.endswith(b"resource=https://scope.example")
    assert asked.get(b"x-identity-header") == SECRET.encode()


async def test_a_token_is_renewed_ahead_and_no_exchange_notices(
    start: Start, upstream: Upstream, identity: Upstream, at_once: None
) -> None:
    upstream.says(answer())
    async with start(**ENTRA) as proxy:
        first = asyncio.ensure_future(ask(proxy))
        endpoint = await identity.accept()
        await endpoint.hear()
        await endpoint.say(granted("old", entra.AHEAD - 10))
        assert (await first).status == 200
        assert (await asyncio.gather(*(ask(proxy) for _ in range(20))))[0].status == 200  # while nobody answers
        again = await renewal(identity, endpoint)
        assert {heard.get(b"authorization") for heard in upstream.heard} == {b"Bearer old"}
        assert len(upstream.heard) == 21
        await again.say(granted("new"))

        async def renewed() -> bool:
            await ask(proxy)
            return upstream.heard[-1].get(b"authorization") == b"Bearer new"

        async with asyncio.timeout(10):
            while not await renewed():
                pass
        assert {(await ask(proxy)).status for _ in range(5)} == {200}
    assert identity.accepted <= 2


async def renewal(identity: Upstream, kept: Peer) -> Peer:
    """The connection, kept or new, on which the next request for a token comes."""
    new, old = asyncio.ensure_future(identity.accept()), asyncio.ensure_future(kept.hear())
    done, pending = await asyncio.wait([new, old], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if old in done:
        return kept
    peer = new.result()
    await peer.hear()
    return peer


async def test_a_token_that_is_good_for_long_is_not_renewed(tokens: Entra, identity: Upstream, at_once: None) -> None:
    identity.says(granted("first", entra.AHEAD + 100))
    assert {await tokens.token() for _ in range(20)} == {b"first"}
    assert len(identity.heard) == 1


async def test_no_token_is_a_502_that_says_so_and_the_log_says_why(
    start: Start,
    upstream: Upstream,
    identity: Upstream,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    at_once: None,
) -> None:
    upstream.says(answer())
    identity.says(REFUSED)
    async with start(**ENTRA) as proxy:
        back = await ask(proxy)
        told = json.loads(back.body)["error"]
        assert (back.status, told["code"]) == (502, "OPENAI_PROXY_TRANSPORT")
        assert told["message"] == "No token could be had from Entra ID; the proxy's log says why"
        logged = capsys.readouterr().err
        assert f"no token for {SCOPE} from Entra ID: ClientAuthenticationError: " in logged
        assert "(invalid_scope) 400, ***" in logged
        assert not [
            record.name for record in caplog.records if record.name != "oxy"
        ]  # the library says nothing besides
        assert upstream.accepted == 0
        identity.says(granted("at-last"))
        assert (await ask(proxy)).status == 200
    assert upstream.heard[0].get(b"authorization") == b"Bearer at-last"
    for secret in (SECRET, "at-last", CLIENT_KEY):
        assert secret not in logged + capsys.readouterr().err


async def test_an_attempt_is_not_followed_by_another_at_once(tokens: Entra, identity: Upstream) -> None:
    identity.says(REFUSED)
    for _ in range(20):
        with pytest.raises(UpstreamUnreachable):
            await tokens.token()
    assert len(identity.heard) == 1


async def test_a_short_lived_token_is_not_renewed_without_a_pause(tokens: Entra, identity: Upstream) -> None:
    identity.says(granted("short", 100))
    for _ in range(20):
        assert await tokens.token() == b"short"
        await asyncio.sleep(0.001)
    assert len(identity.heard) == 1


async def test_a_failed_renewal_leaves_the_token_in_use(tokens: Entra, identity: Upstream, at_once: None) -> None:
    identity.says(granted("old", 100))
    assert await tokens.token() == b"old"
    identity.says(REFUSED)
    async with asyncio.timeout(10):
        while len(identity.heard) < 3:  # the third comes when the second has failed
            assert await tokens.token() == b"old"
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("token", "seconds", "why"),
    [
        ("over", -1, "the token has ended already; the clock of this machine may be wrong"),
        ("two\r\nlines: 1", 3600, "it holds a space or a character that cannot stand in a header"),
    ],
)
async def test_a_token_that_is_over_when_it_comes_or_cannot_be_sent_is_none_and_the_log_says_why(
    tokens: Entra, identity: Upstream, told: list[str], token: str, seconds: float, why: str
) -> None:
    identity.says(granted(token, seconds))
    with pytest.raises(UpstreamUnreachable):
        await tokens.token()
    assert told == [f"no token for {SCOPE} from Entra ID: ValueError: {why}"]


async def test_one_who_gives_up_takes_the_token_from_nobody(tokens: Entra, identity: Upstream) -> None:
    waiting = [asyncio.ensure_future(tokens.token()) for _ in range(3)]
    endpoint = await identity.accept()
    await endpoint.hear()
    waiting[0].cancel()  # the one that began it
    await asyncio.wait(waiting[:1])
    await endpoint.say(granted("first"))
    assert await asyncio.gather(*waiting[1:]) == [b"first", b"first"]
    assert waiting[0].cancelled()
    assert identity.accepted == 1


async def test_nobody_waits_for_ever(tokens: Entra, identity: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entra, "PATIENCE", 0.05)
    with pytest.raises(UpstreamUnreachable):
        await tokens.token()
    endpoint = await identity.accept()
    await endpoint.hear()
    await endpoint.say(granted("late"))
    monkeypatch.undo()
    assert await tokens.token() == b"late"


async def test_a_mute_endpoint_is_given_up(identity: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entra, "TIMES", {"connection_timeout": 0.1, "read_timeout": 0.1, "retry_total": 0})
    tokens = Entra(SCOPE, known.append)
    with pytest.raises(UpstreamUnreachable):
        await tokens.token()
    await tokens.aclose()


async def test_at_the_end_a_renewal_is_waited_for_a_moment(identity: Upstream) -> None:
    tokens = Entra(SCOPE, known.append)
    waiting = asyncio.ensure_future(tokens.token())
    endpoint = await identity.accept()
    await endpoint.hear()
    ending = asyncio.ensure_future(tokens.aclose())
    await endpoint.say(granted("last"))
    assert await waiting == b"last"
    await ending


async def test_a_request_s_own_key_goes_instead_of_the_token(
    start: Start, upstream: Upstream, identity: Upstream
) -> None:
    upstream.says(answer())
    said = {"security_key": CLIENT_KEY, "openai_api_key": "own", "input": "Hi"}
    async with start(**ENTRA) as proxy:
        client = await proxy.connect()
        await client.say(request("POST", b"/embeddings", body=json.dumps(said).encode()))
        assert (await client.hear()).status == 200
    assert upstream.heard[0].all(b"authorization") == [b"Bearer own"]
    assert identity.accepted == 0


async def test_neither_key_nor_token_of_a_client_goes_upstream(
    start: Start, upstream: Upstream, identity: Upstream
) -> None:
    upstream.says(answer())
    identity.says(granted("ours"))
    async with start(**ENTRA) as proxy:
        client = await proxy.connect()
        theirs = [(b"api-key", b"theirs"), (b"Authorization", b"Bearer theirs"), (b"Connection", b"authorization")]
        await client.say(request(headers=[SHOWN, *theirs]))
        assert (await client.hear()).status == 200
    assert upstream.heard[0].headers[1:] == [(b"authorization", b"Bearer ours")]


def test_a_reason_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in entra.SECRETS:
        monkeypatch.setenv(name, f"planted-{name}")
    said = "\n\t".join([*(f"planted-{name}" for name in entra.SECRETS), "eyJhbGciOi.eyJhdWQi.c2ln-_", "x" * 9999])
    told = reason(ValueError(said))
    assert told.startswith("ValueError: *** *** *** *** *** *** xxx")
    assert len(told) == entra.MOST_OF_A_REASON


async def test_a_token_that_the_upstream_says_back_is_masked_also_after_its_renewal(
    start: Start, upstream: Upstream, identity: Upstream
) -> None:
    tokens = [b"eyJ.the-first-token.of-them", b"eyJ.the-second.one"]
    identity.says_in_turn(granted(tokens[0].decode(), 100), granted(tokens[1].decode()))
    upstream.says(answer(401, [(b"X-Debug", tokens[0])], b"no: " + tokens[0]))
    async with start(PROXY_UPSTREAM_AUTH="entra", PROXY_X_API_KEY=CLIENT_KEY) as proxy:
        for _ in range(3):
            back = await ask(proxy)
            assert (back.get(b"x-debug"), back.body) == (b"*" * len(tokens[0]), b"no: " + b"*" * len(tokens[0]))
