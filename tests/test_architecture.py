"""The house stands as it was drawn: dependencies run downwards, each library has its door, rooms stay small."""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

PROXY = Path(__file__).parent.parent / "proxy"
TESTS = Path(__file__).parent
FILES = sorted(PROXY.rglob("*.py"))
T = TypeVar("T")
MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 50

# Lowest first. A room imports from floors below its own, and never from its own: what two of them need belongs below.
FLOORS = (
    ("the version", "__init__"),
    ("ground: what can go wrong, what is missing, what was used", "errors native usage"),
    ("ground: heads that come again", "heads"),
    ("ground: nouns and rules", "codings exchange headers jsontext layers readable session tally values"),
    ("ground: bounds, and answers that change on their way", "filtered guard openfiles pace"),
    ("ground: choices, and bodies that wait or are rewritten", "aside own rewrites settings spool whole"),
    ("ground: an answer told anew", "retold"),
    ("ground: what may be written down", "redaction entry figures tables verdicts"),
    ("ground: calls for Azure, and tokens", "azure entra"),
    ("ground: how things are shown, and which of them", "fresh markup wanted"),
    ("the wire: parts of its two ends", "answer cycle dial handshake request"),
    ("the wire: through an outbound proxy", "tunnel"),
    ("the wire: requests as they come in, and a connection that speaks WebSocket", "intake upgrade"),
    ("the wire: one connection", "connection protocol pure"),
    ("the wire: all connections", "pool"),
    (
        "rooms",
        "access cors downstream endpoints history ledger lines login metrics plain ratelimit recall tap through_httpx "
        "transport veil workers workspace",
    ),
    ("the far bank", "upstream"),
    ("what is read from the history, and what writes it", "books charts report"),
    ("which request becomes which call", "probe routes"),
    ("the convenience routes: what they share", "counter"),
    ("the convenience routes: by what they take", "forms objects"),
    ("the convenience routes: their table", "convenience"),
    ("the two banks of a WebSocket", "downstream_websocket upstream_websocket"),
    ("a route that asks for more", "include_usage"),
    ("the life of an exchange", "gateway"),
    ("the life of an exchange over WebSocket", "websocket"),
    ("parts of our pages", "overview shell"),
    ("pages of our own", "board pages runtime"),
    ("the operator's pages together", "console"),
    ("wiring", "app"),
    ("serving, and what `oxy check` looks at", "probes server"),
    ("what `oxy check` finds", "check"),
    ("the command line", "__main__"),
)
# Another program in the same process: it imports nothing of the proxy, and only the command line starts it.
ALONE = "demo"

# Whoever is not named here lives on the standard library.
DOORS = {
    "dotenv": ("layers", "how an .env file is read is not for us to invent"),
    "httptools": ("connection intake native", "parses answers and requests; native asks whether it is here"),
    "h11": ("pure tunnel", "parses requests where httptools is missing, and what an outbound proxy says"),
    "httpx": (
        "connection pool through_httpx transport tunnel upstream app",
        "the way upstream; app names the type of a transport and no more",
    ),
    "azure": ("entra", "finds an identity and gets its tokens; an extra"),
    "python_multipart": ("rewrites", "reads a form as it streams in"),
    "prometheus_client": ("metrics", "how Prometheus spells what it reads"),
    "uvicorn": (
        "server workers protocol pure upgrade demo",
        "serves, in several processes too; protocol stands in for its own, pure and upgrade build on its own; the demo "
        "has a server to itself",
    ),
    "websockets": ("upgrade upstream_websocket", "frames and closing handshakes, on both sides"),
    "starlette": (
        "cycle protocol pure upgrade cors downstream downstream_websocket gateway websocket login ratelimit "
        "board pages plain runtime console app demo",
        "ASGI's types; what our pages are made of",
    ),
}
# the hot path is plain ASGI
TYPES_ONLY = {
    "starlette": "cycle protocol pure upgrade cors downstream downstream_websocket gateway websocket plain ratelimit"
}

# One reason to exist, and left whole.
LONGER = {"connection": (380, "the states of a connection")}

# Functions that are a table: as long as what they list.
TABLES = {"chosen": "the settings"}

WITHOUT_A_TWIN = {
    "__init__": "it says which version it is, and nothing else",
    "__main__": "test_server starts it as people do",
    "tables": "test_history writes them, test_recall reads them",
    "errors": "facts: each is heard where it is raised, and test_readme holds the classes and the table together",
    "routes": "what it makes of a request is heard on the wire: test_relay",
    "aside": "test_objects hears where long bodies are read, test_guard how many of them may wait",
    "app": "wiring: every test on a socket goes through it",
    "counter": "what it makes of a request is heard on the wire: test_objects and test_forms",
    "codings": "test_tap sends each coding through it, and what is none",
    "overview": "test_board reads its figures on the page",
    "shell": "it is around each page that test_console and test_board ask for",
    "exchange": "nouns; how a failure becomes an answer is heard on the wire: test_protocol, test_relay",
    "filtered": "test_veil and test_include_usage hear what goes through it",
    "intake": "test_protocol, test_heads and test_properties say to it what clients do, whole and cut",
    "request": "test_protocol says what it refuses",
    "usage": "test_tap reads each shape of the API through it",
    "downstream_websocket": "what it says to a client is heard on the wire: test_websocket",
    "through_httpx": "whatever has a `way` goes through it too: test_upstream, test_relay, test_faults",
    "verdicts": "words: test_probes hears them where they are said",
    "values": "test_settings puts every kind of text through it",
}


