"""The supervisor of several workers, told with puppets in their place; test_server plays it with real ones."""

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Process

from proxy import workers
from proxy.workers import Orders, Server, Worker, Workers

Handlers = dict[int, Any]
SOON = 5  # seconds; LAST_WORDS are ten


class Puppet:
    """A worker as its supervisor sees one. One that does not answer runs on all the same."""

    numbers = count(1)
    ready = True

    def __init__(self, *_: object) -> None:
        self.pid = next(self.numbers)
        self.born = workers.time.monotonic()  # type: ignore[attr-defined]  # the one that a test may have put there
        self.due: float | None = None
        self.pause = 0.0
        self.exitcode: int | None = None
        self.answers = True
        self.heard: list[str] = []
        self.process = SimpleNamespace(
            pid=self.pid, is_alive=lambda: self.exitcode is None, join=self._joined, kill=self.kill
        )

    def start(self) -> None:
        self.heard.append("start")

    def is_well(self, patience: float) -> bool:
        return self.exitcode is None and self.answers

    def wait_until_ready(self, timeout: float, orders: Orders) -> bool:
        return self.ready

    def terminate(self) -> None:
        self.heard.append("terminate")

    def kill(self) -> None:
        if self.exitcode is None:
            self.exitcode = -9

    def join(self) -> None:
        assert self.exitcode is not None, "it would wait for ever"

    def _joined(self, timeout: float) -> None:
        self.heard.append("joined")


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Handlers:
    """What would be called for a signal."""
    found: Handlers = {}

    def signalled(number: int, handler: object) -> object:
        before = found.get(number)
        found[number] = handler
        return before

    monkeypatch.setattr(signal, "signal", signalled)
    return found


@pytest.fixture
def troupe(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> Callable[[], Workers]:
    """A supervisor of two puppets, which have started."""
    monkeypatch.setattr(workers, "Worker", Puppet)
    monkeypatch.setattr(Puppet, "numbers", count(1))

    def troupe() -> Workers:
        config = uvicorn.Config("app", workers=2, timeout_worker_healthcheck=0, timeout_graceful_shutdown=60)
        found = Workers(config, [])
        found.init_processes()
        return found

    return troupe


def pids(some: Workers) -> list[int | None]:
    return [worker.pid for worker in some.processes]


def test_workers_that_answer_stay(troupe: Callable[[], Workers], told: list[str]) -> None:
    some = troupe()
    some.keep_subprocess_alive()
    assert pids(some) == [1, 2]
    assert told == []


def test_a_worker_has_its_time_for_a_sign_of_life_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now))
    worker = Worker(uvicorn.Config("app", workers=2), [])
    assert worker.is_well(15), "it was asked just now"
    now = 14
    assert worker.is_well(15)
    assert worker.child_conn.recv() == b"ping"
    worker.child_conn.send(True)
    now = 16
    assert worker.is_well(15), "it answered"
    assert worker.is_well(15), "it is asked again"
    now = 31
    assert not worker.is_well(15)
    for _ in range(2):  # what it was late with says nothing of the next question
        worker.child_conn.send(True)
    assert worker.is_well(15)
    assert worker.is_well(15), "it is asked again"
    now = 46
    assert not worker.is_well(15)


def test_a_worker_that_ended_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "exitcode", 0)
    assert not Worker(uvicorn.Config("app", workers=2), []).is_well(15)


@pytest.mark.parametrize(("exitcode", "status"), [(0, 0), (-11, -11), (None, -9)])
def test_a_worker_that_died_or_hangs_is_replaced_and_the_log_says_so(
    troupe: Callable[[], Workers], told: list[str], exitcode: int | None, status: int
) -> None:
    some = troupe()
    one: Any = some.processes[0]
    one.exitcode, one.answers = exitcode, False
    some.keep_subprocess_alive()
    assert pids(some) == [3, 2]
    assert told == [f"worker 1 died or hung (status {status}); 3 takes its place"]


