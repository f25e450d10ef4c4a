"""`make fuzz`: mutated answers for the parser of the transport, and mutated forms for the one that rewrites them.

Of answers: each ends in an answer or in one of httpx's exceptions, however it is cut; h11 does not understand it
otherwise; the next exchange is right. Of forms: each is rewritten or refused, equally however it is cut, and no part of
the proxy's own goes on.
"""

import argparse
import asyncio
import random
import re
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import h11
import httpx

from proxy.errors import BadRequest
from proxy.own import NAMES as OWN
from proxy.rewrites.transcriptions import Form
from tests.peers import PATIENCE, answer
from tests.test_connection import FINE, NOT_HTTP, ONE_IDLE, answered_by_hand, by_hand, exchange, pooled, turns
from tests.test_rewrites_form import CLOSE, CONTENT_TYPE, CRUMBS, FILE, field

Outcome = tuple[int, bytes] | None  # status and body, or nothing for what is refused
ANSWERS = [said for _, said, *_ in FINE.values()] + [said for said in NOT_HTTP.values() if len(said) < 1000]
PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0\r\n\r\n", b"1\r\n", b"ffffffffffffffff\r\n"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 03", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 ", b"\xff", answer(body=b"other's")),
]
FORMS = [
    FILE + field("security_key", b"secret") + CLOSE,
    field("timeout", b"1") + field("model", b"m") + FILE + CLOSE,
    b"before\r\n" + FILE + field("prompt", b"\r\n--b-\r\n--") + CLOSE + b"after",
]
HEADS = re.compile(rb"(?:^|\r\n)--b\r\n((?:[^\r\n]+\r\n)+)\r\n")
NAMES = re.compile(rb'^content-disposition: form-data; name="([a-z_]+)"\r\n', re.IGNORECASE | re.MULTILINE)
MARKS = [*CRUMBS, b"--b", b"--b--", b"\r\n--b\r\n", b'name="', b'"', b"Content-Disposition: form-data; ", *FORMS]


def mutated(draw: random.Random, bases: list[bytes], marks: list[bytes]) -> bytes:
    """One of these with some bytes turned over, gone, doubled or put in."""
    said = bytearray(draw.choice(bases))
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(said) + 1)
        match draw.randrange(5):
            case 0 if at < len(said):
                said[at] ^= 1 << draw.randrange(8)
            case 1:
                del said[at : at + draw.randint(1, 9)]
            case 2:
                said[at:at] = said[at : at + draw.randint(1, 40)]
            case 3:
                said[at:at] = draw.randbytes(draw.randint(1, 3))
            case _:
                said[at:at] = draw.choice(marks)
    return bytes(said)


def cut(draw: random.Random, said: bytes) -> list[bytes]:
    places = sorted(draw.randrange(len(said) + 1) for _ in range(draw.randint(1, 6)))
    pieces = [said[start:end] for start, end in zip([0, *places], [*places, len(said)], strict=True)]
    return [piece for piece in pieces if piece]


# ---- answers


async def heard(pieces: list[bytes], method: str) -> Outcome:
    """What comes of an upstream that says this and ends; the exchanges behind it have to be right."""
    with by_hand() as lines:
        async with pooled() as pool:
            asking = asyncio.create_task(exchange(pool, method))
            await turns()
            for piece in pieces:
                lines[0].says(piece)
                await turns(1)
            lines[0].ends()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([asking])
            for body in (b"right", b"again"):
                assert (await answered_by_hand(pool, lines, answer(body=body)))[2] == body
            assert repr(pool) == ONE_IDLE
    try:
        status, _, body = asking.result()
    except httpx.TransportError:
        return None
    return status, body


def judged(said: bytes, method: str) -> Outcome:
    """What h11 makes of it."""
    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    judge.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        judge.receive_data(said)
        judge.receive_data(b"")
        while not isinstance(event := judge.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
    return status, body


async def one_answer(draw: random.Random) -> None:
    said, method = mutated(draw, ANSWERS, PIECES), draw.choice(["GET", "GET", "HEAD", "POST"])
    pieces = cut(draw, said)
    whole, in_pieces, other = await heard([said], method), await heard(pieces, method), judged(said, method)
    outcomes = {outcome for outcome in (whole, in_pieces, other) if outcome is not None}
    assert len(outcomes) < 2, f"{method} {said!r} in {pieces!r}: {whole}, cut {in_pieces}, h11 {other}"


# ---- forms


def rewritten(pieces: list[bytes]) -> bytes | None:
    form = Form(CONTENT_TYPE, OWN)
    try:
        return b"".join([*(form.feed(piece) for piece in pieces), form.end()])
    except BadRequest:
        return None


async def one_form(draw: random.Random) -> None:
    said = mutated(draw, FORMS, MARKS)
    pieces = cut(draw, said)
    whole = rewritten([said])
    assert whole == rewritten(pieces), f"{said!r} in {pieces!r}"
    if whole is not None:
        names = {name.decode() for head in HEADS.findall(whole) for name in NAMES.findall(head)}
        assert not names & {*OWN}, f"{said!r} becomes {whole!r}"


async def fuzz(name: str, one: Callable[[random.Random], Coroutine[Any, Any, None]], seconds: float, seed: int) -> bool:
    end, cases = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        cases += 1
        try:
            await one(random.Random(f"{seed}-{cases}"))
        except Exception as problem:
            print(f"{name}: case {cases} of seed {seed} FAILED: {type(problem).__name__} {problem}")
            return False
    print(f"{name}: {cases} cases of seed {seed}, none failed")
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for both together")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    fine = [
        asyncio.run(fuzz(name, one, options.seconds / 2, options.seed))
        for name, one in (("answers", one_answer), ("forms", one_form))
    ]
    sys.exit(not all(fine))
