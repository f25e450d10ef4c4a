"""Who may see the operator's pages, and what the cookie is worth."""

import time
from contextlib import suppress
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import quote

import pytest
from starlette.requests import Request
from starlette.responses import Response

from proxy.errors import BodyTooLarge, Forbidden
from proxy.login import COOKIE, LIFE, Login, WrongToken

TOKEN = "a-token&of=many+characters;"
QUOTED = quote(TOKEN)
PATHS = ("/log", "/metrics")
PAIR = tuple[str, str]
BROWSER = ("accept", "text/html,*/*;q=0.8")


@pytest.fixture
def login() -> Login:
    return Login(TOKEN, PATHS)


def request(
    *headers: PAIR, method: str = "GET", query: str = "", body: tuple[bytes, ...] = (), scheme: str = "http"
) -> Request:
    pieces = iter((*body, b""))

    async def receive() -> dict[str, Any]:
        piece = next(pieces)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    scope = {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "path": "/log",
        "raw_path": b"/log",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    return Request(scope, receive)


def cookies(response: Response | None) -> list[SimpleCookie]:
    assert response is not None
    return [SimpleCookie(value.decode()) for name, value in response.raw_headers if name == b"set-cookie"]


@pytest.fixture
async def cookie(login: Login) -> str:
    (first, *_) = cookies(await login.check(request(BROWSER, query=f"access_token={QUOTED}")))
    return first[COOKIE].value


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN} "])
async def test_a_bearer_token_opens(login: Login, header: str) -> None:
    assert await login.check(request(("authorization", header))) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", "Bearer \xff\xfe")],
        [("x-api-key", TOKEN)],
        [("cookie", f"{COOKIE}={TOKEN}")],
        [("cookie", f"{COOKIE}=")],
        [("cookie", f"{COOKIE}=99999999999.{'0' * 64}")],
        [("cookie", f"{COOKIE}={'9' * 9000}.{'0' * 64}")],
        [("cookie", f"{COOKIE}=\xb2.{'0' * 64}")],
    ],
)
async def test_nothing_else_does(login: Login, headers: list[PAIR]) -> None:
    with pytest.raises(Forbidden, match="the ACCESS_TOKEN of the proxy"):
        await login.check(request(*headers))


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ("access_token={}", "/log"),
        ("a=1&access_token={}&b=%2F;c", "/log?a=1&b=%2F;c"),
        ("access%5Ftoken={}&a=%0d%0a", "/log?a=%0d%0a"),
        ("access_token=wrong&access_token={}", "/log"),
    ],
)
async def test_a_token_in_the_query_is_redirected_away_from(login: Login, query: str, location: str) -> None:
    response = await login.check(request(BROWSER, query=query.format(QUOTED)))
    assert response is not None
    assert (response.status_code, response.headers["location"]) == (303, location)


@pytest.mark.parametrize("accept", [(), (("accept", "*/*"),), (("accept", "text/html;q=0"),)])
async def test_who_is_no_browser_needs_no_jar_for_cookies(login: Login, accept: tuple[PAIR, ...]) -> None:
    assert await login.check(request(*accept, query=f"access_token={QUOTED}")) is None
    with pytest.raises(WrongToken):
        await login.check(request(*accept, query="access_token=wrong"))


async def test_the_cookie_opens_for_its_time_and_holds_no_token(login: Login, cookie: str) -> None:
    assert TOKEN not in cookie
    assert await login.check(request(("cookie", f"other=1; {COOKIE}={cookie}"))) is None
    assert await Login(TOKEN, PATHS).check(request(("cookie", f"{COOKIE}={cookie}"))) is None, "another worker"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_cookie_goes_to_the_pages_alone_and_to_no_script(login: Login, scheme: str) -> None:
    made = cookies(await login.check(request(BROWSER, query=f"access_token={QUOTED}", scheme=scheme)))
    assert [each[COOKIE]["path"] for each in made] == list(PATHS)
    for each in made:
        facts = each[COOKIE]
        assert facts["httponly"] is True
        assert facts["samesite"] == "strict"
        assert bool(facts["secure"]) is (scheme == "https")
        assert facts["max-age"] == str(LIFE)
        assert not facts["domain"]


async def test_the_cookie_is_secure_where_tls_ended_before_us(login: Login) -> None:
    asked = request(BROWSER, ("x-forwarded-proto", "https"), query=f"access_token={QUOTED}")
    assert all(each[COOKIE]["secure"] for each in cookies(await login.check(asked)))


