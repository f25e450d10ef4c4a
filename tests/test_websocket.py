"""Sessions over WebSocket, heard at both ends."""

import asyncio
import gzip
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from proxy.exchange import ABNORMAL, Close
from proxy.recall import Recall
from proxy.session import Session
from proxy.settings import load
from proxy.wanted import Wanted
from proxy.websocket import relay
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Running, running
from tests.desk import BEARER, TOKEN
from tests.peers import PATIENCE, Peer, Upstream, request
from tests.sockets import (
    OFFER,
    End,
    Far,
    binary,
    dial,
    ended,
    fields,
    fill,
    hear,
    proxy_protocols,
    raw_session,
    session,
    settled,
)
from tests.test_metrics import samples, series

GUARDED = {"PROXY_X_API_KEY": CLIENT_KEY}
OPEN = {"OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_OPEN": "1"}
ITEM = "openai-insecure-api-key."
HELD = 24 * 2**20  # bytes that may be under way towards one who does not read; most of them are in the kernel

Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    async with Far().listening() as far:
        yield far


@pytest.fixture
def start(far: Far) -> Start:
    """Start a proxy before that upstream."""
    return lambda **environ: running(load({"OXY_TARGET": far.url, **environ}, None))


@pytest.fixture
async def proxy(start: Start) -> AsyncIterator[Running]:
    async with start() as proxy:
        yield proxy


async def refused(proxy: Running, **options: object) -> Response:
    """The answer to a handshake that leads to no session."""
    with pytest.raises(InvalidStatus) as refusal:
        async with dial(proxy, **options):  # type: ignore[arg-type]
            pass
    return refusal.value.response


# ---- messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 16 * 2**20])
@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_a_message_of_any_size_passes_unchanged_both_ways(proxy: Running, far: Far, size: int, kind: str) -> None:
    message = "a" * size if kind == "text" else os.urandom(size)
    async with session(proxy, far) as (client, there):
        await client.send(message)
        assert await hear(there) == message
        await there.send(message)
        assert await hear(client) == message


async def test_messages_pass_in_order_whatever_they_are(proxy: Running, far: Far) -> None:
    @hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.booleans(), st.text() | st.binary()), max_size=12))
    def check(script: list[tuple[bool, str | bytes]]) -> None:
        waiting.append(script)

    waiting: list[list[tuple[bool, str | bytes]]] = []
    check()
    async with session(proxy, far) as (client, there):
        for script in waiting:
            for up, message in script:
                await (client if up else there).send(message)
            assert [await hear(there) for up, _ in script if up] == [said for up, said in script if up]
            assert [await hear(client) for up, _ in script if not up] == [said for up, said in script if not up]


@pytest.mark.parametrize("pieces", [["a", "", "b€", ""], [b"\xff", b"\x00" * 70_000, b""], ["x"] * 5000])
async def test_a_message_in_fragments_arrives_whole(proxy: Running, far: Far, pieces: list[str] | list[bytes]) -> None:
    whole = pieces[0][:0].join(pieces)  # type: ignore[arg-type]
    async with session(proxy, far) as (client, there):
        for end, other in ((client, there), (there, client)):
            await end.send(pieces)
            assert await hear(other) == whole


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
async def test_a_slow_reader_slows_the_writer_and_loses_nothing(proxy: Running, far: Far, up: bool) -> None:
    message = os.urandom(2**20)
    async with session(proxy, far) as (client, there):
        writer, reader = (client, there) if up else (there, client)
        writing = asyncio.create_task(fill(writer, message, most=100))
        count = await writing
        assert count < HELD / len(message)
        for _ in range(count):
            assert await hear(reader) == message


async def test_a_message_above_the_limit_ends_the_session(start: Start, far: Far) -> None:
    async with start(PROXY_WEBSOCKET_MAX_MB="1") as proxy:
        async with session(proxy, far) as (client, there):
            await client.send(b"x" * (2**20 + 1))
            assert (await ended(client))[0] == 1009
            assert (await ended(there))[0] == 1011
        async with session(proxy, far) as (client, there):
            await there.send(b"x" * (2**20 + 1))
            assert await ended(client) == (1011, "The upstream said what the proxy does not take")
        async with session(proxy, far) as (client, there):
            await client.send(b"x" * 2**20)
            assert len(await hear(there)) == 2**20


async def test_pings_are_answered_on_each_side(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there), asyncio.timeout(PATIENCE):
        await (await client.ping())
        await (await there.ping())


async def test_a_client_that_pings_and_does_not_read_is_answered_in_the_end(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there), asyncio.timeout(PATIENCE):
        await fill(there, b"x" * 2**20, most=100)
        pongs = [await client.ping() for _ in range(5)]
        reading = asyncio.create_task(ended(client))
        await pongs[-1]
        await there.close()
        await reading


async def test_keys_that_an_upstream_says_back_are_masked(start: Start, far: Far) -> None:
    async with start(**SWAP) as proxy:
        said = f"you said {UPSTREAM_KEY}, {CLIENT_KEY}".encode()
        far.answers = Response(401, "Unauthorized", Headers([("X-Debug", UPSTREAM_KEY)]), said)
        with pytest.raises(InvalidStatus) as refused:
            await dial(proxy, key=CLIENT_KEY)
        told = refused.value.response
        masked = said.replace(UPSTREAM_KEY.encode(), b"*" * len(UPSTREAM_KEY))
        assert told.body == masked.replace(CLIENT_KEY.encode(), b"*" * len(CLIENT_KEY))
        assert told.headers["X-Debug"] == "*" * len(UPSTREAM_KEY)


