"""Faults by moment, on real sockets and both ways upstream: what the client sees, what the log says, what is left.

What a client sees is judged by h11, a parser that the proxy does not use. One exchange is let in at a time, so that a
slot that is not given back refuses the next exchange.
"""

import asyncio
import contextlib
import gc
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import FrameType

import h11
import pytest

from proxy import app
from proxy.aside import MOST_AT_ONCE
from proxy.exchange import Exchange
from proxy.guard import Guard
from proxy.ledger import Ledger
from tests.conftest import CLIENT_KEY, SWAP, Running, Start
from tests.peers import PATIENCE, Peer, Upstream, answer, chunked, free_port, request
from tests.test_connection import until

OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\n"
IN_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n"
IMPATIENT = {"OPENAI_PROXY_UPSTREAM_TIMEOUT_MS": "150"}  # with an upstream that says nothing
POST = request("POST", b"/v1/responses", body=b'{"model": "m"}')
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: 20009\r\n\r\nonly this"


FAILURES = {"upstream_transport": 502, "upstream_timeout": 504}


@dataclass(frozen=True, slots=True)
class Stage:
    """A proxy with room for one exchange at a time, and what it writes down."""

    proxy: Running
    guards: list[Guard] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    entries: list[Exchange] = field(default_factory=list)

    async def freed(self) -> None:
        """Wait until no exchange is under way."""
        await until(lambda: not any(guard.busy for guard in self.guards))

    async def is_right(self, upstream: Upstream, *, fresh: bool) -> None:
        """See that the slot is free, the next exchange right, and its connection a `fresh` one or not."""
        await self.freed()
        before = upstream.accepted
        upstream.says(answer(body=b"right"))
        client = await self.proxy.connect()
        await client.say(request())
        assert (await client.hear()).body == b"right"
        assert upstream.accepted - before == fresh

    def failures(self) -> list[int]:
        """What is in the ledger of each failure of the upstream, by the status that stands for it."""
        assert self.log == []
        failed = [entry for entry in self.entries if entry.result in FAILURES]
        assert all(entry.failure and entry.detail for entry in failed)
        return [FAILURES[entry.result] for entry in failed]


class Notes(logging.Handler):
    """Keeps the lines of a log."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


Play = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def play(start: Start, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Start a proxy before the upstream with these settings, in which only one exchange is let in at a time."""

    @asynccontextmanager
    async def play(**environ: str) -> AsyncIterator[Stage]:
        guards: list[Guard] = []

        def noted(limit: int) -> Guard:
            guards.append(Guard(limit))
            return guards[-1]

        monkeypatch.setattr(app, "Guard", noted)
        entries: list[Exchange] = []
        enter = Ledger.enter

        def entered(ledger: Ledger, exchange: Exchange) -> None:
            entries.append(exchange)
            enter(ledger, exchange)

        monkeypatch.setattr(Ledger, "enter", entered)
        async with start(**{"OPENAI_PROXY_MAX_PARALLEL_REQUESTS": "1", **environ}) as proxy:
            stage = Stage(proxy, guards, entries=entries)
            log, notes = logging.getLogger("oxy"), Notes(stage.log)
            log.addHandler(notes)
            try:
                yield stage
            finally:
                log.removeHandler(notes)

    return play


class Judge:
    """What a client makes of what it hears: h11's word on it. `whole`: nothing seems to be missing."""

    def __init__(self, client: Peer) -> None:
        self.status = 0
        self.body = b""
        self.whole = False
        self._client = client
        self._parser = h11.Connection(h11.CLIENT)
        self._parser.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
        self._parser.send(h11.EndOfMessage())

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])

    async def hear(self, marker: bytes | None = None) -> None:
        """Hear the answer up to this marker in its body, or to its end, or to that of the connection."""
        async with asyncio.timeout(PATIENCE):
            while marker is None or marker not in self.body:
                match self._parser.next_event():
                    case h11.NEED_DATA:
                        self._parser.receive_data(await self._client.reader.read(65536))
                    case h11.Response() as head:
                        self.status = head.status_code
                    case h11.Data() as piece:
                        self.body += piece.data
                    case h11.EndOfMessage():
                        self.whole = True
                        return

    async def hear_all(self) -> None:
        """Hear the answer to its end, or what there is of it."""
        with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
            await self.hear()


