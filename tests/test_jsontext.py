"""What is kept of an object is kept letter for letter, and what cannot be is refused with its reason."""

import json
import re
import tracemalloc

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy import jsontext
from proxy.errors import BadRequest
from proxy.jsontext import MAX_DEPTH, MAX_MEMBERS, elements_of, member, members_of, read, write
from proxy.own import NAMES

# A busy machine is no failure.
pure = settings(max_examples=60)

TOO_LARGE = "a number in it is too large, or is none"
HALF = "it holds half of a surrogate pair"
DEEP = "nested too deeply"

# JSON as people write it: odd numbers, escapes and blanks included; names of an object are never the same.
blanks = st.text(" \t\n\r", max_size=2)
numbers = st.one_of(
    st.sampled_from(("-0", "1.50", "1E5", "1e+05", "-0.0", "0.10000000000000000000001", "1e-999", "1" + "0" * 400)),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
letters = st.sampled_from("aZ0{}[],: /\x7fé\u2028\ufeff\U0001f600")
escapes = st.sampled_from(
    (r"\n", r"\"", r"\\", r"\/", r"\u0061", r"\u00e9", r"\ud83d\ude00", r"\uD83D\uDE00", r"\\u0000", r"\\ud800")
)
strings = st.lists(letters | escapes, max_size=6).map(lambda pieces: '"' + "".join(pieces) + '"')
scalars = st.one_of(st.sampled_from(("null", "true", "false")), numbers, strings)


def arrays(elements: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    spaced = st.tuples(blanks, elements, blanks).map("".join)
    return st.one_of(blanks, st.lists(spaced, min_size=1, max_size=4).map(",".join)).map(lambda inside: f"[{inside}]")


def objects(elements: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(strings, elements), max_size=4, unique_by=lambda pair: json.loads(pair[0]))
    return st.tuples(pairs, blanks).map(lambda drawn: spaced_object(*drawn))


def spaced_object(pairs: list[tuple[str, str]], blank: str) -> str:
    inside = ",".join(f"{blank}{name}{blank}:{blank}{value}{blank}" for name, value in pairs)
    return "{" + (inside or blank) + "}"


values = st.recursive(scalars, lambda inner: arrays(inner) | objects(inner), max_leaves=8)
own_names = st.sampled_from([*map(json.dumps, NAMES), r'"tim\u0065out"'])
mixed = st.lists(st.tuples(strings | own_names, values), max_size=8, unique_by=lambda pair: json.loads(pair[0]))


def accepted(body: bytes) -> str:
    """What is written of a body that nothing is wrong with."""
    members, complaint = read(body)
    assert complaint is None
    return write(members)


def complaint_about(body: bytes) -> str:
    _, complaint = read(body)
    assert type(complaint) is BadRequest
    return str(complaint)


@pure
@given(mixed, blanks, st.sampled_from(("utf-8", "utf-8-sig")))
def test_an_object_less_our_fields_is_that_object_letter_for_letter(
    pairs: list[tuple[str, str]], blank: str, encoding: str
) -> None:
    members, complaint = read((blank + spaced_object(pairs, blank) + blank).encode(encoding))
    assert complaint is None
    taken = {name: members.pop(name).text for name in NAMES if name in members}
    assert taken == {json.loads(name): value for name, value in pairs if json.loads(name) in NAMES}
    kept = [(name, value) for name, value in pairs if json.loads(name) not in NAMES]
    assert write(members) == "{" + ",".join(f"{name}:{value}" for name, value in kept) + "}"
    assert [found.value for found in members.values()] == [json.loads(value) for _, value in kept]


@pure
@given(values)
def test_a_value_that_was_read_can_be_taken_apart_and_put_together_again(value: str) -> None:
    meant = json.loads(value)
    if isinstance(meant, list):
        assert [json.loads(text) for text in elements_of(value)] == meant
        assert all(text in value and text == text.strip(" \t\n\r") for text in elements_of(value))
    if isinstance(meant, dict):
        assert json.loads(write(members_of(value)), object_pairs_hook=list) == json.loads(value, object_pairs_hook=list)


def damaged(text: str, at: int, piece: bytes, lost: int) -> bytes:
    body = text.encode()
    at %= len(body) + 1
    return body[:at] + piece + body[at + lost :]


torn = st.builds(damaged, objects(values), st.integers(0, 500), st.binary(max_size=3), st.integers(0, 3))


@pure
@given(st.binary() | torn | values.map(str.encode))
def test_no_bytes_raise_and_what_is_accepted_is_an_object_to_any_parser(body: bytes) -> None:
    members, complaint = read(body)
    if complaint is None:
        assert json.loads(body.decode("utf-8-sig")) == json.loads(write(members))
        assert list(members) == list(json.loads(write(members)))
    else:
        assert type(complaint) is BadRequest
        assert str(complaint).isascii()


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (b"{}", "{}"),
        (b" \r\n\t{ } \n", "{}"),
        (b'{ "a" : 1.50 , "b" : [ 1, 2 ] }', '{"a":1.50,"b":[ 1, 2 ]}'),
        (b'{"z":1,"a":{"z":1,"a":2},"m":3}', '{"z":1,"a":{"z":1,"a":2},"m":3}'),
        (b'{"a":1E5,"b":-0.0,"c":1e-999,"d":0.10000000000000000000001}',) * 2,
        (b'{"a":"\\u00e9\\/\\n\\u001f","b":"\xc3\xa9"}', '{"a":"\\u00e9\\/\\n\\u001f","b":"é"}'),
        (b'{"\\u0061":"\\ud83d\\uDE00","\xf0\x9f\x98\x80":"\\\\ud800 \\\\u0000"}',) * 2,
        (b'{"":"","a b":null}', '{"":"","a b":null}'),
        (b'{"a":[{"b":1},{"b":1}],"b":{"a":1}}', '{"a":[{"b":1},{"b":1}],"b":{"a":1}}'),
        (b'\xef\xbb\xbf{"a":1}', '{"a":1}'),  # RFC 8259 8.1 lets a mark be ignored
    ],
)
def test_an_object_keeps_the_text_of_its_members(body: bytes, written: str | bytes) -> None:
    assert accepted(body) == (written if isinstance(written, str) else written.decode())


