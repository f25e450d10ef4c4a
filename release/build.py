"""Build what is shipped into a folder: one file for any Python, two cloud functions, wheel, sdist, SBOM, checksums.

Same input, same bytes: times are those of the last commit (or of SOURCE_DATE_EPOCH), entries are sorted, modes fixed.
Runs on the standard library, pip and flit_core; `make dist` sets them up.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from flit_core import buildapi  # type: ignore[import-untyped]

from proxy import __version__
from release.sbom import bom

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements" / "run.txt"
Tree = dict[str, bytes]  # path within an archive -> content

# What the clouds have: Tencent 3.11, Alibaba 3.11 in custom.debian12 and 3.12 in custom.debian11. Compiled parts and
# bytecode of several versions lie side by side, each under a name of its own. Their glibc is 2.17 or newer.
FUNCTION_PYTHONS = ("3.11", "3.12")
FUNCTION_PLATFORM = "manylinux2014_x86_64"
# name of the function -> the file that its platform starts, and the prefix of the headers that the platform adds
FUNCTIONS = {"tencent-scf": ("scf_bootstrap", "X-SCF"), "aliyun-fc": ("bootstrap", "X-FC")}
# What the proxy does without where it is missing; in the one file it is.
SPEEDUPS = ("httptools", "uvloop")
MOST_BYTES = 20 * 1024 * 1024  # of a function's package

# It has to be understood by the Python that is too old.
MAIN = b"""import sys
if sys.version_info < (3, 11):
    sys.exit("oxy needs Python 3.11 or newer, and this is %d.%d" % sys.version_info[:2])
from proxy.__main__ import main
sys.exit(main())
"""


def build(dist: Path) -> None:
    """Build everything anew into `dist`."""
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch := epoch_of_source())
    os.chdir(ROOT)  # flit_core builds the project that it stands in
    wheel = dist / buildapi.build_wheel(str(dist))
    buildapi.build_sdist(str(dist))
    wheels = fetch()
    plain = [path for path in wheels if path.name.endswith("-none-any.whl")]
    # In a zip Python looks for bytecode beside the source, and takes the source where it is another version's.
    oxy = with_bytecode(unpack([wheel, *plain]), [sys.executable], "-b")
    pack(dist / f"oxy-{__version__}.pyz", {**oxy, "__main__.py": MAIN}, epoch, shebang=b"#!/usr/bin/env python3\n")
    function = with_bytecode(unpack([wheel, *wheels]), at_hand())
    for name, (bootstrap, prefix) in FUNCTIONS.items():
        start = (ROOT / "release" / "bootstrap").read_bytes().replace(b"@PREFIX@", prefix.encode())
        package = dist / f"oxy-{name}.zip"
        pack(package, {**function, bootstrap: start}, epoch, executable=bootstrap)
        if package.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{package.name} is larger than {MOST_BYTES} bytes")
    listed = json.dumps(bom(wheel, wheels, epoch), indent=2, sort_keys=True)
    (dist / f"oxy-{__version__}.cdx.json").write_text(listed + "\n", encoding="utf-8")
    sums = [f"{sha256(path)}  {path.name}\n" for path in sorted(dist.iterdir())]
    (dist / "SHA256SUMS").write_text("".join(sums), encoding="ascii")


def epoch_of_source() -> int:
    """Return the time, in seconds, that everything in the archives is said to be from."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    asked = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, check=False)
    return int(asked.stdout) if asked.returncode == 0 else 315532800  # 1980: a zip knows no earlier time


def fetch() -> list[Path]:
    """Return the wheels of all that the proxy imports, for the functions' Pythons and for any; pip checks their hashes.

    They are downloaded once for each state of the lock file.
    """
    wheels = ROOT / "build" / f"wheels-{sha256(LOCK)[:16]}-{'-'.join(FUNCTION_PYTHONS)}"
    if not wheels.exists():
        wheels.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheels.parent) as folder:
            # Without the speed-ups all is to be had for any Python, websockets too, whose compiled part is a choice.
            plain = Path(folder, "plain.txt")
            plain.write_text(
                re.sub(rf"^({'|'.join(SPEEDUPS)})==.*\n( .*\n)*", "", LOCK.read_text(), flags=re.MULTILINE)
            )
            download(plain, Path(folder, "all"), "--platform", "any", "--implementation", "py", "--abi", "none")
            for version in FUNCTION_PYTHONS:
                download(LOCK, Path(folder, "all"), "--platform", FUNCTION_PLATFORM, "--python-version", version)
            Path(folder, "all").rename(wheels)
    return sorted(wheels.iterdir())


def download(lock: Path, folder: Path, *where: str) -> None:
    """Have pip download the wheels of what is pinned, for a kind of machine."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    what = ["--require-hashes", "--requirement", str(lock), "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*pip, *what, *where], check=True)


def unpack(wheels: list[Path]) -> Tree:
    """Return the files of these wheels, licences included, as they would lie in one folder."""
    tree: Tree = {}
    for wheel in wheels:
        with ZipFile(wheel) as archive:
            tree |= {name: archive.read(name) for name in archive.namelist() if not name.endswith(("/", "/RECORD"))}
    return tree


def at_hand() -> list[str]:
    """Return those interpreters of the functions' versions that run here, our own first."""
    found = [sys.executable] if version_of(sys.executable) in FUNCTION_PYTHONS else []
    for version in FUNCTION_PYTHONS:
        if version == version_of(sys.executable):
            continue
        if (python := shutil.which(f"python{version}")) and version_of(python) == version:
            found.append(python)
        else:
            print(f"no python{version} here: without its bytecode, the functions start more slowly on it")
    return found


def version_of(python: str) -> str:
    """Return which Python that is, "" if it does not run."""
    asking = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asking, capture_output=True, text=True, check=False).stdout.strip()


def with_bytecode(tree: Tree, pythons: list[str], *options: str) -> Tree:
    """Return the tree with its modules compiled: neither a zip nor a function's folder is written to at the start."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tree.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for python in pythons:
            compiling = [python, "-m", "compileall", *options, "-qq", "--invalidation-mode", "unchecked-hash"]
            # Sets are stored in the order of their hashes; that of strings differs between processes unless it is told.
            subprocess.run([*compiling, "-s", folder, folder], env={**os.environ, "PYTHONHASHSEED": "0"}, check=True)
        compiled = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.pyc")}
    return tree | compiled


def pack(path: Path, tree: Tree, epoch: int, *, executable: str = "", shebang: bytes = b"") -> None:
    """Write a zip, behind a line that makes it a program itself if there is one."""
    with path.open("wb") as file:
        file.write(shebang)
        with ZipFile(file, "w") as archive:
            for name in sorted(tree):
                entry = ZipInfo(name, time.gmtime(epoch)[:6])
                entry.create_system = 3  # Unix: else the modes are not read
                entry.external_attr = (stat.S_IFREG | (0o755 if name == executable else 0o644)) << 16
                archive.writestr(entry, tree[name], ZIP_DEFLATED)
    if shebang:
        path.chmod(0o755)


def sha256(path: Path) -> str:
    """Return the hash of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    build(folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size / 1024:8,.0f} KB  {path.relative_to(folder.parent)}")
