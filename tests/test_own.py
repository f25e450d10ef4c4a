"""What is the proxy's own in a request: it is found wherever it stands, and what stays is left as it is."""

import math
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequest, Pairs
from proxy.own import NAMES, Own, split_query

# A busy machine is no failure.
pure = settings(max_examples=60)
NOT_FOR_A_HEADER = "it holds a space or a character that cannot stand in a header"


def own_of(*given: tuple[str, object]) -> Own:
    own = Own()
    for name, value in given:
        own.add(name, value)
    return own


@pytest.mark.parametrize(
    ("asked", "seconds", "source"),
    [
        (None, 600.0, "default"),
        ("", 600.0, "default"),
        (1, 0.001, "provided"),
        (1500, 1.5, "provided"),
        (0.5, 0.0005, "provided"),
        (1e3, 1.0, "provided"),
        ("1500", 1.5, "provided"),
        (" 1500\t", 1.5, "provided"),
        ("+1.5e3", 1.5, "provided"),
        ("1500.", 1.5, "provided"),
        (".5E+4", 5.0, "provided"),
        (900_000, 900.0, "provided"),
        (900_000.5, 900.0, "clamped"),
        ("900001", 900.0, "clamped"),
        (10**400, 900.0, "clamped"),
        (1e308, 900.0, "clamped"),
        (math.inf, 600.0, "invalid"),
        (math.nan, 600.0, "invalid"),
        ("1e999", 600.0, "invalid"),
        ("9" * 5000, 600.0, "invalid"),
        ("Infinity", 600.0, "invalid"),
        ("nan", 600.0, "invalid"),
        ("1_000", 600.0, "invalid"),
        ("0x10", 600.0, "invalid"),
        ("10s", 600.0, "invalid"),
        ("1,5", 600.0, "invalid"),
        ("1 000", 600.0, "invalid"),
        (".", 600.0, "invalid"),
        ("e5", 600.0, "invalid"),
        (" ", 600.0, "invalid"),
        ("\u0661\u0662", 600.0, "invalid"),  # digits, of another script
        (0, 600.0, "invalid"),
        ("0", 600.0, "invalid"),
        (-0.0, 600.0, "invalid"),
        (-5, 600.0, "invalid"),
        ("-5", 600.0, "invalid"),
        (-(10**400), 600.0, "invalid"),
        (True, 600.0, "invalid"),
        (False, 600.0, "invalid"),
        ([1500], 600.0, "invalid"),
        ({"ms": 1500}, 600.0, "invalid"),
    ],
)
def test_a_time_limit_is_what_can_be_understood_as_one(asked: object, seconds: float, source: str) -> None:
    assert own_of(("timeout", asked)).timeout(default=600.0, most=900.0) == (seconds, source)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["1" * 100_000 + "x", " " * 100_000 + "x", "1e" + "1" * 100_000 + "x"])
def test_a_long_text_that_is_no_number_is_soon_known_as_none(text: str) -> None:
    assert own_of(("timeout", text)).timeout(default=600.0, most=900.0) == (600.0, "invalid")


@pure
@given(st.floats() | st.integers() | st.text("0123456789+-._eExinf \t"))
def test_a_time_limit_is_above_zero_and_never_beyond_the_most(asked: float | str) -> None:
    assume(isinstance(asked, str) or not 0 < asked < 1e-300)  # a thousandth of which may be none
    seconds, source = own_of(("timeout", asked)).timeout(default=600.0, most=900.0)
    assert 0 < seconds <= 900
    assert source in ("provided", "clamped") or seconds == 600


@pytest.mark.parametrize(
    ("query", "kept", "keys"),
    [
        (b"", b"", []),
        (b"limit=20&order=desc", b"limit=20&order=desc", []),
        (b"security_key=k", b"", [b"k"]),
        (b"security_key=k&limit=20&timeout=5&order=desc", b"limit=20&order=desc", [b"k"]),
        (b"z=1&project=p&a=2&organization=o&z=3&openai_api_key=sk", b"z=1&a=2&z=3", []),
        (b"security_key=a&security_key=b&security_key=a", b"", [b"a", b"b", b"a"]),
        (b"security%5Fkey=k&a=1", b"a=1", [b"k"]),
        (b"%73ecurity_key=k", b"", [b"k"]),
        (b"security_key", b"", []),
        (b"security_key=", b"", []),
        (b"security_key=a+b%2Bc%26d%3De", b"", [b"a b+c&d=e"]),
        (b"security_key=a=b", b"", [b"a=b"]),
        (b"security_key=k%C3%A9y", b"", ["kéy".encode()]),
        (b"security_key=k\xc3\xa9y", b"", ["kéy".encode()]),
        (b"security_key=%ff%zz%", b"", ["\ufffd%zz%".encode()]),
        (b"a=1;security_key=k", b"a=1;security_key=k", []),  # pairs are parted by `&` alone
        (b"security_key;a=1", b"security_key;a=1", []),
        (b"Security_Key=k&security-key=k&xsecurity_key=k", b"Security_Key=k&security-key=k&xsecurity_key=k", []),
        (b"a=security_key&b=security_key%3Dk", b"a=security_key&b=security_key%3Dk", []),
        (b"&&a=&=b&&c&", b"&&a=&=b&&c&", []),
        (b"&security_key=k&&a&", b"&&a&", [b"k"]),
        (b"include[]=a&include[]=b&include%5B%5D=c", b"include[]=a&include[]=b&include%5B%5D=c", []),
        (b"a=%2f%2F+%20\xff&b=%", b"a=%2f%2F+%20\xff&b=%", []),
    ],
)
def test_a_query_loses_what_is_ours_and_nothing_else(query: bytes, kept: bytes, keys: list[bytes]) -> None:
    left, own = split_query(query)
    assert (left, own.keys()) == (kept, keys)


