"""The log pages and their streams: what they show, what they leave out, and that nothing in an entry breaks them."""

import asyncio
import json
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest

from proxy import board
from proxy.app import under_way
from proxy.board import RESULTS
from proxy.entry import WELL, Facts
from proxy.figures import DIRECTORY
from proxy.history import History
from proxy.markup import NOTHING, Html
from proxy.metrics import Metrics, Reading
from proxy.overview import Overview
from proxy.recall import Recall
from proxy.shell import Shell
from proxy.usage import Usage
from proxy.wanted import Wanted
from tests.conftest import CLIENT_KEY, SWAP, UPSTREAM_KEY, Start
from tests.desk import BEARER, TOKEN, Desk
from tests.peers import PATIENCE, Peer, Upstream, answer, request
from tests.test_history import written
from tests.test_metrics import samples, series

HOSTILE = "</td><script>alert(1)</script>\x1b[31m\r\n\x00\u202e\"'&$path"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "TURN", 0.01)
    monkeypatch.setattr(board, "OVERVIEW_LIFE", 0.0)


class Seen(HTMLParser):
    """The elements of a page in order, and the texts of rows of its table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[str] = []
        self._in_row = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tbody":
            self._in_row = True
        elif tag == "tr" and self._in_row:
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1] += data


async def shown(desk: Desk, target: str = "/log") -> str:
    heard = await desk.get(target.encode(), BEARER)
    assert heard.status == 200
    return heard.body.decode()


async def paths(desk: Desk, target: str) -> list[str]:
    """The last segments of the paths in the table."""
    return re.findall(r'class="path">/v1/(\w+)<', await shown(desk, target))


async def next_event(client: Peer, name: str) -> tuple[str, Any]:
    """The id and the data of the next event of that name."""
    text = ""
    async with asyncio.timeout(PATIENCE):  # for others may come for ever
        while True:
            text += (await client.chunk()).decode()
            for each in text.split("\n\n")[:-1]:
                lines = dict(line.split(": ", 1) for line in each.splitlines())
                if lines.get("event") == name:
                    return lines.get("id", ""), json.loads(lines["data"])


def exchanges() -> list[Any]:
    return [
        written(path="/v1/a", model="m-1", route="relay", id="1" * 32, key="alice"),
        written(path="/v1/b", model="m-2", route="openai", status=404, result="upstream_api_error"),
        written(
            path="/v1/c",
            model="m-1",
            status=503,
            result="proxy_overloaded",
            overloaded=True,
            incoming_id="mine",
            key="alice",
        ),
        written(path="/v1/d", status=499, result="client_cancelled", cancelled=True),
    ]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/log", "dcba"),
        ("/log_errors", "cb"),
        ("/log?route=openai", "b"),
        ("/log?model=m-1", "ca"),
        ("/log?status=4xx", "db"),
        ("/log?status=%3Cscript%3E", "dcba"),
        ("/log?result=client_cancelled", "d"),
        ("/log?result=%3Cscript%3E", "dcba"),
        ("/log_errors?result=success", ""),
        ("/log?key=alice", "ca"),
        ("/log?key=alice&result=proxy_overloaded", "c"),
        ("/log?request_id=mine", "c"),
        ("/log?request_id=" + "1" * 32, "a"),
        ("/log_errors?model=m-1&status=5xx&route=relay&request_id=+mine+", "c"),
        ("/log?route=nowhere", ""),
        ("/log?route=&model=&status=&request_id=", "dcba"),
    ],
)
async def test_the_newest_entries_are_shown_by_every_filter(desk: Desk, target: str, found: str) -> None:
    desk.history.write(exchanges())
    assert "".join(await paths(desk, target)) == found


@pytest.mark.parametrize("text", ["modèle", "模型", "a b<1>", "m" * 150, "modèle" * 30])
@pytest.mark.parametrize("which", ["model", "request_id"])
async def test_what_is_written_down_otherwise_is_found_as_it_was_sent_and_as_it_is_shown(
    desk: Desk, which: str, text: str
) -> None:
    member = {"model": "model", "request_id": "incoming_id"}[which]
    found = written(path="/v1/a", **{member: text})
    desk.history.write([found, written(path="/v1/b")])
    for asked in (f" {text} ", found.facts[member]):
        page = await shown(desk, f"/log?{which}={quote(asked)}")
        assert re.findall(r'class="path">/v1/(\w+)<', page) == ["a"]
        assert figures(page).get("Requests", ("1", ""))[0] == "1"


async def test_sessions_over_websocket_are_a_class_of_status(desk: Desk) -> None:
    desk.history.write([*exchanges(), written(path="/v1/realtime", status=101, route="websocket")])
    assert await paths(desk, "/log?status=1xx") == ["realtime"]


STYLE = (Path(board.__file__).parent / "templates" / "board.css").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [*board.CLASSES, "torn"])
def test_every_class_of_status_has_its_style(kind: str) -> None:
    assert f".s{kind}" in STYLE


@pytest.mark.parametrize(
    ("status", "result", "found"),
    [
        (200, "success", "2xx"),
        (101, "upstream_transport", "torn"),
        (302, "upstream_transport", "torn"),
        (200, "upstream_timeout", "torn"),
        (200, "client_cancelled", "torn"),
        (404, "upstream_api_error", "4xx"),
        (502, "upstream_transport", "5xx"),
        (499, "client_cancelled", "4xx"),
        (None, "client_cancelled", "none"),
    ],
)
def test_an_answer_that_broke_off_does_not_look_like_a_success(status: int | None, result: str, found: str) -> None:
    facts = {"result": result} if status is None else {"status": status, "result": result}
    assert board.kind(facts) == found
    (hidden,) = re.findall(r"^\.r(\w+) \{ display: none; \}", STYLE, re.M)
    assert hidden == "2xx"


async def test_a_filter_stays_in_the_form_escaped(desk: Desk) -> None:
    desk.history.write(exchanges())
    page = await shown(desk, "/log?route=nowhere&status=5xx&model=%22%3E%3Cscript%3E&request_id=%26%27x")
    assert '<option value="nowhere" selected>' in page
    assert '<option value="5xx" selected>' in page
    assert 'value="%22%3E%3Cscript%3E"' in page, "as the table would show it"
    assert 'value="&amp;&#x27;x"' in page
    assert "Nothing yet that fits" in page
    assert page.count("<script") == 1


def figures(page: str) -> dict[str, tuple[str, str]]:
    """Each figure of a page and what is said of it, by its name."""
    found = re.findall(r"<dt>([\w ]+)</dt><dd>([^<]+)<small>([^<]*)<", page)
    return {name: (value, note) for name, value, note in found}


async def test_totals_and_charts_are_those_of_all_entries(desk: Desk) -> None:
    usage = Usage(input=1200, cached=30, output=70, reasoning=9, total=1270)
    entries = [*exchanges(), written(duration=2.5, first_byte=0.25, usage=usage, retries=1)]
    desk.history.write(entries)
    page = await shown(desk)
    found = figures(page)
    assert "".join(found[name][0] for name in ("Requests", "Errors", "Overloads", "Cancellations")) == "5211"
    assert (found["Requests"][1], found["Errors"][1], found["In flight"]) == ("1 retries", "40.0%", ("2", "at most 9"))
    assert [found[name][0] for name in ("Average", "Longest", "First byte")] == ["500 ms", "2.5 s", "250 ms"]
    assert [found[name][0] for name in ("Input", "Cached", "Output", "Reasoning")] == ["1,200", "30", "70", "9"]
    assert (found["Total"], found["p50"][1], found["p99"][1]) == (("1,270", "at most 1,270"), "", "")
    assert page.count("<svg") == 4
    assert re.search(r"Requests a minute over the last hour: at most 5", page)
    first = f"{datetime.fromtimestamp(min(each.exchange.began for each in entries), UTC):%Y-%m-%d %H:%M}"
    assert f"Totals are of all since {first} UTC." in page
    assert "Totals and charts: only" not in page


async def test_those_of_the_errors_are_of_errors_alone(desk: Desk) -> None:
    desk.history.write([*exchanges(), written(duration=2.5), written(result="upstream_timeout", duration=1.5)])
    page = await shown(desk, "/log_errors")
    found = figures(page)
    assert (found["Errors"], found["Overloads"]) == (("3", "50.0% of 6"), ("1", ""))
    assert (found["Average"][0], found["Longest"][0]) == ("500 ms", "1.5 s")
    assert found["p50"] == found["p99"] == ("\N{EN DASH}", "only of all")
    reasons = ("proxy overloaded", "upstream api error", "upstream timeout")
    assert [found[reason] for reason in reasons] == [("1", "33.3%")] * 3
    desk.history.write([written(result="upstream_timeout")])
    in_order = [name for name in figures(await shown(desk, "/log_errors")) if name in reasons]
    assert in_order == ["upstream timeout", *reasons[:2]], "the most frequent first"
    assert not {"Requests", "Cancellations", "success"} & found.keys()
    assert "Errors a minute over the last hour: at most 3" in page
    assert "Requests a minute" not in page, "it would be the same"


async def test_where_nothing_is_there_is_nothing_to_say_of_it(desk: Desk) -> None:
    page = await shown(desk, "/log_errors")
    assert "Why" not in page
    assert "Totals are of all since" not in page
    assert '<h1 class="hidden">Errors</h1>' in page


async def test_of_times_that_nobody_took_there_is_no_longest(desk: Desk) -> None:
    desk.history.write([written(status=503, result="proxy_overloaded", duration=0.002)])
    nothing = figures(await shown(desk, "/log?route=nowhere"))
    assert nothing["Longest"] == nothing["p50"] == nothing["p99"] == ("\N{EN DASH}", "")
    found = figures(await shown(desk, "/log_errors"))
    assert (found["Longest"], found["First byte"]) == (("2 ms", ""), ("\N{EN DASH}", ""))


@pytest.mark.parametrize(
    ("target", "requests", "note"),
    [
        ("/log?route=openai", "1", "only route openai."),
        ("/log?model=m-1", "2", "only model m-1."),
        ("/log?status=4xx&route=relay", "1", "only route relay, status 4xx."),
        ("/log?key=alice&result=success", "1", "only result success, key alice."),
        ("/log?route=nowhere", "0", "only route nowhere."),
        ("/log?model=%3Cscript%3E", "0", "only model %3Cscript%3E."),
        ("/log?model=a%26b%27", "0", "only model a&amp;b&#x27;."),
    ],
)
async def test_totals_and_charts_follow_the_filters(desk: Desk, target: str, requests: str, note: str) -> None:
    desk.history.write(exchanges())
    page = await shown(desk, target)
    assert figures(page)["Requests"][0] == requests
    assert f"Requests a minute over the last hour: at most {requests}," in page
    assert f"Totals and charts: {note}" in page
    assert ("Beyond the first 100 models" in page) == ("model=" in target)
    assert "In flight" not in figures(page), "what is in flight is of all kinds"


async def test_errors_are_counted_among_what_fits_the_filters(desk: Desk) -> None:
    desk.history.write(exchanges())
    for target in ("/log_errors?model=m-1", "/log_errors?key=alice&result=proxy_overloaded"):
        assert figures(await shown(desk, target))["Errors"] == ("1", "50.0% of 2")


async def test_of_errors_of_one_result_there_is_one_reason(desk: Desk) -> None:
    desk.history.write(exchanges())
    page = await shown(desk, "/log_errors?result=proxy_overloaded")
    found = figures(page)
    assert found["proxy overloaded"] == ("1", "100.0%")
    assert "upstream api error" not in found


async def test_keys_are_shown_and_asked_for_where_there_are_any(desk: Desk) -> None:
    desk.history.write([written(path="/v1/a")])
    assert 'id="key"' not in await shown(desk)
    desk.history.write([written(path="/v1/b", key="alice"), written(path="/v1/c", key="bob")])
    page = await shown(desk, "/log?key=bob")
    assert '<option value="alice">alice</option><option value="bob" selected>bob</option>' in page
    assert re.findall(r'<td class="who"[^>]*>(\w*)</td>', page) == ["bob"]
    assert re.findall(r'<td class="who"[^>]*>(\w*)</td>', await shown(desk)) == ["bob", "alice", ""]


async def test_results_to_choose_are_those_that_a_page_may_show(desk: Desk) -> None:
    for target, found in (("/log", RESULTS), ("/log_errors", [each for each in RESULTS if each not in WELL])):
        (options,) = re.findall(r'<select id="result"[^>]*>(.*?)</select>', await shown(desk, target))
        assert re.findall(r'value="(\w+)"', options) == list(found)


@pytest.mark.parametrize("path", ["/log", "/log_errors"])
async def test_of_a_request_id_there_are_no_totals_and_the_page_says_so(desk: Desk, path: str) -> None:
    desk.history.write(exchanges())
    page = await shown(desk, f"{path}?request_id=mine&model=m-1")
    assert "A request id has no totals and no charts." in page
    assert not figures(page)
    assert "<svg" not in page


async def test_a_page_has_two_hundred_entries_and_no_more(desk: Desk) -> None:
    desk.history.write([written(path=f"/v1/{number}") for number in range(250)])
    assert await paths(desk, "/log") == [str(number) for number in reversed(range(50, 250))]


async def test_nothing_that_others_chose_breaks_a_page(desk: Desk) -> None:
    plain = Seen(await shown(desk))
    facts = {"path": HOSTILE + "A" * 1_000_000, "model": HOSTILE, "method": "GET", "incoming_id": HOSTILE}
    desk.history.write(
        [written(**facts, status=502, result="upstream_transport", failure=HOSTILE, detail=HOSTILE, key=HOSTILE)]
    )
    page = await shown(desk)
    seen = Seen(page)
    assert seen.tags.count("script") == plain.tags.count("script") == 1
    assert seen.tags.count("tr") == plain.tags.count("tr")
    assert len(page) < 40_000
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    (row,) = [row for row in seen.rows if "%3C/td%3E%3Cscript%3E" in row]
    assert "upstream_transport" in row
    assert "</td><script>" in row, "a message is shown as it is, as text"


async def test_an_entry_shows_all_that_is_written_down_of_it(desk: Desk) -> None:
    usage = Usage(input=5, output=7)
    desk.history.write([written(began=0.0, model="m", duration=1.5, first_byte=0.5, usage=usage, bytes_out=2000)])
    (row,) = Seen(await shown(desk)).rows
    for text in ("1970-01-01", "00:00:00.000", "200", "POST", "/v1/responses", "1.5 s", "500 ms", "2 kB", "default"):
        assert text in row


async def test_a_history_that_cannot_be_read_is_said(desk: Desk) -> None:
    desk.history.close(0)
    desk.history._path.write_bytes(b"nothing like it" * 100)
    for target in (b"/log", b"/log_errors?model=m"):
        heard = await desk.get(target, BEARER)
        assert heard.status == 503
        assert b"cannot be read" in heard.body


@pytest.mark.parametrize("path", ["/log", "/log_errors"])
async def test_a_stream_tells_what_is_new(desk: Desk, path: str) -> None:
    desk.history.write(exchanges())
    latest = re.search(r'data-after="(\d+)"', await shown(desk, path))
    assert latest is not None
    client = await desk.stream(f"{path}/live?after={latest[1]}".encode())
    _, overview = await next_event(client, "overview")
    assert {"/log": "<dt>Requests</dt><dd>4<", "/log_errors": "<dt>Errors</dt><dd>2<"}[path] in overview
    desk.history.write([written(path="/v1/new", status=500, result="upstream_api_error"), written(path="/v1/fine")])
    number, entries = await next_event(client, "entries")
    expected = {"/log": (["fine", "new"], "6"), "/log_errors": (["new"], "6")}[path]
    assert (re.findall(r"/v1/(\w+)<", entries), number) == expected


async def test_who_wants_the_same_shares_one_look_beside_the_loop(tmp_path: Path) -> None:
    looked: list[tuple[Wanted, bool]] = []

    def look(wanted: Wanted) -> Html:
        looked.append((wanted, threading.current_thread() is threading.main_thread()))
        return NOTHING

    entries, _ = board.boards(Recall(tmp_path / "none"), Shell(), cast("Overview", look))
    one, other = Wanted(model="m-1"), Wanted(model="m-2")
    await asyncio.gather(*(entries._overview(replace(wanted))() for wanted in (one, other, one, other, one)))
    assert sorted(looked, key=lambda look: str(look[0])) == [(one, False), (other, False)]


async def test_a_stream_keeps_to_the_filters_of_its_page(desk: Desk) -> None:
    page = await shown(desk, "/log?model=m-1&status=2xx")
    live = re.search(r'data-live="([^"]+)"', page)
    assert live is not None
    client = await desk.stream(live[1].replace("&amp;", "&").encode())
    desk.history.write(exchanges())
    while "only model m-1, status 2xx" not in (overview := (await next_event(client, "overview"))[1]):
        pass
    assert "<dt>Requests</dt>" in overview
    client = await desk.stream(live[1].replace("&amp;", "&").encode())
    _, entries = await next_event(client, "entries")
    assert re.findall(r"/v1/(\w+)<", entries) == ["a"]


async def test_what_a_stream_did_not_want_is_not_looked_at_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look(recall: Recall, wanted: Wanted, *, after: int) -> list[Facts]:
        looks.append(after)
        if len(looks) == 1:
            another_worker = History(desk.file, days=30)
            another_worker.write([written(path="/v1/late", model="m-9")])
            another_worker.close(0)
        return newest(recall, wanted, after=after)

    newest = Recall.newest
    monkeypatch.setattr(Recall, "newest", look)
    desk.history.write(exchanges())
    client = await desk.stream(b"/log/live?model=m-9")
    number, entries = await next_event(client, "entries")
    assert (number, re.findall(r"/v1/(\w+)<", entries)) == ("5", ["late"])
    desk.history.write(exchanges())
    await next_event(client, "overview")
    desk.history.write([written(path="/v1/more", model="m-9")])
    assert (await next_event(client, "entries"))[0] == "10"
    assert [*dict.fromkeys(looks)][:3] == [0, 5, 9]


@pytest.mark.parametrize("target", [b"/log/live", b"/log/live?after=0"])
async def test_a_stream_that_broke_goes_on_where_it_was(desk: Desk, target: bytes) -> None:
    desk.history.write(exchanges())
    client = await desk.stream(target, (b"Last-Event-ID", b"3"))
    number, entries = await next_event(client, "entries")
    assert (number, entries.count("<tr>")) == ("4", 1)


async def test_a_stream_tells_of_each_entry_once(desk: Desk) -> None:
    desk.history.write(exchanges())
    client = await desk.stream(b"/log/live")
    assert (await next_event(client, "entries"))[0] == "4"
    await asyncio.sleep(3 * board.TURN)
    desk.history.write([written()])
    number, entries = await next_event(client, "entries")
    assert (number, entries.count("<tr>")) == ("5", 1)


async def test_what_comes_after_the_end_of_another_history_is_the_beginning(desk: Desk) -> None:
    desk.history.write(exchanges())
    client = await desk.stream(b"/log/live", (b"Last-Event-ID", b"3054"))
    number, entries = await next_event(client, "entries")
    assert (number, entries.count("<tr>")) == ("4", 4)


@pytest.mark.parametrize("after", [b"", b"x", b"-1", b"1e9", b"9" * 40, b"%C2%B2"])
async def test_a_place_that_is_none_is_the_beginning(desk: Desk, after: bytes) -> None:
    desk.history.write(exchanges())
    client = await desk.stream(b"/log/live?after=" + after)
    assert (await next_event(client, "entries"))[1].count("<tr>") == 4


async def test_a_stream_in_which_nothing_happens_says_that_it_is_alive(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(board, "SILENCE", 2)
    client = await desk.stream(b"/log/live")
    await next_event(client, "overview")
    assert await next_event(client, "alive") == ("", None)
    assert await next_event(client, "alive") == ("", None)


async def test_a_stream_says_that_the_history_fails_and_goes_on_with_it(desk: Desk) -> None:
    client = await desk.stream(b"/log/live")
    await next_event(client, "overview")
    desk.history.close(0)
    content = desk.history._path.read_bytes()
    desk.history._path.write_bytes(b"nothing like it" * 100)
    assert "cannot be read" in (await next_event(client, "trouble"))[1]
    desk.history._path.write_bytes(content)
    desk.history.write(exchanges())
    assert (await next_event(client, "entries"))[1].count("<tr>") == 4


async def test_a_stream_ends_when_the_proxy_stops(desk: Desk) -> None:
    client = await desk.stream(b"/log/live")
    await next_event(client, "overview")
    desk.proxy.stop()
    began = time.monotonic()
    assert (await client.rest()).endswith(b"0\r\n\r\n")
    assert time.monotonic() - began < 5


async def test_a_stream_whose_reader_is_gone_ends(desk: Desk) -> None:
    client = await desk.stream(b"/log/live")
    await next_event(client, "overview")
    client.abort()
    await asyncio.sleep(0.05)  # that no task is left is asserted when the server ends


async def test_what_passed_and_what_is_in_flight_is_on_the_page_and_no_secret_is(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.says(answer(headers=[(b"X-Request-Id", b"sk-planted-by-the-upstream")]))
    planted = "/v1/responses?api_key=sk-planted-in-the-query"
    async with start(**SWAP, ACCESS_TOKEN=TOKEN, PROXY_HISTORY=str(tmp_path / "history.sqlite")) as proxy:
        client = await proxy.connect()
        fields = [(b"X-API-Key", CLIENT_KEY.encode()), (b"X-Request-Id", b"sk-planted-by-the-client")]
        await client.say(request("POST", planted.encode(), fields, b"{}"))
        await client.hear()
        page = ""
        async with asyncio.timeout(10):
            while "/v1/responses" not in page:  # the ledger writes a few times a second
                await client.say(request("GET", b"/log", [BEARER]))
                page = (await client.hear()).body.decode()
                await asyncio.sleep(0.05)
        await client.say(request("GET", b"/debug/runtime", [BEARER]), request("GET", b"/metrics", [BEARER]))
        others = [(await client.hear()).body.decode() for _ in range(2)]
    assert "<dt>In flight</dt><dd>0<small>at most 1</small>" in page
    for text in (page, *others):
        for secret in ("planted", CLIENT_KEY, UPSTREAM_KEY, TOKEN):
            assert secret not in text


async def test_without_a_file_there_is_no_history_and_the_page_says_so(start: Start) -> None:
    async with start(ACCESS_TOKEN=TOKEN) as proxy:
        client = await proxy.connect()
        await client.say(request("GET", b"/log", [BEARER]))
        heard = await client.hear()
    assert (heard.status, b"is not a history" in heard.body) == (503, True)


def test_what_is_in_flight_is_that_of_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    asked, other = (
        Metrics(
            [
                Reading(gauge="oxy_exchanges_in_flight", read=partial(int, now)),
                Reading(gauge="oxy_exchanges_in_flight_max", read=partial(int, most)),
            ],
            dict,
        )
        for now, most in ((1, 5), (2, 4))
    )
    other.write([])
    assert under_way(asked) == (3, 5)


async def in_flight(client: Peer) -> tuple[float, float]:
    """How many exchanges are, and how many were at most."""
    await client.say(request("GET", b"/metrics", [BEARER]))
    shown = samples((await client.hear()).body)
    return shown[series("oxy_exchanges_in_flight")], shown[series("oxy_exchanges_in_flight_max")]


async def until_in_flight(client: Peer, expected: tuple[float, float]) -> None:
    async with asyncio.timeout(PATIENCE):
        while await in_flight(client) != expected:
            pass


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_exchange_is_in_flight_from_its_first_bytes_on_and_the_most_were_so_at_once(
    start: Start, upstream: Upstream, tmp_path: Path, workers: str
) -> None:
    upstream.says(answer(body=b"{}"))
    history = str(tmp_path / "history.sqlite")
    async with start(**SWAP, ACCESS_TOKEN=TOKEN, PROXY_HISTORY=history, PROXY_WORKERS=workers) as proxy:
        operator, client = await proxy.connect(), await proxy.connect()
        slow = [await proxy.connect() for _ in range(3)]
        for each in slow:
            await each.say(b"POST /openai HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{")
        await until_in_flight(operator, (3, 3))
        for each in slow:
            each.abort()
        await until_in_flight(operator, (0, 3))
        await client.say(request("POST", b"/v1/embeddings", [(b"X-API-Key", CLIENT_KEY.encode())], b"{}"))
        assert (await client.hear()).status == 200
        assert await in_flight(operator) == (0, 3)
        page = ""
        async with asyncio.timeout(PATIENCE):
            while "/v1/embeddings" not in page:  # the ledger writes a few times a second
                await operator.say(request("GET", b"/log", [BEARER]))
                page = (await operator.hear()).body.decode()
                await asyncio.sleep(0.05)
    assert "<dt>In flight</dt><dd>0<small>at most 3</small>" in page
