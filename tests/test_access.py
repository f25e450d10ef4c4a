"""Who may call, in each mode, with the key in each place; and what the upstream hears of any key."""

import pytest

from proxy.access import Access
from proxy.errors import Unauthorized
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, SettingsOf, Start
from tests.peers import Pairs, Upstream, answer, request

CLIENT, SERVER = CLIENT_KEY.encode(), UPSTREAM_KEY.encode()
SIGNED = [(b"authorization", b"Bearer " + SERVER)]
OWN = (b"Authorization", b"Bearer sk-own")
OWN_AZURE = (b"Api-Key", b"own-azure")

MODES: dict[str, dict[str, str]] = {
    "transparent": {},
    "swap": SWAP,
    "guarded": {"PROXY_X_API_KEY": CLIENT_KEY},
    "open": {"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_OPEN": "1"},
}


async def heard_of(start: Start, upstream: Upstream, mode: str, headers: Pairs) -> tuple[int, Pairs | None]:
    """The status of the answer, and what the upstream heard besides the host."""
    upstream.says(answer())
    async with start(**MODES[mode]) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=headers))
        status = (await client.hear()).status
    return status, upstream.heard[0].headers[1:] if upstream.heard else None


@pytest.mark.parametrize(
    ("mode", "said", "heard"),
    [
        ("transparent", [], []),
        ("transparent", [OWN, OWN_AZURE], [(b"authorization", OWN[1]), (b"api-key", OWN_AZURE[1])]),
        ("transparent", [(b"X-API-Key", b"anything")], []),
        ("swap", [(b"X-API-Key", CLIENT)], SIGNED),
        ("swap", [(b"x-api-key", b" " + CLIENT + b" ")], SIGNED),
        ("swap", [(b"Authorization", b"Bearer " + CLIENT)], SIGNED),
        ("swap", [(b"authorization", b"bEARER   " + CLIENT)], SIGNED),
        ("swap", [(b"api-key", CLIENT)], SIGNED),
        ("swap", [(b"X-API-Key", CLIENT), OWN, OWN_AZURE], SIGNED),
        ("swap", [(b"Authorization", b"Bearer " + CLIENT), OWN_AZURE], SIGNED),
        ("swap", [(b"api-key", CLIENT), OWN], SIGNED),
        ("swap", [OWN, (b"Authorization", b"Bearer " + CLIENT)], SIGNED),
        ("swap", [(b"X-API-Key", CLIENT), (b"Connection", b"authorization")], SIGNED),
        ("guarded", [(b"X-API-Key", CLIENT), OWN, OWN_AZURE], [(b"authorization", OWN[1]), (b"api-key", OWN_AZURE[1])]),
        ("guarded", [(b"api-key", CLIENT), OWN], [(b"authorization", OWN[1])]),
        ("guarded", [(b"Authorization", b"Bearer " + CLIENT), OWN_AZURE], [(b"api-key", OWN_AZURE[1])]),
        ("guarded", [(b"Authorization", b"Bearer " + CLIENT), OWN], [(b"authorization", OWN[1])]),
        ("guarded", [(b"X-API-Key", CLIENT), (b"api-key", CLIENT), (b"Authorization", b"Bearer " + CLIENT)], []),
        ("open", [], SIGNED),
        ("open", [OWN, OWN_AZURE, (b"X-API-Key", b"anything")], SIGNED),
    ],
)
async def test_an_admitted_call_carries_these_credentials_and_no_others(
    start: Start, upstream: Upstream, mode: str, said: Pairs, heard: Pairs
) -> None:
    assert await heard_of(start, upstream, mode, said) == (200, heard)


@pytest.mark.parametrize("mode", ["swap", "guarded"])
@pytest.mark.parametrize(
    "said",
    [
        [],
        [(b"X-API-Key", b"")],
        [(b"X-API-Key", b"wrong")],
        [(b"X-API-Key", CLIENT + b"x")],
        [(b"X-API-Key", CLIENT[:-1])],
        [(b"X-API-Key", CLIENT.upper())],
        [(b"X-API-Key", b"Bearer " + CLIENT)],
        [(b"X-API-Key", CLIENT + b"," + CLIENT)],
        [(b"Authorization", CLIENT)],
        [(b"Authorization", b"Basic " + CLIENT)],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer " + SERVER)],
        [(b"api-key", SERVER)],
        [(b"Cookie", b"x-api-key=" + CLIENT)],
        [OWN],
    ],
)
async def test_without_a_right_client_key_nothing_goes_upstream(
    start: Start, upstream: Upstream, mode: str, said: Pairs
) -> None:
    assert await heard_of(start, upstream, mode, said) == (401, None)


