"""What a run has shown, as tables in Markdown, as JSON, and as a chart."""

import datetime
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import chart
from contestants import Contestant
from scenarios import TARGETS, Scenario, Target

BEGIN = "<!-- figures: everything from here to the next mark is written by bench/run.py --write -->"
END = "<!-- end of the figures -->"
PILOT = "go"  # whom the ratios are against


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All runs of all contestants, and the medians made of them."""

    plan: list[Scenario]
    who: list[Contestant]
    runs: dict[str, dict[str, list[dict]]]
    skipped: dict[str, str]
    versions: dict[str, str]
    command: str
    quick: bool
    medians: dict[str, dict[str, dict]] = field(init=False)

    def __post_init__(self) -> None:
        medians = {scenario.name: _medians(self.runs[scenario.name]) for scenario in self.plan}
        object.__setattr__(self, "medians", medians)

    def figure(self, scenario: str, contestant: str, name: str) -> float | None:
        return self.medians.get(scenario, {}).get(contestant, {}).get(name)

    def ratio(self, scenario: str, contestant: str, other: str = PILOT) -> float | None:
        """Return how much CPU one takes against another: the median of what each round says.

        Neighbours come and go; two medians of one contestant each would be of different moments.
        """
        runs = self.runs.get(scenario, {})
        ones, others = runs.get(contestant, []), runs.get(other, [])
        rounds = {run["round"] for run in others}
        ratios = [_divided(_cpu_in(ones, number), _cpu_in(others, number)) for number in rounds]
        known = [ratio for ratio in ratios if ratio is not None]
        return statistics.median(known) if known else None

    @property
    def proxies(self) -> list[Contestant]:
        return [one for one in self.who if one.start]


def _cpu_in(runs: list[dict], number: int) -> float | None:
    """Return the median of what the runs of one round took."""
    taken = [run["cpu_us"] for run in runs if run["round"] == number and run.get("cpu_us")]
    return statistics.median(taken) if taken else None


def _medians(runs: dict[str, list[dict]]) -> dict[str, dict]:
    medians = {name: _median(rounds) for name, rounds in runs.items() if rounds}
    direct = medians.get("direct", {})
    for one in medians.values():
        for quantile in ("p50_us", "p99_us", "p999_us", "first_p50_us"):
            if one is not direct and quantile in one and quantile in direct:
                one[f"added_{quantile}"] = one[quantile] - direct[quantile]
    return medians


def _median(rounds: list[dict]) -> dict:
    made: dict = {}
    for name in dict.fromkeys(name for one in rounds for name in one if name != "round"):
        values = [one[name] for one in rounds if one.get(name) is not None]
        if name in ("complaints", "unfinished"):
            made[name] = values[-1]
        elif name == "failures":
            made[name] = {
                cause: sum(one.get(cause, 0) for one in values) for cause in {c for one in values for c in one}
            }
        elif name in ("errors", "broken"):
            made[name] = sum(values)
        elif name == "peak_mb":
            made[name] = max(values)
        elif values:
            made[name] = statistics.median(values)
    if made.get("cpu_us") and len(rounds) > 1:
        spread = [one["cpu_us"] for one in rounds if one.get("cpu_us")]
        made["cpu_least_us"] = min(spread)
        made["cpu_spread"] = (max(spread) - min(spread)) / made["cpu_us"]
    return made


def write(results: Results, directory: Path) -> None:
    """Write everything into the directory, and the tables to stdout as well."""
    directory.mkdir(exist_ok=True)
    text = markdown(results)
    (directory / "results.md").write_text(text)
    (directory / "results.json").write_text(as_json(results))
    (directory / "chart.svg").write_text(chart.draw(results))
    print(text)


def publish(results: Results, bench: Path) -> None:
    """Write the files that the repository keeps; what people wrote around the figures in RESULTS.md stays."""
    page = bench / "RESULTS.md"
    before, _, rest = (page.read_text() if page.exists() else "# Results\n\n").partition(BEGIN)
    after = rest.partition(END)[2] or "\n"
    page.write_text(f"{before}{BEGIN}\n\n![CPU of each proxy](chart.svg)\n\n{markdown(results)}\n{END}{after}")
    (bench / "results.json").write_text(as_json(results))
    (bench / "chart.svg").write_text(chart.draw(results))


def as_json(results: Results) -> str:
    facts = {
        "machine": machine(),
        "command": results.command,
        "versions": results.versions,
        "left_out": results.skipped,
        "medians": results.medians,
        "rounds": results.runs,
    }
    return json.dumps(facts, indent=1) + "\n"


def machine() -> dict[str, str]:
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(": ")[2]
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def markdown(results: Results) -> str:
    parts = [_conditions(results), _summary(results), _targets(results)]
    parts += [_details(results, scenario) for scenario in results.plan if scenario.kind == "load"]
    parts += [_rest(results), _left_out(results)]
    return "\n".join(part for part in parts if part)


def _conditions(results: Results) -> str:
    facts = machine()
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- {title}: {version}" for title, version in results.versions.items() if version]
    lines.append(f"- disturbance: {_disturbance(results)}")
    warning = "\n**One short round: not to be quoted.**\n" if results.quick else ""
    return "\n".join([f"`{results.command}`", "", *lines, warning])


def _disturbance(results: Results) -> str:
    """How much of the proxy's core others took meanwhile: the more, the less the figures are worth."""
    runs = [run for rounds in results.runs.values() for runs in rounds.values() for run in runs]
    shares = sorted(run["disturbed"] for run in runs if run.get("cpu_us"))
    if not shares:
        return "not measured"
    median, worst = statistics.median(shares), shares[-1]
    return f"others took {median:.0%} of the proxy's core in the median run, {worst:.0%} in the worst"


