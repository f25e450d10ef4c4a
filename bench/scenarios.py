"""What is measured: each scenario says how the load generator runs it and what one unit of it is."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of load. `unit` is what CPU time is divided by: an exchange, an event or a MB (2**20 bytes)."""

    name: str
    title: str
    unit: str = "exchange"
    kind: str = "load"  # or idle, or start
    load: tuple[str, ...] = ()
    seconds: float = 1.5  # how long one run takes; 0: the load's own flags decide
    warm: float = 0.3
    timeout: int = 20
    rounds: int | None = None  # None: as many as were asked for
    duels: int = 0  # how often the two whom the targets compare come once more in each round, in turns
    tls: bool = False

    @property
    def latency(self) -> str:
        """Which of the load generator's distributions tells the latency."""
        return "event_delay_us" if self.unit == "event" else "latency_us"

    @property
    def pace(self) -> str:
        return "MB/s" if self.unit == "MB" else f"{self.unit}s/s"

    def flags(self) -> list[str]:
        duration = [f"-duration={self.seconds}s"] if self.seconds else []
        return [*self.load, *duration, f"-warm={self.warm}s", f"-timeout={self.timeout}s"]


SCENARIOS = (
    Scenario(name="json-1", title="JSON 1 KB, 1 connection", load=("-mode=json", "-connections=1"), duels=2),
    Scenario(name="json-64", title="JSON 1 KB, 64 connections", load=("-mode=json", "-connections=64"), duels=2),
    Scenario(name="json-512", title="JSON 1 KB, 512 connections", load=("-mode=json", "-connections=512"), duels=2),
    Scenario(
        name="sse-64-fast",
        title="SSE, 64 streams x 100 events without delay",
        unit="event",
        # The upstream writes ten events at a time: with one at a time it would be the upstream that is measured.
        load=("-mode=sse", "-connections=64", "-events=100", "-batch=10"),
        duels=2,
    ),
    Scenario(
        name="sse-500-paced",
        title="SSE, 500 streams x 20 events 50 ms apart",
        unit="event",
        load=("-mode=sse", "-connections=500", "-events=20", "-delay=50ms", "-each=2", "-ramp=500ms"),
        seconds=0,
        warm=0,
        duels=2,
    ),
    Scenario(
        name="sse-2000-slow",
        title="SSE, 2,000 streams, one event a second",
        unit="event",
        load=("-mode=sse", "-connections=2000", "-events=8", "-delay=1s", "-each=1", "-ramp=2s"),
        seconds=0,
        warm=0,
        rounds=1,
    ),
    Scenario(
        name="embeddings-33k", title="Embeddings 33 KB, 64 connections", load=("-mode=embeddings", "-connections=64")
    ),
    Scenario(
        name="upload-50m",
        title="Upload 50 MB, 4 at once",
        unit="MB",
        load=("-mode=upload", "-connections=4", "-mib=50"),
        warm=0.01,
    ),
    Scenario(
        name="download-200m",
        title="Download 200 MB, 2 at once",
        unit="MB",
        load=("-mode=download", "-connections=2", "-mib=200"),
        warm=0.01,
    ),
    Scenario(
        name="new-connections",
        title="JSON 1 KB, a new connection each, 32 at once",
        load=("-mode=json", "-connections=32", "-renew"),
    ),
    Scenario(
        name="tls-json-64",
        title="JSON 1 KB, TLS upstream, 64 connections",
        load=("-mode=json", "-connections=64"),
        tls=True,
    ),
    Scenario(name="idle", title="Idle", kind="idle", seconds=1.0, rounds=1),
    Scenario(name="start", title="Start to first answer", kind="start"),
)


def chosen(names: list[str], *, rounds: int, quick: bool) -> list[Scenario]:
    """Pick scenarios by name, all of them for no name; a quick one is short and comes once."""
    unknown = set(names) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        raise SystemExit(f"no such scenario: {', '.join(sorted(unknown))}")
    picked = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    return [
        replace(
            scenario,
            rounds=min(scenario.rounds or rounds, rounds),
            duels=0 if quick else scenario.duels,
            seconds=min(scenario.seconds, 0.6) if quick else scenario.seconds,
            warm=min(scenario.warm, 0.1) if quick else scenario.warm,
        )
        for scenario in picked
    ]


DUELLISTS = ("oxy", "go")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure that Oxy is to reach: `of` names it, within one run."""

    title: str
    scenario: str
    figure: str  # a key of the scenario's figures
    reach: float
    aim: float | None = None
    against: tuple[str, str] | None = None  # contestant and scenario whose same figure it is divided by
    unit: str = "x"


TARGETS = (
    Target(
        title="CPU, JSON 1 KB, 64 connections, against Go",
        scenario="json-64",
        figure="cpu_us",
        reach=1.5,
        aim=1.0,
        against=("go", "json-64"),
    ),
    Target(
        title="CPU, JSON 1 KB, 1 connection, against Go",
        scenario="json-1",
        figure="cpu_us",
        reach=1.4,
        aim=1.0,
        against=("go", "json-1"),
    ),
    Target(
        title="CPU per event, 500 paced streams, against Go",
        scenario="sse-500-paced",
        figure="cpu_us",
        reach=1.25,
        aim=1.0,
        against=("go", "sse-500-paced"),
    ),
    Target(
        title="CPU per event, 64 streams at full speed, against Go",
        scenario="sse-64-fast",
        figure="cpu_us",
        reach=1.25,
        aim=1.0,
        against=("go", "sse-64-fast"),
    ),
    Target(
        title="CPU per MB, upload, against Go",
        scenario="upload-50m",
        figure="cpu_us",
        reach=2.0,
        aim=1.2,
        against=("go", "upload-50m"),
    ),
    Target(
        title="CPU per MB, download, against Go",
        scenario="download-200m",
        figure="cpu_us",
        reach=1.5,
        aim=1.0,
        against=("go", "download-200m"),
    ),
    Target(
        title="CPU, JSON 1 KB, 64 connections, against plain Starlette + httpx",
        scenario="json-64",
        figure="cpu_us",
        reach=1 / 25,
        against=("plain", "json-64"),
    ),
    Target(
        title="CPU at 512 connections against 64",
        scenario="json-512",
        figure="cpu_us",
        reach=1.2,
        against=("oxy", "json-64"),
    ),
    Target(title="added p99, 1 connection", scenario="json-1", figure="added_p99_us", reach=300, unit="us"),
    Target(  # microseconds change with the machine; the same bounds as for CPU
        title="added p99, 1 connection, against Go",
        scenario="json-1",
        figure="added_p99_us",
        reach=1.4,
        aim=1.0,
        against=("go", "json-1"),
    ),
    Target(
        title="peak resident memory, 2,000 streams", scenario="sse-2000-slow", figure="peak_mb", reach=150, unit="MB"
    ),
    Target(title="broken of 2,000 streams", scenario="sse-2000-slow", figure="broken", reach=0, unit=""),
    Target(title="resident memory, idle", scenario="idle", figure="peak_mb", reach=60, unit="MB"),
    Target(title="start to first answer", scenario="start", figure="start_ms", reach=1000, unit="ms"),
)
