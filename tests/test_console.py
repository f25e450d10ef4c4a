"""The operator's pages on the wire: who may see them, how often, and what a browser is told about them."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.console import OFTEN, PROBES
from proxy.errors import UpstreamTimeout
from proxy.markup import ASSETS, asset_url
from proxy.settings import load
from tests.conftest import desk_of
from tests.desk import BEARER, TOKEN, Desk
from tests.peers import Heard, Pairs, request

BROWSER = (b"Accept", b"text/html,application/xhtml+xml,*/*;q=0.8")
GUARDED = [b"/log", b"/log/live", b"/log_errors", b"/log_errors/live", b"/debug/runtime", b"/metrics", b"/health2"]
FILES = [asset_url(name).encode() for name in ASSETS]


def error(heard: Heard) -> dict[str, str]:
    found: dict[str, str] = json.loads(heard.body)["error"]
    return found


def cookie(heard: Heard) -> tuple[bytes, bytes]:
    """The cookie that an answer sets, as a browser sends it back."""
    return b"Cookie", heard.all(b"set-cookie")[0].partition(b";")[0]


@pytest.mark.parametrize("target", GUARDED)
async def test_without_the_token_a_page_is_shut(desk: Desk, target: bytes) -> None:
    for headers in ([], [(b"Authorization", b"Bearer wrong")], [(b"Cookie", b"oxy_access=1.2")]):
        heard = await desk.get(target, *headers, (b"X-Request-Id", b"mine"))
        assert heard.status == 403
        assert heard.get(b"content-type") == b"application/json"
        assert (error(heard)["code"], error(heard)["type"]) == ("OPENAI_PROXY_FORBIDDEN", "forbidden")
        assert error(heard)["incomingRequestId"] == "mine"
    wrong = await desk.get(target + b"?access_token=wrong", BEARER)
    assert wrong.status == 403
    assert not wrong.all(b"set-cookie")


@pytest.mark.parametrize("target", [target for target in GUARDED if not target.endswith(b"live")])
async def test_the_token_opens_a_page_in_each_of_its_ways(desk: Desk, target: bytes) -> None:
    assert (await desk.get(target, BEARER)).status == 200
    assert (await desk.get(target + b"?a=b&access_token=" + TOKEN.encode())).status == 200
    redirected = await desk.get(target + b"?a=b&access_token=" + TOKEN.encode(), BROWSER)
    assert (redirected.status, redirected.get(b"location")) == (303, target + b"?a=b")
    assert (await desk.get(target, cookie(redirected))).status == 200
    posted = await desk.post(target + b"?a=b", b"access_token=" + TOKEN.encode())
    assert (posted.status, posted.get(b"location")) == (303, target + b"?a=b")
    assert (await desk.get(target, cookie(posted))).status == 200


async def test_the_cookie_is_sent_to_the_pages_and_never_upstream(desk: Desk) -> None:
    made = (await desk.get(b"/log?access_token=" + TOKEN.encode(), BROWSER)).all(b"set-cookie")
    paths = {value.partition(b"Path=")[2].partition(b";")[0] for value in made}
    assert paths == {b"/log", b"/log_errors", b"/debug/runtime", b"/metrics", b"/health2"}
    assert all(b"HttpOnly" in value and b"SameSite=strict" in value and TOKEN.encode() not in value for value in made)


async def test_a_browser_is_shown_a_form_and_why(desk: Desk) -> None:
    heard = await desk.get(b"/log", BROWSER)
    assert (heard.status, heard.get(b"content-type")) == (403, b"text/html; charset=utf-8")
    assert b'<form class="narrow" method="post">' in heard.body
    assert b"This page wants the ACCESS_TOKEN of the proxy." in heard.body
    again = await desk.post(b"/log", b"access_token=<wrong>", BROWSER)
    assert again.status == 403
    assert b"This is not the ACCESS_TOKEN of the proxy." in again.body
    assert b"wrong" not in again.body


@pytest.mark.parametrize("target", GUARDED)
async def test_where_no_token_is_set_nobody_is_let_in(tmp_path: Path, target: bytes) -> None:
    async with desk_of(load({}, None), tmp_path / "history.sqlite") as desk:
        for headers in ([], [(b"Authorization", b"Bearer ")], [(b"Cookie", b"oxy_access=")]):
            heard = await desk.get(target, *headers)
            assert heard.status == 403
            assert error(heard)["message"].startswith("No ACCESS_TOKEN is set")
        shown = await desk.get(target + b"?access_token=", BROWSER)
        assert b"No ACCESS_TOKEN is set" in shown.body
        assert b"<form" not in shown.body


@pytest.mark.parametrize("target", [*GUARDED, *FILES])
async def test_what_a_page_does_not_offer_is_refused(desk: Desk, target: bytes) -> None:
    heard = await desk.get(target, BEARER, method="DELETE")
    assert (heard.status, error(heard)["code"]) == (405, "OPENAI_PROXY_METHOD_NOT_ALLOWED")
    assert (heard.get(b"allow") or b"").startswith(b"GET, HEAD")
    if target in GUARDED:
        assert b"only to be read" in (await desk.get(target, BEARER, BROWSER, method="PUT")).body


@pytest.mark.parametrize("target", [*GUARDED, *FILES])
async def test_head_is_get_without_the_body(desk: Desk, target: bytes) -> None:
    heard = await desk.get(target, BEARER, method="HEAD")
    assert heard.status == 200
    if target.endswith(b"live"):
        assert heard.get(b"content-type") == b"text/event-stream; charset=utf-8"


@pytest.mark.parametrize("target", [b"/log", b"/log_errors", b"/debug/runtime", b"/metrics", b"/health2"])
@pytest.mark.parametrize("headers", [[BEARER], [], [BROWSER]], ids=["page", "refusal", "form"])
async def test_a_browser_is_told_to_keep_and_to_run_nothing(desk: Desk, target: bytes, headers: Pairs) -> None:
    heard = await desk.get(target, *headers)
    policy = (heard.get(b"content-security-policy") or b"").decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == rules["form-action"] == "'self'"
    assert heard.get(b"cache-control") == b"no-store"
    assert heard.get(b"x-content-type-options") == b"nosniff"
    assert heard.get(b"referrer-policy") == b"no-referrer"
    assert heard.get(b"x-frame-options") == b"DENY"
    assert b"Cookie" in (heard.get(b"vary") or b"")


@pytest.mark.parametrize("target", FILES)
async def test_the_files_of_the_pages_need_no_token_and_may_be_kept(desk: Desk, target: bytes) -> None:
    heard = await desk.get(target)
    assert heard.status == 200
    assert b"immutable" in (heard.get(b"cache-control") or b"")
    assert (heard.get(b"content-type") or b"").partition(b";")[0].decode() in ASSETS.values()


async def test_one_address_may_ask_sixty_times_a_minute_for_all_pages_together(desk: Desk) -> None:
    client = await desk.proxy.connect()
    targets = [b"/log_errors", b"/health2", b"/debug/runtime"]
    for number in range(OFTEN):
        await client.say(request("GET", targets[number % 3], [BEARER] if number % 2 else []))
        assert (await client.hear()).status in (200, 403)
    heard = await desk.get(b"/log", BEARER)
    assert (heard.status, error(heard)["code"]) == (429, "OPENAI_PROXY_RATE_LIMITED")
    assert 1 <= int(heard.get(b"retry-after") or 0) <= 60
    shown = await desk.get(b"/log", BEARER, BROWSER)
    assert (shown.status, shown.get(b"content-type")) == (429, b"text/html; charset=utf-8")
    assert shown.get(b"retry-after")
    assert (await desk.get(b"/health")).status == (await desk.get(b"/metrics", BEARER)).status == 200


async def test_a_wrong_token_is_told_of_once_a_minute_and_nothing_else_is(desk: Desk, told: list[str]) -> None:
    redirected = await desk.get(b"/log?access_token=" + TOKEN.encode(), BROWSER)
    for headers in ([], [BEARER], [cookie(redirected), (b"Authorization", b"Bearer another-door's")]):
        await desk.get(b"/log", *headers)
    assert told == []
    for _ in range(3):
        await desk.post(b"/log", b"access_token=a-guess")
        await desk.get(b"/metrics?access_token=a-guess")
        await desk.get(b"/log_errors", (b"Authorization", b"Bearer a-guess"))
    assert told == ["a wrong ACCESS_TOKEN came from 127.0.0.1; said once a minute"]


async def test_health_may_be_asked_for_twenty_times_a_second(desk: Desk) -> None:
    client = await desk.proxy.connect()
    statuses = []
    for _ in range((PROBES + 10) // 10):
        await client.say(*[request("GET", b"/health")] * 10)
        statuses += [(await client.hear()).status for _ in range(10)]
    assert statuses == [200] * PROBES + [429] * 10


async def test_metrics_are_what_the_library_exposes(desk: Desk) -> None:
    heard = await desk.get(b"/metrics", BEARER)
    assert heard.body == b"a_metric 1\n"
    assert heard.get(b"content-type") == b"text/plain; version=0.0.4; charset=utf-8"


async def test_runtime_is_a_page_or_json(desk: Desk) -> None:
    shown = await desk.get(b"/debug/runtime", BEARER, BROWSER)
    assert b'<th scope="row">access_token</th><td>set, not shown</td>' in shown.body
    facts = json.loads((await desk.get(b"/debug/runtime", BEARER, (b"Accept", b"application/json"))).body)
    assert facts.keys() == {"process", "settings", "versions"}
    assert facts["settings"]["mode"] == "transparent"
    assert TOKEN not in str(facts)
    assert TOKEN.encode() not in shown.body


@pytest.mark.parametrize(
    ("said", "status", "facts"),
    [
        (200, 200, {"status": "ok", "upstream_status": 200, "time_ms": 123.4}),
        (401, 200, {"status": "ok", "upstream_status": 401, "time_ms": 123.4}),
        (500, 503, {"status": "failing", "upstream_status": 500, "time_ms": 123.4}),
        (UpstreamTimeout("slow, key sk-1"), 503, {"status": "unreachable", "code": "OPENAI_PROXY_TIMEOUT"}),
    ],
)
async def test_the_upstreams_health_is_its_status_and_time(desk: Desk, said: Any, status: int, facts: object) -> None:
    desk.upstream = said
    heard = await desk.get(b"/health2", BEARER)
    assert (heard.status, json.loads(heard.body)) == (status, facts)


async def test_all_who_ask_within_ten_seconds_share_one_call_upstream(desk: Desk) -> None:
    clients = [await desk.proxy.connect() for _ in range(5)]
    for client in clients:
        await client.say(request("GET", b"/health2", [BEARER]))
    assert [(await client.hear()).status for client in clients] == [200] * 5
    desk.upstream = 500
    assert (await desk.get(b"/health2", BEARER)).status == 200
    assert desk.asked == 1


async def test_the_upstream_is_not_asked_for_one_without_the_token(desk: Desk) -> None:
    await desk.get(b"/health2")
    assert desk.asked == 0


@pytest.mark.parametrize("target", [b"/log", b"/log_errors", b"/debug/runtime", b"/metrics", b"/health2"])
async def test_a_slash_at_the_end_leads_to_the_page_and_never_upstream(desk: Desk, target: bytes) -> None:
    for query in (b"", b"?route=a%2Fb", b"?access_token=" + TOKEN.encode()):
        heard = await desk.get(target + b"/" + query)
        assert (heard.status, heard.get(b"location")) == (308, target + query)
