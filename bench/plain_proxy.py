"""A proxy for the OpenAI API as people write it with Starlette and httpx, to compare with."""

import os

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

SKIPPED = {"host", "authorization", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
client = httpx.AsyncClient(base_url=os.environ["TARGET"], timeout=600, limits=httpx.Limits(max_connections=None))
authorization = "Bearer " + os.environ["OPENAI_API_KEY"]


async def proxy(request: Request) -> StreamingResponse:
    headers = [(name, value) for name, value in request.headers.items() if name not in SKIPPED]
    url = request.url.path + ("?" + request.url.query if request.url.query else "")
    body = request.stream() if request.method not in ("GET", "HEAD") else None
    call = client.build_request(request.method, url, headers=[*headers, ("authorization", authorization)], content=body)
    answer = await client.send(call, stream=True)
    kept = {name: value for name, value in answer.headers.items() if name not in SKIPPED}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))


app = Starlette(routes=[Route("/{path:path}", proxy, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])])