def room(path: Path) -> str:
    """The file or folder directly under proxy/ to which a file belongs."""
    return path.relative_to(PROXY).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported anywhere in a file, in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def rooms_imported(tree: ast.AST) -> set[str]:
    """Which rooms a file imports from; `from proxy import __version__` is one from `__init__`."""
    ours = (name.split(".")[1] for name in imports(tree) if name.startswith("proxy."))
    return {name if name in ROOMS else "__init__" for name in ours}


@cache
def packages_imported(tree: ast.AST) -> set[str]:
    """Which packages from elsewhere a file imports."""
    return {name.partition(".")[0] for name in imports(tree)} - {"proxy", *sys.stdlib_module_names}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


ROOMS = {room(path) for path in FILES}
FLOOR_OF = {name: number for number, (_, names) in enumerate(FLOORS) for name in names.split()}


def each(things: Iterable[T]) -> Callable[[Callable[[T], None]], Callable[[], None]]:
    """Make one test of a check of each, which names all that fail: to hand out a test costs more than most of these."""

    def of_all(check: Callable[[T], None]) -> Callable[[], None]:
        def test() -> None:
            failed = []
            for thing in things:
                try:
                    check(thing)
                except AssertionError as problem:
                    problem.add_note(f"This is about {thing}")
                    failed.append(problem)
            if failed:
                raise ExceptionGroup(f"{check.__name__} does not hold", failed)

        return test

    return of_all


each_file = each(FILES)
each_room = each(sorted(ROOMS))


@each_room
def test_every_room_is_on_a_floor(name: str) -> None:
    assert name == ALONE or name in FLOOR_OF, f"give proxy/{name} a place in FLOORS"


@each_room
def test_every_room_is_in_the_drawing(name: str) -> None:
    drawing = (TESTS.parent / "docs" / "design.md").read_text(encoding="utf-8")
    assert name == "__init__" or re.search(rf"^    .*\b{name}(?:\.py|/)", drawing, re.MULTILINE), f"draw proxy/{name}"


@each_file
def test_a_file_imports_only_from_floors_below_its_own(path: Path) -> None:
    own = room(path)
    if own == ALONE:
        assert rooms_imported(parsed(path)) <= {ALONE}, "the demo stands alone"
        return
    for name in rooms_imported(parsed(path)) - {ALONE}:
        assert FLOOR_OF[name] < FLOOR_OF[own], f"{own} imports {name}, which is not below it"


@each_file
def test_only_the_command_line_knows_the_demo_and_only_when_asked(path: Path) -> None:
    if room(path) == ALONE:
        return
    tree = parsed(path)
    assert ALONE not in rooms_imported(tree) or room(path) == "__main__"
    at_the_top = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], [])
    assert ALONE not in rooms_imported(at_the_top), "everyone would load it"


@each_file
def test_a_library_is_imported_only_where_it_has_its_door(path: Path) -> None:
    for package in packages_imported(parsed(path)):
        rooms, _ = DOORS.get(package, ("", ""))
        assert room(path) in rooms.split(), f"{package} has no business in {room(path)}"


@pytest.mark.parametrize("package", DOORS)
def test_every_door_is_used(package: str) -> None:
    rooms, _ = DOORS[package]
    using = {room(path) for path in FILES if package in packages_imported(parsed(path))}
    assert using == {name for name in rooms.split() if name in ROOMS}


@each_file
def test_the_hot_path_knows_the_types_of_asgi_and_no_more(path: Path) -> None:
    for package, rooms in TYPES_ONLY.items():
        if room(path) in rooms.split():
            used = {name for name in imports(parsed(path)) if name.startswith(f"{package}.")}
            assert all(name.startswith(f"{package}.types.") for name in used)


def test_app_names_the_type_of_a_transport_and_no_more() -> None:
    nodes = ast.walk(parsed(PROXY / "app.py"))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "httpx"}
    assert used == {"AsyncBaseTransport"}


@each_file
def test_a_file_s_name_says_what_is_in_it(path: Path) -> None:
    words = set(re.split(r"[_/.]", str(path.relative_to(PROXY)).lower()))
    assert not words & {"util", "utils", "helper", "helpers", "common", "base", "misc", "manager"}


@each_file
def test_a_file_stays_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    most, _ = LONGER.get(room(path), (MOST_LINES, ""))
    assert lines <= most, "has it two reasons to exist?"
    assert lines > MOST_LINES or room(path) not in LONGER, "it is small again: take it out of LONGER"


@each_file
def test_a_function_stays_small(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION or node.name in TABLES, f"{node.name} has {lines} lines"


@each_room
def test_every_room_has_a_test_of_its_own(name: str) -> None:
    twin = (TESTS / f"test_{name}.py").exists()
    assert twin or name in WITHOUT_A_TWIN, f"tests/test_{name}.py is missing"
    assert not twin or name not in WITHOUT_A_TWIN, f"{name} has a twin now: take it out of WITHOUT_A_TWIN"


def test_no_exception_outlives_its_reason() -> None:
    assert WITHOUT_A_TWIN.keys() <= ROOMS