async def test_a_key_in_a_compressed_refusal_is_masked_and_the_refusal_plain(start: Start, far: Far) -> None:
    said = f"you said {UPSTREAM_KEY}".encode()
    async with start(**SWAP) as proxy:
        far.answers = Response(401, "Unauthorized", Headers([("Content-Encoding", "gzip")]), gzip.compress(said))
        with pytest.raises(InvalidStatus) as refused:
            await dial(proxy, key=CLIENT_KEY)
        told = refused.value.response
        assert told.body == said.replace(UPSTREAM_KEY.encode(), b"*" * len(UPSTREAM_KEY))
        assert "Content-Encoding" not in told.headers


async def test_of_a_broken_refusal_with_a_key_in_it_no_part_looks_whole(start: Start, far: Far) -> None:
    async with start(**SWAP) as proxy:
        broken = gzip.compress(UPSTREAM_KEY.encode())[:-4]
        far.answers = Response(401, "Unauthorized", Headers([("Content-Encoding", "gzip")]), broken)
        with pytest.raises(InvalidStatus) as refused:
            await dial(proxy, key=CLIENT_KEY)
        assert refused.value.response.status_code == 502


async def test_a_key_in_the_reason_of_a_close_is_masked(start: Start, far: Far) -> None:
    async with start(**SWAP) as proxy, session(proxy, far, key=CLIENT_KEY) as (client, there):
        await there.close(1008, f"no such key: {UPSTREAM_KEY}")
        assert await ended(client) == (1008, f"no such key: {'*' * len(UPSTREAM_KEY)}")


async def test_a_key_in_the_head_of_a_session_is_masked(tmp_path: Path) -> None:
    def debug(_: ServerConnection, __: Request, response: Response) -> None:
        response.headers["X-Debug"] = UPSTREAM_KEY

    async with (
        Far().listening(process_response=debug) as far,
        running(load({"OXY_TARGET": far.url, **SWAP}, tmp_path)) as proxy,
        session(proxy, far, key=CLIENT_KEY) as (client, _),
    ):
        assert client.response is not None
        assert client.response.headers["X-Debug"] == "*" * len(UPSTREAM_KEY)


@pytest.mark.parametrize(
    ("style", "heard"),
    [
        ({"PROXY_AZURE": "v1"}, "/openai/v1/realtime?model=m"),
        (
            {"PROXY_AZURE": "deployments", "OPENAI_API_VERSION": "2024-10-01-preview"},
            "/openai/realtime?model=m&api-version=2024-10-01-preview",
        ),
    ],
)
async def test_on_azure_a_session_is_opened_where_azure_has_it(
    start: Start, far: Far, style: dict[str, str], heard: str
) -> None:
    async with (
        start(**SWAP, **style, PROXY_UPSTREAM_AUTH="api-key") as proxy,
        session(proxy, far, target="/v1/realtime?model=m", key=CLIENT_KEY),
    ):
        assert far.heard[0].path == heard
        assert far.heard[0].headers["api-key"] == UPSTREAM_KEY


# ---- what is written down, and how many there may be


async def test_a_session_is_one_entry_in_the_ledger(start: Start, far: Far, tmp_path: Path) -> None:
    history = tmp_path / "history.sqlite"
    done = (
        '{"type": "response.done", "response": {"usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}}'
    )
    created = '{"type": "session.created", "session": {"model": "gpt-realtime"}}'
    async with (
        start(**SWAP, PROXY_HISTORY=str(history)) as proxy,
        session(proxy, far, key=CLIENT_KEY) as (client, there),
    ):
        await client.send("abc")
        await there.send(done)
        await there.send(b"12345")
        await there.send(created)
        await hear(client)
        await hear(client)
        await hear(client)
        await client.close(4000, "done")
        await ended(there)
    (entry,) = Recall(history).newest()
    expected = {
        **{
            "route": "websocket",
            "status": 101,
            "result": "success",
            "stream": True,
            "key": "key-1",
            "close_code": 4000,
        },
        **{"messages_in": 1, "bytes_in": 3, "messages_out": 3, "bytes_out": len(created + done) + 5},
        **{"model": "gpt-realtime", "tokens": {"input": 5, "output": 2, "total": 7}},
    }
    assert {fact: entry.get(fact) for fact in expected} == expected


@pytest.mark.parametrize("answers", [None, Response(403, "No", Headers([("X-Request-Id", "req_1")]), b"not you")])
async def test_how_the_upstream_answered_a_handshake_is_in_the_entry(
    start: Start, tmp_path: Path, answers: Response | None
) -> None:
    def named(_: object, __: object, response: Response) -> None:
        response.headers["X-Request-Id"] = "req_1"

    history = tmp_path / "history.sqlite"
    async with (
        Far().listening(process_response=named) as far,
        start(OXY_TARGET=far.url, PROXY_HISTORY=str(history)) as proxy,
    ):
        far.answers = answers
        if answers is None:
            async with session(proxy, far):
                pass
        else:
            await refused(proxy)
    (entry,) = Recall(history).newest()
    assert (entry["status"], entry["upstream_id"]) == (403 if answers else 101, "req_1")
    assert entry["bytes_out"] == len(answers.body if answers and answers.body else b"")
    assert 0 < entry["upstream_wait"] <= entry["first_byte"] <= entry["duration"]


