"""Measure Oxy and others side by side: the proxy on one core, load and upstream on another, in interleaved rounds.

Runs on the standard library. `make bench` installs the Go toolchain beside it; README.md says how to read the figures.
"""

import argparse
import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import contestants
import report
import scenarios
from contestants import BENCH, CLIENT_KEY, UPSTREAM_KEY, Contestant, Place, Start
from processes import MIB, Process, taken
from scenarios import Scenario

GO_PROGRAMS = ("upstream", "load", "reverseproxy")
FILES = 20_000  # open files: 2,000 streams take two in the proxy and two on the other side
ANSWER_WITHIN = 5  # seconds


class Unfit(Exception):
    """A contestant did not start or did not answer as it should; the others go on without it."""


class Bench:
    """One run of the benchmark: the mock upstream, the cores, and what has been measured so far."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.proxy_core, self.other_core = options.cores
        self.nice: int = options.nice
        self.python: Path = options.python
        self.directory = directory
        self.pem = directory / "upstream.pem"
        self.upstream = self._other("upstream", f"-pem={self.pem}")
        self.ports: dict[str, int] = json.loads(self.upstream.hear() or "{}")
        if not self.ports:
            raise SystemExit(f"the mock upstream did not start: {self.upstream.complaints()}")

    def measure(self, scenario: Scenario, who: list[Contestant], progress: "Progress") -> dict[str, list[dict]]:
        """Run the scenario's rounds, each contestant once a round, and give what every run has shown."""
        taking_part = [one for one in who if scenario.name not in one.skips and (one.start or scenario.kind == "load")]
        if scenario.kind == "start":
            return self._starts(scenario, [one for one in taking_part if one.health], progress)
        with contextlib.ExitStack() as stack:
            standing = {one: self._stand(one, scenario, stack, progress) for one in taking_part}
            runs: dict[str, list[dict]] = {one.name: [] for one in taking_part}
            able = [one for one, stands in standing.items() if stands is not None]
            for number in range(scenario.rounds or 1):
                turn = number % max(len(able), 1)
                duellists = [one for one in able if one.name in scenarios.DUELLISTS]
                # Nobody always comes after the same neighbour.
                for one in [*able[turn:], *able[:turn], *duellists * scenario.duels]:
                    run = self._run(scenario, one, *standing[one]) | {"round": number}
                    runs[one.name].append(run)
                    progress.tell(scenario, one, number, run)
                # Who did not get done in its time has shown what there is to show.
                able = [one for one in able if not runs[one.name][-1].get("unfinished")]
            return runs

    def _stand(
        self, one: Contestant, scenario: Scenario, stack: contextlib.ExitStack, progress: "Progress"
    ) -> tuple[Place, Process | None] | None:
        place = self._place(one, scenario)
        if one.start is None:
            return place, None
        try:
            process = self._start(one.start(place), place)
            stack.callback(process.stop)
            _await_answer(one, place, process)
        except (Unfit, OSError) as problem:
            progress.skip(scenario, one, str(problem))
            return None
        return place, process

    def _place(self, one: Contestant, scenario: Scenario) -> Place:
        upstream = self.ports["tls" if scenario.tls else "plain"]
        port = _free_port() if one.start else self.ports["plain"]
        directory = Path(tempfile.mkdtemp(prefix=f"{one.name}-", dir=self.directory))
        directory.chmod(0o755)  # nginx's worker may run as another user
        return Place(
            port=port,
            upstream=upstream,
            tls=scenario.tls,
            pem=self.pem,
            directory=directory,
            python=self.python,
            scenario=scenario.name,
        )

    def _start(self, start: Start, place: Place) -> Process:
        env = start.environment(place)
        return Process(start.command, core=self.proxy_core, nice=self.nice, env=env, cwd=start.cwd)

    def _other(self, program: str, *flags: str) -> Process:
        command = [str(BENCH / "bin" / program), *flags]
        env = {"GOMAXPROCS": "1", "GOGC": "400"}
        return Process(command, core=self.other_core, nice=self.nice, env=env, cwd=BENCH, talks=True)

    def _run(self, scenario: Scenario, one: Contestant, place: Place, proxy: Process | None) -> dict:
        if scenario.kind == "idle":
            time.sleep(scenario.seconds)
            return {"peak_mb": proxy.resident()}
        key = CLIENT_KEY if one.start else UPSTREAM_KEY
        flags = [f"-address=127.0.0.1:{place.port}", f"-key={key}", f"-lenient={one.lenient}".lower()]
        load = self._other("load", *flags, *scenario.flags(), *one.load(place))
        try:
            if load.hear() != "ready":
                raise SystemExit(f"the load generator failed: {load.complaints()}")
            before = self._clocks(proxy, load)
            load.say("go")
            told = json.loads(load.hear() or "{}")
            after = self._clocks(proxy, load)
            if not told:
                raise SystemExit(f"the load generator failed: {load.complaints()}")
        finally:
            load.stop()
        made = _figures(scenario, told, after - before)
        if proxy:
            made["peak_mb"] = proxy.resident("VmHWM")
        if proxy and told["errors"]:
            made["complaints"] = proxy.complaints()[-500:]
        return made

    def _clocks(self, proxy: Process | None, load: Process) -> "Clocks":
        return Clocks(
            proxy=proxy.cpu() if proxy else 0.0,
            others=load.cpu() + self.upstream.cpu(),
            core=taken(self.proxy_core),
        )

    def _starts(self, scenario: Scenario, who: list[Contestant], progress: "Progress") -> dict[str, list[dict]]:
        runs: dict[str, list[dict]] = {one.name: [] for one in who}
        for number in range(scenario.rounds or 1):
            for one in who:
                place = self._place(one, scenario)
                began = time.perf_counter()
                process = self._start(one.start(place), place)
                try:
                    _await_answer(one, place, process, pause=0.002)
                    runs[one.name].append({"start_ms": (time.perf_counter() - began) * 1000})
                    progress.tell(scenario, one, number, runs[one.name][-1])
                except Unfit as problem:
                    progress.skip(scenario, one, str(problem))
                finally:
                    process.stop()
        return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Processor time in seconds: of the proxy, of load and upstream, and all that was taken of the proxy's core."""

    proxy: float
    others: float
    core: float

    def __sub__(self, earlier: "Clocks") -> "Clocks":
        return Clocks(
            proxy=self.proxy - earlier.proxy, others=self.others - earlier.others, core=self.core - earlier.core
        )


