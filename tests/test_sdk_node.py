"""The official Node SDK against proxy and demo: one run of node/sdk.mjs, one test for each of its checks."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.demo import CLIENT_KEY
from tests.conftest import Running
from tests.test_dial import found

FOLDER = Path(__file__).parent / "node"
# An SDK may ask for a newer Node than it needs; without a network npm is to give up at once.
INSTALL = (
    *("ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"),
    *("--engine-strict=false", "--fetch-retries=0", "--loglevel=error"),
)
OLDEST = 20
SECONDS = 45

CHECKS = [
    "a response is answered",
    "a response streams",
    "a response calls a tool and hears its result",
    "a response is fetched, listed and deleted",
    "chat is answered",
    "chat streams",
    "chat calls a tool and hears its result",
    "chat streams a tool call",
    "embeddings are the same in either encoding",
    "a file goes up and comes back",
    "an image is drawn",
    "a recording is heard",
    "a transcription streams",
    "speech is binary",
    "models are listed",
    "an error of the upstream is the SDK's own",
    "a rate limit comes with its headers",
    "a wrong client key is an authentication error",
    "a realtime talk, the key in a header",
    "a realtime talk, the key in a subprotocol as in a browser",
    "a stream can be read with fetch alone",
]


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the SDK that package-lock.json pins beside the script."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no node or no npm on this machine")
    version = subprocess.run([node, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST:
        pytest.skip(f"node {version} is older than {OLDEST}")
    lock = FOLDER / "package-lock.json"
    installed = FOLDER / "node_modules" / ".package-lock.json"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # one worker installs, the others wait for it
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            _install(npm)
    return node


def _install(npm: str) -> None:
    try:
        subprocess.run([npm, *INSTALL], cwd=FOLDER, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm ci took more than {SECONDS} s")
    except subprocess.CalledProcessError as failed:
        ours = (
            "EUSAGE" in failed.stderr or "EINTEGRITY" in failed.stderr
        )  # a lock that does not fit is no lack of network
        (pytest.fail if ours else pytest.skip)(f"npm ci: {failed.stderr.partition(chr(10))[0]}")


@pytest.fixture(scope="session")
def heard(node: str, demo_proxy: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """The checks by name, each with the error that it ended with."""
    authority = found(tmp_path_factory.mktemp("node"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environ["NODE_EXTRA_CA_CERTS"] = str(authority.file)
    run = subprocess.run(
        # Node has had WebSocket without a flag since version 22.
        [node, "--experimental-websocket", "sdk.mjs", demo_proxy.url, CLIENT_KEY, str(authority.server)],
        cwd=FOLDER,
        env=environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {line["check"]: line["error"] for line in lines}


@pytest.mark.parametrize("check", CHECKS)
def test_with_the_node_sdk(heard: dict[str, str | None], check: str) -> None:
    assert heard[check] is None


def test_no_check_of_the_node_sdk_is_left_out(heard: dict[str, str | None]) -> None:
    assert list(heard) == CHECKS