async def test_a_refusal_has_the_older_shape_and_a_challenge(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.connect()
    await client.say(request("POST", body=b"{}", headers=[(b"X-Request-Id", b"mine")]))
    back = await client.hear()
    assert (back.status, back.body) == (401, b'{"error": "unauthorized"}')
    assert back.get(b"content-type") == b"application/json"
    assert back.get(b"www-authenticate") == b"Bearer"
    assert back.get(b"x-incoming-request-id") == b"mine"
    assert upstream.accepted == 0


@pytest.mark.parametrize(("mode", "status"), [("transparent", 200), ("swap", 405), ("guarded", 200), ("open", 405)])
async def test_no_upstream_is_asked_to_send_our_key_back(
    start: Start, upstream: Upstream, mode: str, status: int
) -> None:
    upstream.says(answer())
    async with start(**MODES[mode]) as proxy:
        client = await proxy.connect()
        await client.say(request("TRACE", headers=[(b"X-API-Key", CLIENT)]))
        back = await client.hear()
    assert (back.status, len(upstream.heard)) == (status, 1 if status == 200 else 0)
    assert back.get(b"allow") == (None if status == 200 else b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT")


@pytest.mark.parametrize("way", ["pure"], indirect=True)  # llhttp knows neither
@pytest.mark.parametrize("method", ["trace", "TRACK"])
async def test_nor_by_another_name_for_it(start: Start, upstream: Upstream, method: str) -> None:
    upstream.says(answer())
    async with start(**MODES["swap"]) as proxy:
        client = await proxy.connect()
        await client.say(request(method, headers=[(b"X-API-Key", CLIENT)]))
        assert (await client.hear()).status == 405
    assert not upstream.heard


async def test_a_refused_upload_does_not_break_the_connection(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    client = await proxy.connect()
    await client.say(request("POST", body=b"x" * 500_000))
    assert (await client.hear()).status == 401
    await client.say(request(headers=[(b"X-API-Key", CLIENT)]))
    assert (await client.hear()).status == 200


async def test_several_client_keys_overlap_while_one_is_replaced(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(OPENAI_API_KEY=UPSTREAM_KEY, PROXY_X_API_KEY="old, new", SECURITY_KEY="third") as proxy:
        client = await proxy.connect()
        for key, status in ((b"old", 200), (b"new", 200), (b"third", 200), (b"old, new", 401)):
            await client.say(request(headers=[(b"X-API-Key", key)]))
            assert (await client.hear()).status == status


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([], [(b"openai-project", b"proj_1"), (b"openai-organization", b"org_1")]),
        ([(b"OpenAI-Project", b"mine")], [(b"openai-project", b"mine"), (b"openai-organization", b"org_1")]),
        ([(b"OpenAI-Organization", b"mine")], [(b"openai-organization", b"mine"), (b"openai-project", b"proj_1")]),
    ],
)
async def test_project_and_organization_are_added_where_the_client_names_none(
    start: Start, upstream: Upstream, said: Pairs, heard: Pairs
) -> None:
    upstream.says(answer())
    async with start(**SWAP, OPENAI_PROJECT_KEY="proj_1", OPENAI_ORGANIZATION="org_1") as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"X-API-Key", CLIENT), *said]))
        await client.hear()
    assert [pair for pair in upstream.heard[0].headers if pair[0].startswith(b"openai")] == heard


async def test_project_and_organization_stay_at_home_where_the_client_pays(start: Start, upstream: Upstream) -> None:
    upstream.says(answer())
    async with start(PROXY_X_API_KEY=CLIENT_KEY, OPENAI_PROJECT_KEY="proj_1", OPENAI_ORGANIZATION="org_1") as proxy:
        client = await proxy.connect()
        await client.say(request(headers=[(b"X-API-Key", CLIENT), OWN]))
        await client.hear()
    assert upstream.heard[0].headers[1:] == [(b"authorization", OWN[1])]


async def test_the_upstream_key_is_in_no_answer_of_ours(proxy: Running, upstream: Upstream) -> None:
    upstream.says(answer())
    said = [(b"X-API-Key", CLIENT)]
    for target, headers in ((b"/", said), (b"/health", said), (b"/v1/models", []), (b"/v1/models", said)):
        client = await proxy.connect()
        await client.say(request(target=target, headers=headers, body=b"{}"), request(target=b"/health"))
        back = await client.hear()
        assert SERVER not in back.body + repr(back.headers).encode()


@pytest.mark.parametrize(
    ("names", "found"), [({}, ["key-1", "key-2"]), ({"PROXY_KEY_NAMES": "alice,bob"}, ["alice", "bob"])]
)
def test_a_key_has_the_name_that_it_was_given(settings_of: SettingsOf, names: dict[str, str], found: list[str]) -> None:
    access = Access(settings_of(PROXY_X_API_KEY="one", SECURITY_KEY="two", **names))
    assert [access.admit([(b"x-api-key", key)])[1] for key in (b"one", b"two")] == found


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch, settings_of: SettingsOf) -> None:
    compared = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return given == key

    monkeypatch.setattr("proxy.access.hmac.compare_digest", compare)
    access = Access(settings_of(PROXY_X_API_KEY="a,b,c"))
    access.admit([(b"x-api-key", b"a")])
    assert compared == [b"a", b"b", b"c"]
    with pytest.raises(Unauthorized):
        access.admit([(b"x-api-key", b"d")])
