"""An answer as it is poured: straight into its sink while there is room, and by way of a task while there is none."""

import asyncio

import httpx
import pytest

from proxy.answer import LARGE, PooledAnswer
from proxy.connection import HIGH_WATER
from proxy.pool import Pool
from tests.conftest import Start
from tests.peers import PATIENCE, Upstream, chunked, request
from tests.test_connection import Line, ask, lines, pool, turns  # noqa: F401  # two of them are fixtures

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = chunked(b"")


class Basin:
    """A sink that has room for so many pieces until it is drained."""

    def __init__(self, room: int) -> None:
        self.pieces: list[bytes] = []
        self.drains = 0
        self._room = self._left = room
        self._drained = asyncio.Event()

    def push(self, piece: bytes) -> bool:
        assert self._left > 0, "pushed into a sink that is full"
        self.pieces.append(piece)
        self._left -= 1
        return self._left > 0

    async def drain(self) -> None:
        self._drained.clear()
        await self._drained.wait()
        self.drains += 1

    def empty(self) -> None:
        self._left = self._room
        self._drained.set()


async def poured(pool: Pool, lines: list[Line], sink: Basin, *said: bytes) -> tuple[PooledAnswer, asyncio.Task[None]]:  # noqa: F811
    """An answer of which so much is here when it begins to be poured, and the task that pours it."""
    asking = asyncio.create_task(ask(pool))
    await turns()
    lines[0].says(HEAD + b"".join(said))
    answer = await asking
    task = asyncio.create_task(answer.pour(sink))
    await turns()
    return answer, task


async def test_a_piece_reaches_a_sink_with_room_in_the_turn_that_it_comes(pool: Pool, lines: list[Line]) -> None:  # noqa: F811
    sink = Basin(room=100)
    answer, task = await poured(pool, lines, sink)
    for number in range(3):
        lines[0].says(chunked(b"%d" % number))
        assert sink.pieces[-1] == b"%d" % number
    lines[0].says(chunked(b"last") + END)
    await task
    assert (sink.pieces, answer.take()) == ([b"0", b"1", b"2"], b"last")
    await answer.close()


async def test_pieces_that_came_together_go_together_unless_they_are_large(pool: Pool, lines: list[Line]) -> None:  # noqa: F811
    sink = Basin(room=100)
    _, task = await poured(pool, lines, sink)
    lines[0].says(chunked(b"a", b"b", b"c"))
    assert sink.pieces == [b"abc"]
    large = [bytes([letter]) * (LARGE + 1) for letter in b"xyz"]
    lines[0].says(chunked(*large))
    await turns()
    assert sink.pieces[1:] == large
    lines[0].says(END)
    await task


@pytest.mark.parametrize("already", [b"", chunked(b"first")], ids=["nothing", "a piece"])
async def test_nothing_goes_into_a_full_sink(pool: Pool, lines: list[Line], already: bytes) -> None:  # noqa: F811
    sink = Basin(room=1)
    answer, task = await poured(pool, lines, sink, already)
    for number in range(4):
        lines[0].says(chunked(b"%d" % number))
        await turns()
    assert len(sink.pieces) == 1
    sink.empty()
    await turns()
    assert (len(sink.pieces), sink.drains) == (2, 1)
    lines[0].says(chunked(b"x" * (HIGH_WATER + 1)))
    assert not lines[0].is_reading()
    for _ in range(4):
        sink.empty()
        await turns()
    assert lines[0].is_reading()
    lines[0].says(END)
    for _ in range(4):
        sink.empty()
        await turns()
    await task
    told = b"".join(sink.pieces) + answer.take()
    assert told == (b"first" if already else b"") + b"0123" + b"x" * (HIGH_WATER + 1)


async def test_an_answer_that_breaks_off_is_poured_as_far_as_it_came(pool: Pool, lines: list[Line]) -> None:  # noqa: F811
    sink = Basin(room=1)
    _, task = await poured(pool, lines, sink)
    lines[0].says(chunked(b"a"))
    await turns()
    lines[0].says(chunked(b"b"))
    lines[0].ends()
    await turns()
    assert not task.done()
    sink.empty()
    await turns()
    sink.empty()
    with pytest.raises(httpx.RemoteProtocolError):
        await task
    assert sink.pieces == [b"a", b"b"]


async def test_a_silence_in_a_poured_answer_has_its_own_time(start: Start, upstream: Upstream) -> None:
    async with start(OPENAI_PROXY_UPSTREAM_TIMEOUT_MS="400") as proxy:
        client = await proxy.connect()
        await client.say(request())
        there = await upstream.accept()
        await there.hear()
        await there.say(HEAD)
        await client.head()
        for _ in range(4):  # longer in all than one silence may last
            await asyncio.sleep(0.15)
            await there.say(chunked(b"on"))
            assert await client.chunk() == b"on"
        async with asyncio.timeout(PATIENCE):
            assert await client.rest() == b""
