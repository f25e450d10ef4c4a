"""A form in, parts out: what goes upstream is read by a splitter of its own, written from RFC 2046 and RFC 7578."""

import logging
import os
import re
import weakref
from collections.abc import Iterable
from itertools import pairwise

import httpx
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequest
from proxy.own import NAMES as OWN
from proxy.rewrites.transcriptions import DEFAULTS, MOST_FIELDS, MOST_HEAD, MOST_PARTS, MOST_VALUE, Form

Headers = list[tuple[bytes, bytes]]
Part = tuple[Headers, bytes]

pure = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no failure
    phases=set(Phase) - {Phase.explain},
    derandomize="CI" in os.environ,
)

CONTENT_TYPE = b"multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
CLOSE = b"--b--\r\n"


def field(name: str, value: bytes, boundary: bytes = b"b") -> bytes:
    return b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, name.encode(), value)


def part(name: str, content: bytes) -> Part:
    return [(b"Content-Disposition", b'form-data; name="%s"' % name.encode())], content


def rewritten(form: Form, pieces: Iterable[bytes]) -> bytes:
    return b"".join([form.feed(piece) for piece in pieces]) + form.end()


def parts(body: bytes, boundary: bytes) -> list[Part]:
    """Split a form that has nothing before its first boundary and nothing behind its last."""
    first, *between, last = re.split(rb"\r\n--%s(?=\r\n|--)" % re.escape(boundary), b"\r\n" + body)
    assert (first, last) == (b"", b"--\r\n")
    return [_part(text) for text in between]


def _part(text: bytes) -> Part:
    head, gap, content = text.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    assert gap
    lines = [line.partition(b": ") for line in head.split(b"\r\n")]
    return [(name, value) for name, _, value in lines], content


MODEL, FORMAT, TEMPERATURE = (part(name, value.encode()) for name, value in DEFAULTS)
AUDIO = ([(b"Content-Disposition", b'form-data; name="file"; filename="a.wav"')], b"RIFF")


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([FILE], [AUDIO, MODEL, FORMAT, TEMPERATURE]),
        ([field("model", b"m"), FILE], [part("model", b"m"), AUDIO, FORMAT, TEMPERATURE]),
        (
            [field("model", b""), FILE, field("temperature", b""), field("prompt", b""), field("model", b"m")],
            [AUDIO, part("prompt", b""), part("model", b"m"), FORMAT, TEMPERATURE],
        ),
        ([FILE, field("temperature", b"")], [AUDIO, MODEL, FORMAT, TEMPERATURE]),
        ([field(name, b"1") for name in OWN] + [FILE], [AUDIO, MODEL, FORMAT, TEMPERATURE]),
        ([FILE] + [field(name, b"1") for name in OWN], [AUDIO, MODEL, FORMAT, TEMPERATURE]),
        (
            [field("a[]", b"1"), FILE, field("timeout", b"1"), field("a[]", b"2"), FILE],
            [part("a[]", b"1"), AUDIO, part("a[]", b"2"), AUDIO, MODEL, FORMAT, TEMPERATURE],
        ),
        (
            [field("Timeout", b"1"), field(" timeout", b"2"), FILE],
            [part("Timeout", b"1"), part(" timeout", b"2"), AUDIO, MODEL, FORMAT, TEMPERATURE],
        ),
    ],
    ids=[
        "file alone",
        "model first",
        "empty and not",
        "empty field",
        "own first",
        "own last",
        "several",
        "like our own",
    ],
)
def test_own_parts_are_taken_out_and_defaults_added(said: list[bytes], heard: list[Part]) -> None:
    assert parts(rewritten(Form(CONTENT_TYPE, OWN), [*said, CLOSE]), b"b") == heard


@pytest.mark.parametrize(
    ("said", "model"),
    [
        ([field("model", b"m"), FILE], "m"),
        ([FILE, CLOSE], "whisper-1"),
        ([FILE], None),
        ([field("model", b"m\xff"), field("model", b"n")], "m\ufffd"),
        ([field("model", b"m" * 3000)], "m" * 1024),
        ([field("model", b""), FILE, CLOSE], "whisper-1"),
    ],
)
@pytest.mark.parametrize("cut", [1, 100_000])
def test_the_model_is_known_as_soon_as_it_is_said(said: list[bytes], model: str | None, cut: int) -> None:
    form = Form(CONTENT_TYPE, OWN)
    text = b"".join(said)
    for start in range(0, len(text), cut):
        form.feed(text[start : start + cut])
    assert form.model == model


