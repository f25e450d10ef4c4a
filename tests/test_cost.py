"""What an exchange costs, in figures that no noise of the machine moves: calls of our own functions, and what stays.

A change that makes the hot path longer fails here. If it is worth it, the figure is raised in the same commit, with the
reason; if a change makes it shorter, the figure is lowered, so that the gain is kept.
"""

import asyncio
import gc
import sys
from pathlib import Path
from types import FrameType

import pytest

import proxy
from tests.conftest import SWAP, Start
from tests.peers import Peer, Upstream, answer, chunked, request

OURS = str(Path(proxy.__file__).parent)
ROUNDS = 50

AS_AN_SDK = [
    (b"Authorization", f"Bearer {SWAP['PROXY_X_API_KEY']}".encode()),
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Connection", b"keep-alive"),
    (b"User-Agent", b"OpenAI/Python"),
    *((b"X-Stainless-%d" % number, b"value") for number in range(8)),
]
FIELDS = [(b"X-Field-%d" % number, b"value") for number in range(10)]
CALL = request("POST", b"/v1/responses", AS_AN_SDK, b'{"model": "gpt-4o"}')
EVENTS = 100
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*[b"data: x\n\n"] * EVENTS, b"")


class Calls:
    """Counts calls of functions of the proxy, those of a parser's callbacks included."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        self.count += event == "call" and frame.f_code.co_filename.startswith(OURS)


async def exchange(client: Peer, upstream: Upstream, said: bytes, call: bytes = CALL) -> None:
    upstream.says(said)
    await client.say(call)
    assert (await client.hear()).status == 200


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(
    ("said", "recorded"),
    [(answer(headers=FIELDS, body=b"x" * 1000), 122), (STREAM, 312)],
    ids=["an answer of 1 KB", "100 events that came together"],
)
async def test_an_exchange_takes_as_many_calls_as_recorded(
    start: Start, upstream: Upstream, said: bytes, recorded: int
) -> None:
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        for _ in range(3):
            await exchange(client, upstream, said)
        calls = Calls()
        sys.setprofile(calls)
        try:
            for _ in range(ROUNDS):
                await exchange(client, upstream, said)
        finally:
            sys.setprofile(None)
    assert calls.count / ROUNDS == pytest.approx(recorded, rel=0.1)


@pytest.mark.parametrize("way", ["fast"], indirect=True)
@pytest.mark.parametrize(
    "call", [CALL, request(headers=[*AS_AN_SDK, (b"a", b"1"), (b"a", b"2")])], ids=["known", "odd"]
)
async def test_an_exchange_leaves_nothing_behind(start: Start, upstream: Upstream, call: bytes) -> None:
    said = answer(headers=FIELDS, body=b"x" * 1000)
    async with start(**SWAP) as proxy:
        client = await proxy.connect()
        for _ in range(200):
            await exchange(client, upstream, said, call)
        upstream.heard.clear()
        await asyncio.sleep(0.5)  # until the ledger has written them down
        gc.collect()
        gc.disable()
        before = sys.getallocatedblocks()
        for _ in range(200):
            await exchange(client, upstream, said, call)
        upstream.heard.clear()
        await asyncio.sleep(0.5)
        cycles = gc.collect()  # empties the free lists too
        left = sys.getallocatedblocks() - before
        gc.enable()
    assert cycles < 50, "not one for each exchange: else the collector would have to come often"
    assert left < 150, "not one for each exchange; the ledger's books keep a few figures of their own"
