"""An entry: which facts are chosen, how they are spelled, and that no text of others can break a line."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.entry import LONGEST_PATH, PIPE_BUF, Entry, Facts, FirstFew, Redact, as_text, entries, status_class
from proxy.errors import Result
from proxy.exchange import Exchange
from proxy.redaction import LONGEST, Redaction
from proxy.usage import KINDS

ROOT = Path(__file__).parent.parent
BEGAN = 1_795_228_381.0456  # 2026-11-21 02:33:01 UTC
ID = "0123456789abcdef0123456789abcdef"
SECRET = "sk-planted-0123456789"


SAID = {"input": 120, "cached": 20, "output": 30, "total": 150, "output_audio": 5}


def Usage(*counts: int | None, **kinds: int | None) -> dict[str, int]:
    """What the tap makes of an answer."""
    said = {**SAID, **dict(zip(KINDS, counts, strict=False)), **kinds}
    return {kind: count for kind, count in said.items() if count is not None}


def full(**changes: Any) -> Exchange:
    """An exchange of which everything is known; the model that was asked for only where it is shown."""
    if "asked" in changes:
        changes = {"model": None, **changes}
    known = Exchange(
        id=ID,
        method="POST",
        path="/v1/chat/completions",
        incoming_id="client-1",
        route="relay",
        began=BEGAN,
        status=200,
        result="success",
        timeout=600.0,
        timeout_source="default",
        timed_out=None,
        stream=True,
        model="gpt-4o-mini",
        first_byte=0.25,
        first_chunk=0.75,
        duration=1.5,
        client_wait=0.0001,
        upstream_wait=0.2499,
        bytes_in=812,
        bytes_out=20480,
        upstream_id="req_1",
        usage=Usage(),
        retries=1,
        overloaded=False,
        cancelled=False,
        failure=None,
        detail=None,
        key="team-a",
        messages_in=3,
        messages_out=40,
        close_code=1000,
        usage_added=True,
    )
    return dataclasses.replace(known, **changes)


def entry(exchange: Exchange, redact: Redact) -> Entry:
    (written,) = entries([exchange], redact)
    return written


def facts(exchange: Exchange, redact: Redact) -> Facts:
    return entry(exchange, redact).facts


FAILED = {
    "status": 504,
    "result": "upstream_timeout",
    "timed_out": "head",
    "first_byte": None,
    "usage": None,
    "model": None,
    "failure": "The upstream took too long",
    "detail": 'ReadTimeout("after 600 s")',
}


def test_each_member_is_explained() -> None:
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "operations.md").read_text()))
    written = {**facts(full(), Redaction()), **facts(full(**FAILED), Redaction())}
    assert not written.keys() - told


def test_a_line_of_json_is_written_as_recorded() -> None:
    assert entry(full(), Redaction()).json == (
        '{"time":"2026-11-21T02:33:01.046Z","id":"0123456789abcdef0123456789abcdef","incoming_id":"client-1",'
        '"upstream_id":"req_1","route":"relay","method":"POST","path":"/v1/chat/completions","model":"gpt-4o-mini",'
        '"stream":true,"status":200,"result":"success","timeout":600.0,"timeout_source":"default",'
        '"duration":1.500000,"first_byte":0.250000,"first_chunk":0.750000,"client_wait":0.000100,"upstream_wait":0.249900,'
        '"bytes_in":812,"bytes_out":20480,"messages_in":3,"messages_out":40,"close_code":1000,'
        '"tokens":{"input":120,"cached":20,"output":30,"total":150,"output_audio":5},"usage_added":true,"retries":1,'
        '"overloaded":false,"cancelled":false,"key":"team-a"}'
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            "2026-11-21T02:33:01.046Z 200 POST /v1/chat/completions 1.500 s, first byte 0.250 s, 812 B in, "
            f"20.5 kB out, gpt-4o-mini, 120 + 30 tokens, retries 1, key team-a, relay {ID}",
        ),
        (
            FAILED,
            "2026-11-21T02:33:01.046Z 504 POST /v1/chat/completions 1.500 s, 812 B in, 20.5 kB out, retries 1, "
            f"key team-a, relay {ID} upstream_timeout: The upstream took too long "
            '(ReadTimeout("after 600 s"))',
        ),
        (
            {
                **{"status": None, "result": "client_cancelled", "key": None, "retries": 0, "model": None},
                **{"bytes_in": 3_000_000, "bytes_out": 2 * 10**12, "usage": Usage(output=None), "first_byte": None},
            },
            "2026-11-21T02:33:01.046Z --- POST /v1/chat/completions 1.500 s, 3 MB in, 2 TB out, "
            f"120 + ? tokens, relay {ID} client_cancelled",
        ),
    ],
    ids=["success", "failure", "nothing known"],
)
def test_a_line_for_people_is_written_as_recorded(changes: dict[str, Any], line: str) -> None:
    assert as_text(facts(full(**changes), Redaction())) == line


@pytest.mark.parametrize(("status", "colour"), [(200, "32"), (304, "36"), (404, "33"), (529, "31"), (None, "35")])
def test_on_a_terminal_the_status_is_coloured(status: int | None, colour: str) -> None:
    line = as_text(facts(full(status=status), Redaction()), colour=True)
    assert line.count("\x1b") == 2
    assert f"\x1b[{colour}m{status or '---'}\x1b[0m" in line


@pytest.mark.parametrize("result", get_args(Result))
def test_an_entry_has_each_known_fact_of_each_result(result: str) -> None:
    exchange = full(**FAILED) if result != "success" else full()
    exchange.result = result  # type: ignore[assignment]  # one of them, by its parameters
    chosen = facts(exchange, Redaction())
    renamed = {"began": "time", "usage": "tokens"}
    for field in dataclasses.fields(Exchange):
        if field.name == "clock":  # which means nothing to anybody else
            continue
        value, name = getattr(exchange, field.name), renamed.get(field.name, field.name)
        assert (name in chosen) == (value is not None), field.name
        if value is not None and field.name not in renamed and field.name != "detail":
            assert chosen[name] == value
    assert chosen.keys() <= {renamed.get(field.name, field.name) for field in dataclasses.fields(Exchange)}


def test_of_an_exchange_that_has_just_begun_little_is_written() -> None:
    chosen = facts(Exchange(id=ID, method="GET", path="/"), Redaction())
    assert chosen.pop("time").startswith("20")
    assert chosen == {
        **{"id": ID, "route": "relay", "method": "GET", "path": "/", "stream": False, "result": "internal_error"},
        **{
            "timeout_source": "default",
            "duration": 0.0,
            "bytes_in": 0,
            "bytes_out": 0,
            "retries": 0,
            "overloaded": False,
            "cancelled": False,
        },
    }


TEXTS = ("method", "path", "incoming_id", "upstream_id", "model", "asked", "key", "failure", "detail")


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("planted", [SECRET, "x" * 200 + SECRET, "Bearer of-secrets", "api_key=of-secrets", "own-name"])
def test_no_secret_gets_into_an_entry(field: str, planted: str) -> None:
    redact = Redaction(["own-name"])
    written = entry(full(**{field: f"a {planted}"}), redact)
    for text in (written.json, as_text(written.facts)):
        assert not any(secret in text for secret in (SECRET, "of-secrets", "own-name"))


@pytest.mark.parametrize("field", TEXTS)
def test_little_more_of_a_text_is_looked_at_than_is_written_down(field: str) -> None:
    looked: list[int] = []

    def redact(text: str, longest: int = LONGEST) -> str:
        looked.append(min(len(text), longest))
        return Redaction()(text, longest)

    entry(full(**{field: "/key" * 8000}), redact)
    assert max(looked) < 4096


@pytest.mark.parametrize("field", TEXTS)
def test_no_half_of_a_secret_slides_in_where_those_before_it_are_masked(field: str) -> None:
    for padding in range(0, 600, 7):
        text = "a" * padding + f"/Bearer {'s' * 400}," * 20
        assert "sss" not in entry(full(**{field: text}), Redaction()).json


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize(
    "hostile",
    [
        *("two\nlines", "a\r\nb", "\x1b[31mred\x1b[0m\x07", "\x9b31m", "a\u2028b\u2029c\x85d", "\x00", "\x7f"),
        *("<script>alert(1)</script>", '"}{"', "\\", "\udcff", "\N{SNOWMAN}", "é", "x" * 1_000_000, "\x1b" * 1_000_000),
    ],
    ids=lambda text: ascii(text[:8]),
)
def test_no_text_breaks_a_line_or_a_terminal(field: str, hostile: str) -> None:
    for known in ({}, FAILED):
        written = entry(full(**{**known, field: hostile}), Redaction())
        for line in (written.json, as_text(written.facts)):
            assert line.isascii()
            assert line.isprintable()
            assert len(line) < PIPE_BUF
        shown = "model" if field == "asked" else field
        assert written.facts.keys() == {*facts(full(**known), Redaction()), shown}
        if field not in ("failure", "detail"):
            assert not set(written.facts[shown]) & set('<>"\\ ')


@pytest.mark.parametrize("planted", ["two\nlines", SECRET, "x" * 200, '"'])
def test_of_several_entries_each_is_as_it_is_alone(planted: str) -> None:
    exchanges = [full(), full(path=planted), full(**FAILED), full(incoming_id=None)]
    alone = [entry(exchange, Redaction()) for exchange in exchanges]
    assert entries(exchanges, Redaction()) == alone
    assert entries(exchanges[2:], Redaction()) == alone[2:]


def test_names_keep_what_they_are_recognised_by() -> None:
    path = "/v1/files/a%2Fb;c=d/" + b"\xff\xc3\xa9 <x>".decode("latin-1")
    assert facts(full(path=path), Redaction())["path"] == "/v1/files/a%2Fb;c=d/%FF%C3%A9%20%3Cx%3E"
    assert facts(full(asked="a\u20ac\ud800"), Redaction())["model"] == "a%E2%82%AC%ED%A0%80"  # JSON may say the latter
    long = facts(full(path="/" + "a" * 1_000_000), Redaction())["path"]
    assert long == "/" + "a" * (LONGEST_PATH - 1)


@given(st.fixed_dictionaries({field: st.text(max_size=3) for field in TEXTS}))
@settings(max_examples=30)
def test_the_worst_entry_still_goes_through_a_pipe_in_one_piece(texts: dict[str, str]) -> None:
    long = {field: (text or "\\") * 3000 for field, text in texts.items()}
    widest = {"usage": Usage(*[10**9 - 1] * len(KINDS)), "first_byte": 1e5 / 3, "duration": 1e5 / 3, "bytes_in": 2**60}
    written = entry(full(**{**FAILED, **long, **widest}), Redaction())
    assert len(written.json) < PIPE_BUF
    assert len(as_text(written.facts, colour=True)) < PIPE_BUF
    assert written.json.isprintable()


@pytest.mark.parametrize(("count", "size"), [(999, "999 B"), (1000, "1 kB"), (999_999, "1 MB"), (10**9, "1 GB")])
def test_a_size_for_people_has_few_digits(count: int, size: str) -> None:
    assert f" {size} in," in as_text(facts(full(bytes_in=count), Redaction()))


def test_without_a_count_there_is_no_word_of_tokens() -> None:
    assert "tokens" not in facts(full(usage={}), Redaction())
    assert "tokens" not in facts(full(usage=None), Redaction())


@pytest.mark.parametrize(
    ("status", "name"),
    [(200, "2xx"), (101, "1xx"), (599, "5xx"), (600, "none"), (499, "4xx"), (None, "none"), (0, "none"), (999, "none")],
)
def test_a_status_has_a_class(status: int | None, name: str) -> None:
    assert status_class(status) == name


def test_of_many_values_the_first_few_keep_their_names() -> None:
    bounded = FirstFew(2)
    assert [bounded(value) for value in ("a", "b", "c", "a", "c")] == ["a", "b", "other", "a", "other"]