@pytest.mark.parametrize("digits", ["7" * 3999, "-" + "7" * 3998, "0." + "1" * 5000, "1" * 300 + "." + "1" * 5000])
def test_a_long_number_keeps_its_digits(digits: str) -> None:
    assert accepted(f'{{"n":[{digits}]}}'.encode()) == f'{{"n":[{digits}]}}'


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "The body is empty: a JSON object is expected"),
        (b" \n", "The body is not a JSON object: Expecting '{' at line 2 column 1"),
        (b"hello", "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b"[{}]", "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b'"{}"', "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b"null", "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b"[" * 10_000, "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b"\xef\xbb\xbf", "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "The body is not a JSON object: Expecting '{' at line 1 column 1"),
        (b"{", "The body is not a JSON object: Expecting '\"' at line 1 column 2"),
        (b"{a:1}", "The body is not a JSON object: Expecting '\"' at line 1 column 2"),
        (b"{'a':1}", "The body is not a JSON object: Expecting '\"' at line 1 column 2"),
        (b'{"a":1,}', "The body is not a JSON object: Expecting '\"' at line 1 column 8"),
        (b"{,}", "The body is not a JSON object: Expecting '\"' at line 1 column 2"),
        (b'{"a" 1}', "The body is not a JSON object: Expecting ':' at line 1 column 6"),
        (b'{"a":}', "The body is not a JSON object: Expecting value at line 1 column 6"),
        (b'{"a":', "The body is not a JSON object: Expecting value at line 1 column 6"),
        (b'{"a":tru}', "The body is not a JSON object: Expecting value at line 1 column 6"),
        (b'{"a":1', "The body is not a JSON object: Expecting '}' at line 1 column 7"),
        (b'{"a":1 "b":2}', "The body is not a JSON object: Expecting '}' at line 1 column 8"),
        (b'{"a":01}', "The body is not a JSON object: Expecting '}' at line 1 column 7"),
        (b'{"a":"b', "The body is not a JSON object: Unterminated string starting at line 1 column 6"),
        (b'{"a":1} {}', "The body is not a JSON object: Extra data at line 1 column 9"),
        (b'{"a":1}\x00', "The body is not a JSON object: Extra data at line 1 column 8"),
        (b'{"a":"\x00"}', "The body is not a JSON object: Invalid control character at line 1 column 7"),
        (b'{"a":"\n"}', "The body is not a JSON object: Invalid control character at line 1 column 7"),
        (b'{"a":"\xff"}', "The body is not JSON: byte 6 is not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "The body is not JSON: byte 6 is not UTF-8"),  # a surrogate
        (b'{"a":"\xc0\x80"}', "The body is not JSON: byte 6 is not UTF-8"),  # a NUL in two bytes
        ('{"a":1}'.encode("utf-16"), "The body is not JSON: byte 0 is not UTF-8"),
        (b'{"a":1,"b":2,"a":1}', "a: given twice"),
        (b'{"a":1,"\\u0061":1}', "a: given twice"),
        (b'{"security_key":"k","security_key":"k"}', "security_key: given twice"),
        (b'{"a":[{"b":1,"b":2}]}', "a: a name in it is given twice"),
        (b'{"a":{"b":{"c":1,"\\u0063":1}}}', "a: a name in it is given twice"),
        (b'{"a":1e999}', f"a: {TOO_LARGE}"),
        (b'{"ok":1,"a":{"b":[-1e999]}}', f"a: {TOO_LARGE}"),
        (b'{"a":NaN}', f"a: {TOO_LARGE}"),
        (b'{"a":[Infinity]}', f"a: {TOO_LARGE}"),
        (b'{"a":-Infinity}', f"a: {TOO_LARGE}"),
        (b'{"a":' + b"9" * 5000 + b"}", f"a: {TOO_LARGE}"),
        (b'{"a":[-' + b"9" * 5000 + b"]}", f"a: {TOO_LARGE}"),
        (b'{"a":"\\u0000"}', "a: it holds a NUL"),
        (b'{"a":{"\\u0000":1}}', "a: it holds a NUL"),
        (b'{"\\u0000":1}', "\\x00: it holds a NUL"),
        (b'{"a":"\\ud800"}', f"a: {HALF}"),
        (b'{"a":"\\uDC00\\uD800"}', f"a: {HALF}"),
        (b'{"a":"\\ud83d\\u0041"}', f"a: {HALF}"),
        (b'{"a":"\\ud83d\\\\ude00"}', f"a: {HALF}"),
        (b'{"a":"\\ud83d\\ud83d"}', f"a: {HALF}"),
        (b'{"a":"\\ud83d\\ud7ff"}', f"a: {HALF}"),
        (b'{"a":[{"\\uDFFF":1}]}', f"a: {HALF}"),
        (b'{"\\ud800":1}', f"\\ud800: {HALF}"),
        (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", f"a: {DEEP}"),
        (b'{"a":' + b"[" * 10_000, f"a: {DEEP}"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, f"a: {DEEP}"),
        (b'{"a":1e999,"b":"\\u0000","a":1}', f"a: {TOO_LARGE}"),  # the first
        (b'{"' + b"x" * 500 + b'":1e999}', f"{'x' * 100}: {TOO_LARGE}"),
        ('{"naïve\\r\\n":1e999}'.encode(), f"na\\xefve\\r\\n: {TOO_LARGE}"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(body: bytes, complaint: str) -> None:
    assert complaint_about(body) == complaint


@pytest.mark.parametrize("opening", ["[", '{"b":'])
@pytest.mark.parametrize("innermost", ["", "1", "1,2,[]"])
@pytest.mark.parametrize("beside", ["", ",[]", ',"[[[["'])
def test_nesting_has_a_bound_whatever_stands_beside_it(opening: str, innermost: str, beside: str) -> None:
    def nested(levels: int) -> bytes:
        inner = f"[{innermost}]"
        for _ in range(levels - 2):
            inner = opening + inner + ("]" if opening == "[" else "}")
        return f'{{"a":[{inner}{beside}]}}'.encode()

    deepest = MAX_DEPTH - innermost.count("[")
    assert accepted(nested(deepest)) == nested(deepest).decode()
    assert complaint_about(nested(deepest + 1)) == f"a: {DEEP}"


@pytest.mark.parametrize(
    "rest", [b',"b":', b',"b":"\\x"}', b',"b":1e999}', b',"b":' + b"[" * 10_000, b',"a":2}', b"} x"]
)
def test_what_could_be_read_is_there_beside_the_complaint(rest: bytes) -> None:
    members, complaint = read(b'{"a":"mine"' + rest)
    assert complaint is not None
    assert members["a"].value == "mine"


def test_a_body_full_of_mistakes_costs_no_more_memory_than_one_with_a_single_mistake() -> None:
    def peak(body: bytes) -> int:
        tracemalloc.start()
        try:
            complaint_about(body)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    name = b'{"' + b"x" * 100 + b'":['
    once, often = name + b"1e200," * 20_000 + b"1e999]}", name + b"1e999," * 20_000 + b"1e999]}"
    least_once, least_often = (min(peak(body) for _ in range(3)) for body in (once, often))  # of other threads' work
    assert least_often < 1.2 * least_once


def test_a_member_of_our_own_is_plain_json() -> None:
    assert write({"x": member('né"', ["é", None])}) == r'{"n\u00e9\"":["\u00e9", null]}'


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("[]", []),
        ("[ \n]", []),
        ("[1]", ["1"]),
        ('[ 1.50 , "a,]\\"" ,\n{ "b" : [ ] } ,[ 1 , 2 ]\t]', ["1.50", '"a,]\\""', '{ "b" : [ ] }', "[ 1 , 2 ]"]),
    ],
)
def test_the_elements_of_an_array_keep_their_texts(text: str, elements: list[str]) -> None:
    assert elements_of(text) == elements


@pytest.mark.parametrize("value", ["[],", "{},", "1,"])
def test_more_values_than_anyone_means_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(jsontext, "MAX_VALUES", 100)
    members, complaint = read(f'{{"a": [{value * 101}1]}}'.encode())
    assert members == {}
    assert "more than 100 values" in str(complaint)


def test_commas_and_brackets_in_a_string_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "MAX_VALUES", 100)
    text = json.dumps('a, "quoted" [ { \\' * 101)
    members, complaint = read(f'{{"a": {text}, "b": 1}}'.encode())
    assert complaint is None
    assert members["a"].text == text