# ---- the upstream's faults


async def resets(there: Peer) -> None:
    there.abort()


async def closes(there: Peer) -> None:
    await there.close()


async def falls_silent(there: Peer) -> None:
    """Say nothing more."""


def says(*pieces: bytes) -> Callable[[Peer], Awaitable[None]]:
    async def say(there: Peer) -> None:
        await there.dribble(*pieces)

    return say


async def gives_100_as_its_last_word(there: Peer) -> None:
    await there.say(b"HTTP/1.1 100 Continue\r\n\r\n")
    await there.close()


FAULTS = {
    "reset": resets,
    "close": closes,
    "silence": falls_silent,
    "garbage": says(b"SSH-2.0-OpenSSH_9.2 \xff\r\n\r\n"),
    "two lengths": says(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "101": says(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "lone 100": gives_100_as_its_last_word,
}
# What the client is to see of each fault that can be at that moment: a status with the proxy's own error, or an answer
# that is `torn`, and the status that the log has for it.
TABLE = """
    moment          reset     close     silence   garbage   two lengths  101   lone 100
    during upload   502       502       -         502       502          502   502
    before head     502       502       504       502       502          502   502
    in head         502       502       504       502       502          502   502
    length          torn 502  torn 502  torn 504  -         -            -     -
    chunked         torn 502  torn 502  torn 504  torn 502  torn 502     -     -
    in a chunk      torn 502  torn 502  torn 504  -         -            -     -
    SSE             torn 502  torn 502  torn 504  torn 502  torn 502     -     -
    until close     torn 502  whole     torn 504  -         -            -     -
"""
MOMENTS = {
    "during upload": (UPLOAD, b""),
    "before head": (POST, b""),
    "in head": (POST, OK + b"Content-Le"),
    "length": (POST, OK + b"Content-Length: 100\r\n\r\nonly this"),
    "chunked": (POST, OK + IN_CHUNKS + chunked(b"only this")),
    "in a chunk": (POST, OK + IN_CHUNKS + b"64\r\nonly this"),
    "SSE": (POST, SSE + IN_CHUNKS + chunked(b"data: only this\n\n")),
    "until close": (POST, OK + b"\r\nonly this"),
}
COLUMNS, *ROWS = [re.split(r"\s{2,}", row.strip()) for row in TABLE.strip().splitlines()]
CASES = [(row[0], fault, cell) for row in ROWS for fault, cell in zip(COLUMNS[1:], row[1:], strict=True) if cell != "-"]


async def go_on(client: Peer) -> None:
    """Say the rest of an upload, as far as the proxy takes it: httpx's transport looks at an answer only behind it."""
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            await client.say(b"x" * 1000)
            await asyncio.sleep(0.005)


@pytest.mark.untraced
@pytest.mark.parametrize(("moment", "fault", "expected"), CASES, ids=[f"{row}-{fault}" for row, fault, _ in CASES])
async def test_a_fault_of_the_upstream(play: Play, upstream: Upstream, moment: str, fault: str, expected: str) -> None:
    asked, said = MOMENTS[moment]
    async with play(**(IMPATIENT if fault == "silence" else {})) as stage:
        client = await stage.proxy.connect()
        await client.say(asked)
        there = await upstream.accept()
        await there.until(b"only this" if asked is UPLOAD else b'"m"}')
        await there.say(said)
        judge = Judge(client)
        if b"only this" in said:
            await judge.hear(b"only this")  # what comes from here on is too late for an error of ours
        await FAULTS[fault](there)
        going_on = asyncio.ensure_future(go_on(client) if asked is UPLOAD else asyncio.sleep(0))
        await judge.hear_all()
        going_on.cancel()
        if expected == "whole":
            assert (judge.status, judge.body, judge.whole) == (200, b"only this", True)
        elif expected.startswith("torn"):
            assert (judge.status, b"only this" in judge.body, judge.whole) == (200, True, False)
        else:
            code = {"502": "OPENAI_PROXY_TRANSPORT", "504": "OPENAI_PROXY_TIMEOUT"}[expected]
            assert (judge.status, judge.code, judge.whole) == (int(expected), code, True)
        await there.closed()
        await stage.is_right(upstream, fresh=True)
        assert stage.failures() == [int(number) for number in re.findall(r"\d+", expected)]


@pytest.mark.untraced
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize(
    ("begun", "end"),
    [
        (b"", answer(body=b"only this")),
        (OK + b"Content-Length: 9\r\n\r\nonly", b" this"),
        (OK + IN_CHUNKS + chunked(b"only"), chunked(b" this", b"")),
        (SSE + IN_CHUNKS + chunked(b"only"), chunked(b" this", b"")),
        (b"", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
    ids=["before head", "length", "chunked", "SSE", "204"],
)
@pytest.mark.parametrize("excess", [answer(body=b"another's"), b"\0"], ids=["another answer", "a byte"])
async def test_bytes_beyond_an_answer_reach_nobody(
    play: Play, upstream: Upstream, begun: bytes, end: bytes, excess: bytes, apart: bool
) -> None:
    async with play() as stage:
        client = await stage.proxy.connect()
        await client.say(POST)
        there = await upstream.accept()
        await there.hear()
        judge = Judge(client)
        if begun:
            await there.say(begun)
            await judge.hear(b"only")
        await there.dribble(*((end, excess) if apart else (end + excess,)))
        await judge.hear_all()
        if judge.status == 502:
            assert (begun, judge.code) == (b"", "OPENAI_PROXY_TRANSPORT")
        else:
            assert b"only this".startswith(judge.body)
            assert judge.whole == (judge.body == (b"" if b"204" in end else b"only this"))
        await stage.is_right(upstream, fresh=True)
        await there.closed()


# ---- before there is a connection to the upstream


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("fault", "expected"),
    [("refused", 502), ("unknown", 502), ("reset", 502), ("close", 502), ("silence", 504), ("garbage", 502)],
)
async def test_a_fault_before_there_is_a_connection(play: Play, upstream: Upstream, fault: str, expected: int) -> None:
    # Where the port is open, the fault comes in the handshake of TLS.
    host = "name.invalid" if fault == "unknown" else "127.0.0.1"
    port = free_port() if fault in ("refused", "unknown") else upstream.port
    impatient = {"OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS": "150"} if fault == "silence" else {}
    async with play(OXY_TARGET=f"https://{host}:{port}", **impatient) as stage:
        client = await stage.proxy.connect()
        await client.say(POST)
        if fault in FAULTS:
            there = await upstream.accept()
            await FAULTS[fault](there)
            await there.closed()
        judge = Judge(client)
        await judge.hear_all()
        code = "OPENAI_PROXY_TIMEOUT" if expected == 504 else "OPENAI_PROXY_TRANSPORT"
        assert (judge.status, judge.code, judge.whole) == (expected, code, True)
        await stage.freed()
        assert stage.failures() == [expected]


# ---- the client's faults


async def hangs_up(client: Peer) -> None:
    await client.close()


async def vanishes(client: Peer) -> None:
    client.abort()


@pytest.mark.untraced
@pytest.mark.parametrize("gone", [hangs_up, vanishes])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_client_that_is_gone_ends_its_exchange(
    play: Play, upstream: Upstream, moment: str, gone: Callable[[Peer], Awaitable[None]]
) -> None:
    asked, said = MOMENTS[moment]
    async with play() as stage:
        client = await stage.proxy.connect()
        await client.say(asked)
        there = await upstream.accept()
        await there.until(b"only this" if asked is UPLOAD else b'"m"}')
        await there.say(said)
        if b"only this" in said:
            await client.until(b"only this")
        await gone(client)
        await there.closed()
        await stage.is_right(upstream, fresh=True)
        assert stage.failures() == []


async def test_a_client_that_holds_its_upload_back_for_too_long_ends_its_exchange(
    play: Play, upstream: Upstream
) -> None:
    async with play(PROXY_CLIENT_TIMEOUT_MS="150") as stage:
        client = await stage.proxy.connect()
        await client.say(UPLOAD)
        there = await upstream.accept()
        judge = Judge(client)
        await judge.hear_all()
        assert (judge.status, judge.code, judge.whole) == (408, "OPENAI_PROXY_BAD_REQUEST", True)
        await there.closed()
        await stage.is_right(upstream, fresh=True)
        assert stage.failures() == []


@pytest.mark.parametrize("framing", [IN_CHUNKS, b"Content-Length: 64000000\r\n\r\n", b"\r\n"])
async def test_a_client_that_reads_nothing_for_too_long_ends_its_exchange(
    play: Play, upstream: Upstream, framing: bytes
) -> None:
    async with play(PROXY_CLIENT_TIMEOUT_MS="150") as stage:
        client = await stage.proxy.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(POST)
        there = await upstream.accept()
        await there.hear()
        await there.say(OK + framing)
        piece = b"x" * 64_000
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await there.say(chunked(piece) if framing is IN_CHUNKS else piece)
        await stage.freed()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        judge = Judge(client)
        await judge.hear_all()
        assert not judge.whole
        await stage.is_right(upstream, fresh=True)


# ---- what else a stack of servers and clients gets wrong


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("end", [closes, resets])
async def test_a_kept_connection_that_died_while_idle_is_no_fault(
    play: Play, upstream: Upstream, method: str, end: Callable[[Peer], Awaitable[None]]
) -> None:
    async with play() as stage:
        client = await stage.proxy.connect()
        await client.say(POST)
        there = await upstream.accept()
        await there.hear()
        await there.say(answer(body=b"first"))
        assert (await client.hear()).body == b"first"
        await end(there)
        await asyncio.sleep(0.02)  # it is here, and noticed
        upstream.says(answer(body=b"right"))
        await client.say(request(method, body=b"{}" if method == "POST" else None))
        assert (await client.hear()).body == b"right"
        assert [heard.start.split()[0] for heard in upstream.heard] == [method.encode()]
        assert stage.failures() == []


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("end", [closes, resets])
async def test_on_a_kept_connection_that_dies_under_it_a_get_goes_out_again_and_a_post_never_arrives_twice(
    play: Play, upstream: Upstream, method: str, end: Callable[[Peer], Awaitable[None]]
) -> None:
    async with play() as stage:
        client = await stage.proxy.connect()
        await client.say(POST)
        there = await upstream.accept()
        await there.hear()
        await there.say(answer(body=b"first"))
        assert (await client.hear()).body == b"first"
        await client.say(request(method, body=b"{}" if method == "POST" else None))
        await there.hear()
        upstream.says(answer(body=b"right"))
        await end(there)
        back = await client.hear()
        assert (back.status, len(upstream.heard)) == ((200, 1) if method == "GET" else (502, 0))
        await stage.freed()
        assert stage.failures() == ([] if method == "GET" else [502])


async def test_a_get_goes_out_again_only_once(play: Play, upstream: Upstream) -> None:
    async with play() as stage:
        client = await stage.proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        await there.say(answer(body=b"first"))
        assert (await client.hear()).body == b"first"
        await client.say(request())
        await there.hear()
        there.abort()
        second = await upstream.accept()
        await second.hear()
        second.abort()
        assert (await client.hear()).status == 502
        await stage.is_right(upstream, fresh=True)
        assert stage.failures() == [502]


@pytest.mark.parametrize(
    "way", ["fast"], indirect=True
)  # httpx's transport looks for an answer behind the upload alone
@pytest.mark.parametrize(
    "said",
    [
        b"Content-Length: 1000000\r\n\r\n",
        b"Content-Length: 1000\r\n\r\nonly this",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_an_answer_reaches_a_client_that_holds_its_upload_back(
    play: Play, upstream: Upstream, said: bytes
) -> None:
    async with play() as stage:
        client = await stage.proxy.connect()
        await client.say(b"POST /v1/files HTTP/1.1\r\nHost: h\r\n" + said)
        there = await upstream.accept()
        await there.head()
        await there.say(answer(413, body=b"too much"))
        back = await client.hear()
        assert (back.status, back.body) == (413, b"too much")
        await there.closed()
        await stage.is_right(upstream, fresh=True)
        assert stage.failures() == []


async def test_a_key_among_the_trailers_of_an_upload_opens_nothing(play: Play, upstream: Upstream) -> None:
    async with play(**SWAP) as stage:
        client = await stage.proxy.connect()
        head = b"POST /v1/files HTTP/1.1\r\nHost: h\r\nTrailer: X-API-Key\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.say(head, chunked(b"{}"), b"0\r\nX-API-Key: %b\r\n\r\n" % CLIENT_KEY.encode())
        assert (await client.hear()).status == 401
        assert upstream.accepted == 0


async def test_padding_around_values_is_no_part_of_them(play: Play, upstream: Upstream) -> None:
    async with play(**SWAP) as stage:
        upstream.says(answer(headers=[(b"X-There", b"\t there \t ")]))
        client = await stage.proxy.connect()
        fields = [(b"X-API-Key", b" \t%b\t " % CLIENT_KEY.encode()), (b"X-Here", b"\t here  ")]
        await client.say(request(headers=fields))
        assert b"\r\nx-there: there\r\n" in await client.until(b"\r\n\r\n")
        assert upstream.heard[0].get(b"x-here") == b"here"


async def test_no_interim_answer_reaches_a_client_of_http_1_0(play: Play, upstream: Upstream) -> None:
    async with play() as stage:
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        upstream.says(interim + answer(body=b"final"))
        client = await stage.proxy.connect()
        fields = b"Host: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
        await client.say(b"POST /v1/files HTTP/1.0\r\n" + fields)
        heard = await client.rest()
        assert heard.startswith(b"HTTP/1.1 200 ")
        assert heard.endswith(b"\r\n\r\nfinal")


async def test_30_kb_of_response_headers_pass(play: Play, upstream: Upstream) -> None:
    async with play() as stage:
        fields = [(b"x-%d" % number, b"v" * 1000) for number in range(20)] + [(b"set-cookie", b"c" * 10_000)]
        upstream.says(answer(headers=fields))
        client = await stage.proxy.connect()
        await client.say(request())
        assert (await client.hear()).headers[:-2] == fields


async def test_fields_that_connection_names_end_here_both_ways(play: Play, upstream: Upstream) -> None:
    async with play() as stage:
        said = [(b"Connection", b"X-Mine, close-not"), (b"X-Mine", b"1"), (b"Close-Not", b"1"), (b"X-Other", b"2")]
        upstream.says(answer(headers=said))
        client = await stage.proxy.connect()
        await client.say(request(headers=said))
        for heard in (await client.hear(), upstream.heard[0]):
            names = [name for name, _ in heard.headers]
            assert b"x-other" in names
            assert not {b"connection", b"x-mine", b"close-not"} & {*names}


@contextmanager
def what_the_collector_finds() -> Iterator[list[object]]:
    """What happens meanwhile leaves this behind in cycles, told at the end."""
    found: list[object] = []
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def is_ours(thing: object) -> bool:
    return type(thing).__module__.startswith("proxy")


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize("asked", [POST, UPLOAD], ids=["before head", "during upload"])
@pytest.mark.parametrize("end", [closes, resets, None], ids=["closes", "resets", "the client is gone"])
async def test_an_exchange_that_breaks_leaves_no_cycle_behind(
    play: Play, upstream: Upstream, asked: bytes, end: Callable[[Peer], Awaitable[None]] | None
) -> None:
    # The collector comes rarely (`app.spare_the_collector`): what it has to find would stay for long.
    async with play() as stage:
        with what_the_collector_finds() as found:
            for _ in range(3):
                client = await stage.proxy.connect()
                await client.say(asked)
                there = await upstream.accept()
                await there.until(b"only this" if asked is UPLOAD else b'"m"}')
                if end is not None:
                    await end(there)
                    assert (await client.hear()).status == 502
                client.writer.transport.abort()
                await there.closed()
                await stage.freed()
            await asyncio.sleep(0.05)
        assert [thing for thing in found if is_ours(thing)] == []


KEY = (b"X-API-Key", CLIENT_KEY.encode())
AS_JSON = (b"Content-Type", b"application/json")
AS_FORM = (b"Content-Type", b"multipart/form-data; boundary=b")
UPGRADE = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Version", b"13")]
HANDSHAKE = [*UPGRADE, (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==")]
NO_FORM = b'--b\r\nContent-Disposition: form-data; name="security_key"\r\n\r\nwrong\r\n--b--\r\n'
REFUSED = {
    "a wrong key": (401, request("POST", b"/v1/responses", [AS_JSON], b'{"model": "m"}')),
    "a wrong key of a WebSocket": (401, request("GET", b"/v1/realtime", HANDSHAKE)),
    "a path that is not listed": (404, request("POST", b"/v1/files", [KEY, AS_JSON], b"{}")),
    "a wrong method": (405, request("PUT", b"/openai", [KEY, AS_JSON], b"{}")),
    "an object with a wrong key": (403, request("POST", b"/openai", [AS_JSON], b'{"security_key": "wrong"}')),
    "what is no object, with a wrong key": (403, request("POST", b"/openai", [AS_JSON], b'{"security_key": "wrong", ')),
    "what is no object": (400, request("POST", b"/openai2", [KEY, AS_JSON], b'{"model": ')),
    "what is not what its coding says": (
        400,
        request("POST", b"/openai2", [KEY, AS_JSON, (b"Content-Encoding", b"gzip")], b"{}"),
    ),
    "a stream": (400, request("POST", b"/openai", [KEY, AS_JSON], b'{"prompt": "a", "stream": true}')),
    "what is found wrong beside the loop": (
        400,
        request("POST", b"/openai", [KEY, AS_JSON], b'{"stream": true, "prompt": "%b"}' % (b"x" * MOST_AT_ONCE)),
    ),
    "too long an object": (413, request("POST", b"/openai", [KEY, AS_JSON], b"x" * (2**20 + 1))),
    "too long an object in chunks": (
        413,
        request("POST", b"/openai", [KEY, AS_JSON, (b"Transfer-Encoding", b"chunked")])
        + chunked(b"x" * (2**20 + 1), b""),
    ),
    "a form with a wrong key": (403, request("POST", b"/openai/audio/transcriptions", [AS_FORM], NO_FORM)),
    "a form without a file": (400, request("POST", b"/openai/audio/transcriptions", [KEY, AS_FORM], NO_FORM)),
    "no form": (400, request("POST", b"/openai/audio/transcriptions", [KEY, AS_FORM], b"--b\r\n\0")),
}


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(("status", "asked"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_leaves_no_cycle_behind(play: Play, status: int, asked: bytes) -> None:
    # In such a cycle is the body, and who sends it may have no key.
    async with play(**SWAP, PROXY_ENDPOINTS="/v1/responses,/v1/realtime", PROXY_MAX_BODY_MB="1") as stage:
        with what_the_collector_finds() as found:
            for _ in range(3):
                client = await stage.proxy.connect()
                await client.say(asked)
                assert (await client.hear()).status == status
                client.writer.transport.abort()
            await until(lambda: len(stage.entries) == 3 and not stage.proxy.state.tasks)
            await asyncio.sleep(0.05)
        assert [thing for thing in found if issubclass(type(thing), BaseException | FrameType) or is_ours(thing)] == []


# ---- many who stall

HALF_A_HEAD = b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX-Half: "
STALLED = (HALF_A_HEAD,) * 240 + (UPLOAD,) * 250 + (request(),) * 10


@pytest.mark.untraced
async def test_500_stalled_clients_keep_nobody_else_waiting(play: Play, upstream: Upstream) -> None:
    upstream.says(answer(body=b"x" * 12_000_000))  # more than the sockets of a connection hold
    async with play(OPENAI_PROXY_MAX_PARALLEL_REQUESTS="261") as stage:  # a head takes no slot
        for said in STALLED:
            client = await stage.proxy.connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.say(said)
        await until(lambda: len(upstream.heard) == 10 and upstream.accepted == 260)
        upstream.says(answer(body=b"right"))
        client = await stage.proxy.connect()
        for _ in range(20):
            await client.say(POST)
            assert (await client.hear()).body == b"right"
        assert [guard.busy for guard in stage.guards] == [260]
        other = await stage.proxy.connect()
        await other.say(UPLOAD)
        await until(lambda: stage.guards[0].busy == 261)
        await client.say(POST)
        assert (await client.hear()).status == 503
