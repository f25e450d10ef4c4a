"""Measure how long each artefact in dist/ takes from its start to its first relayed answer, in interleaved rounds.

    python -m release.coldstart [rounds]

The page cache is warm: what the disk of a platform takes to bring the files comes on top.
"""

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
    """Print the median and the range for each artefact."""
    upstream = Upstream()
    upstream.arrived.set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = commands(folder)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        environ = {"OXY_TARGET": upstream.url, "PATH": f"{Path(PYTHON).parent}:{CLEAN['PATH']}"}
        for _ in range(rounds):
            for way, command in ways.items():
                with started(command, folder, environ) as process:
                    taken[way].append(process.first_answer())
    upstream.close()
    for way, times in taken.items():
        print(f"{way:12} {statistics.median(times):.2f} s  ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