async def test_a_cookie_ends(login: Login, cookie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end = time.time() + LIFE
    monkeypatch.setattr(time, "time", lambda: end + 1)
    with pytest.raises(Forbidden):
        await login.check(request(("cookie", f"{COOKIE}={cookie}")))


async def test_a_cookie_that_says_that_it_lives_longer_is_none(login: Login, cookie: str) -> None:
    end, _, signature = cookie.partition(".")
    with pytest.raises(Forbidden):
        await login.check(request(("cookie", f"{COOKIE}={int(end) + 1}.{signature}")))


async def test_another_token_ends_all_cookies(cookie: str) -> None:
    with pytest.raises(Forbidden):
        await Login("another", PATHS).check(request(("cookie", f"{COOKIE}={cookie}")))


async def test_the_form_takes_the_token_in_any_pieces(login: Login) -> None:
    body = f"username=oxy&access_token={QUOTED}".encode()
    for pieces in ((body,), (body[:20], body[20:]), tuple(bytes([byte]) for byte in body)):
        response = await login.check(request(method="POST", query="route=relay", body=pieces))
        assert response is not None
        assert (response.status_code, response.headers["location"]) == (303, "/log?route=relay")
        assert cookies(response)


@pytest.mark.parametrize("body", [b"", b"access_token=", b"access_token=wrong", b"\xff\xfe%", b"access_token=%ff%00"])
async def test_a_form_with_a_wrong_token_opens_nothing(login: Login, cookie: str, body: bytes) -> None:
    with pytest.raises(Forbidden, match="not the ACCESS_TOKEN"):
        await login.check(request(("cookie", f"{COOKIE}={cookie}"), method="POST", body=(body,) if body else ()))


async def test_who_leaves_has_no_cookie_any_more_and_is_led_to_the_page(login: Login, cookie: str) -> None:
    body = (b"log_out=1&access_token=wrong",)
    asked = request(("cookie", f"{COOKIE}={cookie}"), method="POST", query="route=relay", body=body, scheme="https")
    response = await login.check(asked)
    assert response is not None
    assert (response.status_code, response.headers["location"]) == (303, "/log?route=relay")
    made = cookies(response)
    assert [(each[COOKIE]["path"], each[COOKIE].value, each[COOKIE]["max-age"]) for each in made] == [
        (path, "", "0") for path in PATHS
    ]
    assert all(each[COOKIE]["secure"] and each[COOKIE]["httponly"] for each in made)


@pytest.mark.parametrize("body", [f"access_token={QUOTED}", "log_out=1"])
async def test_a_form_leads_away_from_a_token_in_its_own_query(login: Login, cookie: str, body: str) -> None:
    asked = (("cookie", f"{COOKIE}={cookie}"), BROWSER)
    for token in ("an-old-one", QUOTED):
        query = f"route=relay&access_token={token}"
        response = await login.check(request(*asked, method="POST", query=query, body=(body.encode(),)))
        assert response is not None
        assert response.headers["location"] == "/log?route=relay", "there it would be read again, before the cookie"


@pytest.mark.parametrize("headers", [[], [("cookie", f"{COOKIE}=1.2")], [("authorization", f"Bearer {TOKEN}")]])
async def test_another_site_that_has_no_cookie_logs_nobody_out(login: Login, headers: list[PAIR]) -> None:
    with pytest.raises(Forbidden, match="Nobody is logged in") as refusal:
        await login.check(request(*headers, method="POST", body=(b"log_out=1",)))
    assert not isinstance(refusal.value, WrongToken), "it is no guess"


async def test_a_link_logs_nobody_out(login: Login, cookie: str) -> None:
    assert await login.check(request(BROWSER, ("cookie", f"{COOKIE}={cookie}"), query="log_out=1")) is None


async def test_a_form_is_not_read_for_ever(login: Login) -> None:
    with pytest.raises(BodyTooLarge):
        await login.check(request(method="POST", body=(b"a" * 1000,) * 5))


async def test_token_and_cookie_are_compared_in_constant_time(
    login: Login, cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append(given)
        return given == right

    monkeypatch.setattr("proxy.login.hmac.compare_digest", compare)
    for shown in (TOKEN, "wrong"):
        with suppress(Forbidden):
            await login.check(request(("authorization", f"Bearer {shown}")))
    for shown in (cookie, cookie[:-1]):
        with suppress(Forbidden):
            await login.check(request(("cookie", f"{COOKIE}={shown}")))
    assert compared == [TOKEN.encode(), b"wrong", cookie.encode(), cookie[:-1].encode()]