async def test_the_bytes_of_a_refused_handshake_are_counted(start: Start, tmp_path: Path) -> None:
    history = tmp_path / "history.sqlite"
    async with start(**SWAP, PROXY_HISTORY=str(history)) as proxy:
        response = await refused(proxy)
    (entry,) = Recall(history).newest()
    assert (entry["status"], entry["bytes_out"]) == (401, len(response.body or b""))


@pytest.mark.parametrize(
    ("how", "result", "failure"),
    [
        ("the upstream closes", "success", None),
        ("the upstream vanishes", "upstream_transport", "The connection to the upstream broke"),
        ("the upstream says too much", "upstream_transport", "The upstream said what the proxy does not take"),
        ("the client vanishes", "client_cancelled", "the client hung up"),
        ("the client says too much", "validation_error", "A message of the client is larger than the proxy takes"),
        ("the client babbles", "validation_error", "The client said what is not valid WebSocket"),
    ],
)
async def test_a_session_that_broke_is_no_success_and_its_entry_says_whose_fault_that_was(
    start: Start, far: Far, tmp_path: Path, how: str, result: str, failure: str | None
) -> None:
    history = tmp_path / "history.sqlite"
    environ = {"ACCESS_TOKEN": TOKEN, "PROXY_HISTORY": str(history), "PROXY_WEBSOCKET_MAX_MB": "1"}
    async with start(**environ) as proxy, session(proxy, far) as (client, there):
        end = client if "client" in how else there
        if "closes" in how:
            await end.close()
        elif "vanishes" in how:
            cut(end)
        elif "much" in how:
            await end.send(b"x" * (2**20 + 1))
        else:
            client.transport.write(b"\x83\x80\0\0\0\0")
        await ended(client)
        await ended(there)
        await settled()
    (entry,) = Recall(history).newest()
    assert (entry["status"], entry["result"], entry.get("failure")) == (101, result, failure)
    assert entry["close_code"] == (1000 if failure is None else 1006)
    assert entry["cancelled"] is (result == "client_cancelled")
    assert len(Recall(history).newest(Wanted(failed=True))) == (result not in ("success", "client_cancelled"))


async def test_a_session_is_in_flight_until_it_ends(start: Start, far: Far) -> None:
    async def in_flight() -> float:
        await operator.say(request("GET", b"/metrics", [BEARER]))
        return samples((await operator.hear()).body)[series("oxy_exchanges_in_flight")]

    async with start(ACCESS_TOKEN=TOKEN) as proxy:
        operator = await proxy.connect()
        async with session(proxy, far):
            assert await in_flight() == 1
        await settled()
        assert await in_flight() == 0


async def test_a_session_takes_a_slot_and_gives_it_back(start: Start, far: Far) -> None:
    async with start(OPENAI_PROXY_MAX_PARALLEL_REQUESTS="1") as proxy:
        async with session(proxy, far):
            with pytest.raises(InvalidStatus) as refused:
                await dial(proxy)
            assert refused.value.response.status_code == 503
        await asyncio.sleep(0.05)
        async with session(proxy, far) as (client, there):
            await client.send("again")
            assert await hear(there) == "again"


# ---- the end


CODES = [
    (1000, ""),
    (1001, "page left"),
    (1003, ""),
    (1008, "policy"),
    (1009, ""),
    (1012, ""),
    (3000, "x" * 123),
    (4999, "é"),
]


@pytest.mark.parametrize("close", CODES, ids=str)
@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_code_and_reason_of_a_close_are_carried_over(
    proxy: Running, far: Far, close: tuple[int, str], side: str
) -> None:
    async with session(proxy, far) as (client, there):
        closing, other = (client, there) if side == "client" else (there, client)
        await closing.close(*close)
        assert await ended(other) == close


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_close_without_a_code_stays_without_one(proxy: Running, far: Far, side: str) -> None:
    async with session(proxy, far) as (client, there):
        closing, other = (client, there) if side == "client" else (there, client)
        await closing.close(None)  # type: ignore[arg-type]
        assert await ended(other) == (1005, "")


async def test_what_was_said_before_a_close_arrives_before_it(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there):
        for _ in range(100):
            await client.send("x" * 10_000)
        await client.close(4000, "done")
        assert [await hear(there) for _ in range(100)] == ["x" * 10_000] * 100
        assert await ended(there) == (4000, "done")


def cut(end: End) -> None:
    """Reset the connection, without a word."""
    sock: socket.socket = end.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while it is spoken to"])
async def test_a_vanished_client_ends_the_upstreams_session(proxy: Running, far: Far, busy: bool) -> None:
    async with session(proxy, far) as (client, there):
        if busy:
            await fill(there, b"x" * 2**20, most=100)
        cut(client)
        async with asyncio.timeout(1):
            assert (await ended(there))[0] == 1011


async def test_a_vanished_upstream_is_1011_to_the_client(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there):
        cut(there)
        assert await ended(client) == (1011, "The connection to the upstream broke")