def test_a_form_goes_with_the_last_who_holds_it() -> None:
    form = Form(b"multipart/form-data; boundary=b", OWN)
    form.feed(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx')
    gone = weakref.ref(form)
    del form
    assert gone() is None


def test_the_header_fields_of_all_parts_are_bounded() -> None:
    head = b'Content-Disposition: form-data; name="x"\r\n' + b"a:\r\n" * 99
    whole = b"--b\r\n" + head + b"\r\n\r\n"
    form = Form(b"multipart/form-data; boundary=b", OWN)
    for _ in range(MOST_FIELDS // 100):
        form.feed(whole)
    with pytest.raises(BadRequest, match="more than 4000 header fields"):
        form.feed(whole)


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="file"; filename="a%22b \xc3\xa9.wav"\r\nContent-Type: audio/x-wav',
        b'Content-Disposition: form-data; name="file"; filename="a\\"b; name=timeout.wav"',
        b"Content-Disposition: form-data; name=file; filename*=UTF-8''%E2%82%AC.wav",
        b'content-disposition: form-data; filename="C:\\x\\a.wav"; name="file"',
        b'Content-Type: audio/wav\r\nContent-Transfer-Encoding: binary\r\nContent-Disposition: form-data; name="file"',
        b'Content-Disposition: form-data;name="file"\r\nX-Empty: \r\nX-Twice: 1\r\nx-twice:  \t2 ',
        b'CONTENT-DISPOSITION: Form-Data; Name="file"\r\n' + b"\r\n".join(b"X-%d: 1" % number for number in range(99)),
    ],
)
def test_the_head_of_a_part_goes_on_as_it_was_said(head: bytes) -> None:
    said = b"--b\r\n" + head + b"\r\n\r\nRIFF\r\n"
    form = Form(CONTENT_TYPE, OWN)
    heard = parts(rewritten(form, [said, CLOSE]), b"b")
    expected, _ = _part(head + b"\r\n\r\n")
    assert heard[0] == ([(name, value.lstrip(b" ")) for name, value in expected], b"RIFF")
    assert form.file_begun


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="security_key"; filename="key.txt"\r\nContent-Type: text/plain',
        b"content-disposition:form-data;name=security_key",
        b'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; NAME = "security_key" ',
    ],
)
def test_an_own_field_is_known_however_its_name_is_spelt(head: bytes) -> None:
    form = Form(CONTENT_TYPE, OWN)
    heard = parts(rewritten(form, [b"--b\r\n" + head + b"\r\n\r\nk\xc3\xa9y\r\n", FILE, CLOSE]), b"b")
    assert heard == [AUDIO, MODEL, FORMAT, TEMPERATURE]
    assert form.own == {"security_key": "kéy"}


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=b", b"b"),
        (b'Multipart/Form-Data; charset="utf-8"; Boundary="x y"', b"x y"),
        (
            b"multipart/form-data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW;x=1",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        (b'multipart/form-data; boundary="%s"' % (70 * b"-"), 70 * b"-"),
        (b"multipart/form-data; boundary=--", b"--"),
    ],
)
def test_a_boundary_is_understood_and_the_content_type_goes_on(content_type: bytes, boundary: bytes) -> None:
    form = Form(content_type, OWN)
    said = field("file", b"RIFF", boundary) + b"--" + boundary + b"--"
    assert parts(rewritten(form, [said]), boundary)[0] == part("file", b"RIFF")
    assert form.content_type == content_type


def test_the_form_of_a_real_client_goes_through() -> None:
    said = httpx.Request(
        "POST",
        "http://oxy",
        data={"security_key": "k", "timestamp_granularities[]": ["word", "segment"]},
        files={"file": ('a"é.wav', b"RIFF", "audio/wav")},
    )
    said.read()
    boundary = said.headers["content-type"].partition("boundary=")[2].encode()
    form = Form(said.headers["content-type"].encode(), OWN)
    heard = parts(rewritten(form, [said.content]), boundary)
    assert heard == [*parts(said.content, boundary)[1:], MODEL, FORMAT, TEMPERATURE]
    assert form.own == {"security_key": "k"}


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n", b"MIME\r\n", b"x--b", b"--\r\n--", b"-\r\n"])
@pytest.mark.parametrize("after", [b"", b"\r\n", b" \r\n", b"\r\nmore", b"\r\n--b\r\n"])
def test_what_stands_before_the_first_boundary_and_behind_the_last_is_dropped(before: bytes, after: bytes) -> None:
    gap = b"\r\n" if before and not before.endswith(b"\r\n") else b""
    said = before + gap + FILE + CLOSE.rstrip() + after
    assert parts(rewritten(Form(CONTENT_TYPE, OWN), [said]), b"b") == [AUDIO, MODEL, FORMAT, TEMPERATURE]


