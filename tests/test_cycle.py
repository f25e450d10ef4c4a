"""One answer, byte for byte as its client hears it, whatever the application does; and the body that goes up."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from starlette.types import Message

from proxy import cycle
from tests.peers import PATIENCE, Peer, chunked, request
from tests.test_protocol import CHUNKED, CLOSE, SOON, Exchange, Stage, Wire, by_hand, check_refusal, playing


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with playing() as stage:
        yield stage


@pytest.fixture
async def client(stage: Stage) -> Peer:
    return await stage.connect()


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def length(size: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % size


LAST = request(target=b"/last", headers=CLOSE)
LAST_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlast"


# ---- framing


@pytest.mark.parametrize(
    ("method", "messages", "heard"),
    [
        ("GET", [start(200, length(2)), body(b"ab")], b"200 OK\r\ncontent-length: 2\r\n\r\nab"),
        (
            "GET",
            [start(200, length(2)), body(b"a", more=True), body(b"", more=True), body(b"b")],
            b"200 OK\r\ncontent-length: 2\r\n\r\nab",
        ),
        ("GET", [start(200, length(0)), body()], b"200 OK\r\ncontent-length: 0\r\n\r\n"),
        ("GET", [start(), body()], b"200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            "POST",
            [start(201, (b"A", b"1"), (b"a", b"")), body(b"ab", more=True), body(b"", more=True), body(b"c" * 17)],
            b"201 Created\r\nA: 1\r\na: \r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n11\r\n"
            + b"c" * 17
            + b"\r\n0\r\n\r\n",
        ),
        ("GET", [start(), {"type": "http.response.body"}], b"200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("GET", [start(204), body()], b"204 No Content\r\n\r\n"),
        ("GET", [start(204, length(0)), body(b"dropped")], b"204 No Content\r\ncontent-length: 0\r\n\r\n"),
        ("GET", [start(304, length(12)), body(b"dropped")], b"304 Not Modified\r\ncontent-length: 12\r\n\r\n"),
        ("GET", [start(304), body()], b"304 Not Modified\r\n\r\n"),
        ("HEAD", [start(200, length(12)), body(b"dropped")], b"200 OK\r\ncontent-length: 12\r\n\r\n"),
        ("HEAD", [start(), body(b"dropped", more=True), body()], b"200 OK\r\n\r\n"),
        ("GET", [start(529, length(0)), body()], b"529 \r\ncontent-length: 0\r\n\r\n"),
        ("GET", [start(999, length(0)), body()], b"999 \r\ncontent-length: 0\r\n\r\n"),
    ],
)
async def test_an_answer_is_framed_so_that_the_next_one_can_follow(
    stage: Stage, client: Peer, method: str, messages: list[Message], heard: bytes
) -> None:
    await client.say(request(method), LAST)
    first = await stage.next()
    for message in messages:
        await first.send(message)
    first.leave()
    await (await stage.next()).answer(b"last")
    assert await client.rest() == b"HTTP/1.1 " + heard + LAST_ANSWER


@pytest.mark.parametrize(
    ("method", "messages", "heard"),
    [
        ("GET", [start(), body(b"ab", more=True), body(b"c")], b"200 OK\r\nconnection: close\r\n\r\nabc"),
        ("GET", [start(200, length(2)), body(b"ab")], b"200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nab"),
        ("HEAD", [start(), body(b"ab")], b"200 OK\r\nconnection: close\r\n\r\n"),
    ],
)
async def test_a_client_of_http_1_0_hears_no_chunks(
    stage: Stage, client: Peer, method: str, messages: list[Message], heard: bytes
) -> None:
    await client.say(b"%b / HTTP/1.0\r\n\r\n" % method.encode())
    exchange = await stage.next()
    for message in messages:
        await exchange.send(message)
    assert await client.rest() == b"HTTP/1.1 " + heard


# ---- applications that break the rules


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [body(b"before the head")],
        [body()],
        [start(200, (b"a", b"1\r\nset-cookie: b"))],
        [start(200, (b"a\n", b"1"))],
        [start(200, (b"a", b"\r"))],
        [start(200, (b"content-length", b"many"))],
        [start(99)],
        [start(101)],
        [start(1000)],
    ],
)
@pytest.mark.parametrize("returns", [True, False], ids=["returns", "raises"])
async def test_what_breaks_before_it_has_begun_is_a_500(
    stage: Stage, client: Peer, caplog: pytest.LogCaptureFixture, messages: list[Message], returns: bool
) -> None:
    await client.say(request("POST", body=b"{}"))
    exchange = await stage.next()
    for message in messages:
        with pytest.raises((ValueError, KeyError)):
            await exchange.send(message)
    exchange.leave(None if returns else RuntimeError("a secret"))
    assert "secret" not in check_refusal(await client.hear(), 500)
    assert await client.rest() == b""
    records = [record for record in caplog.records if record.name == "oxy"]
    assert [record.exc_info is not None for record in records] == ([] if returns else [True])


@pytest.mark.parametrize(
    ("messages", "heard"),
    [
        ([start()], b"200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        ([start(), body(b"ab", more=True)], b"200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"),
        ([start(200, length(3)), body(b"ab", more=True)], b"200 OK\r\ncontent-length: 3\r\n\r\nab"),
        ([start(200, length(3)), body(b"ab")], b"200 OK\r\ncontent-length: 3\r\n\r\nab"),
        ([start(200, length(3)), body(b"ab", more=True), body(b"cd")], b"200 OK\r\ncontent-length: 3\r\n\r\nab"),
    ],
)
@pytest.mark.parametrize("returns", [True, False], ids=["returns", "raises"])
async def test_what_breaks_after_it_has_begun_is_left_torn(
    stage: Stage, client: Peer, messages: list[Message], heard: bytes, returns: bool
) -> None:
    await client.say(request(), request(target=b"/never"))
    exchange = await stage.next()
    try:
        for message in messages:
            await exchange.send(message)
    except ValueError:
        assert messages[0]["headers"]
    exchange.leave(None if returns else RuntimeError())
    assert await client.rest() == b"HTTP/1.1 " + heard
    assert len(stage.begun) == 1


async def test_a_head_that_was_not_fit_to_be_said_leaves_no_trace(stage: Stage, client: Peer) -> None:
    await client.say(request(), LAST)
    exchange = await stage.next()
    for bad in (start(204, (b"a", b"\n")), start(200, (b"a", b"\n")), start(200, length(7), (b"a", b"\n"))):
        with pytest.raises(ValueError, match="line break"):
            await exchange.send(bad)
    await exchange.answer(b"fine")
    await (await stage.next()).answer(b"last")
    assert await client.rest() == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine" + LAST_ANSWER


async def test_what_is_said_after_the_end_of_an_answer_is_not_heard(stage: Stage, client: Peer) -> None:
    await client.say(request(), LAST)
    exchange = await stage.next()
    await exchange.begin()
    for message in (body(b"one"), body(b"two"), body(), start(500), body(b"three", more=True)):
        await exchange.send(message)
    exchange.leave()
    await (await stage.next()).answer(b"last")
    heard = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"one", b"")
    assert await client.rest() == heard + LAST_ANSWER


async def test_an_application_that_breaks_after_its_answer_spoils_nothing(
    stage: Stage, client: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    await client.say(request())
    exchange = await stage.next()
    await exchange.begin(200, [length(2)])
    await exchange.say(b"{}", more=False)
    exchange.leave(RuntimeError())
    assert (await client.hear()).body == b"{}"
    await client.say(LAST)
    await (await stage.next()).answer(b"last")
    assert await client.rest() == LAST_ANSWER
    assert "the application broke" in caplog.text


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_is_cancelled_leaves_its_answer_torn(stage: Stage, client: Peer, begun: bool) -> None:
    await client.say(request())
    exchange = await stage.next()
    if begun:
        await exchange.begin()
    for task in stage.serving.state.tasks:
        task.cancel()
    assert (await client.head()).status == (200 if begun else 500)
    assert b"0\r\n\r\n" not in await client.rest()


# ---- the body that goes up


async def test_a_body_is_received_in_the_pieces_that_come(stage: Stage, client: Peer) -> None:
    await client.say(request("POST", headers=[(b"Content-Length", b"9")]), b"one")
    exchange = await stage.next()
    assert await exchange.receive() == {"type": "http.request", "body": b"one", "more_body": True}
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    await client.say(b"two")
    assert await waiting == {"type": "http.request", "body": b"two", "more_body": True}
    await client.say(b"end")
    assert await exchange.hear() == b"end"


async def test_pieces_that_came_together_go_on_together(stage: Stage, client: Peer) -> None:
    await client.say(CHUNKED, chunked(b"one", b"two", b"three", b""))
    exchange = await stage.next()
    assert await exchange.receive() == {"type": "http.request", "body": b"onetwothree", "more_body": False}


async def test_the_end_of_a_body_is_heard_of_where_it_comes_alone(stage: Stage, client: Peer) -> None:
    await client.say(CHUNKED, chunked(b"one"))
    exchange = await stage.next()
    assert (await exchange.receive())["more_body"]
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    await client.say(chunked(b""))
    assert await waiting == {"type": "http.request", "body": b"", "more_body": False}


async def test_after_its_answer_an_application_hears_only_of_the_end(stage: Stage, client: Peer) -> None:
    await client.say(request("POST", headers=[(b"Content-Length", b"6")]), b"one")
    exchange = await stage.next()
    assert (await exchange.receive())["body"] == b"one"
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    await exchange.answer(b"enough")
    assert await waiting == {"type": "http.disconnect"}
    assert await exchange.receive() == {"type": "http.disconnect"}
    await client.say(b"two", request(target=b"/next"))
    assert (await stage.next()).target == b"/next"
    assert not exchange.ended


async def test_a_client_waits_while_nobody_takes_its_upload() -> None:
    stage, wire = Stage(), Wire()
    connection = by_hand(stage, wire)
    half = b"a" * (cycle.HIGH_WATER // 2)
    connection.data_received(request("POST", headers=[(b"Content-Length", b"1000000")]))
    exchange = await stage.next()
    for piece in (half, half):
        connection.data_received(piece)
    assert wire.calls == []
    for piece in (half, half):
        connection.data_received(piece)
    assert wire.calls == ["pause"]
    assert await exchange.receive() == {"type": "http.request", "body": half * 4, "more_body": True}
    assert wire.calls == ["pause", "resume"]
    connection.data_received(half)
    assert (await exchange.receive())["body"] == half
    assert wire.calls == ["pause", "resume"]
    connection.connection_lost(None)


async def test_an_answer_lets_a_client_go_on_with_what_nobody_wants() -> None:
    stage, wire = Stage(), Wire()
    connection = by_hand(stage, wire)
    connection.data_received(request("POST", headers=[(b"Content-Length", b"1000000")]))
    connection.data_received(b"a" * 500_000)
    assert wire.calls == ["pause"]
    await (await stage.next()).answer(b"enough")
    connection.data_received(b"a" * 500_000)
    assert wire.calls == ["pause", "resume"]
    connection.data_received(request(target=b"/next"))
    assert (await stage.next()).target == b"/next"
    connection.connection_lost(None)


# ---- the answer that goes down


async def test_an_application_waits_while_its_client_reads_slowly(stage: Stage, client: Peer) -> None:
    await client.say(request(headers=CLOSE))
    exchange = await stage.next()
    size = 0

    async def answer() -> None:
        nonlocal size
        await exchange.begin(200, [length(300 * 65536)])
        for _ in range(299):
            await exchange.say(b"a" * 65536)
            size += 65536
        await exchange.say(b"a" * 65536, more=False)

    answering = asyncio.ensure_future(answer())
    await asyncio.sleep(4 * SOON)
    stuck = size
    await asyncio.sleep(SOON)
    assert size == stuck < 299 * 65536
    assert len((await client.hear()).body) == 300 * 65536
    async with asyncio.timeout(PATIENCE):
        await answering


async def test_an_application_that_waits_for_its_client_goes_on_once_that_is_gone(stage: Stage, client: Peer) -> None:
    await client.say(request())
    exchange = await stage.next()
    await exchange.begin()
    waiting = [asyncio.ensure_future(exchange.say(b"a" * 20_000_000)) for _ in range(2)]
    await asyncio.sleep(SOON)
    assert not any(one.done() for one in waiting)
    client.abort()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting)


async def test_a_sink_takes_pieces_without_a_task_and_says_when_it_is_full(stage: Stage, client: Peer) -> None:
    await client.say(request(), request("HEAD"))
    exchange = await stage.next()
    sink = exchange.scope["sink"]
    await exchange.begin(200, [length(20_000_003)])
    assert sink.push(b"one")
    assert sink.push(b"")
    await sink.drain()
    assert not sink.push(b"a" * 20_000_000)
    draining = asyncio.ensure_future(sink.drain())
    await asyncio.sleep(SOON)
    assert not draining.done()
    assert len((await client.hear()).body) == 20_000_003
    async with asyncio.timeout(PATIENCE):
        await draining
    await exchange.say(b"", more=False)
    sink.push(b"after the end")
    exchange.leave()
    exchange = await stage.next()
    await exchange.begin(200, [length(5)])
    assert exchange.scope["sink"].push(b"no body")
    await exchange.say(b"", more=False)
    exchange.leave()
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


async def test_who_gave_up_waiting_for_a_client_may_wait_again(stage: Stage, client: Peer) -> None:
    await client.say(request())
    exchange = await stage.next()
    await exchange.begin(200, [length(20_000_000)])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(exchange.say(b"a" * 19_999_999), SOON)
    saying = asyncio.ensure_future(exchange.say(b"a"))
    await asyncio.sleep(SOON)
    assert not saying.done()
    hearing = asyncio.ensure_future(client.hear())
    async with asyncio.timeout(PATIENCE):
        await saying
    await exchange.say(b"", more=False)
    assert len((await hearing).body) == 20_000_000


async def test_the_last_word_of_an_answer_waits_for_nobody(stage: Stage, client: Peer) -> None:
    """The next exchange may begin with it, and must not find the one before still there."""
    await client.say(request())
    exchange = await stage.next()
    await exchange.begin(200, [length(20_000_000)])
    async with asyncio.timeout(PATIENCE):
        await exchange.say(b"a" * 20_000_000, more=False)
    assert len((await client.hear()).body) == 20_000_000


# ---- a client that waits to be asked for its body

EXPECTING = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 6\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def heard(client: Peer, exchange: Exchange) -> bytes:
    """All that the client hears from an exchange that now gets its answer."""
    await exchange.answer(b"fine")
    return await client.until(b"fine")


async def test_a_client_is_asked_for_its_body_once_and_when_it_is_wanted(stage: Stage, client: Peer) -> None:
    await client.say(EXPECTING)
    exchange = await stage.next()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), SOON)
    waiting = asyncio.ensure_future(exchange.receive())
    assert await client.until(b"\r\n\r\n") == CONTINUE
    await client.say(b"one")
    assert (await waiting)["body"] == b"one"
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.sleep(0)
    await client.say(b"two")
    assert (await waiting)["body"] == b"two"
    assert await heard(client, exchange) == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"


@pytest.mark.parametrize(
    "said",
    [
        EXPECTING + b"onetwo",
        EXPECTING + b"one",
        EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0"),
        EXPECTING.replace(b"Content-Length: 6\r\n", b""),
    ],
    ids=["all of the body is there", "some is there", "HTTP/1.0", "there is no body"],
)
async def test_a_client_is_not_asked_for_what_it_says_anyway(stage: Stage, client: Peer, said: bytes) -> None:
    await client.say(said)
    exchange = await stage.next()
    receiving = asyncio.ensure_future(exchange.receive())
    await asyncio.wait({receiving}, timeout=SOON)
    receiving.cancel()
    assert (await heard(client, exchange)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("receives", [False, True], ids=["never", "after the head of its answer"])
async def test_a_client_whose_body_nobody_asked_for_is_told_that_nothing_follows(
    stage: Stage, client: Peer, receives: bool
) -> None:
    """It may send the body all the same, or not: what comes next could be taken for either (RFC 9110 10.1.1)."""
    await client.say(EXPECTING)
    exchange = await stage.next()
    await exchange.begin(401, [length(2)])
    receiving = [asyncio.ensure_future(exchange.receive())] if receives else []
    await asyncio.sleep(0)
    await exchange.say(b"no", more=False)
    assert await asyncio.gather(*receiving) == [{"type": "http.disconnect"}] * len(receiving)
    exchange.leave()
    await client.say(request(target=b"/never"))
    assert await client.rest() == b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
    assert len(stage.begun) == 1


async def test_behind_a_body_that_came_whole_without_being_asked_for_the_connection_goes_on(
    stage: Stage, client: Peer
) -> None:
    await client.say(EXPECTING + b"onetwo")
    assert await heard(client, await stage.next()) == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"
    await client.say(request(target=b"/next"))
    assert (await heard(client, await stage.next())).startswith(b"HTTP/1.1 200 OK\r\n")


class Noting:
    """A line that notes what is written in each call."""

    loop: asyncio.AbstractEventLoop
    writable = True

    def __init__(self) -> None:
        self.calls: list[bytes] = []

    def write(self, piece: bytes) -> None:
        self.calls.append(piece)

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.calls.append(b"".join(pieces))

    def keeps(self, _: cycle.Cycle) -> bool:
        return True

    def finish(self, _: cycle.Cycle) -> None:
        """Nothing follows."""


@pytest.mark.parametrize(
    ("headers", "hold", "calls"),
    [
        ([(b"content-length", b"2")], True, [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]),
        ([(b"content-length", b"2")], False, [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"{}"]),
        ([], True, [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]),
    ],
    ids=["held back", "sent at once", "in chunks"],
)
async def test_a_head_that_is_held_back_goes_out_with_its_body(
    headers: list[tuple[bytes, bytes]], hold: bool, calls: list[bytes]
) -> None:
    line = Noting()
    one = cycle.Cycle(line, {"method": "GET", "http_version": "1.1", "fields": {}}, last=False)  # type: ignore[arg-type]
    await one.send({"type": "http.response.start", "status": 200, "headers": headers, "hold": hold})
    await one.send({"type": "http.response.body", "body": b"{}"})
    assert line.calls == calls


async def test_a_head_that_is_held_back_goes_out_before_what_is_pushed() -> None:
    line = Noting()
    one = cycle.Cycle(line, {"method": "GET", "http_version": "1.1", "fields": {}}, last=False)  # type: ignore[arg-type]
    await one.send({"type": "http.response.start", "status": 200, "headers": [], "hold": True})
    one.push(b"{}")
    assert line.calls == [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"]