@pytest.mark.parametrize(("end", "code"), [("closes", 4000), ("vanishes", 1006)])
async def test_an_upstream_that_does_not_read_keeps_no_session_that_the_client_has_left(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, code: int
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.CLOSE_TIMEOUT", 0.1)
    history = tmp_path / "history.sqlite"
    environ = {"OPENAI_PROXY_MAX_PARALLEL_REQUESTS": "1", "PROXY_HISTORY": str(history)}
    async with start(OXY_TARGET=upstream.url, **environ) as proxy:
        client, there = await raw_session(proxy, upstream)
        there.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is one that also reads
        await client.say(binary(b"x" * HELD))
        if end == "closes":
            await client.say(b"\x88\x82\0\0\0\0\x0f\xa0")
        else:
            client.abort()
        await settled()
        await raw_session(proxy, upstream)
        there.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await there.closed()
    assert [entry["close_code"] for entry in Recall(history).newest()][-1] == code


async def test_what_waits_for_an_upstream_when_its_client_closes_arrives(start: Start, upstream: Upstream) -> None:
    async with start(OXY_TARGET=upstream.url) as proxy:
        client, there = await raw_session(proxy, upstream)
        there.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(binary(b"x" * HELD), binary(b"y"), b"\x88\x82\0\0\0\0\x0f\xa0")
        await client.until(b"\x88\x02\x0f\xa0")
        there.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE):
            await there.reader.readexactly(2 + 8 + 4 + HELD)
            assert (await there.reader.readexactly(2 + 4 + 1))[:2] == b"\x82\x81"
            assert (await there.reader.readexactly(2 + 4 + 2))[:2] == b"\x88\x82"
        there.abort()


