"""The processes that serve: uvicorn's server, and its supervisor of several.

The server writes down what it cuts off. The supervisor waits for no worker without hearing orders meanwhile: not for
one that starts, one that is asked for a sign of life, or one that finishes what it has when another has its place.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from proxy.values import belong_together

STOPS = frozenset((signal.SIGTERM, signal.SIGINT))
# How a worker is told to stop again: neither a terminal nor who stops a service sends that. Windows has none.
AT_ONCE = getattr(signal, "SIGUSR1", signal.SIGTERM)
LOOK = 0.1  # seconds
YOUNG = 5.0  # seconds; one that dies before has hardly served
LONGEST_PAUSE = 30.0  # seconds before another takes the place of one that died young
LAST_WORDS = 10.0  # seconds; the ledger takes five at most

log = logging.getLogger("oxy")


class Server(uvicorn.Server):
    """uvicorn's server, whose forced end is not without an entry for each exchange: the upstream has its price."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs finish; told to stop again, cut it off, and let the books be written all the same."""
        for listener in self.servers:
            listener.close()
        self.servers = []  # asyncio's would wait, from Python 3.12 on, for idle connections too: for the whole grace
        await super().shutdown(sockets)
        if not self.force_exit:
            return
        if running := [*self.server_state.tasks]:
            log.warning("told to stop again: what runs is cut off, %s in all", len(running))
        for task in running:
            task.cancel()
        await self.lifespan.shutdown()  # uvicorn leaves that out


class WorkersServer(Server):
    """The server of a worker."""

    def end_at_once(self, *_: object) -> None:
        """Take `AT_ONCE`: cut off what runs, and end."""
        self.should_exit = self.force_exit = True


class Worker(Process):
    """One of several processes, which serves with a `WorkersServer`."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.born = time.monotonic()
        self.due: float | None = None  # once it has ended: when another is to take its place
        self.pause = 0.0  # seconds until that, should it die young; its successor's, once it has ended
        self._asked: float | None = None

    @property
    def server(self) -> WorkersServer:
        """The server of this process."""
        if not isinstance(self._server, WorkersServer):
            self._server = WorkersServer(config=self.config)
        return self._server

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve. Called in the process."""
        signal.signal(AT_ONCE, self.server.end_at_once)
        # uvicorn raises the signal that ended it once more: by the system's handler what waits for stderr were lost.
        for number in STOPS:
            signal.signal(number, self.server.handle_exit)
        certificate, key = self.config.ssl_certfile, self.config.ssl_keyfile
        if certificate and key and not belong_together(Path(certificate), Path(key)):
            log.error("PROXY_TLS_CERT and PROXY_TLS_KEY cannot be read by now, or do not belong together")
            sys.exit(1)
        super().target(sockets)

    def is_well(self, patience: float) -> bool:
        """Tell whether it runs, and gave a sign of life within so many seconds.

        Who asks does not wait: whether one came is looked at the next time.
        """
        if self.exitcode is not None:
            return False
        if self._asked is None:
            self.parent_conn.send(b"ping")
            self._asked = time.monotonic()
        while self.parent_conn.poll():
            self.parent_conn.recv()
            self._asked = None
        return self._asked is None or time.monotonic() - self._asked < patience


