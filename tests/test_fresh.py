"""An answer that is good for a while: asked for once, shared by all who want it."""

import asyncio
import gc

import pytest

from proxy.fresh import Fresh


class Source:
    """Answers with how often it was asked, once it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.let = asyncio.Event()
        self.problem: Exception | None = None

    async def __call__(self) -> int:
        self.asked += 1
        await self.let.wait()
        if self.problem is not None:
            raise self.problem
        return self.asked


@pytest.fixture
def source() -> Source:
    return Source()


async def test_those_who_ask_at_once_share_an_answer(source: Source) -> None:
    fresh = Fresh(source, 60)
    asking = [asyncio.create_task(fresh()) for _ in range(5)]
    await asyncio.sleep(0)
    source.let.set()
    assert await asyncio.gather(*asking) == [1] * 5
    assert await fresh() == 1


async def test_an_answer_that_is_too_old_is_asked_for_anew(source: Source) -> None:
    fresh = Fresh(source, 0)
    source.let.set()
    assert [await fresh(), await fresh()] == [1, 2]


async def test_an_answer_is_as_old_as_it_is_here(source: Source) -> None:
    fresh = Fresh(source, 0.1)
    asking = asyncio.create_task(fresh())
    await asyncio.sleep(0.15)
    source.let.set()
    assert [await asking, await fresh()] == [1, 1]


async def test_a_failure_that_nobody_waits_for_any_more_is_no_news(source: Source) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    source.problem = OSError("broken")
    fresh = Fresh(source, 60)
    asking = asyncio.create_task(fresh())
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    source.let.set()
    await asyncio.sleep(0.01)
    gc.collect()
    assert told == []


async def test_one_who_hangs_up_leaves_the_answer_to_the_others(source: Source) -> None:
    fresh = Fresh(source, 60)
    hanging, staying = (asyncio.create_task(fresh()) for _ in range(2))
    await asyncio.sleep(0)
    hanging.cancel()
    await asyncio.sleep(0)
    source.let.set()
    assert await staying == 1
    assert hanging.cancelled()


async def test_a_failure_is_heard_by_all_and_not_kept(source: Source) -> None:
    fresh = Fresh(source, 60)
    source.problem = OSError("broken")
    source.let.set()
    heard = await asyncio.gather(fresh(), fresh(), return_exceptions=True)
    assert [str(each) for each in heard] == ["broken", "broken"]
    source.problem = None
    assert await fresh() == 2


async def test_a_failure_that_nobody_waits_for_any_more_is_no_trouble(source: Source) -> None:
    fresh = Fresh(source, 60)
    asking = asyncio.create_task(fresh())
    await asyncio.sleep(0)
    asking.cancel()
    source.problem = OSError("broken")
    source.let.set()
    await asyncio.sleep(0.01)
    source.problem = None
    assert await fresh() == 2


async def test_an_end_of_the_asking_itself_lets_the_next_one_ask(source: Source) -> None:
    fresh = Fresh(source, 60)
    asking = asyncio.create_task(fresh())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert fresh._asking is not None
    fresh._asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    source.let.set()
    assert await fresh() == 2


async def test_nobody_joins_what_was_asked_for_long_ago() -> None:
    lets, asked = [asyncio.Event(), asyncio.Event()], 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        mine = asked
        await lets[mine - 1].wait()
        if mine == 1:
            raise OSError("lost on the way")
        return mine

    fresh = Fresh(ask, 60, patience=0.05)
    early = asyncio.create_task(fresh())
    await asyncio.sleep(0.06)
    late = asyncio.create_task(fresh())
    await asyncio.sleep(0)
    lets[0].set()
    with pytest.raises(OSError, match="lost"):
        await early
    last = asyncio.create_task(fresh())
    await asyncio.sleep(0)
    lets[1].set()
    assert [await late, await last] == [2, 2]
    assert asked == 2