def _figures(scenario: Scenario, told: dict, spent: Clocks) -> dict:
    units = {"exchange": told["exchanges"], "event": told["events"], "MB": told["bytes"] / MIB}[scenario.unit]
    latency = told[scenario.latency]
    return {
        "rate": units / told["seconds"],
        "cpu_us": spent.proxy / units * 1e6 if units else None,
        "busy": spent.proxy / told["seconds"],
        "others_busy": spent.others / told["seconds"],
        "disturbed": max(spent.core - spent.proxy, 0.0) / told["seconds"],
        "p50_us": latency["p50"],
        "p99_us": latency["p99"],
        "p999_us": latency["p999"],
        "first_p50_us": told["first_event_us"]["p50"],
        "first_p99_us": told["first_event_us"]["p99"],
        "broken": told["broken_streams"],
        "errors": told["errors"],
        "failures": told["failures"],
        "unfinished": told["unfinished"],
        "exchanges": told["exchanges"],
        "seconds": told["seconds"],
    }


class Progress:
    """Tells on stderr what has been done, what it showed, and how much is left."""

    def __init__(self, plan: list[Scenario], count: int) -> None:
        self._total = sum((scenario.rounds or 1) * (count + 2 * scenario.duels) for scenario in plan)
        self._done = 0
        self._began = time.monotonic()
        self.skipped: dict[str, str] = {}

    def tell(self, scenario: Scenario, one: Contestant, number: int, run: dict) -> None:
        self._done += 1
        share = min(self._done / self._total, 1.0)
        minutes, seconds = divmod(int((time.monotonic() - self._began) / share * (1 - share)), 60)
        facts = [f"{run['rate']:,.0f} {scenario.pace}"] if run.get("rate") else []
        facts += [f"{run['cpu_us']:,.1f} us"] if run.get("cpu_us") else []
        facts += [f"{run['peak_mb']:,.0f} MB"] if "peak_mb" in run else []
        facts += [f"{run['start_ms']:,.0f} ms"] if "start_ms" in run else []
        facts += [f"{run['errors']} ERRORS {run['failures']}"] if run.get("errors") else []
        print(
            f"{share:4.0%} ({minutes}:{seconds:02d} left)  {scenario.name:<16} {number + 1}  {one.name:<10} "
            + "  ".join(facts),
            file=sys.stderr,
        )

    def skip(self, scenario: Scenario, one: Contestant, reason: str) -> None:
        self._done += scenario.rounds or 1
        reason = " ".join(reason.split())[-300:]
        self.skipped[f"{one.title}, {scenario.title}"] = reason
        print(f"      {scenario.name}: {one.name} is left out: {reason}", file=sys.stderr)


def _await_answer(one: Contestant, place: Place, process: Process, pause: float = 0.02) -> None:
    """Return once the contestant answers: its health page, or a whole exchange with the mock upstream."""
    deadline = time.monotonic() + one.patience
    trouble = "no answer"
    while time.monotonic() < deadline:
        if not process.running:
            raise Unfit(f"it ended at once: {process.complaints()}")
        try:
            status = _ask(one, place)
            if status == 200:
                return
            trouble = f"status {status}"
        except (OSError, http.client.HTTPException) as problem:
            trouble = str(problem)
        time.sleep(pause)
    raise Unfit(f"{trouble} within {one.patience} s: {process.complaints()}")


