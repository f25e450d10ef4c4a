"""Measure how long each artefact in dist/ takes from its start to its first relayed answer, in interleaved rounds.

    python -m release.coldstart [rounds]

The page cache is warm: what the disk of a platform takes to bring the files comes on top.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from proxy import __version__
from release.build import FUNCTIONS, ROOT, fetch
from release.trial import CLEAN, Upstream, started, unzip

PYTHON: str = sys._base_executable  # type: ignore[attr-defined]  # not that of the virtual environment


def commands(folder: Path) -> dict[str, list[str]]:
    """Return how each artefact is started, unpacked or installed where that takes it."""
    dist, venv = ROOT / "dist", folder / "venv"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", f"{venv}/bin/python"]
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", venv], check=True)
    [wheel] = dist.glob("*.whl")
    subprocess.run([*pip, "install", "--find-links", str(fetch()[0].parent), str(wheel)], check=True)
    pyz = str(dist / f"oxy-{__version__}.pyz")
    ways = {"wheel": [f"{venv}/bin/oxy"], "one file": [PYTHON, "-I", "-S", pyz]}
    for name, (bootstrap, _) in FUNCTIONS.items():
        unzip(dist / f"oxy-{name}.zip", folder / name)
        ways[name] = [str(folder / name / bootstrap)]
    return ways


def measure(rounds: int) -> None:
    """Print the median, the range and the CPU for each artefact."""
    upstream = Upstream()
    upstream.arrived.set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = commands(folder)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        environ = {"OXY_TARGET": upstream.url, "PATH": f"{Path(PYTHON).parent}:{CLEAN['PATH']}"}
        for _ in range(rounds):
            for way, command in ways.items():
                before = cpu_of_children()
                with started(command, folder, environ) as process:
                    taken[way].append(process.first_answer())
                spent[way].append(cpu_of_children() - before)
    upstream.close()
    for way, times in taken.items():
        cpu = statistics.median(spent[way])
        print(f"{way:12} {statistics.median(times):.2f} s  ({min(times):.2f} to {max(times):.2f}), {cpu:.2f} s of CPU")


def cpu_of_children() -> float:
    """Return the seconds of CPU that all processes took which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
