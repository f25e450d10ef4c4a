"""The steps of the Dockerfile, run without an engine: in a folder that stands for the image's file system."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from release.build import ROOT
from release.trial import Process, Upstream, started, tree

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PLACES = ("/opt/oxy", "/wheels", "/var/lib/oxy")  # the image's folders that the steps name


@dataclass(slots=True)
class Stage:
    """One stage: its steps in order, as (instruction, what follows it), variables filled in."""

    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """The exec form of an instruction."""
        (rest,) = self.all(instruction)
        words: list[str] = json.loads(rest[rest.index("[") :])
        return words

    @property
    def environ(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", " ".join(self.all("ENV"))))


def stages(**arguments: str) -> list[Stage]:
    """The stages of the Dockerfile, built with these arguments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", "")
    found: list[Stage] = []
    for line in filter(None, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "ARG" and "=" in rest:
            name, _, default = rest.partition("=")
            arguments.setdefault(name, default)
        elif instruction == "FROM":
            found.append(Stage())
        elif found:
            rest = re.sub(r"\$\{(\w+)\}", lambda name: arguments[name[1]], rest)
            found[-1].steps.append((instruction, rest))
    return found


def ignored(path: str) -> bool:
    """Whether the build is not given a path: the last pattern of .dockerignore that fits decides."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    fitting = [pattern for pattern in patterns if pattern[:1] != "#" and fnmatch(path, pattern.removeprefix("!"))]
    return bool(fitting) and not fitting[-1].startswith("!")


@pytest.mark.parametrize("requirements", ["run", "azure"])
def test_the_build_is_given_all_that_it_copies(requirements: str) -> None:
    workshop, _ = stages(REQUIREMENTS=requirements)
    sources = [source for rest in workshop.all("COPY") for source in rest.split()[:-1]]
    assert f"requirements/{requirements}.txt" in sources
    assert not [source for source in sources if ignored(source) or not (ROOT / source).exists()]
    assert ignored(".env")
    assert ignored(".git")


@pytest.mark.skipif(os.name != "posix", reason="its steps are commands of a POSIX shell")
def test_the_steps_make_an_oxy_that_serves_is_found_healthy_and_stops(tmp_path: Path) -> None:
    workshop, last = stages()
    image = make(workshop, tmp_path)
    for step in last.all("RUN"):
        assert "/var/lib/oxy" in step  # it is all that the last stage adds by a command of its own
    (image / "var/lib/oxy").mkdir(parents=True)
    before = tree(image / "opt/oxy")
    upstream = Upstream()
    environ = {**last.environ, "PATH": f"{image}/opt/oxy/bin", "OXY_TARGET": upstream.url}
    environ["PROXY_HISTORY"] = str(image / "var/lib/oxy/history.sqlite")
    (program,) = last.command("ENTRYPOINT")
    with started([str(image / "opt/oxy/bin" / program)], tmp_path, environ) as oxy:
        oxy.up()
        oxy.stream(upstream)
        assert health(last, environ, oxy) == 0
        assert oxy.stop() == 0
        assert health(last, environ, oxy) != 0
    upstream.close()
    assert (image / "var/lib/oxy/history.sqlite").exists()
    assert tree(image / "opt/oxy") == before, "it wrote into a file system that may be read-only"


def make(workshop: Stage, folder: Path) -> Path:
    """Run the steps of the first stage, with a Python of its own; return the folder that stands for /."""
    image, source, python = folder / "image", folder / "src", folder / "python"
    subprocess.run([sys.executable, "-m", "venv", python], check=True)
    environ = {**os.environ, **workshop.environ, "PATH": f"{python}/bin:{os.environ['PATH']}"}
    source.mkdir()
    for instruction, rest in workshop.steps:
        if instruction == "COPY":
            *names, target = rest.split()
            for name in names:
                copy(ROOT / name, source / target)
        elif instruction == "RUN":
            for place in PLACES:
                rest = re.sub(rf"(?<!\S){place}", f"{image}{place}", rest)
            subprocess.run(["sh", "-euc", rest], cwd=source, env=environ, check=True, capture_output=True)
    return image


def copy(path: Path, target: Path) -> None:
    """Copy a file into a folder, or what is in a folder into another one."""
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def health(last: Stage, environ: dict[str, str], oxy: Process) -> int:
    """The exit status of the health check."""
    program, *arguments = last.command("HEALTHCHECK")
    found = shutil.which(program, path=environ["PATH"]) or program
    asking = subprocess.run([found, *arguments], env={**environ, "OXY_PORT": str(oxy.address[1])}, check=False)
    return asking.returncode
