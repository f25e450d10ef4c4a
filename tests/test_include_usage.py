"""Usage that the proxy asks for: asked of streamed chat completions alone, and heard by the ledger alone."""

import asyncio
import json
import threading
import zlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import include_usage
from proxy.aside import MOST_AT_ONCE
from proxy.exchange import Sink
from proxy.include_usage import LONGEST_EVENT, WithoutUsage, asked, less_usage
from proxy.recall import Recall
from tests.conftest import Start
from tests.peers import PATIENCE, Upstream, answer, chunked, request

CHAT = b'{"model": "m", "messages": [], "n": 1.50, "stream": true}'
WORD = b'data: {"choices":[{"delta":{"content":"a, \\"choices\\":[] "}}],"usage":null}\n\n'
USAGE = b'data: {"model":"m","choices": [ ],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "options"),
    [
        (CHAT, '{"include_usage": true}'),
        (CHAT[:-1] + b', "stream_options": null}', '{"include_usage": true}'),
        (CHAT[:-1] + b', "stream_options": {"a": 1}}', '{"a": 1, "include_usage": true}'),
    ],
)
def test_a_stream_without_usage_is_asked_for_it_and_stays_as_it_was_else(said: bytes, options: str) -> None:
    asking = asked(said)
    assert asking is not None
    assert json.loads(asking) == {**json.loads(said), "stream_options": json.loads(options)}
    assert b'"n":1.50' in asking


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"not JSON",
        b'{"stream": false}',
        b'{"model": "m"}',
        b'{"stream": 1}',
        CHAT[:-1] + b', "stream_options": {"include_usage": false}}',
        CHAT[:-1] + b', "stream_options": {"include_usage": true}}',
        CHAT[:-1] + b', "stream_options": 5}',
        CHAT[:-1] + b', "stream": true}',
    ],
)
def test_any_other_body_is_left_alone(said: bytes) -> None:
    assert asked(said) is None


