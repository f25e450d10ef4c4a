"""Every artefact is built twice and then tried as those do who get it: alone in an empty folder, by other Pythons."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from proxy import __version__
from release.build import FUNCTION_PYTHONS, FUNCTIONS, MOST_BYTES, ROOT, SPEEDUPS, epoch_of_source, fetch, version_of
from release.trial import PATIENCE, Upstream, started, tree, unzip

VALIDATOR = ROOT / "release" / ".venv" / "bin" / "python"
PYTHON: str = sys._base_executable  # type: ignore[attr-defined]  # not that of the virtual environment: no package is there
VERSIONS = [f"3.{minor}" for minor in range(11, 20)]
ALONE = ["-I", "-S"]  # no environment, no folder of the user's, no site-packages
TOKEN = "an-access-token-of-a-test"
PORT = 9000  # the one that both clouds call
FC = {
    "FC_FUNC_CODE_PATH": "/code",
    "FC_FUNCTION_HANDLER": "index.handler",
    "FC_REGION": "us-west-1",
    "FC_SERVER_PORT": "9000",
}
SCF = {
    "PYTHONPATH": "/var/user:/opt",
    "SCF_FUNCTIONNAME": "oxy",
    "TENCENTCLOUD_RUNENV": "SCF",
    "USER_CODE_ROOT": "/var/user/",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A cloud: its name, an address of this machine to stand for it, its environment, the headers that it adds."""

    name: str
    host: str
    environ: dict[str, str]
    headers: dict[str, str]


PLATFORMS = [
    Platform(
        name="tencent-scf",
        host="127.0.90.1",
        environ=SCF,
        headers={"X-Scf-Request-Id": "1", "X-SCF-Appid": "2", "x-scf-region": "3", "X-Forwarded-For": "192.0.2.1"},
    ),
    Platform(
        name="aliyun-fc",
        host="127.0.90.2",
        environ=FC,
        headers={"X-Fc-Request-Id": "1", "x-fc-access-key-secret": "2", "X-FC-Security-Token": "3"},
    ),
]


@pytest.fixture
def dist() -> Path:
    """What `make dist` has built."""
    return ROOT / "dist"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


def test_the_same_input_gives_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "release.build", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "TZ": "Asia/Shanghai", "PYTHONHASHSEED": "7"}, check=True)
    assert tree(tmp_path) == tree(dist)


def test_the_checksums_are_those_of_all_that_is_there(dist: Path) -> None:
    lines = [line.split("  ") for line in (dist / "SHA256SUMS").read_text().splitlines()]
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir()}
    del there["SHA256SUMS"]
    assert {name: checksum for checksum, name in lines} == there


def test_the_bill_of_materials_is_valid_and_names_each_package_with_its_hash(dist: Path) -> None:
    path = dist / f"oxy-{__version__}.cdx.json"
    validate = (
        "import sys, cyclonedx.schema, cyclonedx.validation.json as json\n"
        "sys.exit(json.JsonStrictValidator(cyclonedx.schema.SchemaVersion.V1_6).validate_str(sys.stdin.read()))"
    )
    subprocess.run([VALIDATOR, "-c", validate], input=path.read_bytes(), check=True)
    components = json.loads(path.read_text())["components"]
    hashes = {held["content"] for part in components for held in part["hashes"]}
    assert hashes == {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in fetch()}
    assert {"starlette", "httpx", "uvicorn", *SPEEDUPS} < {part["name"] for part in components}


def interpreter(version: str) -> str | None:
    """The Python of that version itself, not what stands in for it in a version manager or a virtual environment."""
    if version_of(PYTHON) == version:
        return PYTHON
    asking = [shutil.which(f"python{version}") or "false", "-c", "import sys; print(sys._base_executable)"]
    found = subprocess.run(asking, capture_output=True, text=True, check=False).stdout.strip()
    return found or None


def path_with(folder: Path, **programs: str) -> str:
    """A PATH on which nothing else is."""
    (folder / "bin").mkdir()
    for name, program in programs.items():
        (folder / "bin" / name).symlink_to(shutil.which(program) or program)
    return str(folder / "bin")