def test_workers_that_die_young_are_replaced_ever_more_slowly(
    troupe: Callable[[], Workers], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now))
    some, pauses = troupe(), []
    for _ in range(8):
        dying: Any = some.processes[0]
        dying.exitcode = 1
        died = now
        while some.processes[0] is dying:
            some.keep_subprocess_alive()
            now += 0.5
        pauses.append(now - died - 0.5)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    first = next(line for line in told if "young" in line)
    assert first == "worker 3 died young (status 1); another takes its place in 1 s"
    now += workers.YOUNG
    old: Any = some.processes[0]
    old.exitcode = -9
    for _ in range(2):  # one that served for a while has its successor at once, and so has that one
        some.keep_subprocess_alive()
        assert some.processes[0].exitcode is None
        young: Any = some.processes[0]
        young.exitcode = 1
    assert pids(some)[1] == 2, "the other one serves on"


def test_one_that_dies_young_again_and_again_holds_up_nobody_but_itself(
    troupe: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now))
    some = troupe()
    waiting, other = some.processes
    for _ in range(5):
        waiting = some.processes[0]
        waiting.exitcode = 1  # type: ignore[misc]
        some.keep_subprocess_alive()
        now += 0.5
    assert some.processes == [waiting, other]
    other.exitcode = 1  # type: ignore[misc]
    some.keep_subprocess_alive()
    assert some.processes[0] is waiting
    assert some.processes[1] is not other


