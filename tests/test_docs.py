"""What the documents tell people to run runs, and nginx before Oxy is what they say it is."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.conftest import Running
from tests.peers import PATIENCE, free_port
from tests.test_server import polls, refuses

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
NGINX = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")


def blocks() -> list[tuple[str, str]]:
    """Each command block that is marked as runnable, with the name of its document."""
    marked = re.compile(r"<!-- runnable -->\n```sh\n(.*?)```", re.DOTALL)
    return [(path.name, text) for path in DOCUMENTS for text in marked.findall(path.read_text(encoding="utf-8"))]


def shell(text: str, folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Run commands as somebody who has installed Oxy does."""
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OXY_HOST": "127.0.0.1",
        "OXY_PORT": str(port),
    }
    command = ["sh", "-eu", "-c", text]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_there_are_blocks_to_run() -> None:
    assert {name for name, _ in blocks()} >= {"deployment.md", "security.md"}


@pytest.mark.parametrize(
    ("name", "text"), blocks(), ids=[f"{name}-{number}" for number, (name, _) in enumerate(blocks())]
)
def test_a_block_that_is_marked_runs(tmp_path: Path, name: str, text: str) -> None:
    missing = [tool for tool in ("openssl", "curl") if f"{tool} " in text and shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed here")
    done = shell(text, tmp_path, free_port())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


@contextmanager
def nginx(folder: Path, behind: int, server: str) -> Iterator[str]:
    """Run nginx with what stands in `http {}`, plain on a free port of loopback."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed here")
    port = free_port()
    server = re.sub(r" *ssl_certificate.*\n", "", server)
    server = server.replace("443 ssl", f"127.0.0.1:{port}").replace("127.0.0.1:18443", f"127.0.0.1:{behind}")
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}{server}\n}}\n"
    )
    process = subprocess.Popen(["nginx", "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(config)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)


def marks(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The mark before each line of a check."""
    return {name: mark for mark, name in re.findall(r"^  (\S) (\w+)", done.stdout, re.MULTILINE)}


def test_nginx_as_the_documents_have_it_passes_streams_on(tmp_path: Path) -> None:
    port = free_port()
    with nginx(tmp_path, port, NGINX) as url:
        done = shell(f"oxy check --demo --idle 1 --through {url}", tmp_path, port)
    assert done.returncode == 0, done.stdout + done.stderr
    assert marks(done)["stream"] == "✓"


def test_nginx_as_the_documents_have_it_passes_websockets_on(tmp_path: Path, demo_proxy: Running) -> None:
    (key,) = demo_proxy.settings.client_keys
    with nginx(tmp_path, demo_proxy.port, NGINX) as url:
        port = int(url.rpartition(":")[2])
        assert any(not refuses(port) for _ in polls()), "nginx does not listen"
        realtime = f"ws://127.0.0.1:{port}/v1/realtime?model=gpt-realtime"
        with connect(realtime, additional_headers={"Authorization": f"Bearer {key}"}, proxy=None) as line:
            assert '"session.created"' in str(line.recv(PATIENCE))


def test_nginx_with_less_patience_is_found_out(tmp_path: Path) -> None:
    port = free_port()
    with nginx(tmp_path, port, NGINX.replace("proxy_read_timeout 610s", "proxy_read_timeout 1s")) as url:
        done = shell(f"oxy check --demo --idle 3 --through {url}", tmp_path, port)
    assert done.returncode == 1
    assert marks(done) | {"stream": "✓", "idle": "✗"} == marks(done)
