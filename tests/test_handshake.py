"""What a handshake says, by itself; what comes of it stands in test_websocket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.handshake import offered_subprotocols, offers_websocket, split_query_keys, without_handshake


@pytest.mark.parametrize(
    ("target", "rest", "keys"),
    [
        (b"/v1/r", b"/v1/r", []),
        (b"/v1/r?", b"/v1/r?", []),
        (b"/v1/r?a=b&c", b"/v1/r?a=b&c", []),
        (b"/v1/r?security_key=k", b"/v1/r", [b"k"]),
        (b"/v1/r?a=b&security_key=k&c=%20+", b"/v1/r?a=b&c=%20+", [b"k"]),
        (b"/v1/r?security_key=a&x&security_key=b", b"/v1/r?x", [b"a", b"b"]),
        (b"/v1/r?security%5fkey=a%2Bb+c", b"/v1/r", [b"a+b c"]),
        (b"/v1/r?security_key", b"/v1/r", [b""]),
        (b"/v1/r?Security_Key=k&xsecurity_key=k", b"/v1/r?Security_Key=k&xsecurity_key=k", []),
        (b"/security_key=k?a=?security_key=k", b"/security_key=k?a=?security_key=k", []),
    ],
)
def test_keys_are_taken_out_of_the_query_and_nothing_else_is(target: bytes, rest: bytes, keys: list[bytes]) -> None:
    assert split_query_keys(target) == (rest, keys)


@given(st.binary())
def test_a_target_without_a_key_stays_as_it_is(target: bytes) -> None:
    assert b"security" in target or split_query_keys(target) == (target, [])


def test_subprotocols_keep_their_order_over_all_fields() -> None:
    pairs = [(b"sec-websocket-protocol", b"a,b , c"), (b"other", b"x"), (b"sec-websocket-protocol", b", d")]
    assert offered_subprotocols(pairs) == [b"a", b"b", b"c", b"d"]


def test_the_fields_of_the_handshake_end_here() -> None:
    pairs = [(b"sec-websocket-key", b"k"), (b"x", b"y"), (b"sec-websocket-extensions", b"e"), (b"content-length", b"0")]
    assert without_handshake(pairs) == [(b"x", b"y")]


@pytest.mark.parametrize(
    ("offer", "version", "meant"),
    [
        (b"websocket", "1.1", True),
        (b"WebSocket", "1.1", True),
        (b"websocket", "1.0", False),
        (b"h2c", "1.1", False),
        (b"websocket, h2c", "1.1", False),
    ],
)
def test_an_offer_means_websocket_where_it_names_that_alone(offer: bytes, version: str, meant: bool) -> None:
    assert offers_websocket([(b"host", b"h"), (b"upgrade", offer)], version) is meant