class Gathered(Sink):
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def push(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        return False

    async def drain(self) -> None:
        """Return at once."""


class Said:
    """An answer that comes in these pieces, the last of them with its end."""

    status, headers, complete = 200, [(b"content-length", b"9"), (b"a", b"b")], False

    def __init__(self, *pieces: bytes) -> None:
        *self._pieces, self._last = pieces
        self.closed = False

    async def pour(self, sink: Sink) -> None:
        for piece in self._pieces:
            if not sink.push(piece):
                await sink.drain()

    def take(self) -> bytes:
        return self._last

    async def close(self) -> None:
        self.closed = True


async def less_its_event(whole: bytes, cuts: Iterable[int]) -> None:
    edges = [0, *sorted(cuts), len(whole)]
    heard: list[bytes] = []
    sink = Gathered()
    said = Said(*(whole[a:b] for a, b in pairwise(edges)))
    answer = WithoutUsage(said, heard.append)
    await answer.pour(sink)
    assert b"".join([*sink.pieces, answer.take()]) == WORD + WORD + DONE
    assert b"".join(heard) == whole
    assert answer.headers == [(b"a", b"b")]
    assert not answer.complete
    await answer.close()
    assert said.closed


@given(st.lists(st.integers(0, len(WORD + WORD + USAGE + DONE)), max_size=8))
async def test_the_event_goes_whatever_the_cutting_and_the_others_stay(cuts: list[int]) -> None:
    await less_its_event(WORD + WORD + USAGE + DONE, cuts)


async def test_the_event_goes_byte_by_byte_too() -> None:
    await less_its_event(whole := WORD + WORD + USAGE + DONE, range(len(whole)))


async def test_an_event_too_long_to_wait_for_goes_on() -> None:
    sink = Gathered()
    answer = WithoutUsage(Said(b"data: " + b"x" * LONGEST_EVENT, b"\n\n"), lambda _: None)
    await answer.pour(sink)
    assert len(sink.pieces[0]) > LONGEST_EVENT


async def test_behind_many_events_the_one_that_has_not_ended_is_waited_for() -> None:
    many = WORD * (LONGEST_EVENT // len(WORD) + 1)
    sink = Gathered()
    answer = WithoutUsage(Said(many + USAGE[:20], USAGE[20:], DONE), lambda _: None)
    await answer.pour(sink)
    assert b"".join([*sink.pieces, answer.take()]) == many + DONE


async def test_an_event_that_has_not_ended_when_the_stream_does_goes_on() -> None:
    sink = Gathered()
    answer = WithoutUsage(Said(WORD + b"data: half", b""), lambda _: None)
    await answer.pour(sink)
    assert [*sink.pieces, answer.take()] == [WORD, b"data: half"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_may_end_in_each_of_three_ways(end: bytes) -> None:
    assert less_usage((WORD + USAGE + DONE).replace(b"\n", end)) == (WORD + DONE).replace(b"\n", end)


@pytest.mark.parametrize(
    "events",
    [
        b'data: {"choices":[]}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"usage":{}\n\n',
        b'event: x\ndata: {"choices":[],"usage":{}}\n\n',
        b'data: "choices":[]\n\n',
    ],
)
def test_what_only_looks_like_it_stays(events: bytes) -> None:
    assert less_usage(events) == events


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_the_ledger_hears_of_the_usage_and_the_client_does_not(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    history = tmp_path / "history.sqlite"
    upstream.says(STREAM + chunked(WORD, USAGE + DONE, b""))
    async with start(PROXY_INCLUDE_USAGE="1", PROXY_HISTORY=str(history)) as proxy:
        client = await proxy.connect()
        await client.say(request("POST", b"/v1/chat/completions?a=b", [(b"Accept-Encoding", b"gzip")], CHAT))
        assert (await client.hear()).body == WORD + DONE
    (heard,) = upstream.heard
    assert json.loads(heard.body)["stream_options"] == {"include_usage": True}
    assert heard.get(b"content-length") == str(len(heard.body)).encode()
    assert heard.get(b"accept-encoding") is None
    (entry,) = Recall(history).newest()
    assert (entry["usage_added"], entry["tokens"]["total"]) == (True, 7)


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_a_stream_that_comes_compressed_unasked_waits_for_no_end_of_an_event(
    start: Start, upstream: Upstream
) -> None:
    coding = zlib.compressobj(wbits=31)
    word = coding.compress(WORD) + coding.flush(zlib.Z_SYNC_FLUSH)
    rest = coding.compress(USAGE + DONE) + coding.flush()
    async with start(PROXY_INCLUDE_USAGE="1") as proxy:
        client = await proxy.connect()
        await client.say(request("POST", b"/v1/chat/completions", body=CHAT))
        thinking = await upstream.accept()
        await thinking.hear()
        await thinking.say(STREAM.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1), chunked(word))
        await client.head()
        assert await client.chunk() == word
        await thinking.say(chunked(rest, b""))
        assert await client.chunk() == rest


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(("size", "where"), [(0, "MainThread"), (MOST_AT_ONCE, "oxy-json")])
async def test_a_long_body_is_looked_into_beside_the_loop(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, size: int, where: str
) -> None:
    looked: list[str] = []

    def noted(content: bytes) -> bytes | None:
        looked.append(threading.current_thread().name)
        return asked(content)

    monkeypatch.setattr(include_usage, "asked", noted)
    upstream.says(answer())
    async with start(PROXY_INCLUDE_USAGE="1") as proxy:
        client = await proxy.connect()
        said = CHAT[:-1] + b', "user": "%b"}' % (b"x" * size)
        await client.say(request("POST", b"/v1/chat/completions", body=said))
        assert (await client.hear()).status == 200
    assert [name.partition("_")[0] for name in looked] == [where]
    assert json.loads(upstream.heard[0].body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(
    "said",
    [
        request("POST", b"/v1/chat/completions", body=b'{"model": "m"}'),
        request("POST", b"/v1/responses", body=CHAT),
        request("POST", b"/v1/chat/completions", [(b"Content-Encoding", b"gzip")], CHAT),
        request("GET", b"/v1/chat/completions"),
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy.example\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(CHAT, b""),
    ],
    ids=["no stream", "another path", "compressed", "no body", "of unknown length"],
)
async def test_every_other_exchange_passes_as_it_is(start: Start, upstream: Upstream, said: bytes) -> None:
    upstream.says(answer(body=b"whatever"))
    async with start(PROXY_INCLUDE_USAGE="1") as proxy:
        client = await proxy.connect()
        await client.say(said)
        assert (await client.hear()).body == b"whatever"
    assert upstream.heard[0].body in (CHAT, b'{"model": "m"}', b"")


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(("workers", "status"), [("1", 200), ("2", 503)])
async def test_workers_share_the_room_for_bodies_that_are_looked_into(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, workers: str, status: int
) -> None:
    monkeypatch.setattr("proxy.app.MOST_LOOKED_INTO", 2 * len(CHAT))
    upstream.says(answer(body=b"whatever"))
    said = request("POST", b"/v1/chat/completions", body=CHAT)
    async with start(PROXY_INCLUDE_USAGE="1", PROXY_WORKERS=workers) as proxy:
        slow, client = await proxy.connect(), await proxy.connect()
        await slow.say(said[:-1])
        await asyncio.sleep(0.05)
        await client.say(said)
        assert (await client.hear()).status == status


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_a_body_that_has_no_room_even_alone_passes_as_it_is(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.app.MOST_LOOKED_INTO", len(CHAT))
    upstream.says(answer(body=b"whatever"))
    async with start(PROXY_INCLUDE_USAGE="1", PROXY_WORKERS="2") as proxy:
        client = await proxy.connect()
        await client.say(request("POST", b"/v1/chat/completions", body=CHAT))
        assert (await client.hear()).body == b"whatever"
    assert upstream.heard[0].body == CHAT


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_a_body_counts_as_held_until_the_upstream_has_it_and_no_longer(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = CHAT[:-1] + b', "user": "%b"}' % (b"x" * 12_000_000)  # more than the sockets of a connection hold
    monkeypatch.setattr("proxy.app.MOST_LOOKED_INTO", len(said) + len(CHAT))
    chat = request("POST", b"/v1/chat/completions", body=said)
    async with start(PROXY_INCLUDE_USAGE="1") as proxy:
        first, second, third = [await proxy.connect() for _ in range(3)]
        await first.say(chat)
        slow = await upstream.accept()
        await slow.head()
        await second.say(chat)
        assert (await second.hear()).status == 503
        async with asyncio.timeout(PATIENCE):
            await slow.reader.readexactly(len(said))  # and thinks; there is no end to be seen in what else it hears
        await asyncio.sleep(0.05)
        await third.say(chat)
        thinking = await upstream.accept()
        assert json.loads((await thinking.hear()).body)["stream_options"] == {"include_usage": True}
        await asyncio.sleep(0.05)
        await second.say(chat)
        await (await upstream.accept()).head()  # it takes no more: what is held is given back when the client is gone


@pytest.mark.parametrize("way", ["fast"], indirect=True)
async def test_short_bodies_do_not_count_while_the_upstream_thinks(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.app.MOST_LOOKED_INTO", len(CHAT))
    async with start(PROXY_INCLUDE_USAGE="1") as proxy:
        for _ in range(2):
            client = await proxy.connect()
            await client.say(request("POST", b"/v1/chat/completions", body=CHAT))
            assert (await (await upstream.accept()).hear()).start.startswith(b"POST ")
