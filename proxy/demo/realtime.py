"""The demo's Realtime API: a talk over WebSocket in the API's own events, its answers transcripts without sound."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from proxy.demo.desk import TURNED_AWAY, UNROUTED, Refusal, admit, pack, shows_the_key, tell
from proxy.demo.shapes import new_id
from proxy.demo.voice import Json, Said, dig, objects, reply, tokens, words

PATH = "/v1/realtime"
MOST_ITEMS = 200
SUBPROTOCOL = "realtime"
# How a response is told: the kind of its part, the field of the part that holds the words, the events' name.
AUDIO = ("audio", "transcript", "response.output_audio_transcript")
TEXT = ("text", "text", "response.output_text")


class Realtime:
    """The endpoint `GET /v1/realtime`; a WebSocket elsewhere is refused. `pace` is the seconds between two words."""

    def __init__(self, *, pace: float) -> None:
        self._pace = pace

    async def serve(self, websocket: WebSocket) -> None:
        """Let in who shows the upstream key, and talk until the client closes."""
        model = websocket.query_params.get("model", "gpt-realtime")
        path = websocket.scope["path"]
        try:
            if not shows_the_key(websocket.scope):
                raise Refusal(401, TURNED_AWAY, code="invalid_api_key")
            if path != PATH:
                unrouted = UNROUTED[404].format(method="GET", path=path)
                raise Refusal(404, f"{unrouted}. The demo speaks WebSocket at {PATH} alone.")
            admit(model)
        except Refusal as refusal:
            answer = tell({"error": refusal.error}, status=refusal.status_code, headers=dict(refusal.headers or {}))
            await websocket.send_denial_response(answer)
            return
        offered = websocket.scope["subprotocols"]
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        talk = Talk(model)
        try:
            await self._say(websocket, talk.event("session.created", session=talk.session))
            while True:
                for event in talk.hear(await websocket.receive_text()):
                    await self._say(websocket, event)
        except WebSocketDisconnect:
            return

    async def _say(self, websocket: WebSocket, event: Json) -> None:
        if event["type"].endswith(".delta"):
            await asyncio.sleep(self._pace)
        await websocket.send_text(pack(event).decode())


class Talk:
    """One session: what it was told, and what it answers. The oldest of what was said is forgotten in time."""

    def __init__(self, model: str) -> None:
        self.session: Json = {
            "type": "realtime",
            "object": "realtime.session",
            "id": new_id("sess_"),
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
        }
        self._items: list[Json] = []
        self._heard = 0  # bytes of sound that wait to be committed
        self._conversation = new_id("conv_")
        self._turns = {
            "session.update": self._update,
            "conversation.item.create": self._create,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "response.create": self._respond,
        }

    def event(self, kind: str, **content: Any) -> Json:
        """Return an event of the server's."""
        return {"type": kind, "event_id": new_id("event_"), **content}

    def hear(self, text: str) -> Iterator[Json]:
        """Yield what the demo says to an event of the client's."""
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        turn = self._turns.get(str(dig(event, "type")))
        if turn is None:
            known = ", ".join(self._turns)
            yield self._error(event, f"The demo knows these events: {known}.")
            return
        yield from turn(event)

    def _error(self, event: object, message: str) -> Json:
        error = {"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": "type"}
        return self.event("error", error={**error, "event_id": dig(event, "event_id")})

    def _update(self, event: Json) -> Iterator[Json]:
        changed = event.get("session")
        self.session |= changed if isinstance(changed, dict) else {}
        yield self.event("session.updated", session=self.session)

    def _create(self, event: Json) -> Iterator[Json]:
        item = event.get("item")
        given = item if isinstance(item, dict) else {}
        yield from self._keep({"id": new_id("item_"), "type": "message", "role": "user", "status": "completed"} | given)

    def _append(self, event: Json) -> Iterator[Json]:
        self._heard += len(str(event.get("audio", ""))) * 3 // 4
        yield from ()  # the API says nothing to it either

    def _commit(self, _: Json) -> Iterator[Json]:
        heard, self._heard = self._heard, 0
        content = [{"type": "input_audio", "transcript": f"{heard} bytes of sound"}]
        item: Json = {
            "id": new_id("item_"),
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": content,
        }
        before = self._items[-1]["id"] if self._items else None
        yield self.event("input_audio_buffer.committed", previous_item_id=before, item_id=item["id"])
        yield from self._keep(item)

    def _clear(self, _: Json) -> Iterator[Json]:
        self._heard = 0
        yield self.event("input_audio_buffer.cleared")

    def _keep(self, item: Json) -> Iterator[Json]:
        before = self._items[-1]["id"] if self._items else None
        self._items = [*self._items[1 - MOST_ITEMS :], item]
        yield self.event("conversation.item.added", previous_item_id=before, item=item)
        yield self.event("conversation.item.done", previous_item_id=before, item=item)

    def _respond(self, event: Json) -> Iterator[Json]:
        asked = [item for item in self._items if item.get("role") == "user"]
        question = " ".join(spoken(asked[-1])) if asked else ""
        said = Said(tokens=tokens(reply(question, turn=max(1, len(asked)))))
        modalities = dig(event, "response", "output_modalities") or self.session["output_modalities"]
        way = TEXT if modalities == ["text"] else AUDIO
        heard = sum(len(tokens(" ".join(spoken(item)))) for item in self._items)
        yield from self._stream(said, way, modalities, heard)

    def _stream(self, said: Said, way: tuple[str, str, str], modalities: object, heard: int) -> Iterator[Json]:
        """Yield the events of one response, a token at a time."""
        kind, field, name = way
        part = {"type": kind, field: ""}
        item: Json = {
            "id": new_id("item_"),
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        response: Json = {
            "object": "realtime.response",
            "id": new_id("resp_"),
            "conversation_id": self._conversation,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "output_modalities": modalities,
            "usage": None,
            "metadata": None,
        }
        of_response: Json = {"response_id": response["id"], "output_index": 0}
        of_part = {**of_response, "item_id": item["id"], "content_index": 0}
        whole = {**part, field: said.text}
        done = {**item, "status": "completed", "content": [{"type": f"output_{kind}", field: said.text}]}
        yield self.event("response.created", response=response)
        yield self.event("response.output_item.added", **of_response, item=item)
        yield self.event("response.content_part.added", **of_part, part=part)
        for token in said.tokens:
            yield self.event(f"{name}.delta", **of_part, delta=token)
        yield self.event(f"{name}.done", **of_part, **{field: said.text})
        yield self.event("response.content_part.done", **of_part, part=whole)
        yield self.event("response.output_item.done", **of_response, item=done)
        yield from self._keep(done)
        usage = count(heard, len(said.tokens))
        yield self.event(
            "response.done", response={**response, "status": "completed", "output": [done], "usage": usage}
        )


def spoken(item: Json) -> list[str]:
    """Return what counts as said in an item, sound by its transcript."""
    return [words(part.get("transcript")) or words(part) for part in objects(item.get("content"))]


def count(heard: int, said: int) -> Json:
    """Return the usage of a response."""
    return {
        "total_tokens": heard + said,
        "input_tokens": heard,
        "output_tokens": said,
        "input_token_details": {"text_tokens": heard, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 0},
        "output_token_details": {"text_tokens": said, "audio_tokens": 0},
    }