@pytest.mark.parametrize("cut", range(7))
def test_blanks_behind_a_boundary_do_not_go_on(cut: int) -> None:
    prompt = part("prompt", MOST_HEAD * b"x")
    said = FILE.replace(b"--b", b"--b \t") + field("prompt", MOST_HEAD * b"x") + CLOSE
    heard = parts(rewritten(Form(CONTENT_TYPE, OWN), [said[:cut], said[cut:]]), b"b")
    assert heard == [AUDIO, prompt, MODEL, FORMAT, TEMPERATURE]


EVERYTHING = b"".join(
    (
        b"before\r\n",
        field("security_key", b"k\r\n--"),
        field("prompt", b"\r\n--\r\n-\r--bb\r\n"),
        FILE,
        field("timeout", b"1"),
        field("model", b""),
        field("timeout", b"2"),
        CLOSE + b"after",
    )
)
OF_EVERYTHING = [part("prompt", b"\r\n--\r\n-\r--bb\r\n"), AUDIO, MODEL, FORMAT, TEMPERATURE]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11])
def test_pieces_of_any_size_make_the_same_form(size: int) -> None:
    pieces = [EVERYTHING[at : at + size] for at in range(0, len(EVERYTHING), size)]
    assert parts(rewritten(Form(CONTENT_TYPE, OWN), pieces), b"b") == OF_EVERYTHING


def test_a_cut_at_any_byte_makes_the_same_form_and_an_end_there_is_refused() -> None:
    complete = EVERYTHING.index(CLOSE) + len(b"--b--")
    for cut in range(len(EVERYTHING)):
        form = Form(CONTENT_TYPE, OWN)
        begun = form.feed(EVERYTHING[:cut])
        if cut < complete:
            with pytest.raises(BadRequest, match="breaks off"):
                form.end()
        heard = begun + rewritten(form, [EVERYTHING[cut:]])
        assert parts(heard, b"b") == OF_EVERYTHING
        assert (form.own, form.repeated) == ({"security_key": "k\r\n--", "timeout": "1"}, {"timeout"})


def test_no_more_is_held_back_than_may_be_a_boundary() -> None:
    form = Form(CONTENT_TYPE, OWN)
    form.feed(FILE[: -len(b"RIFF\r\n")])
    assert form.feed(b"RIFF\r\n--") == b"RIFF"
    assert form.feed(b"x") == b"\r\n--x"
    assert form.feed(b"\r\n--b\r") == b""
    assert form.feed(b"\r") == b"\r\n--b\r"


def test_what_is_known_so_far_can_be_asked_while_the_form_streams() -> None:
    form = Form(CONTENT_TYPE, OWN)
    form.feed(field("security_key", b"k"))
    assert (form.own, form.file_begun) == ({}, False)  # the value may still go on
    form.feed(FILE[:-8])
    assert (form.own, form.file_begun) == ({"security_key": "k"}, False)
    form.feed(FILE[-8:])
    assert form.file_begun


@pytest.mark.parametrize(
    ("content_type", "why"),
    [
        (b"", "multipart/form-data"),
        (b"application/json", "multipart/form-data"),
        (b"multipart/mixed; boundary=b", "multipart/form-data"),
        (b"multipart/form-data", "boundary"),
        (b"multipart/form-data; boundary", "boundary"),
        (b"multipart/form-data; boundary=", "boundary"),
        (b'multipart/form-data; boundary=""', "boundary"),
        (b"multipart/form-data; boundary*=utf-8''b", "boundary"),
        (b"multipart/form-data; boundary=" + 71 * b"b", "boundary"),
    ],
)
def test_a_content_type_that_names_no_form_is_refused(content_type: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=f"^Content-Type: .*{why}"):
        Form(content_type, OWN)


def headed(*lines: bytes) -> bytes:
    return b"--b\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\nx\r\n"


