"""What /health2 asks of the upstream, over the whole proxy."""

import json

import httpx
import pytest

from proxy import probe
from proxy.access import Access
from proxy.probe import Probe
from proxy.upstream import Upstream as UpstreamRoom
from tests.conftest import SWAP, UPSTREAM_KEY, SettingsOf, Start
from tests.desk import BEARER, TOKEN
from tests.peers import Upstream, answer, request


async def ask(start: Start, **settings: str) -> tuple[int, dict[str, object]]:
    async with start(ACCESS_TOKEN=TOKEN, **settings) as proxy:
        client = await proxy.connect()
        await client.say(request("GET", b"/health2", [BEARER]))
        heard = await client.hear()
    return heard.status, json.loads(heard.body)


async def test_the_models_are_asked_for_with_the_servers_key(start: Start, upstream: Upstream) -> None:
    upstream.says(answer(429, body=b"a secret of the upstream"))
    status, facts = await ask(start, **SWAP)
    assert (status, facts["status"], facts["upstream_status"]) == (200, "ok", 429)
    assert facts.keys() == {"status", "upstream_status", "time_ms"}
    (heard,) = upstream.heard
    assert heard.start == b"GET /v1/models HTTP/1.1"
    assert heard.get(b"authorization") == b"Bearer " + UPSTREAM_KEY.encode()
    assert TOKEN.encode() not in b"".join(value for _, value in heard.headers)


async def test_an_upstream_that_does_not_answer_in_time_is_said(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0.05)
    assert await ask(start) == (503, {"status": "unreachable", "code": "OPENAI_PROXY_TIMEOUT"})


@pytest.mark.parametrize("said", [b"no HTTP\r\n\r\n", b"HTTP/1.1 999 None\r\nContent-Length: 0\r\n\r\n"])
async def test_an_upstream_that_says_nothing_of_use_is_said(start: Start, upstream: Upstream, said: bytes) -> None:
    upstream.says(said)
    assert await ask(start) == (503, {"status": "unreachable", "code": "OPENAI_PROXY_TRANSPORT"})


async def test_a_fault_of_ours_stays_one(settings_of: SettingsOf) -> None:
    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise ZeroDivisionError

    settings = settings_of()
    with pytest.raises(ZeroDivisionError):
        await Probe(UpstreamRoom(settings, Broken()), Access(settings))()
