"""The README and the code say the same, where that is cheap to check, and what the other documents name is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from textwrap import dedent
from types import SimpleNamespace
from typing import cast

import pytest

from proxy.__main__ import invitation, parser
from proxy.demo import CLIENT_KEY, UPSTREAM_KEY
from proxy.errors import Failure
from proxy.server import announce
from proxy.settings import load
from tests.conftest import SettingsOf

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = "http://127.0.0.1:18443"


class Asked(dict[str, str]):
    """An environment that notes which names are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        if name.isupper():  # small letters are a second spelling
            self.names.add(name)
        return default


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading, less the back ticks of whole cells."""
    table = README.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[re.sub(r"^`(.*)`$", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table]


SETTINGS = rows("setting")


def test_the_table_of_settings_has_each_that_there_is_once(tmp_path: Path) -> None:
    load(asked := Asked(), tmp_path)
    assert sorted(row[0] for row in SETTINGS) == sorted(asked.names)


@pytest.mark.parametrize(("name", "default"), [row[:2] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_a_default_in_the_table_is_the_one_in_the_code(settings_of: SettingsOf, name: str, default: str) -> None:
    assert settings_of(**{name: "" if default == "unset" else default}) == settings_of()


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "PROXY_X_API_KEY", "OPENAI_BASE_URL", "PROXY_ENDPOINTS"])
def test_what_the_table_calls_unset_has_no_default(name: str) -> None:
    assert dict(row[:2] for row in SETTINGS)[name] == "unset"


def test_the_table_of_options_has_each_that_there_is_with_its_setting() -> None:
    usage = parser().format_help()
    named = {option: row[1] for row in rows("option") for option in re.findall(r"--[\w-]+", row[0])}
    assert sorted(named) == sorted(set(re.findall(r"--[a-z][\w-]*", usage)))
    for option, setting in named.items():
        help_of_it = re.split(r"\n {0,4}-", usage.partition(f"  {option} ")[2])[0]
        assert setting in " ".join(help_of_it.split())


def classes(kind: type[Failure]) -> Iterator[type[Failure]]:
    yield kind
    for deeper in kind.__subclasses__():
        yield from classes(deeper)


def test_the_table_of_errors_has_each_that_a_client_can_hear() -> None:
    heard = {(str(kind.status), kind.code) for kind in classes(Failure) if kind.__module__ == "proxy.errors"}
    told = {(status, code) for status, code, *_ in rows("status") if code.startswith("OPENAI_PROXY_")}
    assert heard - told == {("401", "OPENAI_PROXY_UNAUTHORIZED"), ("499", "OPENAI_PROXY_CANCELLED")}
    assert told <= heard


def snippets() -> list[tuple[str, str]]:
    """Language and text of each block that is marked to run against the demo."""
    return re.findall(r"<!-- demo.*?-->\n```(\w+)\n(.*?)```", README, re.DOTALL)


def test_there_is_a_snippet_for_each_client() -> None:
    assert [language for language, _ in snippets()] == ["sh", "python", "js", "sh", "go", "sh", "python"]


@pytest.mark.parametrize(("language", "text"), snippets())
def test_a_snippet_calls_the_demo_with_its_key(language: str, text: str) -> None:
    urls = re.findall(r"http://[^/\s\"']+", text)
    assert set(urls) == {DEMO}
    assert text.count(CLIENT_KEY) == len(urls)
    if language == "python":
        ast.parse(text)


def test_the_log_of_the_demo_is_shown_as_it_is_written(
    settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
) -> None:
    demo = {"OXY_TARGET": "http://127.0.0.1:43733", "OPENAI_API_KEY": UPSTREAM_KEY, "PROXY_X_API_KEY": CLIENT_KEY}
    with caplog.at_level("INFO", "oxy"):
        announce(settings_of(**demo), cast(socket, SimpleNamespace(getsockname=lambda: ("0.0.0.0", 18443))))
    shown = re.findall(r"^    [-0-9]+T[:.0-9]+Z INFO (.*)$", README, re.MULTILINE)
    assert shown == [record.getMessage() for record in caplog.records]


def test_the_first_curl_line_and_the_python_client_are_those_that_the_demo_prints() -> None:
    printed = dedent(invitation(DEMO).replace("\n  ", "\n"))
    (_, curl), (_, python), *_ = snippets()
    assert curl in printed
    for line in python.splitlines()[:4]:
        assert line in printed


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_relative_link_is_dead(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.M)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if not re.match(r"https?:", link):
            assert ((ROOT / document).parent / path).exists(), link
            assert path or anchor in headings, link


@pytest.mark.parametrize("document", ["docs/design.md", "docs/reliability.md"])
def test_each_test_that_a_document_names_is_there(document: str) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / document).read_text(encoding="utf-8"))
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"
