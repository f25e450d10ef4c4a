"""Whatever an upstream says instead of an answer, both ways upstream and on real sockets; test_pool has it by hand.

It ends in an answer, in a 502, or torn, and the exchanges behind it are right.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.settings import load
from tests.conftest import Running, running
from tests.peers import Upstream, answer, request
from tests.test_faults import Judge
from tests.test_pool import mutated
from tests.test_properties import bounded, in_one_loop


@dataclass(frozen=True, slots=True, repr=False)  # it would fill a falsifying example
class Stage:
    """A proxy that lets one exchange in at a time, and its upstream."""

    proxy: Running
    upstream: Upstream

    async def play(self, method: str) -> Judge:
        client = await self.proxy.connect()
        await client.say(request(method, body=b"{}" if method == "POST" else None))
        judge = Judge(client)
        await judge.hear_all()
        client.writer.close()
        return judge


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fast", "httpx"])
async def stage(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with Upstream().listening() as upstream:
        environ = {
            "OXY_TARGET": upstream.url,
            "OXY_TRANSPORT": request.param,
            "OPENAI_PROXY_UPSTREAM_TIMEOUT_MS": "600",  # a busy machine is not to look like a silent upstream
        }
        async with running(load(environ, tmp_path_factory.mktemp("nowhere"))) as proxy:
            yield Stage(proxy, upstream)


@in_one_loop
@given(pieces=mutated(), method=st.sampled_from(["GET", "POST"]), ends=st.booleans())
@example(pieces=[answer(body=b"one") + answer(body=b"another's")], method="GET", ends=False)
@example(pieces=[answer(body=b"one"), b"\0"], method="POST", ends=False)
@bounded
async def test_whatever_an_upstream_says_the_next_exchange_is_right(
    stage: Stage, pieces: list[bytes], method: str, ends: bool
) -> None:
    stage.upstream.says(*pieces, closes=ends)
    judge = await stage.play(method)
    assert judge.status
    if judge.status in (502, 504) and b"OPENAI_PROXY" in judge.body:
        assert judge.whole
        assert judge.code == ("OPENAI_PROXY_TRANSPORT" if judge.status == 502 else "OPENAI_PROXY_TIMEOUT")
    stage.upstream.says(answer(body=b"right"))
    for following in ("GET", "POST"):
        judge = await stage.play(following)
        assert (judge.status, judge.body, judge.whole) == (200, b"right", True)