@pytest.mark.skipif(sys.platform != "linux", reason="the clouds run Linux, and so does what is compiled for them")
@pytest.mark.parametrize("version", FUNCTION_PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_a_function_streams_and_keeps_the_platform_s_headers_to_itself(
    dist: Path, tmp_path: Path, upstream: Upstream, platform: Platform, version: str
) -> None:
    if (python := interpreter(version)) is None:
        pytest.skip(f"there is no python{version} here")
    package, folder = dist / f"oxy-{platform.name}.zip", tmp_path / "code"
    assert package.stat().st_size < MOST_BYTES
    unzip(package, folder)
    unpacked = tree(folder)
    environ = {
        "OXY_PORT": "",  # the bootstrap chooses
        **platform.environ,
        "PATH": path_with(tmp_path, bash="bash", dirname="dirname", **{f"python{version}": python}),
        "OXY_HOST": platform.host,
        "OXY_TARGET": upstream.url,
    }
    bootstrap, prefix = FUNCTIONS[platform.name]
    with started([str(folder / bootstrap)], tmp_path, environ) as process:
        process.up()
        assert process.address == (platform.host, PORT)
        process.stream(upstream, Authorization="Bearer a-client-s", X_Other="goes on", **platform.headers)
        _, headers, _ = upstream.heard[0]
        assert not [name for name in headers if name.upper().startswith((prefix, "X-FORWARDED"))]
        assert (headers["authorization"], headers["x-other"]) == ("Bearer a-client-s", "goes on")
        assert all(name in process.loaded for name in SPEEDUPS)
        assert process.stop() == 0
    assert tree(folder) == unpacked, "it wrote into its folder, which is not allowed there"


def test_a_function_without_its_python_says_so(dist: Path, tmp_path: Path) -> None:
    unzip(dist / "oxy-aliyun-fc.zip", tmp_path)
    environ = {"PATH": path_with(tmp_path, bash="bash", dirname="dirname")}
    ran = subprocess.run([tmp_path / "bootstrap"], env=environ, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "no Python 3.11 or newer here" in ran.stderr


def pyz(dist: Path, folder: Path) -> str:
    """The one file, alone in a folder."""
    return str(shutil.copy2(dist / f"oxy-{__version__}.pyz", folder))


@pytest.mark.parametrize("version", VERSIONS)
def test_one_file_runs_on_any_python_without_a_package(
    dist: Path, tmp_path: Path, upstream: Upstream, version: str
) -> None:
    if (python := interpreter(version)) is None:
        pytest.skip(f"there is no python{version} here")
    command = [python, *ALONE, pyz(dist, tmp_path)]
    environ = {
        "OXY_TARGET": upstream.url,
        "OPENAI_API_KEY": "sk-up",
        "PROXY_X_API_KEY": "down",
        "ACCESS_TOKEN": TOKEN,
    }
    with started(command, tmp_path, environ) as process:
        process.up()
        process.stream(upstream, Authorization="Bearer down")
        assert upstream.heard[0][1]["authorization"] == "Bearer sk-up"
        welcome = process.ask("GET", "/", Accept="text/html").read()
        assert b"Welcome to the OpenAI Reverse Proxy!" in welcome
        for path, told in (("/log", b"/v1/chat/"), ("/metrics", b"oxy_exchanges_total{"), ("/debug/runtime", b"httpx")):
            process.shows(told, path, Authorization=f"Bearer {TOKEN}", Accept="text/html")
        assert not any(name in process.loaded for name in SPEEDUPS)
        assert process.stop() == 0
        assert "Traceback" not in process.log


def test_one_file_speaks_websocket(dist: Path, tmp_path: Path) -> None:
    with serve(echo, "127.0.0.1", 0) as far, ThreadPoolExecutor() as pool:
        pool.submit(far.serve_forever)
        target = f"http://127.0.0.1:{far.socket.getsockname()[1]}"
        with started([PYTHON, *ALONE, pyz(dist, tmp_path)], tmp_path, {"OXY_TARGET": target}) as process:
            with connect("ws://{}:{}/v1/realtime".format(*process.address)) as client:
                client.send("hello")
                assert client.recv(PATIENCE) == "hello"
            assert process.stop() == 0
            assert '"route":"websocket"' in process.log
        far.shutdown()


def echo(session: ServerConnection) -> None:
    for message in session:
        session.send(message)


def test_one_file_uses_the_speedups_that_are_installed_beside_it(
    dist: Path, tmp_path: Path, upstream: Upstream
) -> None:
    with started([sys.executable, pyz(dist, tmp_path)], tmp_path, {"OXY_TARGET": upstream.url}) as process:
        process.up()
        process.stream(upstream)
        assert all(name in process.loaded for name in SPEEDUPS)
        assert process.stop() == 0


def test_one_file_brings_authorities_and_workers(dist: Path, tmp_path: Path) -> None:
    asked = "import certifi; print(open(certifi.where()).read().count('BEGIN CERTIFICATE'))"
    path = pyz(dist, tmp_path)
    ran = subprocess.run(
        [PYTHON, *ALONE, "-c", f"import sys; sys.path.insert(0, {path!r}); {asked}"], capture_output=True, check=True
    )
    assert int(ran.stdout) > 100
    with started([PYTHON, *ALONE, path, "--workers", "2"], tmp_path, {}) as process:  # the target is OpenAI's, by TLS
        process.up()
        assert process.stop() == 0


def test_one_file_shows_the_demo(dist: Path, tmp_path: Path) -> None:
    with started([PYTHON, *ALONE, pyz(dist, tmp_path), "--demo"], tmp_path, {}) as process:
        process.up()
        body = json.dumps({"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
        answer = process.ask(
            "POST",
            "/v1/chat/completions",
            body.encode(),
            Authorization="Bearer demo-client-key",
            Content_Type="application/json",
        )
        assert answer.status == 200
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.stop() == 0


def test_one_file_is_a_program_by_itself(dist: Path, tmp_path: Path) -> None:
    ran = subprocess.run([pyz(dist, tmp_path), "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"oxy {__version__}\n"


@pytest.mark.parametrize("old", ["python3.10", "python3.6", "python2.7"])
def test_a_python_that_is_too_old_is_told_so(dist: Path, tmp_path: Path, old: str) -> None:
    if subprocess.run([shutil.which(old) or "false", "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {old} here")
    ran = subprocess.run([old, pyz(dist, tmp_path)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "oxy needs Python 3.11 or newer" in ran.stderr


def test_the_wheel_gives_the_command(dist: Path, tmp_path: Path, upstream: Upstream) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", f"{venv}/bin/python"]
    [wheel] = dist.glob("*.whl")
    at_hand = (
        ["--no-index", "--find-links", str(fetch()[0].parent)] if version_of(sys.executable) in FUNCTION_PYTHONS else []
    )
    subprocess.run([*pip, "install", *at_hand, str(wheel)], check=True, capture_output=True)
    with started([str(venv / "bin" / "oxy")], tmp_path, {"OXY_TARGET": upstream.url}) as process:
        process.up()
        process.stream(upstream)
        assert all(name in process.loaded for name in SPEEDUPS)
        assert process.stop() == 0


def test_the_sdist_makes_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_of_source())}
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", tmp_path, sdist], env=environ, check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()
