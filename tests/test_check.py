"""`oxy check` as an operator runs it: what it prints, with which status it ends, and what it makes of a middle box."""

import asyncio
import io
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, cast

import pytest

from proxy import check as checking
from proxy import demo, probes
from proxy.__main__ import main
from proxy.check import NOT_KEPT, Finding, Report, kept, marks
from proxy.server import listen, local_url, serving
from proxy.settings import Settings, load
from proxy.tables import OURS, opened
from proxy.values import target
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY
from tests.peers import PATIENCE, Upstream, answer, free_port
from tests.test_dial import hanging


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port that the proxy is to listen on, on loopback."""
    monkeypatch.setenv("OXY_HOST", "127.0.0.1")
    monkeypatch.setenv("OXY_PORT", str(port := free_port()))
    monkeypatch.setattr(probes, "TOKENS", 8)  # so that the demo is soon through
    return port


class Checked:
    """What a check printed as JSON, what else it wrote, and its status."""

    def __init__(self, status: int, text: str, errors: str) -> None:
        self.status, self.text, self.errors = status, text, errors
        self.told = json.loads(text)
        assert self.told["ok"] is (status == 0)

    def __getitem__(self, check: str) -> dict[str, Any]:
        """The last line of that name."""
        found: dict[str, Any] = [line for line in self.told["findings"] if line["check"] == check][-1]
        return found

    @property
    def marks(self) -> list[tuple[str, bool | None]]:
        return [(line["check"], line["ok"]) for line in self.told["findings"]]


async def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> Checked:
    """Run the command beside this loop, which may play the upstream meanwhile."""
    status = await asyncio.to_thread(main, ["check", "--json", *arguments])
    return Checked(status, *capsys.readouterr())


async def test_all_is_well_with_a_key_that_is_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, upstream: Upstream
) -> None:
    upstream.says(answer())
    for name, value in SWAP.items():
        monkeypatch.setenv(name, value)
    assert await asyncio.to_thread(main, ["check", "--target", upstream.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"  ✓ settings mode swap, target {upstream.url}",
        f"  ✓ port     port {here} on 127.0.0.1 is free",
        f"{upstream.url}:",
    ]
    assert [line[:13] for line in lines[3:]] == ["  ✓ tcp      ", "  ✓ key      ", "  ✓ head     "]


async def test_what_is_wrong_is_said_with_what_to_do_and_the_rest_is_not_tried(
    capsys: pytest.CaptureFixture[str], here: int
) -> None:
    nobody = free_port()
    assert await asyncio.to_thread(main, ["check", "--target", f"http://127.0.0.1:{nobody}"]) == 1
    assert capsys.readouterr().out.splitlines()[3:] == [
        f"  ✗ tcp      127.0.0.1 port {nobody} refuses",
        "             Nothing listens there: look at the port, and whether it has been started.",
        "  - key      not tried",
        "  - head     not tried",
    ]


async def test_settings_that_are_not_usable_are_all_that_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", UPSTREAM_KEY)
    monkeypatch.setenv("PROXY_WORKERS", "none")
    found = await checked(capsys)
    assert found.marks == [("settings", False), ("settings", False)]
    first, second = (line["said"] for line in found.told["findings"])
    assert first.startswith("PROXY_WORKERS: write a whole number")
    assert second.startswith("OPENAI_API_KEY is set, but no client key")
    assert "README" in found["settings"]["advice"]


async def test_a_mistyped_name_is_a_cross(
    capsys: pytest.CaptureFixture[str], here: int, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.says(answer(401))
    (tmp_path / ".env").write_text("PROXY_WORKER=2\n")
    found = await checked(capsys, "--target", upstream.url)
    assert found.marks == [
        *(("settings", True), ("settings", False), ("port", True)),
        *(("tcp", True), ("key", True), ("head", True)),
    ]
    assert "did you mean PROXY_WORKERS?" in found["settings"]["said"]


async def test_no_key_is_ever_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, upstream: Upstream
) -> None:
    upstream.says(answer(401, body=f"Incorrect API key provided: {UPSTREAM_KEY}".encode()))
    for name, value in SWAP.items():
        monkeypatch.setenv(name, value)
    found = await checked(capsys, "--target", upstream.url, "--through", upstream.url)
    assert found.status == 1
    assert UPSTREAM_KEY not in found.text
    assert CLIENT_KEY not in found.text


def test_a_key_in_a_text_of_others_is_masked() -> None:
    report = Report(stream := io.StringIO(), as_json=False)
    report.tell(Finding(check="key", ok=False, said=f"Bearer {UPSTREAM_KEY}", advice=f"not {UPSTREAM_KEY}"))
    assert UPSTREAM_KEY not in stream.getvalue()


def test_a_terminal_without_a_tick_gets_letters() -> None:
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert marks(latin) == {True: "+", False: "x", None: "-"}


class Gone(io.StringIO):
    """A pipe whose reader, such as `head`, has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("arguments", [["check"], ["check", "--json"], ["usage"]], ids=" ".join)