def _summary(results: Results) -> str:
    """CPU of everyone in every scenario, with the ratio to Go's ReverseProxy."""
    plan = [scenario for scenario in results.plan if scenario.kind == "load"]
    if not plan:
        return ""
    head = ["CPU-us per unit (x Go)", *(f"{scenario.title}, per {scenario.unit}" for scenario in plan)]
    rows = [
        [one.title, *(_with_ratio(results, scenario.name, one.name) for scenario in plan)] for one in results.proxies
    ]
    return f"## CPU of the proxy\n\n{_table(head, rows)}"


def _with_ratio(results: Results, scenario: str, contestant: str) -> str:
    cpu, ratio = results.figure(scenario, contestant, "cpu_us"), results.ratio(scenario, contestant)
    return _number(cpu) + (f" ({ratio:.2f})" if ratio and contestant != PILOT else "")


def _targets(results: Results) -> str:
    rows = []
    for target in TARGETS:
        value = _reached(results, target)
        if value is not None:
            verdict = (
                "aim reached"
                if target.aim and value <= target.aim
                else "reached"
                if value <= target.reach
                else "missed"
            )
            rows.append(
                [
                    target.title,
                    _amount(value, target),
                    _amount(_reached(results, target, "cpu_least_us"), target) if target.figure == "cpu_us" else "",
                    _amount(target.reach, target),
                    _amount(target.aim, target),
                    verdict,
                ]
            )
    head = ["", "figure", "quietest rounds", "reach", "aim", ""]
    return f"## Oxy against its targets\n\n{_table(head, rows)}" if rows else ""


def _reached(results: Results, target: Target, figure: str | None = None) -> float | None:
    """Return a target's figure, or another in its place, as the least of all rounds."""
    value = results.figure(target.scenario, "oxy", figure or target.figure)
    if target.against is None:
        return value
    other, scenario = target.against
    if figure is None and target.figure == "cpu_us" and scenario == target.scenario:
        return results.ratio(scenario, "oxy", other)
    return _divided(value, results.figure(scenario, other, figure or target.figure))


def _amount(value: float | None, target: Target) -> str:
    if value is None:
        return ""
    return f"{value:.3g} {target.unit}".strip() if value < 100 else f"{value:,.0f} {target.unit}"


def _details(results: Results, scenario: Scenario) -> str:
    streams = scenario.unit == "event"
    added = "added us" if not streams else "added us per event"
    head = [scenario.title, scenario.pace, f"CPU-us per {scenario.unit}", "x Go", "spread", "core busy"]
    head += [f"{added} p50", "p99", "p99.9", *(["first event us p50", "p99"] if streams else []), "peak MB", "errors"]
    rows = [_row(results, scenario, one) for one in results.who if one.name in results.medians[scenario.name]]
    direct = results.medians[scenario.name].get("direct")
    note = ""
    if direct:
        quantiles = " / ".join(_number(direct[name]) for name in ("p50_us", "p99_us", "p999_us"))
        busy = f"load and upstream keep their core busy to {direct['others_busy']:.0%}"
        note = f"\nDirect, p50 / p99 / p99.9: {quantiles} us; {busy}.\n"
    return f"### {scenario.title}\n\n{_table(head, rows)}{note}"


def _row(results: Results, scenario: Scenario, one: Contestant) -> list[str]:
    figures = results.medians[scenario.name][one.name]
    ratio, spread = results.ratio(scenario.name, one.name), figures.get("cpu_spread")
    row = [one.title, _number(figures["rate"])]
    row += [_number(figures.get("cpu_us")), f"{ratio:.2f}" if ratio else ""] if one.start else ["", ""]
    row += [f"{spread:.0%}" if spread and one.start else "", f"{figures['busy']:.0%}" if one.start else ""]
    row += [_number(figures.get(f"added_{quantile}")) for quantile in ("p50_us", "p99_us", "p999_us")]
    if scenario.unit == "event":
        row += [_number(figures[name]) for name in ("first_p50_us", "first_p99_us")]
    broken = f", {figures['broken']} broken streams" if figures["broken"] else ""
    return [*row, _number(figures.get("peak_mb")), f"{figures['errors']}{broken}"]


def _rest(results: Results) -> str:
    """Idle memory and time to start, which have no load."""
    names = {scenario.name for scenario in results.plan if scenario.kind != "load"}
    if not names:
        return ""
    rows = [
        [
            one.title,
            _number(results.figure("idle", one.name, "peak_mb")),
            _number(results.figure("start", one.name, "start_ms")),
        ]
        for one in results.proxies
    ]
    return f"### At rest\n\n{_table(['', 'resident MB, idle', 'ms from start to first answer'], rows)}"


def _left_out(results: Results) -> str:
    lines = [f"- {who}: {reason}" for who, reason in results.skipped.items()]
    for scenario in results.plan:
        for name, figures in results.medians[scenario.name].items():
            for cause, count in figures.get("failures", {}).items():
                lines.append(f"- {name}, {scenario.title}: {count} x {cause}")
    return "\n".join(["### Left out, and what went wrong", "", *lines, ""]) if lines else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    marks = [":--", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _divided(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