def test_a_query_says_all_that_an_object_can_say() -> None:
    _, own = split_query(b"openai_api_key=sk%2D1&a=b&project=p&timeout=1500&organization=o")
    assert own.timeout(default=600.0, most=900.0) == (1.5, "provided")
    assert own.credentials() == [
        (b"authorization", b"Bearer sk-1"),
        (b"openai-project", b"p"),
        (b"openai-organization", b"o"),
    ]


pieces = st.binary(max_size=8).map(lambda piece: piece.replace(b"&", b"x"))
spelled = st.sampled_from([*NAMES, *(name.replace("e", "%65").replace("_", "%5f") for name in NAMES)]).map(str.encode)
foreign = pieces.filter(lambda pair: pair.partition(b"=")[0].replace(b"%", b"").decode("latin-1") not in NAMES)


@pure
@given(st.lists(st.tuples(st.just(b""), foreign) | st.tuples(spelled, pieces)))
def test_any_query_keeps_its_own_pairs_in_their_order_and_spelling(pairs: list[tuple[bytes, bytes]]) -> None:
    query = b"&".join(name + b"=" + value if name else value for name, value in pairs)
    left, _ = split_query(query)
    assert left == b"&".join(value for name, value in pairs if not name)


@pure
@given(st.text("aZ09-_.~!&=+%; /?#é€\U0001f600", min_size=1), st.sampled_from((quote, quote_plus)))
def test_a_key_is_read_from_a_query_however_it_was_encoded(key: str, encode: Callable[[str], str]) -> None:
    _, own = split_query(f"security_key={encode(key)}".encode())
    assert own.keys() == [key.encode()]


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ([], []),
        ([("security_key", "k")], [b"k"]),
        ([("security_key", "a"), ("security_key", "b")], [b"a", b"b"]),
        ([("security_key", "kéy")], ["kéy".encode()]),
        ([("security_key", "\ud800")], [b"\xed\xa0\x80"]),  # it came in a form or an object that is refused later
        *(([("security_key", value)], []) for value in (None, "", 0, 1, True, ["k"], {"k": "k"})),
    ],
)
def test_a_key_that_is_text_is_shown_to_who_decides(given: list[tuple[str, object]], keys: list[bytes]) -> None:
    assert own_of(*given).keys() == keys


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ([], []),
        ([("security_key", "k"), ("timeout", [1])], []),
        ([("openai_api_key", None), ("project", ""), ("organization", None)], []),
        ([("openai_api_key", "sk-1")], [(b"authorization", b"Bearer sk-1")]),
        (
            [("organization", "org-1"), ("project", "proj_1"), ("openai_api_key", "sk-1")],
            [
                (b"authorization", b"Bearer sk-1"),
                (b"openai-project", b"proj_1"),
                (b"openai-organization", b"org-1"),
            ],
        ),
        ([("project", "!~")], [(b"openai-project", b"!~")]),
    ],
)
def test_credentials_become_header_fields(given: list[tuple[str, object]], fields: Pairs) -> None:
    assert own_of(*given).credentials() == fields


@pytest.mark.parametrize("name", ["openai_api_key", "project", "organization"])
@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\n", "a b", " a", "a\x00", "a\x7f", "é", "\ud800", "\u2028"])
def test_what_cannot_stand_in_a_header_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadRequest) as refused:
        own_of((name, value)).credentials()
    assert str(refused.value) == f"{name}: {NOT_FOR_A_HEADER}"


@pytest.mark.parametrize("name", ["security_key", "openai_api_key", "project", "organization"])
@pytest.mark.parametrize("value", [0, 1, 1.5, True, False, [], ["a"], {}, {"a": "b"}])
def test_a_field_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        own_of((name, value)).credentials()
    assert str(refused.value) == f"{name}: a string is expected"


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_came_twice_is_refused_even_if_it_said_the_same(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        own_of((name, "1"), (name, "1")).credentials()
    assert str(refused.value) == f"{name}: given twice"


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_field_that_says_nothing_does_not_count(nothing: object) -> None:
    own = own_of(("project", nothing), ("project", "p"), ("project", nothing))
    assert own.credentials() == [(b"openai-project", b"p")]
