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
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

STOPS = frozenset((signal.SIGTERM, signal.SIGINT))
# How a worker is told to stop again: neither a terminal nor who stops a service sends that. Windows has none.
AT_ONCE = getattr(signal, "SIGUSR1", signal.SIGTERM)
LOOK = 0.1  # seconds
LAST_WORDS = 10.0  # seconds; the ledger takes five at most

log = logging.getLogger("oxy")


class Server(uvicorn.Server):
    """uvicorn's server, whose forced end is not without an entry for each exchange: the upstream has its price."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs finish; told to stop again, cut it off, and let the books be written all the same."""
        await super().shutdown(sockets)
        if not self.force_exit:
            return
        if running := [*self.server_state.tasks]:
            log.warning("told to stop again: what runs is cut off, %s in all", len(running))
        for task in running:
            task.cancel()
        await self.lifespan.shutdown()  # uvicorn leaves that out


class WorkersServer(Server):
    """The server of a worker, which takes its orders from the supervisor."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal, unless a terminal sent it, to all: the supervisor says what comes of Ctrl-C."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    def end_at_once(self, *_: object) -> None:
        """Take the signal for that."""
        self.should_exit = self.force_exit = True


class Worker(Process):
    """A worker with that server."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
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
        self._retired: list[Worker] = []  # told to stop, with exchanges to finish
        self._failed = False
        for number in STOPS:
            signal.signal(number, self._orders.set)

    def run(self) -> None:
        """Serve until that is to end. Raises `SystemExit` where a worker could not even start."""
        super().run()
        if self._failed:
            sys.exit(STARTUP_FAILURE)

    def init_processes(self) -> None:
        """Start the workers."""
        for _ in range(self.processes_num):
            if not self._orders.is_set():
                self.processes.append(self._started())

    def restart_all(self) -> None:
        """Put a new worker into the place of each, when it serves; the old one finishes what it has."""
        for place, old in enumerate(self.processes):
            new = self._started()
            if not new.wait_until_ready(self.config.timeout_worker_healthcheck, self._orders):
                new.kill()
                new.join()
                if not self._orders.is_set():
                    log.error("worker %s was not ready in time; the old ones from %s on stay", new.pid, old.pid)
                return
            self.processes[place] = new
            self._retire(old)

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that died, or hung and is killed for it, and say so."""
        self._retired = [worker for worker in self._retired if worker.process.is_alive()]
        for place, old in enumerate(self.processes):
            if old.is_well(self.config.timeout_worker_healthcheck):
                continue
            if self._orders.is_set():  # one that ended by order, sent to all, did not die
                return
            old.kill()
            old.join()
            if old.exitcode == STARTUP_FAILURE:  # and would so again
                log.error("worker %s could not start, so that all end", old.pid)
                self._failed = True
                self._orders.set()
                return
            self.processes[place] = new = self._started()
            log.warning("worker %s died or hung (status %s); %s takes its place", old.pid, old.exitcode, new.pid)

    def handle_ttin(self) -> None:
        """Add a worker."""
        self.processes.append(self._started())

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
        config = self.config
        give_up = time.monotonic() + (config.timeout_graceful_shutdown or 0) + config.timeout_worker_healthcheck
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

    def _started(self) -> Worker:
        """Start a worker, which leaves Ctrl-C to us until it is up.

        A terminal sends SIGINT to all of them. One that was still importing would end with a traceback, and we would
        wait for its sign of life.
        """
        worker = Worker(self.config, self.sockets)
        ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a process inherits this one, and no other handler
        worker.start()
        signal.signal(signal.SIGINT, ours)
        return worker

    def _retire(self, worker: Worker) -> None:
        worker.terminate()
        self._retired.append(worker)
