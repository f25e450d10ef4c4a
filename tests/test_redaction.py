"""Redaction: no secret leaves a text, whatever way it is spelled; what is none stays; nothing takes long."""

import logging
import re
import time

import pytest

from proxy.redaction import LONGEST, RedactedFormatter, Redaction

SECRET = "s3cr3t-Value_of.a/test+0123456789"
HEXADECIMAL = "0123456789abcdef" * 2
LETTERS = ("Ab3" * 28)[:84]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("sk-abcDEF1234567890abcdef", "***"),
        ("Incorrect API key provided: sk-proj-abc_DEF-1234.", "Incorrect API key provided: ***."),
        ("xsk-0123456789abcdef", "x***"),
        ("key sk-svcacct-abcdef12 or ek_1234567890abcdef", "key *** or ***"),
        ("Bearer abcdefgh", "Bearer ***"),
        ("authorization: bearer abcdefgh", "authorization: ***"),
        ("Authorization: Basic dTpw and more", "Authorization: *** and more"),
        ("(b'authorization', b'Bearer abcdefgh')", "(b'authorization', ***)"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl!", "token ***!"),
        ('{"security_key": "a \\"quoted\\" one", "model": "m"}', '{"security_key": ***, "model": "m"}'),
        ("{'api-key': 'abc', 'x': 1}", "{'api-key': ***, 'x': 1}"),
        ("GET /?security_key=abc&model=m", "GET /?security_key=***&model=m"),
        ("?access_token=abc#part", "?access_token=***"),
        ("api_key%3Dabc&model=m", "api_key%3D***&model=m"),
        ("X-API-Key: abc\r\nHost: a.example", "X-API-Key: ***\r\nHost: a.example"),
        ("OPENAI_API_KEY=abc oxy", "OPENAI_API_KEY=*** oxy"),
        ("Ocp-Apim-Subscription-Key: abc", "Ocp-Apim-Subscription-Key: ***"),
        ("client_secret=abc, password: 'two words'", "client_secret=***, password: ***"),
        ("Cookie: session=abc; other=def\nHost: a", "Cookie: ***\nHost: a"),
        ('{"set-cookie": "a=b; Path=/", "x": 1}', '{"set-cookie": ***, "x": 1}'),
        (f"the api key {HEXADECIMAL} is wrong", "the api key *** is wrong"),
        (f"Key ({LETTERS}) refused", "Key (***) refused"),
        ("https://user:password@proxy.example:3128/x", "https://***@proxy.example:3128/x"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, left: str) -> None:
    assert Redaction()(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/v1/chat/completions",
        "max_tokens: 5, total_tokens=7, the tokens: 9",
        "a task-something-long on a disk-abcdefghijk",
        f"etag {HEXADECIMAL}",
        "the key is missing or wrong",
        "cookies are not enabled",
        "https://api.openai.com/v1/models?limit=2",
        "author=me&keyboard=us",
        "\x00\x1b[31m\u2028 \udcff",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction()(text) == text


@pytest.mark.parametrize(
    "secret",
    [SECRET, "a/b+c=d!", "ünï/cödé & more", 'quo"ted\\one', "\N{SNOWMAN}" * 9],
    ids=["ASCII", "not short", "Latin", "quoted", "snow"],
)
@pytest.mark.parametrize(
    "spelled",
    [
        "{secret}",
        "before{secret}after",
        "?q={query}",
        "?q={path}",
        "?q={small}",
        "?q={all}",
        '{{"x": {json}}}',
        '{{"x": {plain_json}}}',
        "{latin}",
    ],
)
def test_a_secret_that_was_handed_over_is_masked_in_every_spelling(secret: str, spelled: str) -> None:
    import json
    from urllib.parse import quote

    text = spelled.format(
        secret=secret,
        query=quote(secret, safe=""),
        path=quote(secret),  # as Python has it, with each slash
        small=re.sub("%..", lambda code: code[0].lower(), quote(secret, safe="!'()*")),
        all="".join(f"%{byte:02X}" for byte in secret.encode()),
        json=json.dumps(secret),
        plain_json=json.dumps(secret, ensure_ascii=False),
        latin=secret.encode().decode("latin-1"),
    )
    redacted = Redaction([secret])(text)
    assert "***" in redacted
    assert len(redacted) <= len(text.replace(secret, "")) + 5
    assert not any(form in redacted for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1]))


