"""`/log` and `/log_errors`: totals, charts, the newest entries, and a stream of Server-Sent Events that keeps them new.

All of it comes from the history, which all workers share, so that it does not matter which of them is asked. What
reads the file and makes HTML of it does so in a thread, so that no exchange waits for it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from proxy.entry import WELL, Facts, name, status_class
from proxy.errors import Result
from proxy.fresh import Fresh
from proxy.markup import NOTHING, Html, View, joined
from proxy.overview import Overview
from proxy.readable import UNKNOWN, count, size, span
from proxy.recall import By, NoHistory, Recall
from proxy.shell import Shell
from proxy.wanted import Wanted

CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
RESULTS = get_args(Result)
EVENTS = "text/event-stream"
TURN = 1.0  # seconds between two looks into the history
SILENCE = 15  # turns after which a stream says that it is alive
OVERVIEW_LIFE = 2.0  # seconds
OVERVIEWS = 64  # by what is wanted in them
GROUPS: tuple[By, ...] = ("route", "model", "key")
FILTERS = ("route", "model", "status", "result", "key", "request_id")


class Board:
    """One of the two pages, and its stream. `failed` is whether only errors are shown."""

    def __init__(
        self, recall: Recall, shell: Shell, overview: Callable[[Wanted], Fresh[Html]], *, path: str, failed: bool
    ) -> None:
        self._recall = recall
        self._shell = shell
        self._overview = overview
        self._path = path
        self._failed = failed
        self._title = "Errors" if failed else "Log"
        self._log, self._keys, self._option = View("log"), View("keys"), View("option")
        self._entry, self._none = View("entry"), View("none")

    async def page(self, request: Request) -> Response:
        """Return the page."""
        wanted = asked(request, failed=self._failed)
        try:
            overview = await self._overview(wanted)()
            content = await asyncio.to_thread(self._content, wanted, overview)
        except NoHistory as problem:
            return HTMLResponse(self._shell.notice(self._title, str(problem), at=self._path), 503)
        return HTMLResponse(self._shell(self._title, content, at=self._path, script="board.js"))

    async def live(self, request: Request) -> Response:
        """Return the stream of what is new since the entry `after`, or since the one that a broken stream came to."""
        if request.method == "HEAD":
            return Response(media_type=EVENTS)
        given = request.headers.get("last-event-id") or request.query_params.get("after", "")
        after = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else 0
        return EventStream(self._events(request, asked(request, failed=self._failed), after))

    async def _events(self, request: Request, wanted: Wanted, after: int) -> AsyncIterator[bytes]:
        look, shown, silent = self._overview(wanted), NOTHING, 0
        while not request.scope["line"].stopping:
            said = []
            try:
                overview = await look()
                latest, rows = await asyncio.to_thread(self._newest, wanted, after)
            except NoHistory as problem:
                overview = shown = NOTHING  # so that the next one is told, and that there is one again
                latest, rows = after, NOTHING
                said.append(event("trouble", str(problem)))
            after = latest
            if rows:
                said.append(event("entries", rows, latest))
            if overview != shown:
                shown = overview
                said.append(event("overview", overview))
            silent = 0 if said else silent + 1
            if silent == SILENCE:
                silent = 0
                said.append(event("alive", None))  # no comment, for of those a script does not hear
            yield b"".join(said)
            await asyncio.sleep(TURN)

    def _content(self, wanted: Wanted, overview: Html) -> Html:
        routes, models, keys = map(self._recall.names, GROUPS)
        results = [result for result in RESULTS if not (self._failed and result in WELL)]
        latest, rows = self._newest(wanted, 0)
        return self._log(
            title=self._title,
            overview=overview,
            live=f"{self._path}/live?{urlencode(wanted.chosen())}",
            after=latest,
            path=self._path,
            routes=self._options(routes, wanted.route),
            statuses=self._options(CLASSES, wanted.status),
            results=self._options(results, wanted.result),
            keys=self._choice(keys, wanted.key),
            models=self._options(models, None),
            model=wanted.model or "",
            request_id=wanted.request_id or "",
            entries=rows or self._none(),
        )

    def _newest(self, wanted: Wanted, after: int) -> tuple[int, Html]:
        """Return the rows of what came after that number, and the number up to which there are no others."""
        latest = self._recall.latest()  # asked first, for what comes in between may be wanted
        # A number from beyond the newest is one of a history that was there before this one.
        entries = self._recall.newest(wanted, after=after if after <= latest else 0)
        rows = joined(*(self._entry(**shown(facts)) for facts in entries))
        return max([latest, *(facts["number"] for facts in entries[:1])]), rows

    def _choice(self, keys: Sequence[str], chosen: str | None) -> Html:
        """Return the field for the key, where there are any."""
        options = self._options(keys, chosen)
        return self._keys(keys=options) if options else NOTHING

    def _options(self, values: Sequence[str], chosen: str | None) -> Html:
        # A route or a key that was chosen and has no entry is still the one that was chosen.
        known = values if chosen is None or chosen in values else (*values, chosen)
        marks = {True: Html(" selected"), False: NOTHING}
        return joined(*(self._option(value=value, selected=marks[value == chosen]) for value in known))


def asked(request: Request, *, failed: bool) -> Wanted:
    """Return what the query of a request asks for."""
    # As it was written down: what a text is there, its sender and the page may spell differently.
    given = {which: name(request.query_params.get(which, "").strip()) or None for which in FILTERS}
    for which, known in (("status", CLASSES), ("result", RESULTS)):
        if given[which] not in known:
            given[which] = None
    return Wanted(**given, failed=failed)


def shown(facts: Facts) -> dict[str, Any]:
    """Return what a row of the table shows of an entry."""
    tokens = facts.get("tokens", {})
    failure = ": ".join(facts[name] for name in ("failure", "detail") if name in facts)
    return {
        "time": facts["time"],
        "date": facts["time"][:10],
        "clock": facts["time"][11:23],
        "status": facts.get("status", UNKNOWN),
        "kind": kind(facts),
        "method": facts["method"],
        "path": facts["path"],
        "result": facts["result"],
        "failure": failure,
        "model": facts.get("model", UNKNOWN),
        "route": facts["route"],
        "key": facts.get("key", ""),
        "duration": span(facts["duration"]),
        "first_byte": span(facts.get("first_byte")),
        "input": count(tokens.get("input")),
        "output": count(tokens.get("output")),
        "bytes_in": size(facts["bytes_in"]),
        "bytes_out": size(facts["bytes_out"]),
        "id": facts["id"],
        "facts": json.dumps({name: value for name, value in facts.items() if name != "number"}, indent=1),
    }


def kind(facts: Facts) -> str:
    """Return the class of an entry's status; where a client heard of a good one, and yet not all of it, `torn`."""
    status = facts.get("status")
    began_well = status is not None and status < 400
    return "torn" if began_well and facts["result"] != "success" else status_class(status)


def event(kind: str, data: object, number: int | None = None) -> bytes:
    """Return an event (WHATWG HTML 9.2.5). Its data are JSON, which is one line whatever is in it."""
    mark = f"id: {number}\n" if number is not None else ""
    return f"{mark}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(Response):
    """A response that goes on until its events end. A client that hangs up has its task cancelled by the server."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(media_type=EVENTS)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send each event as it comes."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self._events:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


def boards(recall: Recall, shell: Shell, overview: Overview) -> tuple[Board, Board]:
    """Return the page of all entries and that of errors; all who want the same look at the same totals."""

    @lru_cache(OVERVIEWS)
    def shared(wanted: Wanted) -> Fresh[Html]:
        return Fresh(lambda: asyncio.to_thread(overview, wanted), OVERVIEW_LIFE)

    return (
        Board(recall, shell, shared, path="/log", failed=False),
        Board(recall, shell, shared, path="/log_errors", failed=True),
    )
