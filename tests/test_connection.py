"""One connection: how an answer is read, an upload sent, silence measured, and what may be used again.

Where the order of things decides, the upstream's end of the wire is in the test's hands (`by_hand`).
"""

import asyncio
import fcntl
import re
import socket
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.answer import LARGE, MAX_FIELDS, MAX_HEAD, PooledAnswer
from proxy.connection import HIGH_WATER, Connection
from proxy.exchange import Body, Timeouts
from proxy.pool import LOOK, Pool, Watch
from tests.peers import PATIENCE, Pairs, Upstream, answer, chunked
from tests.test_properties import pure

OK = b"HTTP/1.1 200 OK\r\n"
MUCH = 32_000_000  # more than the sockets of a connection hold
STREAM = OK + b"Transfer-Encoding: chunked\r\n\r\n"
Pouring = asyncio.Task[None]
NOTHING_OPEN = "<Pool 0 busy, 0 idle, 0 dialling, 0 waiting>"
ONE_IDLE = "<Pool 0 busy, 1 idle, 0 dialling, 0 waiting>"
UNTIL_CLOSE = OK + b"\r\n"


def patient(**seconds: float | None) -> Timeouts:
    """Timeouts that no test waits for, but for those that it names."""
    return Timeouts(**{"connect": PATIENCE, "read": PATIENCE, "write": PATIENCE, "pool": PATIENCE, **seconds})


class Said:
    """A request's body. It ends with an empty piece; without one, the client holds the rest back."""

    def __init__(self, *pieces: bytes, length: int | None = None) -> None:
        self.length = length
        self.read_so_far = 0
        self._pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.say(*pieces)

    def say(self, *pieces: bytes | Exception) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def read(self) -> bytes:
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        if not piece:
            self.say(b"")  # it has ended, for whoever asks again too
        self.read_so_far += len(piece)
        return piece


class Line(asyncio.Transport):
    """The upstream's end of a connection: what it was told, and what it does next."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.told = b""
        self._reading = True
        self.closed = False
        connection.connection_made(self)

    def says(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.closed:
                self.connection.data_received(piece)

    def ends(self) -> None:
        if not self.closed:
            self.connection.eof_received()
            self.abort()

    def is_lost(self) -> None:
        """End, with the connection told in this very turn."""
        self.closed = True
        self.connection.connection_lost(None)

    def abort(self, problem: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, problem)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.told += data

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True


@contextmanager
def by_hand(first_word: bytes | None = None) -> Iterator[list[Line]]:
    """Each connection that is dialled becomes a line in this list.

    `first_word` is what the upstream says at once, or b"" where it closes at once.
    """
    lines: list[Line] = []

    async def dial(_: object, factory: Callable[[], Connection], *__: object) -> Connection:
        line = Line(factory())
        lines.append(line)
        if first_word is not None:
            line.says(first_word) if first_word else line.ends()
            await turns()
        return line.connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.pool.dial", dial)
        yield lines


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    with by_hand() as lines:
        yield lines


@asynccontextmanager
async def pooled(port: int = 0, **bounds: float | None) -> AsyncIterator[Pool]:
    pool = Pool("127.0.0.1", port, **bounds)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.aclose()


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """A pool for lines."""
    async with pooled() as pool:
        yield pool


@pytest.fixture
async def far(upstream: Upstream) -> AsyncIterator[Pool]:
    """A pool before the upstream."""
    async with pooled(upstream.port) as pool:
        yield pool


async def ask(pool: Pool, /, method: str = "GET", body: Body | None = None, **seconds: float | None) -> PooledAnswer:
    headers = [(b"host", b"api.example")]
    if body is not None:
        length = body.length
        headers.append((b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length))
    return await pool.open(method, b"/v1/models", headers, body, patient(**seconds), None)


async def whole(answer: PooledAnswer) -> bytes:
    """Read an answer to its end and close it."""
    try:
        pieces = []
        while piece := await answer.read():
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        await answer.close()


async def exchange(
    pool: Pool, /, method: str = "GET", body: Body | None = None, **seconds: float | None
) -> tuple[int, Pairs, bytes]:
    """Play one exchange; return status, fields and body of its answer."""
    given = await ask(pool, method, body, **seconds)
    return given.status, given.headers, await whole(given)


class Timer:
    """What a clock rings for."""

    def __init__(self, clock: "Clock", when: float, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self.when = when
        self.ring: Callable[[], object] = lambda: callback(*args)
        self.owner = getattr(callback, "__self__", None)
        self.cancelled = False
        clock.timers.append(self)

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop's time, in the hands of a test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def rings_for(self, kind: type) -> list[float]:
        """When it is going to ring for objects of this kind, as things stand."""
        return sorted(timer.when for timer in self.timers if isinstance(timer.owner, kind) and not timer.cancelled)

    async def passes(self, seconds: float) -> None:
        await turns()
        self.now += seconds
        while due := [timer for timer in self.timers if timer.when <= self.now]:
            self.timers = [timer for timer in self.timers if timer not in due]
            for timer in due:
                if not timer.cancelled:
                    timer.ring()
        await turns()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this test's loop, which stands at nought."""
    loop, clock = asyncio.get_running_loop(), Clock()
    monkeypatch.setattr(loop, "time", lambda: clock.now)
    monkeypatch.setattr(loop, "call_at", lambda when, call, *args: Timer(clock, when, call, args))
    monkeypatch.setattr(loop, "call_later", lambda delay, call, *args: Timer(clock, clock.now + delay, call, args))
    return clock