NAMED = b'Content-Disposition: form-data; name="x"'
OVER = MOST_HEAD * b"x"
LINES = [b"X-%04d: %s" % (number, 80 * b"x") for number in range(MOST_HEAD // 80)]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "breaks off"),
        (b"garbage", "breaks off"),
        (FILE, "breaks off"),
        (FILE + b"--b\r\n", "breaks off"),
        (FILE + b"--b-", "breaks off"),
        (FILE.replace(b"\r\n", b"\n") + b"--b--\n", "breaks off"),
        (CLOSE, "^file: "),
        (field("x", b"1") + CLOSE, "^file: "),
        (field("File", b"1") + CLOSE, "^file: "),
        (FILE + headed(), "^part 2 .*one Content-Disposition"),
        (headed(b"Content-Type: text/plain"), "^part 1 .*one Content-Disposition"),
        (headed(NAMED, NAMED), "^part 1 .*one Content-Disposition"),
        (headed(b"Content-Disposition: form-data"), "^part 1 .*no name"),
        (headed(b"Content-Disposition:"), "^part 1 .*no name"),
        (headed(b'Content-Disposition: form-data; name=""'), "^part 1 .*no name"),
        (headed(b"Content-Disposition: form-data; name*=utf-8''x"), "^part 1 .*no name"),
        (headed(NAMED, *LINES), f"^part 1 .*longer than {MOST_HEAD} bytes"),
        (headed(NAMED, b"X: " + OVER), f"^part 1 .*longer than {MOST_HEAD} bytes"),
        (headed(NAMED, OVER + b": x"), f"^part 1 .*longer than {MOST_HEAD} bytes"),
        (headed(NAMED, b"X:" + MOST_HEAD * b" " + b"x"), f"^part 1 .*longer than {MOST_HEAD} bytes"),
        (headed(NAMED, *[b"X:"] * (MOST_HEAD // 4)), f"^part 1 .*longer than {MOST_HEAD} bytes"),
        (headed(NAMED, b"no colon"), "^part 1 .*cannot be read"),
        (headed(NAMED, b": no name"), "^part 1 .*cannot be read"),
        (headed(NAMED, b" folded"), "^part 1 .*cannot be read"),
        (headed(NAMED, b"X: a\rb"), "^part 1 .*cannot be read"),
        (b"--b x\r\n" + FILE, "^part 1 .*cannot be read"),
        (FILE + b"--b x\r\n", "^part 1 .*cannot be read"),
        (FILE + b"--b" + b" \t" * (1 << 20), f"^part 1 .*longer than {MOST_HEAD} bytes"),
        (field("organization", b"\xff") + CLOSE, "^organization: .*UTF-8"),
        (field("organization", b"x" * (MOST_VALUE + 1)), f"^organization: .*longer than {MOST_VALUE} bytes"),
    ],
)
@pytest.mark.parametrize("size", [1 << 16, 100, 8])
def test_bad_input_is_refused_with_its_reason_and_without_a_line_in_the_log(
    said: bytes, why: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(BadRequest, match=why):
        rewritten(Form(CONTENT_TYPE, OWN), [said[at : at + size] for at in range(0, len(said), size)])
    assert caplog.records == []


@pytest.mark.parametrize("said", [field("x", b"") * (MOST_PARTS + 3), field("file", b"\r\n--bx" * (MOST_PARTS + 2))])
def test_a_form_that_would_keep_the_parser_busy_is_refused_before_it_is_parsed(said: bytes) -> None:
    with pytest.raises(BadRequest, match=f"more than {MOST_PARTS} parts"):
        rewritten(Form(CONTENT_TYPE, OWN), [said[: len(said) // 2], said[len(said) // 2 :]])


def test_what_is_just_within_the_bounds_goes_through() -> None:
    head = NAMED + b"\r\nX: "
    head += b"x" * (MOST_HEAD - len(head) - len(b"\r\n"))
    form = Form(CONTENT_TYPE, OWN)
    said = [headed(head), field("project", b"p" * MOST_VALUE), FILE, field("x", b"") * (MOST_PARTS - 3), CLOSE]
    assert len(parts(rewritten(form, [b"".join(said)]), b"b")) == MOST_PARTS - 1 + len(DEFAULTS)
    assert form.own == {"project": "p" * MOST_VALUE}


def test_no_complaint_quotes_a_value() -> None:
    for value in (b"s3cret" * MOST_VALUE, b"s3cret\xff"):
        with pytest.raises(BadRequest) as refusal:
            Form(CONTENT_TYPE, OWN).feed(field("security_key", value) + CLOSE)
        assert "s3cret" not in f"{refusal.value} {refusal.value.__cause__}"


def test_a_key_that_came_before_the_mistake_is_still_known() -> None:
    form = Form(CONTENT_TYPE, OWN)
    with pytest.raises(BadRequest):
        form.feed(field("security_key", b"k") + headed())
    assert form.own == {"security_key": "k"}


BOUNDARIES = (b"b", b"--", b"x y", b"----formdata-undici-006063933864")
NAMES = (*OWN, *(name for name, _ in DEFAULTS), "file", "timestamp_granularities[]", "prompt", "a%22b", "é;=")
CRUMBS = (b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", b"\r\n-", b"x", b" ", b":", b"\0", b"\xff")


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, Part]]]:
    """Any boundary, and any parts with one named `file` among them."""
    boundary = draw(st.sampled_from(BOUNDARIES))
    crumbs = st.sampled_from((*CRUMBS, boundary, b"\r\n--" + boundary, b"\r\n--" + boundary + b"x", boundary[:-1]))
    contents = st.one_of(st.lists(crumbs).map(b"".join), st.binary(max_size=200), st.text().map(str.encode))
    # RFC 2046 5.1.1: no line of the content may be one of the boundary's.
    line = re.compile(rb"\r\n--%s(\r\n|--|[ \t])" % re.escape(boundary))
    contents = contents.filter(lambda content: not line.search(b"\r\n" + content + b"\r\n"))
    names = ["file", *draw(st.lists(st.sampled_from(NAMES), max_size=8))]
    return boundary, [(name, (draw(heads(name)), draw(contents))) for name in draw(st.permutations(names))]


@st.composite
def heads(draw: st.DrawFn, name: str) -> Headers:
    disposition = draw(
        st.sampled_from(
            (
                'form-data; name="%s"',
                'form-data;name="%s";filename="a \\"b.wav"',
                "form-data; filename*=UTF-8''%%41; NAME=\"%s\"",
            )
        )
    )
    spelt = draw(st.sampled_from((b"Content-Disposition", b"content-disposition")))
    more = [(b"Content-Type", b"audio/wav"), (b"X-Note", b"a: b; name=timeout"), (b"X-Empty", b"")]
    return draw(st.permutations([(spelt, (disposition % name).encode()), *draw(st.sets(st.sampled_from(more)))]))


def own_value(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


@pure
@given(forms(), st.binary(max_size=20), st.binary(max_size=20), st.lists(st.integers(0, 2000)))
@example((b"b", [("file", part("file", b"\r\n--b-"))]), b"", b"", [])
def test_any_form_in_any_pieces_loses_our_fields_and_gains_the_defaults(
    form: tuple[bytes, list[tuple[str, Part]]], before: bytes, after: bytes, cuts: list[int]
) -> None:
    boundary, said = form
    said = [(name, each) for name, each in said if name not in OWN or own_value(each[1]) is not None]
    body = bytearray(before.replace(b"\r", b"") + b"\r\n")
    for _, (headers, content) in said:
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        body += b"--" + boundary + b"\r\n" + lines + b"\r\n" + content + b"\r\n"
    body += b"--" + boundary + b"--" + after

    rewriting = Form(b'multipart/form-data; boundary="%s"' % boundary, OWN)
    ends = sorted({0, *(min(cut, len(body)) for cut in cuts), len(body)})
    heard = rewritten(rewriting, [bytes(body[start:end]) for start, end in pairwise(ends)])

    names = [name for name, _ in said]
    kept = [(name, each) for name, each in said if name not in OWN and (each[1] or name not in dict(DEFAULTS))]
    missing = [part(name, value.encode()) for name, value in DEFAULTS if name not in dict(kept)]
    assert parts(heard, boundary) == [each for _, each in kept] + missing
    ours = [(name, own_value(content)) for name, (_, content) in said if name in OWN]
    assert rewriting.own == dict(reversed(ours))
    assert rewriting.repeated == {name for name in OWN if names.count(name) > 1}


@pure
@given(st.lists(st.sampled_from((*CRUMBS, b"--b", b"--b--", b"name=", b'"', b"Content-Disposition:", NAMED, b";"))))
def test_whatever_is_fed_is_understood_or_a_bad_request(said: list[bytes]) -> None:
    form = Form(CONTENT_TYPE, OWN)
    try:
        rewritten(form, [*said, b"".join(said)])
    except BadRequest:
        return
    assert form.file_begun