def test_a_reader_that_has_enough_ends_it_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    opened(tmp_path / "history").close()
    monkeypatch.setenv("PROXY_HISTORY", str(tmp_path / "history"))
    monkeypatch.setenv("OXY_PORT", "none")  # so that there is little to look at
    monkeypatch.setattr("sys.stdout", Gone())
    assert main(arguments) == 1


# ---- the history


def histories(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """A place for the history of each kind, and what is wrong with it."""
    (folder / "mine").touch()
    (folder / "text").write_text("This is no database. " * 100)
    opened(folder / "ours").close()
    with closing(sqlite3.connect(folder / "older")) as db:
        db.executescript(f"CREATE TABLE entries (x); PRAGMA application_id = {OURS - 1}")
    return {
        "new": (folder / "new", None),
        "empty": (folder / "mine", None),
        "ours": (folder / "ours", None),
        "a folder": (folder, "is a folder"),
        "no folder": (folder / "none" / "new", "there is no folder"),
        "no database": (folder / "text", "file is not a database"),
        "an older one": (folder / "older", "is not a history of this version of Oxy; move it away"),
        "no name": (folder / ("x" * 300), "File name too long"),
    }


@pytest.mark.parametrize(
    "kind", ["new", "empty", "ours", "a folder", "no folder", "no database", "an older one", "no name"]
)
def test_whether_the_history_can_be_kept(tmp_path: Path, kind: str) -> None:
    path, wrong = histories(tmp_path)[kind]
    found = kept(path)
    assert found.ok is (wrong is None)
    assert (wrong or str(path)) in found.said
    assert found.advice == ("" if wrong is None else NOT_KEPT)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["new", "ours"])
def test_a_history_that_this_user_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened(tmp_path / "ours").close()
    forbidden = tmp_path if name == "new" else tmp_path / "ours"
    monkeypatch.setattr("os.access", lambda place, _: place != forbidden)
    assert kept(tmp_path / name).said == f"this user may not write to {forbidden}"


async def test_a_history_that_cannot_be_kept_is_no_good_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, upstream: Upstream
) -> None:
    upstream.says(answer())
    monkeypatch.setenv("PROXY_HISTORY", "/nowhere/history.sqlite")
    found = await checked(capsys, "--target", upstream.url)
    assert found.status == 1
    assert found.marks[:3] == [("settings", True), ("history", False), ("port", True)]


# ---- the port


async def test_a_port_that_something_else_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, upstream: Upstream
) -> None:
    monkeypatch.setenv("OXY_PORT", str(upstream.port))
    for said in (b"SSH-2.0-OpenSSH_9.2\r\n", answer(), answer(body=b"[]")):
        upstream.says(said, closes=True)
        found = await checked(capsys, "--demo")
        assert found.marks == [("settings", True), ("port", False)]
        assert "address already in use" in found["port"]["advice"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "with TLS"])
async def test_a_port_that_an_oxy_serves_on_already_is_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, tmp_path: Path, tls: bool
) -> None:
    for name in ("PROXY_TLS_CERT", "PROXY_TLS_KEY", "PROXY_UPSTREAM_CA") if tls else ():
        monkeypatch.setenv(name, str(Path(__file__).with_name("listener.pem")))
    environ = {"OPENAI_API_KEY": demo.UPSTREAM_KEY, "PROXY_X_API_KEY": demo.CLIENT_KEY}
    environ["OXY_TARGET"] = demo.start_demo(pace=0.01)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with listen("127.0.0.1", here) as sock, serving(load(os.environ, tmp_path), sock):
        found = await checked(capsys, "--through", local_url(sock, tls=tls))
    assert found["port"]["said"].startswith("an Oxy 0.")
    assert found.status == 0, found.text


@pytest.mark.parametrize("through", [False, True], ids=["the port itself", "what stands before it"])
async def test_the_demo_does_not_speak_for_an_oxy_that_has_the_port(
    capsys: pytest.CaptureFixture[str], here: int, upstream: Upstream, tmp_path: Path, through: bool
) -> None:
    settings = load({"OXY_TARGET": upstream.url, **SWAP}, tmp_path)
    with listen("127.0.0.1", here) as sock, serving(settings, sock):
        found = await checked(capsys, "--demo", *(("--through", local_url(sock)) if through else ()))
    assert found.status == 1
    assert found.marks == [("settings", True), ("port", False)]
    assert found["port"]["said"].endswith(f"serves on port {here} on 127.0.0.1, so that nothing was tried")
    assert "--port" in found["port"]["advice"]


# ---- time


async def test_it_ends_when_its_time_is_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int
) -> None:
    monkeypatch.setattr(checking, "BOUND", 0.3)
    began = time.monotonic()
    with hanging() as port:
        found = await checked(capsys, "--target", f"http://127.0.0.1:{port}")
    assert time.monotonic() - began < PATIENCE
    assert re.fullmatch(r"nothing for \d\.\d s", found["tcp"]["said"])
    assert "firewall" in found["tcp"]["advice"]
    assert found["key"]["ok"] is None


def test_all_of_it_takes_twenty_seconds_at_most() -> None:
    assert checking.BOUND == 20


# ---- a stream of the real API


