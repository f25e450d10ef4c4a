"""The proxy's own pages: what they say to whom, and that everything beside their exact paths is relayed."""

import json
import re
from html import unescape

import pytest

from proxy import __version__
from proxy.pages import KEY_HINTS, WELCOME
from proxy.server import MODES
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, Start
from tests.peers import Peer, Upstream, answer, request

BROWSER = (b"Accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
MODE_SETTINGS = {
    "transparent": {},
    "swap": SWAP,
    "guarded": {"PROXY_X_API_KEY": CLIENT_KEY},
    "open": {"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_OPEN": "1"},
}


async def page(client: Peer, host: bytes) -> str:
    """The welcome page as a browser gets it that knows the proxy under that name."""
    await client.say(b"GET / HTTP/1.1\r\nHost: %s\r\nAccept: text/html\r\n\r\n" % host)
    return (await client.hear()).body.decode()


@pytest.mark.parametrize("accept", [None, b"*/*", b"text/plain", b"text/html;q=0"])
async def test_whoever_does_not_ask_for_html_is_welcomed_in_one_line(client: Peer, accept: bytes | None) -> None:
    await client.say(request("GET", b"/", [(b"Accept", accept)] if accept else []))
    heard = await client.hear()
    assert (heard.status, heard.body) == (200, b"Welcome to the OpenAI Reverse Proxy!")
    assert heard.get(b"content-type") == b"text/plain; charset=utf-8"
    assert heard.get(b"vary") == b"Accept"


@pytest.mark.parametrize("accept", [BROWSER, (b"Accept", b"TEXT/HTML; Q=0.5")])
async def test_a_browser_is_welcomed_with_a_page_that_runs_nothing(client: Peer, accept: tuple[bytes, bytes]) -> None:
    await client.say(request("GET", b"/?from=anywhere", [accept]))
    heard = await client.hear()
    assert heard.status == 200
    assert heard.get(b"content-type") == b"text/html; charset=utf-8"
    assert heard.get(b"vary") == b"Accept"
    assert heard.get(b"x-content-type-options") == b"nosniff"
    assert (heard.get(b"content-security-policy") or b"").startswith(b"default-src 'none'; ")
    shown = heard.body.decode()
    assert shown.startswith("<!doctype html>")
    assert f"<h1>{WELCOME}</h1>" in shown
    assert f"Oxy {__version__}" in shown
    assert "$" not in shown, "a placeholder is left"
    assert not re.search(r"<script|https?://(?!proxy\.example)", shown), "it asks another host for something"


async def test_the_page_shows_the_base_url_under_which_it_was_asked_for(client: Peer) -> None:
    shown = await page(client, b"proxy.example:8443")
    assert shown.count("http://proxy.example:8443/v1") == 4
    for line in (
        'client = OpenAI(base_url="http://proxy.example:8443/v1", api_key="your OpenAI key")',
        'new OpenAI({\n  baseURL: "http://proxy.example:8443/v1",\n  apiKey: "your OpenAI key",\n})',
        'curl http://proxy.example:8443/v1/models -H "Authorization: Bearer your OpenAI key"',
    ):
        assert line in shown


@pytest.mark.parametrize(
    "host", [b"<script>alert(1)</script>", b'"><script>', b"a.example/<script>", b"a.example:<script>", b"$base_url<b>"]
)
async def test_a_host_that_is_none_is_not_shown(client: Peer, transparent: Running, host: bytes) -> None:
    shown = await page(client, host)
    assert "script" not in shown
    assert f"{transparent.url}/v1" in shown


async def test_what_a_host_may_hold_is_escaped(client: Peer) -> None:
    assert "http://a&amp;lt;b&#x27;c.example/v1" in await page(client, b"a&lt;b'c.example")


async def test_a_client_that_names_no_host_is_shown_the_address(client: Peer, transparent: Running) -> None:
    await client.say(b"GET / HTTP/1.0\r\nAccept: text/html\r\n\r\n")
    assert f"{transparent.url}/v1".encode() in (await client.hear()).body


@pytest.mark.parametrize("mode", KEY_HINTS)
async def test_the_page_says_which_key_is_wanted_and_shows_none(start: Start, mode: str) -> None:
    async with start(**MODE_SETTINGS[mode]) as proxy:
        assert proxy.settings.mode == mode
        shown = await page(await proxy.connect(), b"proxy.example")
    api_key, hint = next(hint for name, hint in KEY_HINTS.items() if name == mode)
    assert f'api_key="{api_key}"' in shown
    assert hint in shown.replace("&#x27;", "'")
    assert ("default_headers" in shown) == (mode == "guarded")
    assert CLIENT_KEY not in shown
    assert UPSTREAM_KEY not in shown


async def test_in_guarded_mode_the_page_tells_clients_to_show_both_keys(start: Start) -> None:
    async with start(**MODE_SETTINGS["guarded"]) as proxy:
        shown = unescape(await page(await proxy.connect(), b"proxy.example"))
    for line in (
        'api_key="your OpenAI key", default_headers={"X-API-Key": "your client key"})',
        'apiKey: "your OpenAI key",\n  defaultHeaders: { "X-API-Key": "your client key" },\n})',
        '-H "Authorization: Bearer your OpenAI key" -H "X-API-Key: your client key"',
    ):
        assert line in shown


def test_every_mode_has_its_hint_and_its_line_in_the_log() -> None:
    assert MODE_SETTINGS.keys() == KEY_HINTS.keys() == MODES.keys()


@pytest.mark.parametrize("target", [b"/", b"/health"])
@pytest.mark.parametrize("accept", [BROWSER, (b"Accept", b"*/*")], ids=["browser", "curl"])
async def test_head_is_get_without_the_body(client: Peer, target: bytes, accept: tuple[bytes, bytes]) -> None:
    await client.say(request("GET", target, [accept]))
    whole = await client.hear()
    await client.say(request("HEAD", target, [accept]))
    head = await client.hear(bodiless=True)
    await client.say(request("GET", target, [accept]))
    assert (await client.hear()).status == 200, "a body followed the HEAD"
    assert head.status == whole.status
    assert [name for name, _ in head.headers] == [name for name, _ in whole.headers]
    assert head.get(b"content-type") == whole.get(b"content-type")


@pytest.mark.parametrize("target", [b"/", b"/health"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_other_method_is_refused_and_not_relayed(
    client: Peer, upstream: Upstream, target: bytes, method: str
) -> None:
    await client.say(request(method, target, [(b"X-Request-Id", b"mine")], b"{}"))
    heard = await client.hear()
    assert heard.status == 405
    assert heard.get(b"allow") == b"GET, HEAD"
    assert heard.get(b"content-type") == b"application/json"
    error = json.loads(heard.body)["error"]
    request_id = error.pop("requestId")
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert heard.get(b"x-proxy-request-id") == request_id.encode()
    assert error == {
        "message": "This page is only to be read",
        "type": "invalid_request_error",
        "code": "OPENAI_PROXY_METHOD_NOT_ALLOWED",
        "incomingRequestId": "mine",
    }
    assert upstream.accepted == 0


async def test_health_says_that_it_is_alive_which_version_and_for_how_long(client: Peer, upstream: Upstream) -> None:
    heard = []
    for _ in range(2):
        await client.say(request("GET", b"/health?probe"))
        heard.append(await client.hear())
    for one in heard:
        assert one.status == 200
        assert one.get(b"content-type") == b"application/json"
        assert one.get(b"cache-control") == b"no-store"
    first, second = (json.loads(one.body) for one in heard)
    assert first.keys() == {"status", "version", "uptime"}
    assert (first["status"], first["version"]) == ("ok", __version__)
    assert 0 <= first["uptime"] <= second["uptime"] < 60
    assert upstream.accepted == 0


@pytest.mark.parametrize("target", [b"/", b"/health"])
@pytest.mark.parametrize("key", [[], [(b"Authorization", b"Bearer wrong")]], ids=["no key", "a wrong key"])
async def test_the_pages_ask_for_no_key(proxy: Running, target: bytes, key: list[tuple[bytes, bytes]]) -> None:
    client = await proxy.connect()
    await client.say(request("GET", target, key))
    heard = await client.hear()
    assert heard.status == 200
    await client.say(request("GET", b"/v1/models", key))
    assert (await client.hear()).status == 401


@pytest.mark.parametrize("listed", ["/v1/responses", "/v1/*"])
async def test_the_pages_are_there_whatever_is_relayed(start: Start, listed: str) -> None:
    async with start(PROXY_ENDPOINTS=listed) as proxy:
        client = await proxy.connect()
        for target, status in ((b"/", 200), (b"/health", 200), (b"/healthz", 404)):
            await client.say(request("GET", target))
            assert (await client.hear()).status == status


@pytest.mark.parametrize(
    "target",
    [b"/health/", b"/healthz", b"/Health", b"/logs", b"/v1/health", b"//", b"//health", b"/index.html"],
)
async def test_any_other_path_is_relayed(client: Peer, upstream: Upstream, target: bytes) -> None:
    upstream.says(answer(418))
    await client.say(request("GET", target, [BROWSER]))
    assert (await client.hear()).status == 418
    assert [heard.target for heard in upstream.heard] == [target]
