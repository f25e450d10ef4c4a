"""The demo's endpoints, one method each, and the little that they remember."""

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from proxy.demo import shapes
from proxy.demo.desk import Refusal, admit, hear, hear_form, silence, stream, tell, upload, wants, whole
from proxy.demo.media import SIDE, picture, tone, vector
from proxy.demo.voice import Json, Said, answer, dig, objects, several, tokens, words

LISTED = (
    *("gpt-5", "gpt-4.1", "gpt-4o", "gpt-4o-mini", "o3", "o4-mini", "chatgpt-4o-latest", "gpt-3.5-turbo-instruct"),
    *("text-embedding-3-small", "text-embedding-3-large", "whisper-1", "gpt-4o-transcribe", "tts-1", "gpt-image-1"),
)
LONGEST, CHOICES, INPUTS, PICTURES = 1_000_000, 128, 2048, 10  # at most: tokens in an answer, and so on
DIMENSIONS = {"text-embedding-3-large": 3072}
FILES, FILE_BYTES = 100, 64 * 1024 * 1024
RESPONSES, RESPONSE_BYTES = 200, 64 * 1024 * 1024
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A response in the store: as it was answered, how it was said, and the items that it answers."""

    response: Json
    said: Said
    items: list[Json]
    size: int


class Api:
    """The endpoints. What they remember is bounded: new files are refused when it is full, old responses go."""

    def __init__(self, *, pace: float) -> None:
        self._pace = pace
        self._files: dict[str, tuple[Json, bytes]] = {}
        self._responses: dict[str, Kept] = {}

    def routes(self) -> list[Route]:
        table = (
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model}", self.model),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/completions", self.completions),
            ("POST", "/v1/responses", self.respond),
            ("POST", "/v1/responses/input_tokens", self.input_tokens),
            ("POST", "/v1/responses/compact", self.compact),
            ("GET", "/v1/responses/{id}", self.response),
            ("DELETE", "/v1/responses/{id}", self.forget_response),
            ("POST", "/v1/responses/{id}/cancel", self.cancel_response),
            ("GET", "/v1/responses/{id}/input_items", self.input_items),
            ("POST", "/v1/embeddings", self.embeddings),
            ("POST", "/v1/audio/transcriptions", self.transcribe),
            ("POST", "/v1/audio/translations", self.transcribe),
            ("POST", "/v1/audio/speech", self.speak),
            ("POST", "/v1/images/generations", self.draw),
            ("POST", "/v1/images/edits", self.draw),
            ("GET", "/v1/files", self.files),
            ("POST", "/v1/files", self.keep_file),
            ("GET", "/v1/files/{id}", self.file),
            ("DELETE", "/v1/files/{id}", self.forget_file),
            ("GET", "/v1/files/{id}/content", self.file_content),
            ("POST", "/v1/moderations", self.moderate),
        )
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]

    async def models(self, request: Request) -> Response:
        return tell({"object": "list", "data": [shapes.model_card(name) for name in LISTED]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        admit(name)
        return tell(shapes.model_card(name))

    async def chat(self, request: Request) -> Response:
        body = await hear(request, "model", "messages")
        turns = objects(body["messages"])
        if not turns:
            raise Refusal(400, "'messages' must be a list of objects.", param="messages", code="invalid_type")
        limit = min(_limit(body, "max_completion_tokens"), _limit(body, "max_tokens"))
        said = answer(body, turns, form=body.get("response_format"), limit=limit)
        choices = whole(body, "n", most=CHOICES, default=1)
        usage = shapes.chat_usage(_count(turns), len(said.tokens) * choices)
        if not wants(body, "stream"):
            return tell(shapes.chat_completion(body["model"], said, choices=choices, usage=usage))
        asked = usage if dig(body, "stream_options", "include_usage") else None
        chunks = shapes.chat_chunks(body["model"], said, choices=choices, usage=asked)
        return self._play(chunks, end=DONE, silence=silence(body["model"]))

    async def completions(self, request: Request) -> Response:
        body = await hear(request, "model", "prompt")
        prompts, times = several(body["prompt"]), whole(body, "n", most=CHOICES, default=1)
        limit = _limit(body, "max_tokens")
        said = [answer({}, [{"content": prompt}], form=None, limit=limit) for prompt in prompts for _ in range(times)]
        usage = shapes.chat_usage(_count(prompts), sum(len(one.tokens) for one in said))
        if not wants(body, "stream"):
            return tell(shapes.completion(body["model"], said, usage=usage))
        asked = usage if dig(body, "stream_options", "include_usage") else None
        return self._play(shapes.completion_chunks(body["model"], said, usage=asked), end=DONE)

    async def respond(self, request: Request) -> Response:
        body = await hear(request, "model", "input")
        items, turns = self._context(body)
        said = answer(body, turns, form=dig(body, "text", "format"), limit=_limit(body, "max_output_tokens"))
        response = shapes.response(body, said, heard=_count([body.get("instructions"), *turns]))
        if response["store"]:
            size = len(await request.body())
            self._make_room(size)
            self._responses[response["id"]] = Kept(response=response, said=said, items=items, size=size)
        if wants(body, "stream"):
            return self._play(shapes.response_events(response, said))
        # One that runs in the background is queued at first, and ready by the time that anybody looks.
        return tell(shapes.unfinished(response, "queued") if response["background"] else response)

    async def response(self, request: Request) -> Response:
        kept = self._kept(request)
        query = dict(request.query_params)
        if not wants(query, "stream") or not kept.response["output"]:
            return tell(kept.response)
        after = whole(query, "starting_after", default=-1, least=0, most=LONGEST)
        return self._play(shapes.response_events(kept.response, kept.said)[after + 1 :])

    async def forget_response(self, request: Request) -> Response:
        response = self._kept(request).response
        del self._responses[response["id"]]
        return tell({"id": response["id"], "object": "response", "deleted": True})

    async def cancel_response(self, request: Request) -> Response:
        kept = self._kept(request)
        if not kept.response["background"]:
            raise Refusal(400, "Cannot cancel a synchronous response.")
        cancelled = replace(kept, response=shapes.unfinished(kept.response, "cancelled"))
        self._responses[kept.response["id"]] = cancelled
        return tell(cancelled.response)

    async def input_items(self, request: Request) -> Response:
        return tell(_page(self._kept(request).items, request, default=20, most=100))

    async def input_tokens(self, request: Request) -> Response:
        body = await hear(request)
        _, turns = self._context(body)
        return tell({"object": "response.input_tokens", "input_tokens": _count([body.get("instructions"), *turns])})

    async def compact(self, request: Request) -> Response:
        body = await hear(request, "model")
        _, turns = self._context(body)
        text = words(turns)
        usage = shapes.usage(_count([body.get("instructions"), *turns]), _count(text))
        return tell(shapes.compaction(turns, summary=_base64(text.encode(errors="replace")), usage=usage))

    async def embeddings(self, request: Request) -> Response:
        body = await hear(request, "model", "input")
        inputs, size = several(body["input"]), DIMENSIONS.get(body["model"], 1536)
        if len(inputs) > INPUTS:
            raise Refusal(400, f"'input' must have at most {INPUTS} members.", param="input", code="invalid_value")
        size = whole(body, "dimensions", most=size, default=size)
        vectors: list[Any] = [vector(text, size) for text in inputs]
        if body.get("encoding_format") == "base64":
            vectors = [_base64(struct.pack(f"<{size}f", *one)) for one in vectors]
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(vectors)]
        usage = {"prompt_tokens": _count(inputs), "total_tokens": _count(inputs)}
        return tell({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def transcribe(self, request: Request) -> Response:
        body = await hear_form(request, "model", "file")
        file, task = upload(body, "file"), "translate" if request.url.path.endswith("translations") else "transcribe"
        seconds = 1 + len(file.content) // 16_000  # as if every recording had 16 kB a second
        text = f"This is the Oxy demo. Your file {file.name} arrived, all {len(file.content)} bytes of it."
        if wants(body, "stream"):
            return self._play(shapes.transcript_events(tokens(text), heard=_count(body.get("prompt"))))
        verbose = shapes.transcript(text, task=task, seconds=seconds)
        clock = time.strftime("%H:%M:%S", time.gmtime(seconds))
        layouts = {
            "text": f"{text}\n",
            "srt": f"1\n00:00:00,000 --> {clock},000\n{text}\n\n",
            "vtt": f"WEBVTT\n\n00:00:00.000 --> {clock}.000\n{text}\n\n",
        }
        layout = layouts.get(str(body.get("response_format")))
        if layout is not None:
            return PlainTextResponse(layout)
        brief = {"text": text, "usage": verbose["usage"]}
        return tell(verbose if body.get("response_format") == "verbose_json" else brief)

    async def speak(self, request: Request) -> Response:
        await hear(request, "model", "input")
        return Response(tone(), media_type="audio/wav")

    async def draw(self, request: Request) -> Response:
        body = await hear_form(request, "prompt")
        heard, count = _count(body["prompt"]), whole(body, "n", most=PICTURES, default=1)
        image = _base64(picture(words(body["prompt"])))
        looks = {"background": "opaque", "output_format": "png", "quality": "low", "size": f"{SIDE}x{SIDE}"}
        details = {"text_tokens": heard, "image_tokens": 0}
        usage = {"input_tokens": heard, "input_tokens_details": details, "output_tokens": 0, "total_tokens": heard}
        if wants(body, "stream"):
            kind = "image_edit" if request.url.path.endswith("edits") else "image_generation"
            head = {"type": f"{kind}.completed", "created_at": shapes.now()}
            return self._play([{**head, "b64_json": image, **looks, "usage": usage}])
        link = f"data:image/png;base64,{image}"
        data = {"url": link} if body.get("response_format") == "url" else {"b64_json": image}
        return tell({"created": shapes.now(), "data": [data] * count, **looks, "usage": usage})

    async def files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        every = [facts for facts, _ in self._files.values() if purpose in (None, facts["purpose"])]
        return tell(_page(every, request, default=10_000, most=10_000))

    async def keep_file(self, request: Request) -> Response:
        body = await hear_form(request, "file", "purpose")
        file = upload(body, "file")
        held = sum(len(content) for _, content in self._files.values())
        if len(self._files) >= FILES or held + len(file.content) > FILE_BYTES:
            message = f"The demo keeps up to {FILES} files and {FILE_BYTES} bytes in all. Delete some first."
            raise Refusal(413, message, param="file", code="storage_limit_exceeded")
        facts = {
            "id": shapes.new_id("file-"),
            "object": "file",
            "bytes": len(file.content),
            "created_at": shapes.now(),
            "filename": file.name,
            "purpose": words(body["purpose"]),
            "status": "processed",
        }
        self._files[str(facts["id"])] = facts, file.content
        return tell(facts)

    async def file(self, request: Request) -> Response:
        facts, _ = self._file(request)
        return tell(facts)

    async def file_content(self, request: Request) -> Response:
        facts, content = self._file(request)
        disposition = f"attachment; filename*=UTF-8''{quote(facts['filename'], safe='')}"
        return Response(content, 200, {"content-disposition": disposition}, "application/octet-stream")

    async def forget_file(self, request: Request) -> Response:
        facts, _ = self._file(request)
        del self._files[facts["id"]]
        return tell({"id": facts["id"], "object": "file", "deleted": True})

    async def moderate(self, request: Request) -> Response:
        body = await hear(request, "input")
        return tell(shapes.moderation(body.get("model") or "omni-moderation-latest", len(several(body["input"]))))

    def _play(self, events: list[Json], *, end: bytes = b"", silence: float = 0.0) -> Response:
        """Stream events, with a pause before each that brings a token; those of chat have no type and all pause.

        After the first there are so many seconds of silence.
        """

        async def slowly() -> AsyncIterator[Json]:
            for number, event in enumerate(events):
                if event.get("type", "delta").endswith("delta"):
                    await asyncio.sleep(self._pace + silence * (number == 1))
                yield event

        return stream(slowly(), end=end)

    def _context(self, body: Json) -> tuple[list[Json], list[Json]]:
        """Return a request's own items, and these after all that was said before in the same conversation."""
        items = shapes.items(body.get("input"))
        previous = body.get("previous_response_id")
        if previous is not None and str(previous) not in self._responses:
            message = f"Previous response with id '{previous}' not found."
            raise Refusal(400, message, param="previous_response_id", code="previous_response_not_found")
        turns = items
        while kept := self._responses.get(str(previous)):
            turns = [*kept.items, *kept.response["output"], *turns]
            previous = kept.response["previous_response_id"]
        if not turns:
            raise Refusal(400, "Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
        return items, turns

    def _make_room(self, size: int) -> None:
        held = sum(kept.size for kept in self._responses.values())
        while self._responses and (len(self._responses) >= RESPONSES or held + size > RESPONSE_BYTES):
            held -= self._responses.pop(next(iter(self._responses))).size

    def _kept(self, request: Request) -> Kept:
        kept = self._responses.get(request.path_params["id"])
        if kept is None:
            raise Refusal(404, f"Response with id '{request.path_params['id']}' not found.")
        return kept

    def _file(self, request: Request) -> tuple[Json, bytes]:
        file = self._files.get(request.path_params["id"])
        if file is None:
            raise Refusal(404, f"No such File object: {request.path_params['id']}", param="id")
        return file


def _limit(body: Json, name: str) -> int:
    return whole(body, name, most=LONGEST, default=LONGEST)


def _count(heard: object) -> int:
    return len(tokens(words(heard)))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _page(things: list[Json], request: Request, *, default: int, most: int) -> Json:
    """Return one page of a list: the newest first unless `order=asc`, those after the id `after`, `limit` of them."""
    query = request.query_params
    ordered = things if query.get("order") == "asc" else things[::-1]
    ids = [thing["id"] for thing in ordered]
    start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
    page = ordered[start : start + whole(dict(query), "limit", most=most, default=default)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(ordered) > start + len(page)}