async def test_a_billed_stream_is_asked_for_once_and_only_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, upstream: Upstream, tmp_path: Path
) -> None:
    events = b"data: {}\n\n" * 12
    models, stream = answer(), answer(200, [(b"Content-Type", b"text/event-stream")], events)
    for name, value in SWAP.items():
        monkeypatch.setenv(name, value)
    settings = load({"OXY_TARGET": upstream.url, **SWAP}, tmp_path)
    with listen("127.0.0.1", 0) as sock, serving(settings, sock):
        front = local_url(sock)
        upstream.says_in_turn(models, models)
        assert (await checked(capsys, "--target", upstream.url, "--through", front)).status == 0
        upstream.says_in_turn(models, models, stream)
        wanted = ("--target", upstream.url, "--through", front, "--stream", "--model", "m")
        found = await checked(capsys, *wanted)
    assert [heard.start.split()[0] for heard in upstream.heard] == [b"GET"] * 4 + [b"POST"]
    assert found["stream"]["place"] == front
    assert found["stream"]["ok"] is False  # it came in one piece
    assert b'"model": "m"' in upstream.heard[-1].body


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stream"], "--model go together"),
        (["--model", "m"], "--model go together"),
        (["--idle", "1"], "goes with --demo"),
        (["--demo", "--idle", "0"], "from 1 to 999"),
        (["--through", "ftp://a"], "not an address to call"),
        (["--demo", "--target", "http://a"], "leave --target out"),
    ],
)
def test_options_that_make_no_sense_end_it(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


# ---- what stands before the proxy


class Box:
    """Something that stands between: it keeps a streamed answer back, or cuts what is silent for too long."""

    def __init__(self, to: int, *, keeps_back: bool = False, patience: float | None = None) -> None:
        self._to = to
        self._keeps_back = keeps_back
        self._patience = patience
        self._passing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._pass, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            if self._passing:
                await asyncio.wait(self._passing, timeout=PATIENCE)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._passing.add(cast("asyncio.Task[None]", asyncio.current_task()))
        there, away = await asyncio.open_connection("127.0.0.1", self._to)
        ways = [asyncio.create_task(self._copy(reader, away)), asyncio.create_task(self._answers(there, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, away):
            end.transport.abort()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = b""
        async with asyncio.timeout(None) as silence:
            while piece := await reader.read(65536):
                if self._patience is not None:
                    silence.reschedule(asyncio.get_running_loop().time() + self._patience)
                kept += piece
                if self._keeps_back and b"event-stream" in kept and not kept.endswith(b"\r\n0\r\n\r\n"):
                    continue
                writer.write(kept)
                kept = b""


async def test_the_demo_is_heard_word_by_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: int, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROXY_KEY_NAMES", "alice,bob")  # of a proxy whose place the demo takes
    monkeypatch.setenv("PROXY_HISTORY", str(tmp_path / "history.sqlite"))
    found = await checked(capsys, "--demo", "--idle", "1")
    assert found.status == 0
    assert [check for check, _ in found.marks] == ["settings", "port", "tcp", "key", "head", "stream", "idle"]
    assert found["key"]["place"] == f"http://127.0.0.1:{here}"
    assert found["key"]["said"] == "PROXY_X_API_KEY is accepted"
    assert found.errors == "", "the demo's own log is nobody's"
    assert not (tmp_path / "history.sqlite").exists(), "nor is it anybody's usage"
    socket.create_server(("127.0.0.1", here)).close()  # nothing is left behind


async def test_a_box_that_passes_everything_on_is_well(capsys: pytest.CaptureFixture[str], here: int) -> None:
    async with Box(here, patience=3).listening() as url:
        found = await checked(capsys, "--demo", "--through", url, "--idle", "1")
    assert found.status == 0
    assert found["stream"]["place"] == url


async def test_a_box_that_keeps_pieces_back_is_found_out(capsys: pytest.CaptureFixture[str], here: int) -> None:
    async with Box(here, keeps_back=True).listening() as url:
        found = await checked(capsys, "--demo", "--through", url)
    assert found["stream"]["ok"] is False
    assert "proxy_buffering off" in found["stream"]["advice"]
    assert found["idle"]["ok"] is None


async def test_a_box_that_cuts_what_is_silent_is_found_out(capsys: pytest.CaptureFixture[str], here: int) -> None:
    async with Box(here, patience=0.5).listening() as url:
        found = await checked(capsys, "--demo", "--through", url, "--idle", "2")
    assert found["stream"]["ok"]
    assert found["idle"]["ok"] is False
    assert found["idle"]["seconds"] < 1.5
    assert "proxy_read_timeout" in found["idle"]["advice"]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (Settings(target=target("https://api.example.com")), b"/v1/models"),
        (Settings(target=target("https://r.openai.azure.com")), b"/openai/v1/models"),
        (Settings(target=target("https://r.openai.azure.com/openai/v1")), b"/v1/models"),
        (Settings(target=target("https://r.openai.azure.com"), azure="v1"), b"/v1/models"),
    ],
)
def test_models_are_asked_for_where_a_client_would_find_them(settings: Settings, path: bytes) -> None:
    assert checking.models(settings) == path
