"""What may cross, as tables over the pure functions."""

from collections.abc import Callable

import pytest

from proxy import headers
from proxy.errors import Pairs
from proxy.headers import (
    END_HERE,
    LONGEST_NAME,
    MOST_NAMES,
    Crossing,
    append_forwarded_for,
    first,
    in_lower_case,
    inbound,
    outbound,
    without_cookie,
)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")], [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]),
        ([(b"a", b""), (b"a", b"x  y")], [(b"a", b""), (b"a", b"x  y")]),
        ([(b"connection", b"keep-alive"), (b"keep-alive", b"timeout=5"), (b"te", b"trailers")], []),
        ([(b"proxy-connection", b"x"), (b"proxy-authorization", b"x"), (b"trailer", b"x")], []),
        ([(b"upgrade", b"h2c"), (b"expect", b"100-continue"), (b"host", b"x"), (b"x-api-key", b"x")], []),
        ([(b"connection", b"X-One , x-two"), (b"x-one", b"1"), (b"x-two", b"2"), (b"x", b"3")], [(b"x", b"3")]),
        ([(b"x-one", b"1"), (b"connection", b"a"), (b"connection", b"x-one")], []),
        ([(b"connection", b"content-length"), (b"content-length", b"2")], [(b"content-length", b"2")]),
        ([(b"transfer-encoding", b"chunked"), (b"a", b"1")], [(b"a", b"1"), (b"transfer-encoding", b"chunked")]),
        ([(b"transfer-encoding", b"Chunked"), (b"content-length", b"9")], [(b"transfer-encoding", b"chunked")]),
        (
            [(b"connection", b"transfer-encoding"), (b"transfer-encoding", b"chunked")],
            [(b"transfer-encoding", b"chunked")],
        ),
        ([(b"x-skip-me", b"1"), (b"x-ski", b"2")], [(b"x-ski", b"2")]),
        ([(b"cookie", b"a=\xe4"), (b"content-length", b"0")], [(b"cookie", b"a=\xe4"), (b"content-length", b"0")]),
    ],
)
def test_what_of_a_request_goes_on(said: Pairs, heard: Pairs) -> None:
    assert outbound(said, Crossing(END_HERE, (b"x-skip-",))) == heard


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (
            [(b"set-cookie", b"a"), (b"x", b""), (b"set-cookie", b"b")],
            [(b"set-cookie", b"a"), (b"x", b""), (b"set-cookie", b"b")],
        ),
        (
            [(b"connection", b"close"), (b"keep-alive", b"x"), (b"transfer-encoding", b"chunked"), (b"trailer", b"x")],
            [],
        ),
        ([(b"connection", b"X-Internal"), (b"x-internal", b"1"), (b"date", b"now")], [(b"date", b"now")]),
        ([(b"connection", b"content-length"), (b"content-length", b"1")], [(b"content-length", b"1")]),
        (
            [(b"proxy-authenticate", b"Basic"), (b"server", b"them")],
            [(b"proxy-authenticate", b"Basic"), (b"server", b"them")],
        ),
    ],
)
def test_what_of_an_answer_goes_back(said: Pairs, heard: Pairs) -> None:
    assert inbound(said) == heard


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([b"key=1"], []),
        ([b"a=1; key=1; b=2", b"c=3"], [b"a=1; b=2", b"c=3"]),
        ([b" key =1;a=1"], [b"a=1"]),
        ([b"a=1;key=1"], [b"a=1"]),
        ([b"key=1; key=2"], []),
        ([b"monkey=1;  keys=2; k=key=3; key"], [b"monkey=1;  keys=2; k=key=3"]),
        ([b"a=\xe4 ; b"], [b"a=\xe4 ; b"]),
    ],
)
def test_one_cookie_is_taken_out_of_those_that_come(said: list[bytes], heard: list[bytes]) -> None:
    around = [(b"x", b"key=1"), *((b"cookie", value) for value in said), (b"y", b"")]
    assert without_cookie(around, b"key") == [(b"x", b"key=1"), *((b"cookie", value) for value in heard), (b"y", b"")]


def test_neither_direction_changes_what_it_was_given() -> None:
    said = [(b"connection", b"a"), (b"a", b" 1 "), (b"transfer-encoding", b"chunked")]
    before = list(said)
    outbound(said, Crossing(END_HERE))
    inbound(said)
    append_forwarded_for(said, b"1.2.3.4")
    assert said == before


def test_a_clients_address_joins_those_already_listed() -> None:
    said = [(b"x-forwarded-for", b"1.1.1.1"), (b"a", b"b"), (b"x-forwarded-for", b"2.2.2.2, 3.3.3.3")]
    assert append_forwarded_for(said, b"4.4.4.4") == [
        (b"a", b"b"),
        (b"x-forwarded-for", b"1.1.1.1, 2.2.2.2, 3.3.3.3, 4.4.4.4"),
    ]


@pytest.mark.parametrize(
    ("client", "written"), [(b"::ffff:4.4.4.4", b"4.4.4.4"), (b"2001:db8::1", b"2001:db8::1"), (b"::1", b"::1")]
)
def test_an_ipv4_address_is_written_as_one_whatever_socket_it_came_to(client: bytes, written: bytes) -> None:
    assert append_forwarded_for([], client) == [(b"x-forwarded-for", written)]


def test_the_first_of_several_fields_is_found_or_none() -> None:
    assert first([(b"a", b"1"), (b"a", b"2")], b"a") == b"1"
    assert first([], b"a") is None


def test_a_name_is_looked_into_once_and_only_so_many_are_remembered() -> None:
    crossing = Crossing(frozenset((b"dropped",)), (b"x-",))
    named = [(b"n%d" % number, b"") for number in range(2 * MOST_NAMES)]
    long = [(b"n" * (LONGEST_NAME + 1), b"")]
    assert crossing.of(long) == long
    assert not crossing._known
    for _ in range(2):
        assert crossing.of([(b"dropped", b"1"), (b"x-a", b"2"), (b"a", b"3")]) == [(b"a", b"3")]
        assert crossing.of(named) == named
    assert len(crossing._known) == MOST_NAMES


@pytest.mark.parametrize("cross", [inbound, lambda pairs: outbound(pairs, Crossing(END_HERE))])
def test_a_length_beside_chunks_does_not_cross(cross: Callable[[Pairs], Pairs]) -> None:
    kept = cross([(b"content-length", b"9"), (b"transfer-encoding", b"chunked"), (b"a", b"1")])
    assert (b"content-length", b"9") not in kept
    assert (b"a", b"1") in kept


def test_a_name_becomes_one_object_in_lower_case_and_only_so_many_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(headers, "LOWER_CASE", {})
    assert (
        in_lower_case(b"X-Name")
        is in_lower_case(b"x-NAME")
        is in_lower_case(b"x-name")
        is headers.LOWER_CASE[b"X-Name"]
    )
    remembered = len(headers.LOWER_CASE)
    assert in_lower_case(b"N" * (LONGEST_NAME + 1)) == b"n" * (LONGEST_NAME + 1)
    assert len(headers.LOWER_CASE) == remembered
    for number in range(2 * MOST_NAMES):
        assert in_lower_case(b"N%d" % number) == b"n%d" % number
    assert len(headers.LOWER_CASE) <= MOST_NAMES + 1
