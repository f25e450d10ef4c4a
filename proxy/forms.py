"""A convenience request that is a form with a file in it."""

import asyncio

from proxy.counter import MOST_OF_A_FORM, Counter, with_query
from proxy.downstream import Downstream
from proxy.errors import BadRequest
from proxy.exchange import Body, Call, Exchange
from proxy.own import NAMES, Own, split_query
from proxy.rewrites.transcriptions import Form
from proxy.spool import Resumed, Spool
from proxy.usage import model_of
from proxy.whole import too_large

TARGET = b"/v1/audio/transcriptions"


class Forms:
    """Takes a form, and calls with what is left of it without the proxy's own parts.

    Where the key is known before, from a header or the query, the form goes on as it comes, from its file on. Where it
    is not, the form waits for its end, on disk if it is long, since the key may be its last part.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    async def shape(self, exchange: Exchange, downstream: Downstream) -> Call:
        """Read of the form what has to be known before the call, and make the call."""
        query, own = split_query(downstream.query)
        spool = Spool(self._counter.room(downstream, own).forms)
        try:
            call = await self._call(exchange, downstream, spool, query, own)
        except BaseException:
            spool.close()
            raise
        call.release = spool.close
        return call

    async def _call(self, exchange: Exchange, downstream: Downstream, spool: Spool, query: bytes, own: Own) -> Call:
        try:
            rewritten = Rewritten(plain(downstream), Form(downstream.fields.get(b"content-type", b""), NAMES))
        except BadRequest as problem:
            self._counter.admit(exchange, downstream, own, problem)
            raise  # pragma: no cover  `admit` has raised: one of the two complaints is there
        complaint = await rewritten.begin(spool, whole=not self._counter.ready(downstream, own))
        for name, value in rewritten.form.own.items():
            own.add(name, value)
        for name in rewritten.form.repeated:
            own.add(name, rewritten.form.own[name])
        exchange.asked = model_of(rewritten.form.model)
        return self._counter.call(
            exchange,
            downstream,
            own,
            self._counter.admit(exchange, downstream, own, complaint),
            target=with_query(TARGET, query),
            body=spool if rewritten.ended else Resumed(spool, rewritten),
            content_type=rewritten.form.content_type,
        )


def plain(downstream: Downstream) -> Body:
    """Return a form's bytes as they come.

    Raises `BadRequest` where there are none, or are not its own, and `BodyTooLarge` where there are too many to begin.
    """
    if downstream.upload is None or downstream.upload.length == 0:
        raise BadRequest("The body is empty: a form is expected")
    if (downstream.upload.length or 0) > MOST_OF_A_FORM:
        raise too_large(MOST_OF_A_FORM)
    if downstream.fields.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise BadRequest("Content-Encoding: a form is taken without one")
    return downstream.upload


class Rewritten:
    """The form as it goes on, without what is the proxy's own."""

    length = None

    def __init__(self, upload: Body, form: Form) -> None:
        self.form = form
        self.ended = False
        self._upload = upload
        self._room = MOST_OF_A_FORM
        self._heard: frozenset[str] | None = None  # before the file, of which those again
        self._again: frozenset[str] = frozenset()

    async def begin(self, spool: Spool, *, whole: bool) -> BadRequest | None:
        """Put the form into the spool, all of it or what comes before the content of its file; return what is wrong."""
        try:
            while piece := await self.read():
                await spool.write(piece)
                if self.form.file_begun and not whole:
                    break
        except BadRequest as problem:
            return problem
        self._heard, self._again = frozenset(self.form.own), frozenset(self.form.repeated)
        return None

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises `BadRequest`, `BodyTooLarge`, and what the upload raises."""
        while not self.ended:
            piece = await self._upload.read()
            self._room -= len(piece)
            if self._room < 0:
                raise too_large(MOST_OF_A_FORM)
            self.ended = not piece
            rewritten = self.form.feed(piece) if piece else self.form.end()
            await asyncio.sleep(0)  # where all of it is here, the others have their turn between its pieces
            self._refuse_late()
            if rewritten:
                return rewritten
        return b""

    def _refuse_late(self) -> None:
        if self._heard is None:
            return
        late = (self.form.own.keys() - self._heard) | (self.form.repeated - self._again)
        if late := late - {"security_key"}:
            raise BadRequest(f"{min(late)}: it has to come before the file where the key comes in a header")
