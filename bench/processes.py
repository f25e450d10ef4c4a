"""Processes of the benchmark: each pinned to a core, in a session of its own, measured by the kernel's accounting."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 10  # seconds that a process has to end before it is killed
MIB = 1 << 20


class Process:
    """A program that runs on one core until `stop`, together with whatever it starts."""

    def __init__(
        self, command: list[str], *, core: int, nice: int, env: dict[str, str], cwd: Path, talks: bool = False
    ) -> None:
        """Start the command; if it talks, its stdin and stdout are pipes, else stdout goes to /dev/null."""
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        pipe = subprocess.PIPE if talks else subprocess.DEVNULL
        self._popen = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=self._complaints,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: _settle(core, nice),
        )

    def __repr__(self) -> str:
        return f"<Process {self._popen.pid} {self._popen.args[0]} {'running' if self.running else 'ended'}>"

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def hear(self) -> str:
        """Read the next line; the empty string says that the process has closed its output."""
        return self._popen.stdout.readline().decode().strip()

    def say(self, line: str) -> None:
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()

    def complaints(self) -> str:
        """The last words on stderr."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace").strip()[-1500:]

    def cpu(self) -> float:
        """Processor time so far, in seconds: user and system, all threads, those that have ended included.

        Read from each process's own CPU clock, which counts in nanoseconds where /proc/PID/stat counts ticks of 10 ms.
        """
        return sum(_clock(pid) for pid in self._pids()) + _buried(self._popen.pid)

    def resident(self, field: str = "VmRSS") -> float:
        """Resident memory in MiB, now or, as VmHWM, at its highest; what processes share counts once for each."""
        return sum(_status(pid, field) for pid in self._pids()) / 1024

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The session's number is the leader's pid: this reaches what it has started, and nothing else.
            _signal_group(self._popen.pid, number)
            try:
                self._popen.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                continue
        _signal_group(self._popen.pid, signal.SIGKILL)
        for stream in (self._popen.stdin, self._popen.stdout, self._complaints):
            if stream is not None:
                stream.close()

    def _pids(self) -> list[int]:
        return [pid for pid, session in _sessions() if session == self._popen.pid]


def _settle(core: int, nice: int) -> None:
    os.sched_setaffinity(0, {core})
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    group = Path("/proc/self/autogroup")  # where the kernel groups by session, niceness counts within a group only
    if nice and group.exists():
        group.write_text(str(nice))


def taken(core: int) -> float:
    """Seconds of the core that were spent on anything so far, on another guest of the same machine included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[:8])
            return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _sessions() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                yield int(entry), os.getsid(int(entry))
            except ProcessLookupError:
                continue


def _clock(pid: int) -> float:
    """Read the CPU clock of another process; its number is made as clock_getcpuclockid(3) makes it on Linux."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _buried(pid: int) -> float:
    """Processor time of the children that have ended and were waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
