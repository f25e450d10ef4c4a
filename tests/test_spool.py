"""A body that waits comes back as it was, wherever it waited."""

import asyncio
import os
import threading
from collections.abc import Callable
from errno import ENOSPC
from io import BufferedRandom, BytesIO, RawIOBase
from typing import IO, Any

import pytest

from proxy import spool
from proxy.errors import Overloaded
from proxy.guard import Budget
from proxy.spool import IN_MEMORY, Spool

PLENTY = Budget(1 << 40)
CONTENT = bytes(range(256)) * (3 * IN_MEMORY // 256) + b"the end"


class Disk:
    """Where spools put their files. `files` are those that were made."""

    def __init__(self) -> None:
        self.files: list[IO[bytes]] = []
        self.make: Callable[[], IO[bytes]] = BytesIO

    def __call__(self) -> IO[bytes]:
        self.files.append(self.make())
        return self.files[-1]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(spool, "TemporaryFile", disk)
    return disk


async def written(content: bytes, size: int) -> Spool:
    """A spool that has taken the content in pieces of that size."""
    waiting = Spool(PLENTY)
    for at in range(0, len(content), size):
        await waiting.write(content[at : at + size])
    return waiting


async def rest_of(waiting: Spool) -> list[bytes]:
    pieces = []
    while piece := await waiting.read():
        pieces.append(piece)
    return pieces


async def there_and_back(waiting: Spool, *pieces: bytes) -> bytes:
    for piece in pieces:
        await waiting.write(piece)
    return b"".join(await rest_of(waiting))


@pytest.mark.parametrize("length", [0, 1, IN_MEMORY - 1, IN_MEMORY, IN_MEMORY + 1, 2 * IN_MEMORY, len(CONTENT)])
@pytest.mark.parametrize("size", [1000, 65_536, IN_MEMORY, len(CONTENT)])
async def test_what_was_written_comes_back_whatever_its_cutting(length: int, size: int) -> None:
    waiting = await written(CONTENT[:length], size)
    assert waiting.length == length
    assert b"".join(await rest_of(waiting)) == CONTENT[:length]
    assert await waiting.read() == b""
    waiting.close()


async def test_no_more_than_its_bound_is_kept_in_memory(disk: Disk) -> None:
    waiting = await written(CONTENT[:IN_MEMORY], 1000)
    assert not disk.files
    await waiting.write(b"1")
    assert disk.files[0].tell() == IN_MEMORY + 1


async def test_a_spool_has_one_file_and_reads_it_in_pieces(disk: Disk) -> None:
    waiting = await written(CONTENT, 500_000)
    assert [len(piece) for piece in await rest_of(waiting)] == [IN_MEMORY, IN_MEMORY, IN_MEMORY, 7]
    assert len(disk.files) == 1


async def test_the_disk_is_waited_for_in_another_thread(disk: Disk) -> None:
    threads = []

    class Noted(BytesIO):
        def write(self, content: Any) -> int:
            threads.append(threading.current_thread())
            return super().write(content)

        def seek(self, place: int, whence: int = 0) -> int:
            threads.append(threading.current_thread())
            return super().seek(place, whence)

        def read(self, size: int | None = -1) -> bytes:
            threads.append(threading.current_thread())
            return super().read(size)

    disk.make = Noted
    waiting = await written(CONTENT, len(CONTENT))
    assert b"".join(await rest_of(waiting)) == CONTENT
    assert len(threads) > 3
    assert threading.current_thread() not in threads
    waiting.close()


@pytest.mark.parametrize("reads", [0, 1, 5])
async def test_a_closed_spool_has_let_go_of_its_file(disk: Disk, reads: int) -> None:
    waiting = await written(CONTENT, 65_536)
    for _ in range(reads):
        await waiting.read()
    waiting.close()
    waiting.close()
    assert [file.closed for file in disk.files] == [True]


async def test_a_spool_closed_in_memory_gives_nothing_any_more() -> None:
    waiting = await written(b"abc", 1)
    waiting.close()
    assert await waiting.read() == b""


class Slow(BytesIO):
    """A file on a disk that takes its time: what is written waits until it may `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def write(self, content: Any) -> int:
        self.begun.set()
        self.go.wait(10)
        return super().write(content)

    def close(self) -> None:
        super().close()
        self.ended.set()


async def test_a_slow_disk_holds_nobody_else_up_and_may_be_abandoned(disk: Disk) -> None:
    slow = Slow()
    disk.make = lambda: slow
    waiting = Spool(PLENTY)
    writing = asyncio.create_task(waiting.write(CONTENT))
    await asyncio.to_thread(slow.begun.wait, 10)  # meanwhile the loop goes on
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    waiting.close()
    waiting.close()
    await asyncio.sleep(0)
    assert not slow.closed
    slow.go.set()
    await asyncio.to_thread(slow.ended.wait, 10)
    assert slow.closed


class Full(RawIOBase):
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self._room = room

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def write(self, content: Any) -> int:
        taken = min(len(content), self._room)
        if not taken:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        self._room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1000, IN_MEMORY, IN_MEMORY + 1])
async def test_a_disk_that_is_full_is_told_of_and_closed_in_silence(disk: Disk, room: int) -> None:
    disk.make = lambda: BufferedRandom(Full(room))
    waiting = Spool(PLENTY)
    with pytest.raises(Overloaded) as raised:
        await there_and_back(waiting, CONTENT[: IN_MEMORY + 1], b"a few bytes more")
    waiting.close()
    assert (raised.value.status, raised.value.detail) == (503, f"[Errno {ENOSPC}] {os.strerror(ENOSPC)}")
    assert [file.closed for file in disk.files] == [True]


async def test_no_file_to_be_had_is_told_of(disk: Disk) -> None:
    def none() -> IO[bytes]:
        raise PermissionError("no place for a file")

    disk.make = none
    waiting = Spool(PLENTY)
    with pytest.raises(Overloaded):
        await waiting.write(CONTENT)
    waiting.close()


async def test_a_spool_is_counted_until_it_is_closed() -> None:
    budget = Budget(10)
    waiting = Spool(budget)
    await waiting.write(b"12345678")
    with pytest.raises(Overloaded):
        await waiting.write(b"90a")
    assert budget.held == 8
    assert await waiting.read() == b"12345678"
    waiting.close()
    waiting.close()
    assert budget.held == 0
