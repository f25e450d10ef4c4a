"""The pool behind httpx's interface, with httpx's own client on top."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from proxy import demo
from proxy.transport import RelayTransport
from tests.conftest import Running
from tests.peers import Upstream, answer, chunked
from tests.test_connection import OK, STREAM, UNTIL_CLOSE, turns, until
from tests.test_dial import Authority, Secure, authority

__all__ = ["authority"]  # a fixture


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=RelayTransport(), trust_env=False) as client:
        yield client


async def pieces(*said: bytes) -> AsyncIterator[bytes]:
    for piece in said:
        yield piece


async def test_a_client_gets_what_a_server_has(client: httpx.AsyncClient, upstream: Upstream) -> None:
    upstream.says(answer(201, [(b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Type", b"application/json")], b'{"a": 1}'))
    for _ in range(2):
        back = await client.get(f"{upstream.url}/v1/models?b=%2F&c", headers={"Accept": "application/json"})
        assert (back.status_code, back.headers.get_list("x-a"), back.json()) == (201, ["1", "2"], {"a": 1})
    (heard, _) = upstream.heard
    assert heard.start == b"GET /v1/models?b=%2F&c HTTP/1.1"
    assert heard.get(b"host") == upstream.url.removeprefix("http://").encode()
    assert upstream.accepted == 1


async def test_a_client_posts_json(client: httpx.AsyncClient, upstream: Upstream) -> None:
    upstream.says(answer())
    assert (await client.post(upstream.url, json={"model": "m"})).json() == {}
    (heard,) = upstream.heard
    assert json.loads(heard.body) == {"model": "m"}
    assert heard.get(b"content-length") == str(len(heard.body)).encode()


@pytest.mark.parametrize(
    ("content", "headers", "body", "framing"),
    [
        (lambda: pieces(b"a", b"", b"bc"), {}, b"abc", b"transfer-encoding"),
        (lambda: pieces(b"a", b"", b"bc"), {"Content-Length": "3"}, b"abc", b"content-length"),
        (lambda: pieces(b"x" * 70_000), {"Content-Length": "70000"}, b"x" * 70_000, b"content-length"),
        (lambda: pieces(), {}, b"", b"transfer-encoding"),
        (lambda: b"", {}, b"", b"content-length"),
        (lambda: None, {}, b"", b"content-length"),
    ],
    ids=["chunks", "a length", "a large length", "no chunks", "no bytes", "nothing"],
)
async def test_a_client_uploads(
    client: httpx.AsyncClient, upstream: Upstream, content: Any, headers: dict[str, str], body: bytes, framing: bytes
) -> None:
    upstream.says(answer())
    for _ in range(2):
        assert (await client.post(upstream.url, content=content(), headers=headers)).status_code == 200
    assert [heard.body for heard in upstream.heard] == [body, body]
    assert [heard.get(framing) is not None for heard in upstream.heard] == [True, True]
    assert upstream.accepted == 1


async def test_a_length_beside_chunks_says_nothing(upstream: Upstream) -> None:
    upstream.says(answer())
    framing = {"Content-Length": "1", "Transfer-Encoding": "chunked", "Host": "h"}
    request = httpx.Request("POST", upstream.url, headers=framing, stream=_Stream(b"abc"))
    transport = RelayTransport()
    back = await transport.handle_async_request(request)
    assert await back.aread() == b"{}"
    assert [heard.body for heard in upstream.heard] == [b"abc"]
    await transport.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, *said: bytes) -> None:
        self._said = said

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._said:
            yield piece


@pytest.mark.parametrize("end", [b"", chunked(b"")], ids=["left early", "heard to its end"])
async def test_a_client_streams_an_answer(client: httpx.AsyncClient, upstream: Upstream, end: bytes) -> None:
    async def streamed() -> list[bytes]:
        heard = []
        async with client.stream("POST", upstream.url) as back:
            async for chunk in back.aiter_raw():
                heard.append(chunk)
                if len(heard) == 2 and not end:
                    break
        return heard

    streaming = asyncio.create_task(streamed())
    there = await upstream.accept()
    await there.hear()
    for piece in (STREAM, chunked(b"data: 1\n\n"), chunked(b"data: 2\n\n") + end):
        await there.say(piece)
        await turns(5)
    assert b"".join(await streaming) == b"data: 1\n\ndata: 2\n\n"
    if not end:
        await there.closed()
        return
    upstream.says(answer())
    again = asyncio.create_task(client.get(upstream.url))
    await there.hear()
    await there.say(answer())
    assert (await again).status_code == 200
    assert upstream.accepted == 1


async def test_a_client_hears_an_answer_that_ends_with_its_connection(
    client: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.says(UNTIL_CLOSE, b"all of it", closes=True)
    assert (await client.get(upstream.url)).content == b"all of it"
    assert (await client.get(upstream.url)).content == b"all of it"
    assert upstream.accepted == 2


async def test_a_client_s_timeouts_are_kept(client: httpx.AsyncClient, upstream: Upstream) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await client.get(upstream.url, timeout=httpx.Timeout(5, read=0.02))
    upstream.says(OK + b"Content-Length: 5\r\n\r\nhal")
    with pytest.raises(httpx.ReadTimeout):
        await client.get(upstream.url, timeout=httpx.Timeout(5, read=0.02))
    async with httpx.AsyncClient(transport=RelayTransport(max_connections=1), trust_env=False) as bounded:
        asking = asyncio.create_task(bounded.get(upstream.url))
        await until(lambda: upstream.accepted == 3)
        with pytest.raises(httpx.PoolTimeout):
            await bounded.get(upstream.url, timeout=httpx.Timeout(5, pool=0.02))
        asking.cancel()
        await asyncio.wait([asking])


async def test_a_request_without_timeouts_has_none(upstream: Upstream) -> None:
    upstream.says(answer())
    transport = RelayTransport()
    back = await transport.handle_async_request(httpx.Request("GET", upstream.url))
    assert await back.aread() == b"{}"
    await transport.aclose()


async def test_a_target_goes_out_as_it_is_given(client: httpx.AsyncClient, upstream: Upstream) -> None:
    upstream.says(answer())
    await client.get(upstream.url, extensions={"target": b"//a/../%41?"})
    assert [heard.target for heard in upstream.heard] == [b"//a/../%41?"]


async def test_each_origin_has_connections_of_its_own(client: httpx.AsyncClient, upstream: Upstream) -> None:
    upstream.says(answer(body=b"one"))
    async with Upstream().listening() as second:
        second.says(answer(body=b"other"))
        for _ in range(2):
            assert (await client.get(upstream.url)).content == b"one"
            assert (await client.get(second.url)).content == b"other"
        assert (upstream.accepted, second.accepted) == (1, 1)


async def test_limits_are_those_of_each_origin(upstream: Upstream) -> None:
    upstream.says(answer())
    async with httpx.AsyncClient(transport=RelayTransport(max_connections=2, max_idle=1), trust_env=False) as client:
        await asyncio.gather(*[client.get(upstream.url) for _ in range(6)])
        assert upstream.accepted == 2
        await turns(5)
        await asyncio.gather(*[client.get(upstream.url) for _ in range(2)])
        assert upstream.accepted == 3


async def test_an_https_url_is_spoken_to_by_tls(authority: Authority) -> None:
    async with Secure(authority.context()).listening() as secure:
        url = f"https://localhost:{secure.port}"
        async with httpx.AsyncClient(transport=RelayTransport(tls=authority.trusted()), trust_env=False) as client:
            assert (await client.get(url)).json() == {}
        async with httpx.AsyncClient(transport=RelayTransport(), trust_env=False) as client:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(url)
        assert secure.names == ["localhost", "localhost"]


async def test_without_a_port_it_is_the_scheme_s_own(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    async def nowhere(host: str, port: int, **_: object) -> None:
        asked.append((host, port))
        raise OSError("no such host")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nowhere)
    monkeypatch.setattr(ssl, "create_default_context", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for url in ("http://api.example", "https://api.example", "http://b\xfccher.example/", "http://[::1]/"):
        with pytest.raises(httpx.ConnectError, match="no such host"):
            await client.get(url)
    assert asked == [("api.example", 80), ("api.example", 443), ("xn--bcher-kva.example", 80), ("::1", 80)]


async def test_a_real_server_is_understood(client: httpx.AsyncClient, demo_proxy: Running) -> None:
    uvicorn = demo_proxy.settings.target
    client.headers["Authorization"] = f"Bearer {demo.UPSTREAM_KEY}"
    assert (await client.get(f"{uvicorn}/v1/models")).json()["object"] == "list"
    asked = {"model": "gpt-4o", "input": "Hello", "stream": True}
    async with client.stream("POST", f"{uvicorn}/v1/responses", json=asked) as back:
        events = [line async for line in back.aiter_lines() if line.startswith("event: ")]
    assert (events[0], events[-1]) == ("event: response.created", "event: response.completed")