@pytest.mark.untraced
async def test_a_client_that_does_not_read_keeps_no_session_that_the_upstream_has_left(
    start: Start, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.PING_INTERVAL", 0.01)  # while a message waits, nothing else notices
    async with start(OPENAI_PROXY_MAX_PARALLEL_REQUESTS="1") as proxy, session(proxy, far) as (client, there):
        await fill(there, b"x" * 2**20, most=100)
        cut(there)
        await settled()
        async with session(proxy, far) as (another, beyond):
            await another.send("hello")
            assert await hear(beyond) == "hello"
        assert await hear(client) == b"x" * 2**20
        assert await ended(client) == (1011, "The connection to the upstream broke")


async def test_a_client_that_closes_without_reading_on_is_let_go(proxy: Running, far: Far) -> None:
    async with session(proxy, far, close_timeout=0.1) as (client, there):
        await fill(there, b"x" * 2**20, most=100)
        await client.close(4000, "enough")
        assert await ended(there) == (4000, "enough")


@pytest.mark.parametrize(
    "frame",
    [b"\x81\x01a", b"\xf1\x80\0\0\0\0", b"\x81\x81\0\0\0\0\xff", b"\x83\x80\0\0\0\0", b"\x80\x80\0\0\0\0"],
    ids=["unmasked", "reserved bits", "not UTF-8", "an unknown kind", "a continuation of nothing"],
)
async def test_a_client_that_does_not_speak_the_protocol_breaks_the_session(
    capsys: pytest.CaptureFixture[str], proxy: Running, far: Far, frame: bytes
) -> None:
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    there = await far.accept()
    assert (await client.head()).status == 101
    await client.say(frame)
    assert (await ended(there))[0] == 1011
    assert (await client.rest())[:1] == b"\x88"
    await settled()
    assert capsys.readouterr().err == ""


async def test_the_order_to_stop_closes_both_sides_with_1001(far: Far, tmp_path: Path) -> None:
    environ = {**os.environ, "OXY_TARGET": far.url, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "proxy", "--port", "0", "--host", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE)
    assert process.stderr is not None
    line = (await process.stderr.readuntil(b"\n")).decode()
    proxy = Running(port=int(line.rsplit(":", 1)[1]), settings=load({}, tmp_path))
    async with session(proxy, far) as (client, there), session(proxy, far) as (other, _):
        process.send_signal(signal.SIGTERM)
        for end in (client, there, other):
            assert await ended(end) == (1001, "The proxy stops")
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    assert b"Traceback" not in await process.stderr.read()


GOING_AWAY = b"\x88\x11\x03\xe9The proxy stops"


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
async def test_the_order_to_stop_reaches_a_client_whatever_its_upstream_does(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.CLOSE_TIMEOUT", 6 * PATIENCE)
    async with start(OXY_TARGET=upstream.url) as proxy:
        client, there = await raw_session(proxy, upstream)
        [protocol] = proxy_protocols()
        protocol.close_timeout = 6 * PATIENCE
        if not reads:
            there.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.say(binary(b"x" * HELD), binary(b"y"))
            async with asyncio.timeout(PATIENCE):
                while not protocol.read_paused:  # noqa: ASYNC110  nothing tells when
                    await asyncio.sleep(0.01)
        proxy.stop()
        assert await client.reader.readexactly(len(GOING_AWAY)) == GOING_AWAY
        await client.say(b"\x88\x82\0\0\0\0\x03\xe9")
        await client.closed()
        if reads:
            assert (await there.reader.readexactly(6))[:2] == b"\x88\x91"
        there.abort()
        await settled()


async def test_the_order_to_stop_reaches_an_upstream_whatever_its_client_does(
    capsys: pytest.CaptureFixture[str], proxy: Running, far: Far
) -> None:
    async with session(proxy, far) as (client, there):
        await fill(there, b"x" * 2**20, most=100)
        proxy.stop()
        assert await ended(there) == (1001, "The proxy stops")
        await settled()
        assert await ended(client) == (1001, "The proxy stops")
    assert capsys.readouterr().err == ""


async def test_a_fault_of_ours_closes_both_sides_with_1011_and_says_nothing_of_itself(
    proxy: Running, far: Far, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("a secret")

    logging.getLogger("oxy").addHandler(caplog.handler)
    monkeypatch.setattr("proxy.session.Session.learn", break_down)
    async with session(proxy, far) as (client, there):
        await there.send("anything")
        code, reason = await ended(client)
        assert (code, "secret" in reason) == (1011, False)
        assert (await ended(there))[0] == 1011
    logging.getLogger("oxy").removeHandler(caplog.handler)
    assert "RuntimeError: a secret" in caplog.text


async def test_a_fault_on_the_clients_side_of_ours_is_known_too(
    proxy: Running, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.Remote.send", lambda *_: 1 / 0)
    async with session(proxy, far) as (client, there):
        await client.send("anything")
        assert (await ended(client))[0] == 1011
        assert (await ended(there))[0] == 1011


async def test_a_session_that_outlasts_the_grace_time_is_cut_off(proxy: Running, far: Far) -> None:
    async with session(proxy, far) as (client, there):
        [task] = [task for task in asyncio.all_tasks() if "run_asgi" in repr(task)]
        task.cancel()
        assert (await ended(there))[0] == 1011
        assert (await ended(client))[0] == 1006


async def test_a_session_that_is_cut_off_waits_for_its_upstream_no_longer_than_a_close_takes(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_websocket.CLOSE_TIMEOUT", 0.1)
    async with start(OXY_TARGET=upstream.url) as proxy:
        client, there = await raw_session(proxy, upstream)
        there.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(binary(b"x" * HELD))
        [task] = [task for task in asyncio.all_tasks() if "run_asgi" in repr(task)]
        task.cancel()
        await client.closed()
        await settled()


async def test_a_session_that_is_cut_off_when_its_client_has_closed_is_not_the_clients_doing(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    history = tmp_path / "history.sqlite"
    async with start(OXY_TARGET=upstream.url, PROXY_HISTORY=str(history)) as proxy:
        client, there = await raw_session(proxy, upstream)
        proxy.stop()
        await client.until(GOING_AWAY)
        await client.say(b"\x88\x82\0\0\0\0\x03\xe9")
        await client.closed()
        [task] = [task for task in asyncio.all_tasks() if "run_asgi" in repr(task)]
        task.cancel()
        await settled()
        there.abort()
    (entry,) = Recall(history).newest()
    assert (entry["status"], entry["result"]) == (101, "proxy_overloaded")


async def test_a_handshake_that_waits_when_the_proxy_stops_is_503(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    history = tmp_path / "history.sqlite"
    async with start(OXY_TARGET=upstream.url, PROXY_HISTORY=str(history)) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER))
        there = await upstream.accept()
        await there.head()
        proxy.stop()
        back = await client.hear()
        assert (back.status, back.get(b"retry-after")) == (503, b"1")
        await client.closed()
        await there.closed()
    (entry,) = Recall(history).newest()
    assert (entry["status"], entry["result"], entry["cancelled"]) == (503, "proxy_overloaded", False)


async def test_idle_sockets_are_kept_alive_and_a_missing_pong_ends_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server.PING_INTERVAL", 0.01)
    monkeypatch.setattr("proxy.upstream_websocket.PING_INTERVAL", 0.01)
    async with Upstream().listening() as upstream, start(OXY_TARGET=upstream.url) as proxy:
        client, there = await raw_session(proxy, upstream)
        async with asyncio.timeout(PATIENCE):
            for _ in range(3):
                assert (await client.reader.readexactly(6))[:2] == b"\x89\x04"
                assert (await there.reader.readexactly(10))[:2] == b"\x89\x84"
            await client.say(b"\x82\x81\0\0\0\0a")
            while (await there.reader.readexactly(2)) == b"\x89\x84":
                await there.reader.readexactly(8)
        there.abort()


@pytest.mark.untraced
async def test_two_hundred_sessions_at_once_keep_their_messages_apart(proxy: Running, far: Far) -> None:
    async def one(number: int) -> None:
        async with dial(proxy, f"/v1/{number}") as client:
            for turn in range(2):
                await client.send(f"{number} {turn}")
                assert await hear(client) == f"/v1/{number}: {number} {turn}"

    async def echo() -> None:
        while True:
            echoes.append(asyncio.create_task(echo_on(await far.sessions.get())))

    async def echo_on(there: End) -> None:
        assert there.request is not None
        async for message in there:
            await there.send(f"{there.request.path}: {message!s}")

    echoes: list[asyncio.Task[None]] = []
    echoing = asyncio.create_task(echo())
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*map(one, range(200)))
    echoing.cancel()
    await asyncio.gather(*echoes)


# ---- the handshake


@pytest.mark.parametrize(
    "target", ["/v1/realtime?model=a%20b;c&x=", "/v1/a;b=c/%2F//?", "/?a&a", "/v1/responses", "/openai/x?api-version=1"]
)
async def test_a_target_goes_on_as_it_came(proxy: Running, far: Far, target: str) -> None:
    client = await proxy.connect()
    await client.say(request(target=target.encode(), headers=OFFER))
    assert (await client.head()).status == 101
    assert far.heard[0].path == target


async def test_the_older_prefix_and_the_targets_own_path_are_put_in_place(start: Start, far: Far) -> None:
    async with start(OXY_TARGET=f"{far.url}/base/v1") as proxy, dial(proxy, "/api/openai/v1/realtime?a"):
        assert far.heard[0].path == "/base/v1/realtime?a"


async def test_fields_cross_as_those_of_a_request_do(start: Start, far: Far) -> None:
    sent = [
        ("OpenAI-Beta", "realtime=v1"),
        ("Origin", "https://app.example"),
        ("Cookie", "a=b"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("X-Latin", "caf\xe9"),
        ("Connection", "X-Named"),
        ("X-Named", "ends"),
        ("X-Internal-Id", "ends"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Content-Length", "0"),
    ]
    async with (
        start(OXY_HOP_HEADER_PREFIX="x-internal-", PROXY_FORWARDED="append") as proxy,
        dial(proxy, headers=sent, user_agent_header=None),
    ):
        heard = [(name.lower(), value) for name, value in far.heard[0].headers.raw_items()]
    framing = [name for name, _ in heard[:5]]
    assert framing == ["host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"]
    kept = [(name.lower(), value) for name, value in sent[:6]]
    assert heard[5:] == [*kept, ("x-forwarded-for", "1.2.3.4, 127.0.0.1")]
    assert heard[0] == ("host", f"127.0.0.1:{far.port}")


async def test_fields_of_the_upstreams_answer_cross_too(proxy: Running, far: Far, tmp_path: Path) -> None:
    def add(_: object, __: object, response: Response) -> None:
        response.headers.update([("Set-Cookie", "a=b"), ("Set-Cookie", "c=d"), ("X-Request-Id", "req_1")])

    async with (
        Far().listening(process_response=add, server_header="theirs") as far,
        running(load({"OXY_TARGET": far.url}, tmp_path)) as proxy,
        dial(proxy, headers=[("X-Request-Id", "mine")]) as client,
    ):
        assert client.response is not None
        assert fields(client.response, "Set-Cookie") == ["a=b", "c=d"]
        assert fields(client.response, "X-Request-Id") == ["req_1"]
        assert fields(client.response, "X-Incoming-Request-Id") == ["mine"]
        assert fields(client.response, "Server") == ["theirs"]
        assert len(fields(client.response, "X-Proxy-Request-Id")) == 1
        assert len(fields(client.response, "Date")) == 1
        assert len(fields(client.response, "Upgrade")) == 1


@pytest.mark.parametrize("chosen", [None, "realtime", "openai-beta.realtime-v1"])
async def test_the_upstreams_choice_of_subprotocol_is_the_clients(proxy: Running, far: Far, chosen: str | None) -> None:
    far.chooses = Subprotocol(chosen) if chosen else None
    async with dial(proxy, subprotocols=["realtime", "openai-beta.realtime-v1"]) as client:
        assert client.subprotocol == chosen
    assert fields(far.heard[0], "Sec-WebSocket-Protocol") == ["realtime, openai-beta.realtime-v1"]


async def test_a_subprotocol_with_a_key_in_it_is_nobodys_choice(start: Start, far: Far) -> None:
    far.chooses = Subprotocol(ITEM + UPSTREAM_KEY)
    async with start(**SWAP) as proxy, dial(proxy, subprotocols=["realtime", ITEM + CLIENT_KEY]) as client:
        assert client.subprotocol is None
        assert client.response is not None
        assert UPSTREAM_KEY not in str(client.response.headers)


# ---- keys


SHOWN = {
    "as a bearer": {"headers": [("Authorization", f"Bearer {CLIENT_KEY}")]},
    "as X-API-Key": {"headers": [("X-API-Key", CLIENT_KEY)]},
    "as Azure's": {"headers": [("api-key", CLIENT_KEY)]},
    "as a subprotocol": {"subprotocols": ["realtime", ITEM + CLIENT_KEY, "openai-beta.realtime-v1"]},
    "in the query": {"target": f"/v1/realtime?model=m&security_key={CLIENT_KEY}&x="},
    "in the query, encoded": {"target": f"/v1/realtime?security%5Fkey=%63{CLIENT_KEY[1:]}"},
    "everywhere": {
        "headers": [("Authorization", f"Bearer {CLIENT_KEY}"), ("X-API-Key", CLIENT_KEY), ("api-key", CLIENT_KEY)],
        "subprotocols": [ITEM + CLIENT_KEY, ITEM + "another"],
        "target": f"/v1/realtime?security_key={CLIENT_KEY}",
    },
}
each_place = pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)


@each_place
async def test_a_client_key_is_swapped_wherever_it_is_shown(start: Start, far: Far, shown: dict[str, object]) -> None:
    async with start(**SWAP) as proxy, dial(proxy, **shown) as client:  # type: ignore[arg-type]
        [heard] = far.heard
        assert client.response is not None
        assert UPSTREAM_KEY not in str(client.response.headers)
    assert fields(heard, "Authorization") == [f"Bearer {UPSTREAM_KEY}"]
    assert CLIENT_KEY[1:] not in heard.path + str(heard.headers)
    assert "another" not in str(heard.headers)
    offered = [item for line in fields(heard, "Sec-WebSocket-Protocol") for item in line.split(", ")]
    if "subprotocols" in shown:
        assert offered.count(ITEM + UPSTREAM_KEY) == 1
        assert len(offered) == len(set(offered))
    assert "security" not in heard.path


async def test_the_rest_of_a_query_with_a_key_stays_as_it_was(start: Start, far: Far) -> None:
    async with start(**SWAP) as proxy, dial(proxy, f"/v1/r?model=m%20;&security_key={CLIENT_KEY}&x=&x=+"):
        assert far.heard[0].path == "/v1/r?model=m%20;&x=&x=+"


@each_place
async def test_a_guarded_proxy_takes_the_client_key_out(start: Start, far: Far, shown: dict[str, object]) -> None:
    async with start(**GUARDED) as proxy, dial(proxy, **shown):  # type: ignore[arg-type]
        [heard] = far.heard
    assert CLIENT_KEY[1:] not in heard.path + str(heard.headers)


async def test_a_guarded_proxy_leaves_the_clients_own_key_alone(start: Start, far: Far) -> None:
    headers = [("X-API-Key", CLIENT_KEY), ("Authorization", "Bearer sk-own")]
    async with start(**GUARDED) as proxy, dial(proxy, headers=headers, subprotocols=["realtime", ITEM + "sk-own"]):
        [heard] = far.heard
    assert fields(heard, "Authorization") == ["Bearer sk-own"]
    assert fields(heard, "Sec-WebSocket-Protocol") == [f"realtime, {ITEM}sk-own"]


async def test_a_transparent_proxy_leaves_every_key_alone(proxy: Running, far: Far) -> None:
    async with dial(proxy, "/v1/r?security_key=k", key="sk-own", subprotocols=[ITEM + "sk-own"]):
        [heard] = far.heard
    assert heard.path == "/v1/r?security_key=k"
    assert fields(heard, "Authorization") == ["Bearer sk-own"]
    assert fields(heard, "Sec-WebSocket-Protocol") == [ITEM + "sk-own"]


async def test_an_open_proxy_puts_its_key_in_the_place_of_any(start: Start, far: Far) -> None:
    async with start(**OPEN) as proxy, dial(proxy, key="sk-own", subprotocols=[ITEM + "sk-own"]):
        [heard] = far.heard
    assert fields(heard, "Authorization") == [f"Bearer {UPSTREAM_KEY}"]
    assert fields(heard, "Sec-WebSocket-Protocol") == [ITEM + UPSTREAM_KEY]


@pytest.mark.parametrize(
    "options",
    [{}, {"key": "wrong"}, {"subprotocols": ["realtime", f"{ITEM}wrong"]}, {"target": "/v1/r?security_key=wrong"}],
    ids=["none", "header", "subprotocol", "query"],
)
async def test_without_the_right_key_there_is_no_session(start: Start, far: Far, options: dict[str, object]) -> None:
    async with start(**SWAP) as proxy:
        response = await refused(proxy, **options)
    assert (response.status_code, bytes(response.body)) == (401, b'{"error": "unauthorized"}')
    assert fields(response, "WWW-Authenticate") == ["Bearer"]
    assert not far.heard


# ---- no session


async def test_an_upstreams_refusal_is_the_clients(proxy: Running, far: Far) -> None:
    headers = Headers(
        [("Content-Type", "application/json"), ("Retry-After", "7"), ("Connection", "close"), ("X-A", "\xe9")]
    )
    far.answers = Response(429, "Too Many", headers, b'{"error": "slow down"}')
    response = await refused(proxy)
    assert (response.status_code, bytes(response.body)) == (429, b'{"error": "slow down"}')
    assert fields(response, "Content-Type") == ["application/json"]
    assert fields(response, "Retry-After") == ["7"]
    assert fields(response, "X-A") == ["\xe9"]
    assert len(fields(response, "X-Proxy-Request-Id")) == 1


@pytest.mark.parametrize(
    ("answer", "fields"),
    [
        (b"403 Forbidden\r\nX-A: 1\r\n\r\nno", [(b"x-a", b"1"), (b"content-length", b"2")]),
        (b"204 No Content\r\nX-A: 1\r\n\r\n", [(b"x-a", b"1")]),
    ],
)
async def test_nothing_is_added_to_a_refusal_but_the_id_and_the_end(
    tmp_path: Path, upstream: Upstream, answer: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    upstream.says(b"HTTP/1.1 " + answer, closes=True)
    async with running(load({"OXY_TARGET": upstream.url}, tmp_path)) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER))
        back = await client.hear()
        await client.closed()
    assert back.body == answer.partition(b"\r\n\r\n")[2]
    (number,) = [pair for pair in back.headers if pair[0] == b"x-proxy-request-id"]
    assert back.headers == [*fields, number, (b"connection", b"close")]


async def test_a_redirect_is_the_clients_to_follow(proxy: Running, far: Far) -> None:
    far.answers = Response(302, "Found", Headers([("Location", "/v1/elsewhere")]))
    client = await proxy.connect()
    await client.say(request(headers=OFFER))
    back = await client.head()
    assert (back.status, back.get(b"location")) == (302, b"/v1/elsewhere")
    assert len(far.heard) == 1


async def test_switched_off_it_answers_with_426(start: Start, far: Far) -> None:
    async with start(PROXY_WEBSOCKETS="0") as proxy:
        response = await refused(proxy)
    assert response.status_code == 426
    assert fields(response, "Upgrade") == ["HTTP/1.1"]
    assert fields(response, "Connection") == ["upgrade, close"]
    assert json.loads(response.body)["error"]["code"] == "OPENAI_PROXY_BAD_REQUEST"
    assert not far.heard


async def test_a_path_that_is_not_listed_has_no_session(start: Start, far: Far) -> None:
    async with start(PROXY_ENDPOINTS="/v1/realtime") as proxy:
        response = await refused(proxy, target="/v1/responses")
        assert response.status_code == 404
        assert json.loads(response.body)["error"]["code"] == "OPENAI_PROXY_NOT_FOUND"
        assert not far.heard
        async with dial(proxy, "/v1/realtime?model=m"):
            assert len(far.heard) == 1


async def test_a_client_that_hangs_up_before_the_upstream_has_answered_ends_its_work(tmp_path: Path) -> None:
    arrived: asyncio.Queue[Peer] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: arrived.put_nowait(Peer(*ends)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running(load({"OXY_TARGET": f"http://127.0.0.1:{port}"}, tmp_path)) as proxy:
        client = await proxy.connect()
        await client.say(request(headers=OFFER))
        upstream = await arrived.get()
        await upstream.head()
        client.abort()
        await upstream.closed()
    await upstream.close()
    server.close()


# ---- the offer


@pytest.mark.parametrize(
    ("instead", "status"),
    [
        ((b"Sec-WebSocket-Version", b"8"), 426),
        ((b"Sec-WebSocket-Version", None), 426),
        ((b"Sec-WebSocket-Key", None), 400),
        ((b"Sec-WebSocket-Key", b"short"), 400),
        ((b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAA"), 400),
        ((b"Content-Length", b"5"), 400),
        ((b"Transfer-Encoding", b"chunked"), 400),
        ((b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400),
        ((b"Host", b"twice"), 400),
        ((b"X-Long", b"x" * 70_000), 431),
    ],
    ids=lambda value: b" ".join(filter(None, value))[:40].decode() if isinstance(value, tuple) else str(value),
)
async def test_a_handshake_that_is_none_is_refused(
    proxy: Running, far: Far, instead: tuple[bytes, bytes | None], status: int
) -> None:
    name, value = instead
    offer = [pair for pair in OFFER if pair[0] != name] + ([(name, value)] if value is not None else [])
    client = await proxy.connect()
    await client.say(request(headers=offer), b"12345")
    back = await client.hear()
    assert back.status == status
    assert json.loads(back.body)["error"]["code"] == "OPENAI_PROXY_BAD_REQUEST"
    if status == 426:
        assert (back.get(b"sec-websocket-version"), back.get(b"upgrade")) == (b"13", b"websocket")
    assert back.all(b"connection") == [b"upgrade, close" if status == 426 else b"close"]
    await client.closed()
    assert not far.heard


async def test_a_handshake_is_a_get(proxy: Running, far: Far) -> None:
    client = await proxy.connect()
    await client.say(request("POST", headers=OFFER))
    assert (await client.hear()).status == 400


@pytest.mark.parametrize("early", [b"", b"\x81\x82\0\0\0\0hi"], ids=["in time", "early"])
@pytest.mark.parametrize("cuts", [1, 7, 1000], ids=["by bytes", "in pieces", "whole"])
async def test_a_handshake_may_come_in_pieces_and_behind_another_request(
    proxy: Running, far: Far, early: bytes, cuts: int
) -> None:
    client = await proxy.connect()
    await client.say(request("GET", b"/health"))
    assert (await client.hear()).status == 200
    said = request(headers=OFFER) + early
    await client.dribble(*(said[start : start + cuts] for start in range(0, len(said), cuts)))
    there = await far.accept()
    assert (await client.head()).status == 101
    if not early:
        await client.say(b"\x81\x82\0\0\0\0hi")
    assert await hear(there) == "hi"


async def test_a_handshake_does_not_wait_behind_another_request(tmp_path: Path) -> None:
    async with running(load({}, tmp_path)) as proxy:
        client = await proxy.connect()
        await client.say(request("GET", b"/health"), request(headers=OFFER))
        assert (await client.hear()).status == 200
        assert (await client.hear()).status == 400
        await client.closed()


async def test_a_connection_that_became_a_session_leaves_nothing_of_its_http_behind(start: Start, far: Far) -> None:
    """No timer of the head or of the idle connection may end it."""
    async with start(PROXY_KEEP_ALIVE_MS="1") as proxy, session(proxy, far) as (client, there):
        await asyncio.sleep(0.05)
        await client.send("still here")
        assert await hear(there) == "still here"


async def test_what_breaks_where_the_client_is_heard_is_known() -> None:
    over = asyncio.Event()

    async def messages() -> AsyncIterator[str]:
        yield "said"

    async def send(_: str) -> None:
        raise ZeroDivisionError

    async def until_closed() -> AsyncIterator[str]:
        await over.wait()
        for message in list[str]():
            yield message

    async def close(_: Close) -> None:
        over.set()

    downstream = SimpleNamespace(messages=messages, over=asyncio.Event(), closing=None, fault=None, let_go=lambda: None)
    broken = Close(ABNORMAL, "It broke")
    remote = SimpleNamespace(send=send, messages=until_closed, close=close, lost=over.wait, closing=broken)
    with pytest.raises(ZeroDivisionError):
        await relay(cast(Any, downstream), cast(Any, remote), Session(), cast(Any, None))