def test_a_short_secret_is_masked_where_it_stands_alone() -> None:
    assert Redaction(["abc"])("abc, (abc) abcd x-abc abc-x") == "***, (***) abcd x-abc abc-x"


def test_of_secrets_that_contain_one_another_the_longer_goes_first() -> None:
    redact = Redaction(["abcdefgh", "abcdefgh-ijkl"])
    assert redact("abcdefgh-ijkl abcdefgh %61bcdefgh-ijkl") == "*** *** ***"


def test_an_empty_secret_masks_nothing() -> None:
    assert Redaction([""])("nothing") == "nothing"


@pytest.mark.parametrize("inside", [1, 10, len(SECRET) - 1])
def test_the_cut_through_a_long_text_leaves_no_half_of_a_secret(inside: int) -> None:
    text = "x" * (LONGEST - inside) + SECRET + "y" * 10_000
    redacted = Redaction([SECRET])(text)
    assert set(redacted.removesuffix(" [cut off]")) == {"x"}


@pytest.mark.parametrize(
    ("redact", "spelled"),
    [
        (Redaction(["k" * 400]), "%6B" * 400),
        (Redaction(), "eyJ" + "k" * 500 + ".x"),
    ],
    ids=["known, and long in a query", "of an unknown kind"],
)
def test_no_half_of_a_long_secret_is_left_where_the_cut_goes_through_it(redact: Redaction, spelled: str) -> None:
    for inside in (20, 400, len(spelled) - 20):
        text = " " * (LONGEST - inside) + spelled
        assert redact(text + " " * LONGEST).strip() == "[cut off]"


def test_as_much_as_is_looked_at_is_not_cut_off() -> None:
    assert Redaction()("x" * LONGEST) == "x" * LONGEST


HOSTILE = (
    *("key ", "key: ", "authorization: ", "bearer ", "://", "://a", "eyJ", "eyJaaaaaaaa.", "sk-", "sk-a"),
    *('"', "\\", 'cookie="\\', "cookie:", "token='", "api_key=", "key" + "a" * 84, " ", "a", "-", "%3d", "ek_"),
)


@pytest.mark.untraced
@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("beginning", ["", 'key token="'])
def test_no_text_of_a_megabyte_takes_long(beginning: str, piece: str) -> None:
    text = beginning + piece * (1_000_000 // len(piece))
    began = time.process_time()
    redacted = Redaction([SECRET])(text)
    assert time.process_time() - began < 2, "it takes milliseconds unless a pattern runs wild"
    assert len(redacted) <= 2 * LONGEST


def test_a_formatter_masks_the_traceback_too() -> None:
    formatter = RedactedFormatter("%(levelname)s %(message)s")
    formatter.redact = Redaction([SECRET])
    try:
        raise ValueError(f"the key {SECRET} was refused")
    except ValueError as problem:
        record = logging.LogRecord("oxy", logging.ERROR, "", 1, "said %s", (SECRET,), (ValueError, problem, None))
    written = formatter.format(record)
    assert written.startswith("ERROR said ***\n")
    assert "ValueError: the key *** was refused" in written
    assert SECRET not in written


def test_a_time_is_in_utc_as_on_stdout_wherever_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        record = logging.makeLogRecord({"created": 1_795_228_381.0456, "msecs": 45.0, "msg": "said"})
        assert RedactedFormatter("%(asctime)s %(message)s").format(record) == "2026-11-21T02:33:01.045Z said"
    finally:
        monkeypatch.undo()
        time.tzset()