@given(torn | values.map(str.encode), st.integers(1, 5))
@settings(max_examples=30)
def test_marks_outside_of_strings_are_counted_whatever_the_steps(body: bytes, step: int) -> None:
    text = body.decode(errors="replace")
    plain = re.sub(r'"(?:[^"\\]|\\.)*+"', " ", text, flags=re.DOTALL)
    marks = sum(map(plain.count, ",[{"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsontext, "STEP", step)
        assume('"' not in plain and "\\" not in plain)  # else it is no JSON, and the parser says so
        for most in range(max(0, marks - 2), marks + 3):
            patch.setattr(jsontext, "MAX_VALUES", most)
            assert jsontext._too_many(text) == (marks > most)


def test_an_escape_is_found_behind_more_than_one_step_of_others() -> None:
    many = r"\n" * 120_000 + "x" * 200_000 + r"\ud83d\ude00\\ud800" * 60_000
    assert accepted(b'{"a":"%b"}' % many.encode())
    assert complaint_about(b'{"a":"%b\\ud83dx"}' % many.encode()) == f"a: {HALF}"


def test_an_object_within_another_is_taken_apart_whole() -> None:
    inner = "{" + ",".join(f'"k{number}":{number}' for number in range(3 * MAX_MEMBERS)) + "}"
    members, complaint = read(f'{{"a":{inner}}}'.encode())
    assert complaint is None
    assert write(members_of(members["a"].text)) == inner


@pytest.mark.parametrize("name", ["k", "k%d"])
def test_more_members_than_anyone_means_are_not_read(name: str) -> None:
    names = [name.replace("%d", str(number)) for number in range(MAX_MEMBERS + 1)]
    members, complaint = read(("{" + ",".join(f'"{each}":1' for each in names) + "}").encode())
    assert len(members) <= MAX_MEMBERS
    assert f"more than {MAX_MEMBERS} members" in str(complaint) or "given twice" in str(complaint)
    if name == "k%d":
        accepted(("{" + ",".join(f'"{each}":1' for each in names[1:]) + "}").encode())