def _ask(one: Contestant, place: Place) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=ANSWER_WITHIN)
    fields = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"}
    for flag in one.load(place):
        name, _, value = flag.removeprefix("-header=").partition(": ")
        fields |= {name: value} if flag.startswith("-header=") else {"Authorization": f"Bearer {UPSTREAM_KEY}"}
    try:
        if one.health:
            connection.request("GET", one.health)
        else:
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Are you there?"}]}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), fields)
        return connection.getresponse().status
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def build() -> None:
    """Build the Go programs where their sources are newer; they are of the standard library, so nothing is fetched."""
    sources = [BENCH / "go.mod", *(path for name in (*GO_PROGRAMS, "wire") for path in (BENCH / name).glob("*.go"))]
    newest = max(path.stat().st_mtime for path in sources)
    made = [BENCH / "bin" / name for name in GO_PROGRAMS]
    if all(path.exists() and path.stat().st_mtime >= newest for path in made):
        return
    own = BENCH / ".venv" / "bin" / "go"
    go = str(own) if own.exists() else shutil.which("go")
    if go is None:
        raise SystemExit(
            "there is no Go toolchain: install bench/requirements.txt into bench/.venv (`make bench` does)"
        )
    print("building the Go programs", file=sys.stderr)
    cache = BENCH / ".cache"
    settings = {
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOCACHE": str(cache / "go-build"),
        "GOPATH": str(cache / "go"),
        "GOENV": "off",
        "CGO_ENABLED": "0",
    }
    command = [go, "build", "-trimpath", "-o", f"{BENCH / 'bin'}{os.sep}", *(f"./{name}" for name in GO_PROGRAMS)]
    if subprocess.run(command, cwd=BENCH, env=os.environ | settings, check=False).returncode:
        raise SystemExit("the Go programs could not be built")
    for path in made:
        path.touch()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: [name for name in text.split(",") if name]  # noqa: E731
    parser.add_argument("--only", type=names, default=[], metavar="NAMES", help="contestants, as oxy,go")
    parser.add_argument("--scenarios", type=names, default=[], metavar="NAMES", help="as json-64,sse-500-paced")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3); the median is taken")
    parser.add_argument("--quick", action="store_true", help="one short round: to try things out, not to quote")
    parser.add_argument("--all", action="store_true", help="LiteLLM and Portkey too")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md, results.json and chart.svg in bench/")
    parser.add_argument("--python", type=Path, default=contestants.default_python(), help="interpreter of the proxies")
    parser.add_argument("--cores", type=_cores, default=None, metavar="PROXY,OTHER", help="which two cores (0,1)")
    parser.add_argument("--nice", type=int, default=0, help="negative, as root: go before all else that runs here (0)")
    parser.add_argument("--list", action="store_true", help="name contestants and scenarios, and leave")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else max(options.rounds, 1)
    options.cores = options.cores or _cores("")
    return options


def _command(options: argparse.Namespace) -> str:
    """The command as it may be published: without a path of this machine."""
    python = str(options.python)
    words = [word.replace(python, "PYTHON") for word in sys.argv[1:]]
    return " ".join(["bench/run.py", *words])


def _cores(text: str) -> tuple[int, int]:
    allowed = sorted(os.sched_getaffinity(0))
    cores = [int(core) for core in text.split(",")] if text else allowed[:2]
    if len(set(cores)) != 2 or not set(cores) <= set(allowed):
        raise SystemExit(f"two cores are needed, one for the proxy and one for the rest; there are {allowed}")
    return cores[0], cores[1]


@contextlib.contextmanager
def _ground(options: argparse.Namespace) -> Iterator[Bench]:
    """The conditions of a run, and their end: whatever happens, nothing that was started stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, {options.cores[1]})
    with tempfile.TemporaryDirectory(prefix="oxy-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        bench = Bench(options, directory)
        try:
            yield bench
        finally:
            bench.upstream.stop()


def main() -> None:
    options = _options()
    if options.list:
        print("contestants:", *(one.name for one in contestants.CONTESTANTS))
        print("scenarios:  ", *(scenario.name for scenario in scenarios.SCENARIOS))
        return
    plan = scenarios.chosen(options.scenarios, rounds=options.rounds, quick=options.quick)
    asked = contestants.chosen(options.only, extras=options.all)
    build()
    missing = {one: reason for one in asked if (reason := one.missing(options.python))}
    who = [one for one in asked if one not in missing]
    progress = Progress(plan, len(who))
    for one, reason in missing.items():
        progress.skipped[one.title] = reason
        print(f"      {one.name} is left out: {reason}", file=sys.stderr)
    with _ground(options) as bench:
        runs = {scenario.name: bench.measure(scenario, who, progress) for scenario in plan}
    results = report.Results(
        plan=plan,
        who=who,
        runs=runs,
        skipped=progress.skipped,
        versions={one.title: one.version(options.python) for one in who},
        command=_command(options),
        quick=options.quick,
    )
    report.write(results, BENCH / "results")
    if options.write:
        report.publish(results, BENCH)


if __name__ == "__main__":
    main()