@pytest.mark.parametrize("order", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_ended_by_order_did_not_die(
    troupe: Callable[[], Workers], handlers: Handlers, told: list[str], order: int
) -> None:
    some = troupe()
    one: Any = some.processes[0]
    one.exitcode = 0
    handlers[order](order, None)
    some.keep_subprocess_alive()
    assert pids(some) == [1, 2]
    assert told == []


def test_orders_are_counted(handlers: Handlers, troupe: Callable[[], Workers]) -> None:
    some = troupe()
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    handlers[signal.SIGINT](signal.SIGINT, None)
    assert repr(some.should_exit) == "<Orders 2>"


def test_a_resized_terminal_is_no_order(troupe: Callable[[], Workers], handlers: Handlers) -> None:
    some = troupe()
    handlers[signal.SIGWINCH](signal.SIGWINCH, None)
    some.handle_signals()
    assert not some.should_exit.is_set()


def test_a_worker_that_cannot_start_ends_them_all_with_a_status(troupe: Callable[[], Workers], told: list[str]) -> None:
    some = troupe()
    one: Any = some.processes[0]
    one.exitcode = STARTUP_FAILURE
    some.processes_num = 0  # those of the run are here
    other: Any = some.processes[1]
    other.terminate = other.kill
    with pytest.raises(SystemExit) as end:
        some.run()
    assert end.value.code == STARTUP_FAILURE
    assert told == ["worker 1 could not start, so that all end"]


def test_who_is_told_to_stop_starts_no_more(troupe: Callable[[], Workers], handlers: Handlers) -> None:
    some = troupe()
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    some.init_processes()
    assert pids(some) == [1, 2]


def test_while_one_starts_ctrl_c_and_sighup_wait_and_never_reach_it(
    troupe: Callable[[], Workers], handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def start(self: object) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # a process inherits that
        held.append({signal.SIGINT, signal.SIGHUP} <= mask)

    def let_through() -> None:  # as the tracker's start does
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    monkeypatch.setattr("proxy.workers.resource_tracker.ensure_running", let_through)
    monkeypatch.setattr(Puppet, "start", start)
    some = troupe()
    some.handle_ttin()
    assert held == [True] * 3
    assert not {signal.SIGINT, signal.SIGHUP} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_where_signals_cannot_be_held_back_workers_are_started_all_the_same(
    troupe: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_to_run() -> None:
        raise ModuleNotFoundError("No module named '_posixsubprocess'")  # as on Windows

    monkeypatch.delattr(signal, "pthread_sigmask")
    monkeypatch.setattr("proxy.workers.resource_tracker.ensure_running", none_to_run)
    assert pids(troupe()) == [1, 2]


class NoRoom(Puppet):
    """One that the system cannot start."""

    def start(self) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_where_no_worker_can_be_started_those_that_run_go_on_and_it_is_said_once(
    troupe: Callable[[], Workers], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = troupe()
    one: Any = some.processes[0]
    monkeypatch.setattr(workers, "Worker", NoRoom)
    some.restart_all()
    some.handle_ttin()
    assert pids(some) == [1, 2]
    one.exitcode = -9
    for _ in range(3):
        some.keep_subprocess_alive()
    assert told == [
        "no worker can be started: [Errno 11] Resource temporarily unavailable; those that run go on",
    ]
    monkeypatch.setattr(workers, "Worker", Puppet)
    some.keep_subprocess_alive()
    assert len({*pids(some)} - {1, 2}) == 1
    assert "takes its place" in told[-1]


def test_where_not_even_the_first_ones_can_be_started_all_end_with_a_status(
    troupe: Callable[[], Workers], handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = troupe()
    first: list[Any] = [*some.processes]
    for one in first:
        one.terminate = one.kill
    monkeypatch.setattr(workers, "Worker", NoRoom)
    with pytest.raises(SystemExit) as end:
        some.run()
    assert end.value.code == STARTUP_FAILURE
    assert [one.exitcode for one in first] == [-9, -9]


def test_what_breaks_the_supervisor_ends_its_workers(
    troupe: Callable[[], Workers], handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "_end_of_patience", lambda _: 0)  # they do not end by themselves
    some = troupe()
    all_of_them: list[Any] = [*some.processes]
    some.processes_num = 0

    def breaks() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(some, "keep_subprocess_alive", breaks)
    with pytest.raises(ZeroDivisionError):
        some.run()
    assert [one.exitcode for one in all_of_them] == [-9, -9]


def test_one_that_was_replaced_and_hangs_beyond_its_time_is_killed(
    troupe: Callable[[], Workers], told: list[str]
) -> None:
    some = troupe()
    hung: Any = some.processes[0]
    some.restart_all()
    some.keep_subprocess_alive()
    assert hung.process.is_alive()
    some._retired[hung] = 0
    some.keep_subprocess_alive()
    assert hung.exitcode == -9
    assert told[-1] == "worker 1, which another has replaced, does not end: it is killed"


def test_all_are_replaced_one_after_the_other_and_nobody_waits_for_the_old(troupe: Callable[[], Workers]) -> None:
    some = troupe()
    old: list[Any] = [*some.processes]
    some.restart_all()
    assert pids(some) == [3, 4]
    assert [one.heard for one in old] == [["start", "terminate"]] * 2
    old[0].exitcode = 0
    some.keep_subprocess_alive()
    assert [one.pid for one in some._retired] == [2]


def test_a_new_worker_that_is_not_ready_leaves_the_old_ones(
    troupe: Callable[[], Workers], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = troupe()
    monkeypatch.setattr(Puppet, "ready", False)
    some.restart_all()
    assert pids(some) == [1, 2]
    assert told == ["worker 3 did not begin to serve; the old ones from 1 on stay"]


def test_an_order_to_stop_ends_the_replacing_in_silence(
    troupe: Callable[[], Workers], handlers: Handlers, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = troupe()
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    monkeypatch.setattr(Puppet, "ready", False)
    some.restart_all()
    assert pids(some) == [1, 2]
    assert told == []


def test_one_more_and_one_less_but_never_none(troupe: Callable[[], Workers]) -> None:
    some = troupe()
    some.handle_ttin()
    assert pids(some) == [1, 2, 3]
    for _ in range(3):
        some.handle_ttou()
    assert pids(some) == [1]
    assert [one.pid for one in some._retired] == [3, 2]


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was sent to whom: puppets have numbers of other processes."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


def test_a_second_order_tells_those_too_that_were_replaced_to_end_at_once_and_kills_who_does_not(
    troupe: Callable[[], Workers],
    handlers: Handlers,
    signals: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "LAST_WORDS", 0)
    some = troupe()
    old: list[Any] = [*some.processes]
    some.restart_all()
    old[0].exitcode = 0
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    handlers[signal.SIGINT](signal.SIGINT, None)
    began = time.monotonic()
    some.join_all()
    assert time.monotonic() - began < SOON
    assert set(signals) == {(pid, workers.AT_ONCE) for pid in (2, 3, 4)}
    assert [one.exitcode for one in [*old, *some.processes]] == [0, -9, -9, -9]


def test_a_third_order_kills(troupe: Callable[[], Workers], handlers: Handlers, signals: list[tuple[int, int]]) -> None:
    some = troupe()
    for _ in range(3):
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    began = time.monotonic()
    some.join_all()
    assert time.monotonic() - began < SOON
    assert [one.exitcode for one in some.processes] == [-9] * 2


@pytest.mark.parametrize(
    ("force", "running", "says"),
    [
        (False, 0, []),
        (True, 0, []),
        (True, 2, ["told to stop again: what runs is cut off, 2 in all"]),
    ],
)
async def test_what_is_cut_off_ends_before_the_books_are_closed(
    told: list[str], force: bool, running: int, says: list[str]
) -> None:
    ended: list[str] = []

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cut off")

    async def close() -> None:
        await asyncio.sleep(0)
        ended.append("closed")

    server = Server(uvicorn.Config("app"))
    server.servers, server.force_exit = [], force
    server.lifespan = SimpleNamespace(shutdown=close)
    server.server_state.tasks = {asyncio.create_task(run()) for _ in range(running)}
    await server.shutdown()
    assert ended == ["cut off"] * running + ["closed"]
    assert told == says


def test_a_workers_server_ends_at_once_when_it_is_told_that_and_not_by_two_orders_sent_to_all() -> None:
    server = Worker(uvicorn.Config("app", workers=2), []).server
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
        assert (server.should_exit, server.force_exit) == (True, False)
    server.end_at_once(workers.AT_ONCE, None)
    assert (server.should_exit, server.force_exit) == (True, True)


def test_a_worker_serves_with_the_server_that_it_tells_of(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[object] = []
    monkeypatch.setattr(Process, "target", lambda self, sockets: served.append(self.server))
    worker = Worker(uvicorn.Config("app", workers=2), [])
    worker.target([])
    assert served == [worker.server]
    assert handlers == {
        workers.AT_ONCE: worker.server.end_at_once,
        **dict.fromkeys(workers.STOPS, worker.server.handle_exit),
    }


@pytest.mark.usefixtures("handlers")
def test_a_worker_that_finds_a_certificate_which_is_none_says_so_and_ends(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[object] = []
    monkeypatch.setattr(Process, "target", lambda self, sockets: served.append(self))
    good, none = Path(__file__).with_name("listener.pem"), Path(__file__)
    Worker(uvicorn.Config("app", ssl_certfile=good, ssl_keyfile=good), []).target([])
    assert len(served) == 1
    with pytest.raises(SystemExit) as ended:
        Worker(uvicorn.Config("app", ssl_certfile=none, ssl_keyfile=good), []).target([])
    assert (ended.value.code, len(served)) == (1, 1)
    assert told == ["PROXY_TLS_CERT and PROXY_TLS_KEY cannot be read by now, or do not belong together"]


def test_one_that_hangs_beyond_the_grace_time_is_ended(troupe: Callable[[], Workers], handlers: Handlers) -> None:
    some = troupe()
    some.config.timeout_graceful_shutdown = 0
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    some.join_all()
    assert [one.exitcode for one in some.processes] == [-9] * 2


async def test_a_stop_waits_for_no_connection_of_a_loop_that_would() -> None:
    closed = []

    class Listener:
        def close(self) -> None:
            closed.append(self)

        async def wait_closed(self) -> None:  # asyncio's, from Python 3.12 on, as long as an idle connection is open
            await asyncio.Event().wait()

    async def nothing() -> None:
        pass

    server: Any = Server(uvicorn.Config("nowhere", timeout_graceful_shutdown=SOON))
    server.servers, server.lifespan = [listener := Listener()], SimpleNamespace(shutdown=nothing)
    async with asyncio.timeout(SOON - 2):
        await server.shutdown()
    assert closed == [listener]