async def turns(number: int = 3) -> None:
    """Let the loop run so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def settled(measure: Callable[[], int]) -> int:
    """Wait until this figure no longer changes; return it."""
    before, now = None, measure()
    while before != now:
        await asyncio.sleep(0.02)
        before, now = now, measure()
    return now


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.001)


async def answered_by_hand(
    pool: Pool, lines: list[Line], /, *pieces: bytes, ends: bool = False, method: str = "GET", **seconds: float | None
) -> tuple[int, Pairs, bytes]:
    """Play one exchange over a line in which the upstream says these pieces."""
    asking = asyncio.create_task(exchange(pool, method, None, **seconds))
    await turns()
    line = next(line for line in lines if line.told and not line.closed)
    line.told = b""
    for piece in pieces:
        line.says(piece)
        await turns(1)
    if ends:
        line.ends()
    async with asyncio.timeout(PATIENCE):
        return await asking


# How an answer is read, and whether its connection is used again.

KEPT, CLOSED, ENDS = "kept", "closed", "ends"
FINE: dict[str, tuple[str, bytes, int, bytes, str]] = {
    "length": ("GET", OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", KEPT),
    "no bytes": ("GET", OK + b"Content-Length: 0\r\n\r\n", 200, b"", KEPT),
    "padded fields": ("GET", OK + b"Content-Length: \t 2 \t\r\nA:\r\nb:\t1 \r\n\r\nhi", 200, b"hi", KEPT),
    "chunks": ("GET", STREAM + chunked(b"hel", b"lo", b""), 200, b"hello", KEPT),
    "no chunks": ("GET", STREAM + chunked(b""), 200, b"", KEPT),
    "extensions": ("GET", STREAM + b'3;a;b="c d"\r\nhel\r\n02\r\nlo\r\n0;last\r\n\r\n', 200, b"hello", KEPT),
    "trailers": ("GET", STREAM + b"2\r\nhi\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a=b\r\n\r\n", 200, b"hi", KEPT),
    "coding in capitals": ("GET", OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n" + chunked(b"hi", b""), 200, b"hi", KEPT),
    "until close": ("GET", UNTIL_CLOSE + b"hello", 200, b"hello", ENDS),
    "until close, empty": ("GET", UNTIL_CLOSE, 200, b"", ENDS),
    "Connection: close": ("GET", OK + b"Connection: Close\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", CLOSED),
    "a length beside chunks": (
        "GET",
        OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello", b""),
        200,
        b"hello",
        CLOSED,
    ),
    "HTTP/1.0": ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", CLOSED),
    "HTTP/1.0 until close": ("GET", b"HTTP/1.0 200 OK\r\n\r\nhi", 200, b"hi", ENDS),
    "HTTP/1.0 keep-alive": (
        "GET",
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        KEPT,
    ),
    "HTTP/1.0 keep-alive in chunks": (  # RFC 9112 6.1
        "GET",
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hi", b""),
        200,
        b"hi",
        CLOSED,
    ),
    "no reason": ("GET", b"HTTP/1.1 529\r\nContent-Length: 2\r\n\r\nhi", 529, b"hi", KEPT),
    "204": ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", KEPT),
    "204 with a length": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b"", KEPT),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, b"", KEPT),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", KEPT),
    "304 with a coding": ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304, b"", KEPT),
    "HEAD with a length": ("HEAD", OK + b"Content-Length: 5\r\n\r\n", 200, b"", KEPT),
    "HEAD with a coding": ("HEAD", STREAM, 200, b"", CLOSED),  # of an empty chunk behind it nobody would know
    "HEAD with neither": ("HEAD", UNTIL_CLOSE, 200, b"", KEPT),
    "HEAD and close": ("HEAD", OK + b"Connection: x, Close\r\nContent-Length: 5\r\n\r\n", 200, b"", CLOSED),
    "HEAD by HTTP/1.0": ("HEAD", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 200, b"", CLOSED),
    "interim ones": (
        "GET",
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 7\r\n\r\n"
        b"HTTP/1.1 104 Upload Resumption Supported\r\n\r\n" + OK + b"A: 1\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        KEPT,
    ),
    "an interim one to a HEAD": (
        "HEAD",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n",
        200,
        b"",
        KEPT,
    ),
}
each_fine = pytest.mark.parametrize(("method", "said", "status", "body", "fate"), FINE.values(), ids=FINE.keys())


def last_head(said: bytes) -> Pairs:
    """The fields of the final answer in these bytes."""
    head = re.split(rb"\r\n\r\n", said[said.rfind(b"HTTP/1.") :], maxsplit=1)[0]
    pairs = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
    return [(name.lower(), value.strip()) for name, value in pairs]


@each_fine
@pytest.mark.parametrize("size", [None, 1, 7], ids=["whole", "byte by byte", "in sevens"])
async def test_an_answer_is_read_to_the_end_that_its_framing_states(
    pool: Pool, lines: list[Line], method: str, said: bytes, status: int, body: bytes, fate: str, size: int | None
) -> None:
    pieces = [said[at : at + size] for at in range(0, len(said), size)] if size else [said]
    for _ in range(2):  # the second would not be understood if a byte too many or too few had been taken
        back = await answered_by_hand(pool, lines, *pieces, ends=fate is ENDS, method=method)
        assert back == (status, last_head(said), body)
    await turns()
    assert len(lines) == (1 if fate is KEPT else 2)
    assert repr(pool) == (ONE_IDLE if fate is KEPT else NOTHING_OPEN)
    assert [line.closed for line in lines] == ([False] if fate is KEPT else [True, True])


@given(row=st.sampled_from(sorted(FINE)), data=st.data())
@example(row="length", data=None)
@pure
async def test_an_answer_cut_anywhere_is_read_equally(row: str, data: st.DataObject | None) -> None:
    method, said, status, body, fate = FINE[row]
    places = data.draw(st.lists(st.integers(0, len(said)), max_size=8)) if data else [20]
    pieces = [said[start:end] for start, end in pairwise((0, *sorted(places), len(said))) if start < end]
    with by_hand() as lines:
        async with pooled() as pool:
            back = await answered_by_hand(pool, lines, *pieces, ends=fate is ENDS, method=method)
            assert back == (status, last_head(said), body)
            await turns()
            assert repr(pool) == (ONE_IDLE if fate is KEPT else NOTHING_OPEN)


async def test_line_breaks_behind_an_answer_are_no_other_answer(pool: Pool, lines: list[Line]) -> None:
    for _ in range(2):  # RFC 9112 2.2: some say one more than they ought to
        assert (await answered_by_hand(pool, lines, answer(body=b"hi") + b"\r\n"))[2] == b"hi"
    assert repr(pool) == ONE_IDLE


NOT_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "a status below all": b"HTTP/1.1 099 None\r\nContent-Length: 5\r\n\r\nhello" + answer(),
    "a status above all": b"HTTP/1.1 1000 None\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "the same length twice": OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": OK + b"Content-Length: 1, 1\r\n\r\na",
    "a length with a sign": OK + b"Content-Length: +1\r\n\r\na",
    "a length below nothing": OK + b"Content-Length: -1\r\n\r\na",
    "a length of no digits": OK + b"Content-Length:\r\n\r\na",
    "a length beyond all": OK + b"Content-Length: 99999999999999999999\r\n\r\na",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked(b""),
    "another coding alone": OK + b"Transfer-Encoding: identity\r\n\r\n",
    "two codings": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b""),
    "a bad chunk": STREAM + b"xyz\r\n",
    "no colon": OK + b"nothing\r\n\r\n",
    "a folded field": OK + b"A: 1\r\n 2\r\n\r\n",
    "a bare line feed": OK + b"A: 1\n\r\n",
    "NUL": OK + b"A: \0\r\n\r\n",
    "a large field": OK + b"A: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    "a large head": OK + b"".join(b"A%d: %s\r\n" % (number, b"x" * 1000) for number in range(132)) + b"\r\n",
    "a large head with a body": OK + b"A: " + b"x" * MAX_HEAD + b"\r\nContent-Length: 2\r\n\r\nhi",
    "many fields": OK + b"A: 1\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    # RFC 9112 6.3: an interim one ends with its head, whatever it says.
    "a body behind an interim one": b"HTTP/1.1 110 A\r\nContent-Length: 5\r\n\r\nhello" + answer(body=b"hi"),
    "a body behind an interim one and chunks": b"HTTP/1.1 110 A\r\nContent-Length: 5\r\n\r\nhello"
    + (STREAM + chunked(b"hi", b"")),
    "chunks behind an interim one": b"HTTP/1.1 110 A\r\nTransfer-Encoding: chunked\r\n\r\n"
    + (chunked(b"hello", b"") + answer(body=b"hi")),
    "a body to a HEAD": OK + b"Content-Length: 5\r\n\r\nhello",
    "a body behind a 204": b"HTTP/1.1 204 No Content\r\n\r\nhello",
    "two answers": answer() + answer(),
    "an answer and a byte": answer() + b"x",
    "an answer and a byte behind the last": OK + b"Connection: close\r\nContent-Length: 0\r\n\r\nx",
}


@pytest.mark.parametrize("name", NOT_HTTP)
async def test_what_is_no_answer_is_refused_and_its_connection_closed(pool: Pool, lines: list[Line], name: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await answered_by_hand(pool, lines, NOT_HTTP[name], method="HEAD" if "HEAD" in name else "GET")
    await turns()
    assert lines[0].closed
    assert (await answered_by_hand(pool, lines, answer(body=b"right")))[2] == b"right"
    assert repr(pool) == ONE_IDLE


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 ", OK + b"A: ", b"HTTP/1.1 103 Not Yet\r\n\r\n" * 1000])
async def test_a_head_without_an_end_is_given_up_when_it_is_too_large(
    pool: Pool, lines: list[Line], start: bytes
) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="too large"):
        await answered_by_hand(pool, lines, start, *[start if start.endswith(b"\n") else b"x" * 10_000] * 14)
    assert lines[0].closed


async def test_a_head_as_large_as_is_allowed_is_heard(pool: Pool, lines: list[Line]) -> None:
    pairs = [(b"a", b"x" * 400)] * (MAX_FIELDS - 1)
    status, headers, body = await answered_by_hand(pool, lines, answer(headers=pairs, body=b"hi"))
    assert (status, headers[:-1], body) == (200, pairs, b"hi")


async def test_trailers_without_an_end_are_given_up(pool: Pool, lines: list[Line]) -> None:
    # The parser keeps a field until it ends: an endless one would take all memory.
    with pytest.raises(httpx.RemoteProtocolError, match="too large"):
        await answered_by_hand(pool, lines, STREAM + chunked(b"hi") + b"0\r\nA: ", *[b"x" * 10_000] * 14)
    assert lines[0].closed


async def test_trailers_without_an_end_are_given_up_while_something_of_the_body_waits_too(
    pool: Pool, lines: list[Line]
) -> None:
    given = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(STREAM + chunked(b"hi") + b"0\r\nA: ", *[b"x" * 10_000] * 14)
    waiting = await given  # for a client that does not read
    assert lines[0].closed
    assert await waiting.read() == b"hi"
    with pytest.raises(httpx.RemoteProtocolError, match="too large"):
        await whole(waiting)


async def test_the_framing_of_many_chunks_is_no_large_head(pool: Pool, lines: list[Line]) -> None:
    pieces = [b"2;extension=%s\r\n" % (b"x" * 8000), b"hi\r\n"] * 40
    assert (await answered_by_hand(pool, lines, STREAM, *pieces, chunked(b"")))[2] == b"hi" * 40


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("GET", [OK + b"Content-Length: 4\r\n\r\nab", b"cd"]),
        ("GET", [STREAM + chunked(b"abcd", b"")]),
        ("HEAD", [OK + b"Content-Length: 4\r\n\r\n"]),
    ],
    ids=["length", "chunks", "HEAD"],
)
@pytest.mark.parametrize("excess", [b"x", b"EFGH", answer(body=b"another's")])
async def test_what_comes_behind_an_answer_that_nobody_has_read_yet_is_not_added_to_it(
    pool: Pool, lines: list[Line], method: str, said: list[bytes], excess: bytes
) -> None:
    asking = asyncio.create_task(ask(pool, method))
    await turns()
    lines[0].says(said[0])
    given = await asking
    lines[0].says(*said[1:], excess)
    assert given.complete
    if method == "GET":
        assert await given.read() == b"abcd"
    await given.close()
    await turns()
    assert lines[0].closed
    assert repr(pool) == NOTHING_OPEN


async def test_an_answer_that_is_known_to_go_on_beyond_its_end_is_not_handed_over(
    pool: Pool, lines: list[Line]
) -> None:
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(answer(body=b"hi") + b"x")
    with pytest.raises(httpx.RemoteProtocolError):
        await asking


@pytest.mark.parametrize("how", [Line.ends, lambda line: line.abort(ConnectionResetError())], ids=["ends", "resets"])
async def test_an_answer_that_is_whole_stays_so_when_its_connection_ends(
    pool: Pool, lines: list[Line], how: Callable[[Line], None]
) -> None:
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(answer(body=b"hi"))
    given = await asking
    how(lines[0])
    await turns()
    assert await whole(given) == b"hi"
    assert repr(pool) == NOTHING_OPEN


async def test_what_comes_behind_a_length_in_one_piece_with_its_end_breaks_the_answer(
    pool: Pool, lines: list[Line]
) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="beyond"):
        await answered_by_hand(pool, lines, OK + b"Content-Length: 4\r\n\r\nab", b"cdx")
    assert lines[0].closed


BROKEN_OFF = {
    "nothing": b"",
    "half a head": OK + b"Content-Le",
    "only interim ones": b"HTTP/1.1 100 Continue\r\n\r\n",
    "length": OK + b"Content-Length: 100\r\n\r\nonly this",
    "in a chunk": STREAM + b"64\r\nonly this",
    "between chunks": STREAM + chunked(b"only this"),
    "in the trailers": STREAM + chunked(b"only this") + b"0\r\nA: 1\r\n",
}


@pytest.mark.parametrize("name", BROKEN_OFF)
@pytest.mark.parametrize("how", ["ends", "resets"])
async def test_an_answer_that_breaks_off_says_so_behind_what_had_come(
    far: Pool, upstream: Upstream, name: str, how: str
) -> None:
    asking = asyncio.create_task(ask(far, "POST", Said(b"")))
    there = await upstream.accept()
    await there.hear()
    await there.say(BROKEN_OFF[name])
    expected = httpx.RemoteProtocolError if how == "ends" else httpx.ReadError
    if b"only this" in BROKEN_OFF[name]:
        given = await asking
        assert await given.read() == b"only this"
        await (there.close() if how == "ends" else asyncio.to_thread(there.abort))
        with pytest.raises(expected):
            await given.read()
        await given.close()
    else:
        await (there.close() if how == "ends" else asyncio.to_thread(there.abort))
        with pytest.raises(expected):
            await asking
    await until(lambda: repr(far) == NOTHING_OPEN)


async def test_an_answer_until_close_that_is_reset_did_not_end_well(far: Pool, upstream: Upstream) -> None:
    asking = asyncio.create_task(ask(far))
    there = await upstream.accept()
    await there.hear()
    await there.say(UNTIL_CLOSE, b"half")
    given = await asking
    assert await given.read() == b"half"
    there.abort()
    with pytest.raises(httpx.ReadError):
        await given.read()
    await given.close()


# How it goes on, and when it does not.


async def test_what_came_together_is_read_together(pool: Pool, lines: list[Line]) -> None:
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(STREAM + chunked(b"data: 1\n\n", b"data: 2\n\n"))
    given = await asking
    assert await given.read() == b"data: 1\n\ndata: 2\n\n"
    reading = asyncio.create_task(given.read())
    await turns()
    lines[0].says(chunked(b"data: 3\n\n", b"data: 4\n\n") + chunked(b"data: 5\n\n", b""))
    assert await reading == b"data: 3\n\ndata: 4\n\ndata: 5\n\n"
    assert given.complete
    assert await given.read() == b""
    await given.close()


@pytest.mark.parametrize("said", [answer(), STREAM + chunked(b"a", b"b", b"")], ids=["length", "chunks"])
async def test_a_small_answer_takes_one_turn_of_the_loop(pool: Pool, lines: list[Line], said: bytes) -> None:
    asking = asyncio.create_task(exchange(pool))
    await turns()
    lines[0].says(said)
    await turns(1)
    assert asking.done()
    assert repr(pool) == ONE_IDLE


async def test_too_much_that_is_unread_stops_the_reading_and_taking_it_starts_it_again(
    pool: Pool, lines: list[Line]
) -> None:
    asking = asyncio.create_task(ask(pool))
    await turns()
    (line,) = lines
    line.says(STREAM)
    given = await asking
    for _ in range(2):
        line.says(chunked(b"x" * HIGH_WATER))
        assert line.is_reading()
        line.says(chunked(b"x"), chunked(b"x"))
        assert not line.is_reading()
        assert len(await given.read()) + len(await given.read()) == HIGH_WATER + 2
        assert line.is_reading()
    line.says(chunked(b"x" * HIGH_WATER, b"x"), chunked(b""))
    assert not line.is_reading()
    await given.close()  # nobody is interested in the rest, but all of it has come
    assert line.is_reading()
    assert repr(pool) == ONE_IDLE


@pytest.mark.parametrize("framing", [b"", b"Content-Length: %d\r\n" % MUCH], ids=["until close", "length"])
async def test_an_answer_that_nobody_reads_makes_the_upstream_wait(
    far: Pool, upstream: Upstream, framing: bytes
) -> None:
    asking = asyncio.create_task(ask(far))
    there = await upstream.accept()
    await there.hear()
    there.writer.write(OK + framing + b"\r\n" + b"x" * MUCH)
    there.writer.write_eof()
    given = await asking
    assert await settled(there.writer.transport.get_write_buffer_size) > MUCH // 2
    assert len(await whole(given)) == MUCH


# Into a sink, as the relay does it.


class Taken:
    """A sink, and what it took."""

    def __init__(self, *, full: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.room = asyncio.Event()
        if not full:
            self.room.set()

    def push(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        return self.room.is_set()

    async def drain(self) -> None:
        await self.room.wait()


async def pouring(pool: Pool, lines: list[Line], sink: Taken, **seconds: float | None) -> tuple[PooledAnswer, Pouring]:
    """Begin to pour an answer in chunks into the sink."""
    asking = asyncio.create_task(ask(pool, "GET", None, **seconds))
    await turns()
    lines[0].says(STREAM)
    given = await asking
    poured = asyncio.create_task(given.pour(sink))
    await turns()
    return given, poured


async def test_a_sink_that_is_full_makes_the_upstream_wait(pool: Pool, lines: list[Line], clock: Clock) -> None:
    sink = Taken(full=True)
    given, poured = await pouring(pool, lines, sink, read=30)
    lines[0].says(chunked(b"a"), chunked(b"b"), chunked(b"c" * HIGH_WATER))
    assert (sink.pieces, lines[0].is_reading()) == ([b"a"], False)
    await clock.passes(100)  # the silence is ours
    sink.room.set()
    await turns(5)
    assert [piece[:2] for piece in sink.pieces] == [b"a", b"bc"]
    assert lines[0].is_reading()
    lines[0].says(chunked(b"d", b""))
    await poured
    assert given.take() == b"d"
    await given.close()
    assert repr(pool) == ONE_IDLE


async def test_a_sink_that_fills_up_while_the_task_is_woken_gets_no_more(pool: Pool, lines: list[Line]) -> None:
    sink = Taken()
    given, poured = await pouring(pool, lines, sink)
    lines[0].says(chunked(b"x" * (LARGE + 1), b"a"))
    sink.room.clear()
    await turns()
    lines[0].says(chunked(b"b"))
    assert [piece[:1] for piece in sink.pieces] == [b"x", b"a"]
    sink.room.set()
    await turns()
    assert [piece[:1] for piece in sink.pieces] == [b"x", b"a", b"b"]
    lines[0].says(chunked(b""))
    await poured
    await given.close()


async def test_pouring_that_is_given_up_takes_no_more(pool: Pool, lines: list[Line]) -> None:
    sink = Taken()
    given, poured = await pouring(pool, lines, sink)
    poured.cancel()
    await asyncio.wait([poured])
    lines[0].says(chunked(b"a"))
    assert sink.pieces == []
    await given.close()
    assert lines[0].closed


# Uploads.


async def test_a_small_body_goes_out_together_with_the_head(pool: Pool, lines: list[Line]) -> None:
    asking = asyncio.create_task(exchange(pool, "POST", Said(b"hello", length=5)))
    await turns()
    assert lines[0].told == (
        b"POST /v1/models HTTP/1.1\r\nhost: api.example\r\ncontent-length: 5\r\n\r\nhello"
    )  # before any task of its own could have run
    lines[0].says(answer())
    await asking
    assert repr(pool) == ONE_IDLE


@pytest.mark.parametrize(
    ("body", "heard"),
    [
        (lambda: Said(b"", length=0), b""),
        (lambda: Said(b"hel", b"lo", b"", length=5), b"hello"),
        (lambda: Said(b"x" * 60_000, b"y" * 60_000, b"", length=120_000), b"x" * 60_000 + b"y" * 60_000),
        (lambda: Said(b"hel", b"lo", b""), b"hello"),
        (lambda: Said(b""), b""),
    ],
    ids=["no bytes", "a length in pieces", "a large length", "chunks", "no chunks"],
)
async def test_a_body_arrives_in_the_framing_that_the_head_states(
    far: Pool, upstream: Upstream, body: Callable[[], Said], heard: bytes
) -> None:
    upstream.says(answer())
    for _ in range(2):
        await exchange(far, "POST", body())
    assert [one.body for one in upstream.heard] == [heard, heard]
    assert upstream.accepted == 1


async def test_each_piece_of_an_upload_goes_on_as_it_comes(far: Pool, upstream: Upstream) -> None:
    body = Said(b"one")
    asking = asyncio.create_task(exchange(far, "POST", body))
    there = await upstream.accept()
    await there.head()
    assert await there.chunk() == b"one"
    body.say(b"two")
    assert await there.chunk() == b"two"
    body.say(b"")
    assert await there.chunk() == b""
    await there.say(answer(body=b"done"))
    assert (await asking)[2] == b"done"
    assert repr(far) == ONE_IDLE


class Endless:
    """A body without an end."""

    def __init__(self) -> None:
        self.length: int | None = None
        self.pieces = 0

    async def read(self) -> bytes:
        self.pieces += 1
        await asyncio.sleep(0)
        return b"x" * 65_536


async def test_an_upload_that_waits_for_its_client_ends_with_the_connection(pool: Pool, lines: list[Line]) -> None:
    ended = asyncio.Event()

    class Waiting:
        length: int | None = None

        async def read(self) -> bytes:
            try:
                return await asyncio.Future()
            finally:
                ended.set()

    asking = asyncio.create_task(ask(pool, "POST", Waiting()))
    await until(lambda: lines and lines[0].told)
    lines[0].is_lost()
    with pytest.raises(httpx.RemoteProtocolError):
        await asking
    await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_an_upstream_that_does_not_read_makes_the_upload_wait(far: Pool, upstream: Upstream) -> None:
    body = Endless()
    asking = asyncio.create_task(ask(far, "POST", body))
    there = await upstream.accept()
    there.writer.transport.pause_reading()  # type: ignore[attr-defined]
    seen = await settled(lambda: body.pieces)
    assert seen * 65_536 < MUCH
    there.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await there.head()
    for _ in range(seen + 10):
        assert await there.chunk() == b"x" * 65_536
    await there.say(answer(body=b"enough"))
    given = await asking
    assert await whole(given) == b"enough"
    await there.closed()


async def test_an_upload_that_an_upstream_does_not_read_for_too_long_is_given_up(far: Pool, upstream: Upstream) -> None:
    asking = asyncio.create_task(ask(far, "POST", Endless(), write=0.05))
    there = await upstream.accept()
    there.writer.transport.pause_reading()  # type: ignore[attr-defined]
    with pytest.raises(httpx.WriteTimeout):
        await asking
    await until(lambda: repr(far) == NOTHING_OPEN)


async def test_an_upstream_that_goes_away_ends_an_upload_that_waits_for_it(far: Pool, upstream: Upstream) -> None:
    body = Endless()
    asking = asyncio.create_task(ask(far, "POST", body))
    there = await upstream.accept()
    there.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await settled(lambda: body.pieces)
    there.abort()
    with pytest.raises(httpx.TransportError):
        await asking
    seen = body.pieces
    await turns(10)
    assert body.pieces == seen


async def test_a_last_piece_that_fills_the_wire_holds_nothing_up(pool: Pool, lines: list[Line]) -> None:
    asking = asyncio.create_task(exchange(pool, "POST", Said(b"hello", length=5)))
    await turns()
    connection = lines[0].connection
    connection.pause_writing()
    connection.resume_writing()
    lines[0].says(answer(body=b"done"))
    assert (await asking)[2] == b"done"
    assert repr(pool) == ONE_IDLE


@pytest.mark.parametrize(
    "body",
    [
        lambda: Said(b"hello!", length=5),
        lambda: Said(b"hel", b"lo!", length=5),
        lambda: Said(b"hel", b"", length=5),
        lambda: Said(b"", length=5),
        lambda: Said(b"x" * 100_001, length=100_000),
    ],
    ids=["too much", "too much in pieces", "too little", "nothing", "too much of a large one"],
)
async def test_a_body_that_is_not_as_long_as_stated_is_not_passed_off_as_whole(
    pool: Pool, lines: list[Line], body: Callable[[], Said]
) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="data for declared Content-Length"):
        await exchange(pool, "POST", body())
    await turns()
    assert all(line.closed for line in lines)
    assert not any(b"!" in line.told or b"x" in line.told.split(b"\r\n\r\n")[1] for line in lines)
    assert repr(pool) == NOTHING_OPEN


@pytest.mark.parametrize("length", [None, 5])
async def test_what_a_body_raises_ends_the_exchange(pool: Pool, lines: list[Line], length: int | None) -> None:
    body = Said(b"hel", length=length)
    body.say(KeyError("of the body's own"))
    with pytest.raises(KeyError, match="of the body's own"):
        await exchange(pool, "POST", body)
    await turns()
    assert [line.closed for line in lines] == [True]


@pytest.mark.parametrize("said", [answer(413, body=b"no"), STREAM + chunked(b"no", b"")], ids=["length", "chunks"])
@pytest.mark.parametrize("length", [None, 100])
async def test_an_answer_before_the_end_of_the_upload_is_heard_and_the_rest_not_sent(
    pool: Pool, lines: list[Line], said: bytes, length: int | None
) -> None:
    body = Said(b"a beginning", length=length)
    asking = asyncio.create_task(exchange(pool, "POST", body))
    await turns(5)
    lines[0].says(said)
    assert (await asking)[2] == b"no"
    told = lines[0].told
    body.say(b"and the rest", b"")
    await turns(5)
    assert lines[0].told == told
    assert told.endswith(b"a beginning" + (b"\r\n" if length is None else b""))
    assert lines[0].closed
    assert repr(pool) == NOTHING_OPEN


# Timeouts, on a clock of our own.


async def test_a_head_that_does_not_come_in_time_is_not_waited_for(pool: Pool, lines: list[Line], clock: Clock) -> None:
    asking = asyncio.create_task(exchange(pool, read=30))
    await turns()
    await clock.passes(29)
    lines[0].says(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)  # no head yet
    assert not asking.done()
    await clock.passes(1)
    with pytest.raises(httpx.ReadTimeout):
        await asking
    assert lines[0].closed


async def test_each_silence_of_an_answer_has_its_own_time(pool: Pool, lines: list[Line], clock: Clock) -> None:
    asking = asyncio.create_task(ask(pool, read=30))
    await turns()
    await clock.passes(29)
    lines[0].says(STREAM)
    given = await asking
    for _ in range(4):
        reading = asyncio.create_task(given.read())
        await clock.passes(29)
        lines[0].says(chunked(b"x"))
        assert await reading == b"x"
    reading = asyncio.create_task(given.read())
    await clock.passes(30)
    with pytest.raises(httpx.ReadTimeout):
        await reading
    await given.close()


async def test_each_silence_of_an_answer_that_is_poured_has_its_own_time(
    pool: Pool, lines: list[Line], clock: Clock
) -> None:
    sink = Taken()
    given, poured = await pouring(pool, lines, sink, read=30)
    for _ in range(4):
        await clock.passes(29)
        lines[0].says(chunked(b"x"))
    assert (sink.pieces, poured.done()) == ([b"x"] * 4, False)
    await clock.passes(30)
    with pytest.raises(httpx.ReadTimeout):
        await poured
    await given.close()


async def test_a_client_that_takes_its_time_is_no_silence_of_the_upstream(
    pool: Pool, lines: list[Line], clock: Clock
) -> None:
    asking = asyncio.create_task(ask(pool, read=30))
    await turns()
    lines[0].says(STREAM + chunked(b"x"))
    given = await asking
    await clock.passes(100)
    assert await given.read() == b"x"
    await clock.passes(100)
    lines[0].says(chunked(b"y", b""))
    assert await whole(given) == b"y"
    assert repr(pool) == ONE_IDLE


@pytest.mark.parametrize("length", [None, 100])
async def test_an_answer_is_late_only_once_the_upload_has_ended(
    pool: Pool, lines: list[Line], clock: Clock, length: int | None
) -> None:
    body = Said(b"a beginning", length=length)
    asking = asyncio.create_task(ask(pool, "POST", body, read=30))
    await turns()
    await clock.passes(100)
    body.say(b"." * 89, b"")
    await turns()
    await clock.passes(29)
    assert not asking.done()
    await clock.passes(1)
    with pytest.raises(httpx.ReadTimeout):
        await asking


async def test_an_early_answer_that_falls_silent_is_late_too(pool: Pool, lines: list[Line], clock: Clock) -> None:
    asking = asyncio.create_task(ask(pool, "POST", Said(b"a beginning"), read=30))
    await turns()
    lines[0].says(OK + b"Content-Length: 100\r\n\r\nhalf")
    given = await asking
    assert await given.read() == b"half"
    reading = asyncio.create_task(given.read())
    await turns()
    await clock.passes(30)
    assert reading.done()
    with pytest.raises(httpx.ReadTimeout):
        await reading
    await given.close()


# An answer that begins before the upload has ended.


@pytest.mark.parametrize("length", [None, 100])
async def test_an_upload_goes_on_behind_the_head_of_its_answer(
    pool: Pool, lines: list[Line], length: int | None
) -> None:
    body = Said(b"a beginning", length=length)
    asking = asyncio.create_task(ask(pool, "POST", body))
    await turns()
    lines[0].says(STREAM + chunked(b"so far so good"))
    given = await asking
    assert await given.read() == b"so far so good"
    body.say(b"." * 89, b"")
    await turns()
    assert lines[0].told.endswith(chunked(b"." * 89, b"") if length is None else b"a beginning" + b"." * 89)
    lines[0].says(chunked(b""))
    assert await whole(given) == b""
    assert repr(pool) == ONE_IDLE


async def test_an_upload_ends_where_its_answer_says_that_something_is_wrong(pool: Pool, lines: list[Line]) -> None:
    body = Said(b"a beginning")
    asking = asyncio.create_task(ask(pool, "POST", body))
    await turns()
    lines[0].says(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 100\r\n\r\nhalf")
    given = await asking
    body.say(b"of no use")
    await turns()
    assert lines[0].told.endswith(chunked(b"a beginning"))
    lines[0].says(b"." * 96)
    assert await whole(given) == b"half" + b"." * 96
    await turns()
    assert repr(pool) == NOTHING_OPEN


async def test_an_upload_ends_with_its_answer_and_what_fails_then_harms_nobody(pool: Pool, lines: list[Line]) -> None:
    body = Said(b"a beginning")
    asking = asyncio.create_task(ask(pool, "POST", body))
    await turns()
    lines[0].says(answer(body=b"enough"))
    given = await asking
    body.say(OSError("the client is gone"))
    await turns()
    assert await whole(given) == b"enough"
    await turns()
    assert repr(pool) == NOTHING_OPEN


async def test_while_an_upload_goes_on_its_answer_is_not_silent(pool: Pool, lines: list[Line], clock: Clock) -> None:
    body = Said(b"a beginning")
    asking = asyncio.create_task(ask(pool, "POST", body, read=30))
    await turns()
    lines[0].says(STREAM)
    given = await asking
    reading = asyncio.create_task(given.read())
    for _ in range(4):
        await clock.passes(29)
        body.say(b".")
    body.say(b"")
    await clock.passes(29)
    assert not reading.done()
    await clock.passes(1)
    with pytest.raises(httpx.ReadTimeout):
        await reading
    await given.close()


async def test_an_upload_hurries_no_answer_that_waits_for_its_client(
    pool: Pool, lines: list[Line], clock: Clock
) -> None:
    body = Said(b"a beginning")
    asking = asyncio.create_task(ask(pool, "POST", body, read=30))
    await turns()
    lines[0].says(STREAM + chunked(b"x"))
    given = await asking
    body.say(b".", b"")
    await clock.passes(1000)
    assert await given.read() == b"x"
    lines[0].says(chunked(b"y", b""))
    assert await whole(given) == b"y"


def test_a_refusal_is_heard_although_the_connection_is_reset_behind_it() -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # uvloop's tells it by chance
        assert runner.run(reset_behind_a_refusal()) == (413, b"large")


async def reset_behind_a_refusal() -> tuple[int, bytes]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with pooled(listener.getsockname()[1]) as pool:
            body = Said(b"a beginning", length=1_000_000)
            asking = asyncio.create_task(ask(pool, "POST", body))
            there, _ = await loop.sock_accept(listener)
            while b"a beginning" not in await loop.sock_recv(there, 65536):
                pass
            there.send(b"HTTP/1.1 100 Continue\r\n\r\n")  # a word, and none that ends the upload
            body.say(b"." * 1000)
            await turns(6)
            # In one turn of the loop: when the next piece is about to be written, the upstream is gone already.
            there.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge")
            there.close()  # with something unread, which is a reset
            body.say(b"." * 1000)
            given = await asking
            return given.status, await whole(given)


async def test_an_upstream_that_acknowledges_nothing_is_given_up(
    pool: Pool, lines: list[Line], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = 0.0
    monkeypatch.setattr("proxy.connection.unheard", lambda sock: silent)
    await answered_by_hand(pool, lines, answer())
    asking = asyncio.create_task(ask(pool, "POST", read=1000))
    await turns()
    silent = 60.0
    await clock.passes(LOOK)
    assert not asking.done()
    silent = 60.1
    await clock.passes(LOOK)
    with pytest.raises(httpx.ReadError, match="not even acknowledged"):
        await asking
    await turns()
    assert repr(pool) == NOTHING_OPEN
    await clock.passes(LOOK)
    assert clock.rings_for(Watch) == [], "there is nothing to watch"
    await answered_by_hand(pool, lines, answer())
    assert len(clock.rings_for(Watch)) == 1
    await pool.aclose()
    assert clock.rings_for(Watch) == []


async def test_an_answer_that_is_whole_is_not_given_up_for_an_upstream_that_vanished_behind_it(
    pool: Pool, lines: list[Line], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.connection.unheard", lambda sock: 61.0)
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(answer(body=b"all of it"))
    given = await asking
    await clock.passes(LOOK)
    assert await whole(given) == b"all of it"


def test_an_upload_waits_for_its_client_to_hear_what_an_upstream_that_has_closed_had_said() -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(reset_behind_an_answer()) == 300_000


async def reset_behind_an_answer() -> int:
    body = Said(b"a beginning", length=1_000_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        async with pooled(listener.getsockname()[1]) as pool:
            asking = asyncio.create_task(ask(pool, "POST", body))
            there, _ = await loop.sock_accept(listener)
            while b"a beginning" not in await loop.sock_recv(there, 65536):
                pass
            (connection,) = pool._open
            connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
            body.say(b"." * 1000)
            await loop.sock_sendall(there, OK + b"Content-Length: 300000\r\n\r\n" + bytes(200_000))
            given = await asking
            await until(lambda: connection._reading_paused)
            await loop.sock_sendall(there, bytes(100_000))
            await until(lambda: fcntl.ioctl(there, termios.TIOCOUTQ, bytes(4)) == bytes(4))  # it is with our system
            there.close()  # with something unread, which is a reset
            body.say(b"." * 1000)
            await asyncio.sleep(0.1)
            return len(await whole(given))


async def test_a_timer_is_armed_once_for_many_exchanges(pool: Pool, lines: list[Line], clock: Clock) -> None:
    for _ in range(20):
        await answered_by_hand(pool, lines, answer(), read=40)
        await clock.passes(1)
    assert clock.rings_for(Connection) == [40]
    await answered_by_hand(pool, lines, answer(), read=10)  # this one has to ring earlier
    await answered_by_hand(pool, lines, answer(), read=None)
    assert clock.rings_for(Connection) == [30]
    await clock.passes(10)  # it rings, and nobody is waited for
    assert clock.rings_for(Connection) == []
    await answered_by_hand(pool, lines, answer(), read=30)
    assert clock.rings_for(Connection) == [60]
    asking = asyncio.create_task(exchange(pool, read=50))
    await turns()
    await clock.passes(30)  # it rings for a deadline that has moved on
    assert clock.rings_for(Connection) == [80]
    assert not asking.done()
    await clock.passes(20)
    with pytest.raises(httpx.ReadTimeout):
        await asking
    assert len(lines) == 1


async def test_without_a_timeout_an_answer_may_take_its_time(pool: Pool, lines: list[Line], clock: Clock) -> None:
    asking = asyncio.create_task(exchange(pool, "POST", Said(b""), read=None, write=None))
    await turns()
    await clock.passes(100_000)
    lines[0].says(answer(body=b"at last"))
    assert (await asking)[2] == b"at last"


# The states, as a log shows them.


async def test_a_connection_says_how_it_is(pool: Pool, lines: list[Line]) -> None:
    asking = asyncio.create_task(exchange(pool))
    await turns()
    (line,) = lines
    assert repr(line.connection) == "<Connection busy>"
    line.says(answer())
    await asking
    assert repr(line.connection) == "<Connection idle>"
    line.ends()
    assert repr(line.connection) == "<Connection closed>"


async def test_an_answer_that_was_closed_is_read_no_further(pool: Pool, lines: list[Line]) -> None:
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(STREAM + chunked(b"here already"))
    given = await asking
    await given.close()
    await given.close()
    assert await given.read() == b"here already"
    with pytest.raises(httpx.CloseError):
        await given.read()