class Orders(threading.Event):
    """Orders to stop, counted. The handler of a signal gives them, inside any call: so there is no lock to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __repr__(self) -> str:
        return f"<Orders {self.number}>"

    def set(self, *_: object) -> None:
        """Take an order."""
        self.number += 1

    def is_set(self) -> bool:
        """Tell whether there is any."""
        return self.number > 0

    def wait(self, timeout: float | None = None) -> bool:
        """Let so many seconds pass, whatever comes, and tell whether there is any."""
        time.sleep(timeout or 0)
        return self.is_set()


class Workers(Multiprocess):
    """uvicorn's supervisor of several processes. SIGHUP replaces them all, SIGTTIN and SIGTTOU add and take one."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.should_exit = self._orders = Orders()
        self.processes: list[Worker] = []  # type: ignore[assignment]  # of the kind that is started here
        self._retired: dict[Worker, float] = {}  # told to stop, with exchanges to finish until then
        self._failed = False
        self._stuck = False  # whether none could be started
        for number in STOPS:
            signal.signal(number, self._orders.set)

    def run(self) -> None:
        """Serve until that is to end. Raises `SystemExit` where a worker could not even start."""
        try:
            super().run()
        except BaseException:  # nobody would hear an order to stop, and the interpreter waits for its children
            self.terminate_all()
            self.join_all()
            raise
        if self._failed:
            sys.exit(STARTUP_FAILURE)

    def init_processes(self) -> None:
        """Start the workers."""
        for _ in range(self.processes_num):
            if self._orders.is_set():
                return
            if (worker := self._started()) is None:
                self._fail()
                return
            self.processes.append(worker)

    def restart_all(self) -> None:
        """Put a new worker into the place of each, when it serves; the old one finishes what it has."""
        for place, old in enumerate(self.processes):
            if (new := self._started()) is None:
                return
            if not new.wait_until_ready(self.config.timeout_worker_healthcheck, self._orders):
                new.kill()
                new.join()
                if not self._orders.is_set():
                    log.error("worker %s did not begin to serve; the old ones from %s on stay", new.pid, old.pid)
                return
            self.processes[place] = new
            self._retire(old)
        log.info("SIGHUP: all %s workers are new", len(self.processes))

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that died, or hung and is killed for it, and say so."""
        self._bury()
        for place, old in enumerate(self.processes):
            if old.is_well(self.config.timeout_worker_healthcheck):
                continue
            if self._orders.is_set():  # one that ended by order, sent to all, did not die
                return
            old.kill()
            old.join()
            if old.exitcode == STARTUP_FAILURE:  # and would so again
                log.error("worker %s could not start, so that all end", old.pid)
                self._fail()
                return
            if not self._is_due(old):
                continue
            if (new := self._started()) is None:  # the next look tries again
                return
            new.pause = old.pause
            self.processes[place] = new
            log.warning("worker %s died or hung (status %s); %s takes its place", old.pid, old.exitcode, new.pid)

    def handle_ttin(self) -> None:
        """Add a worker."""
        if (worker := self._started()) is not None:
            self.processes.append(worker)

    def handle_ttou(self) -> None:
        """Take one away, if there is another."""
        if len(self.processes) > 1:
            self._retire(self.processes.pop())

    def terminate_all(self) -> None:
        """Let the workers finish; who calls from now on is to hear at once that nobody takes it."""
        super().terminate_all()
        for sock in self.sockets:
            sock.close()

    def join_all(self) -> None:
        """Wait for the workers to end: told to stop again, at once. One that hangs beyond its time is killed."""
        workers = [*self.processes, *self._retired]
        give_up = self._end_of_patience()
        told_again = False
        while running := [worker for worker in workers if worker.process.is_alive()]:
            if self._orders.number > 1 and not told_again:
                told_again, give_up = True, time.monotonic() + LAST_WORDS
                for pid in filter(None, [worker.pid for worker in running]):
                    os.kill(pid, AT_ONCE)
            if self._orders.number > 2 or time.monotonic() > give_up:
                for worker in running:
                    worker.process.kill()
            running[0].process.join(LOOK)

    def _started(self) -> Worker | None:
        """Start a worker, which never hears of Ctrl-C and SIGHUP: what comes of them we say.

        A terminal sends the one to all, `systemctl kill` the other. Return None, and say so once, where the system has
        no room for it.
        """
        try:
            worker = Worker(self.config, self.sockets)
            with withheld():
                worker.start()
        except OSError as problem:
            if not self._stuck:
                log.error("no worker can be started: %s; those that run go on", problem)
            self._stuck = True
            return None
        self._stuck = False
        return worker

    def _is_due(self, old: Worker) -> bool:
        """Tell whether it is time to replace one that ended: at once, but where they die young, ever more slowly.

        Each place has a pause of its own: one that dies again and again holds up nobody but itself.
        """
        now = time.monotonic()
        if old.due is None:
            died_young = now - old.born < YOUNG
            pause, old.pause = (old.pause, min(2 * old.pause or 1.0, LONGEST_PAUSE)) if died_young else (0.0, 0.0)
            if pause:
                what = "worker %s died young (status %s); another takes its place in %.0f s"
                log.warning(what, old.pid, old.exitcode, pause)
            old.due = now + pause
        return now >= old.due

    def _fail(self) -> None:
        self._failed = True
        self._orders.set()

    def _retire(self, worker: Worker) -> None:
        worker.terminate()
        self._retired[worker] = self._end_of_patience()

    def _bury(self) -> None:
        """Forget those that have finished; one that hangs beyond its time is killed."""
        for worker, until in [*self._retired.items()]:
            if not worker.process.is_alive():
                del self._retired[worker]
            elif time.monotonic() > until:
                log.warning("worker %s, which another has replaced, does not end: it is killed", worker.pid)
                worker.process.kill()

    def _end_of_patience(self) -> float:
        config = self.config
        return time.monotonic() + (config.timeout_graceful_shutdown or 0) + config.timeout_worker_healthcheck


@contextmanager
def withheld() -> Iterator[None]:
    """Hold Ctrl-C and SIGHUP back meanwhile, and for good in processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no resource tracker either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()  # else the start of a process would do it, and let Ctrl-C through
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
