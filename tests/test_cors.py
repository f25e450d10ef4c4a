"""Cross-origin requests, as browsers make them."""

import pytest

from tests.conftest import CLIENT_KEY, SWAP, Running, Start
from tests.peers import Pairs, Upstream, answer, request

ORIGIN = (b"Origin", b"https://app.example")
ASKS = [ORIGIN, (b"Access-Control-Request-Method", b"POST"), (b"Access-Control-Request-Headers", b"authorization,x-a")]
UPSTREAMS_OWN = [(b"Access-Control-Allow-Origin", b"https://them.example"), (b"Access-Control-Expose-Headers", b"x")]


def cors(headers: Pairs) -> Pairs:
    return [pair for pair in headers if pair[0].startswith(b"access-control-") or pair[0] == b"vary"]


async def test_a_preflight_is_answered_here_without_a_key(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(request("OPTIONS", b"/v1/responses", ASKS))
    back = await client.hear()
    assert back.status == 204
    assert cors(back.headers) == [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-allow-methods", b"POST"),
        (b"access-control-allow-headers", b"authorization,x-a"),
        (b"access-control-max-age", b"86400"),
    ]
    assert upstream.accepted == 0


@pytest.mark.parametrize("headers", [[], [ORIGIN], [(b"Access-Control-Request-Method", b"POST")]])
async def test_an_options_request_that_is_no_preflight_is_relayed(
    transparent: Running, upstream: Upstream, headers: Pairs
) -> None:
    upstream.says(answer())
    client = await transparent.connect()
    await client.say(request("OPTIONS", b"/v1/responses", headers))
    assert (await client.hear()).status == 200
    assert upstream.heard[0].start.startswith(b"OPTIONS ")


@pytest.mark.parametrize(
    ("setting", "origin", "expected"),
    [
        ("", b"https://app.example", [(b"access-control-allow-origin", b"*")]),
        (
            "https://App.example/,http://other.example",
            b"https://app.example",
            [(b"access-control-allow-origin", b"https://app.example"), (b"vary", b"Origin")],
        ),
        ("https://other.example", b"https://app.example", [(b"vary", b"Origin")]),
    ],
)
async def test_the_answers_own_fields_are_replaced_by_ours(
    start: Start, upstream: Upstream, setting: str, origin: bytes, expected: Pairs
) -> None:
    upstream.says(answer(headers=UPSTREAMS_OWN))
    async with start(PROXY_CORS_ORIGINS=setting) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"Origin", origin)]))
        back = await client.hear()
    assert cors(back.headers) == [*expected, (b"access-control-expose-headers", b"*")]
    assert back.body == b"{}"


async def test_a_browser_can_read_a_refusal_and_our_own_pages(proxy: Running) -> None:
    client = await proxy.connect()
    for target, status in ((b"/v1/models", 401), (b"/health", 200)):
        await client.say(request(target=target, headers=[ORIGIN]))
        back = await client.hear()
        assert (back.status, back.get(b"access-control-allow-origin")) == (status, b"*")


async def test_an_answer_to_no_origin_is_left_alone(start: Start, upstream: Upstream) -> None:
    upstream.says(answer(headers=UPSTREAMS_OWN))
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"X-API-Key", CLIENT_KEY.encode())]))
        back = await client.hear()
    assert cors(back.headers) == [(name.lower(), value) for name, value in UPSTREAMS_OWN]
