"""An embedded stand-in for the OpenAI API, for `oxy --demo` and for trying things out without a key or a network.

It answers in the API's own shapes and tells the truth: that it is the demo, what it heard, how many tokens that was by
its one simple rule (see `voice`). It takes UPSTREAM_KEY and no other credential, so that an answer through the proxy
proves that the keys were swapped. Whoever names the model `error-429` gets a 429, likewise 400, 401, 404, 500
and 503; with `pause-5` a chat's stream is silent for 5 seconds after its first piece.
"""

import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute

from proxy.demo.api import Api
from proxy.demo.desk import UPSTREAM_KEY, Doorman, refuse
from proxy.demo.realtime import Realtime

__all__ = ["CLIENT_KEY", "UPSTREAM_KEY", "create_demo", "start_demo"]

CLIENT_KEY = "demo-client-key"


def create_demo(*, pace: float = 0.06) -> Starlette:
    """Return the demo as an ASGI app with an empty memory; `pace` is the seconds between two streamed words."""
    handlers = {HTTPException: refuse}
    realtime = WebSocketRoute("/{path:path}", Realtime(pace=pace).serve)
    app = Starlette(
        routes=[*Api(pace=pace).routes(), realtime], middleware=[Middleware(Doorman)], exception_handlers=handlers
    )
    app.router.redirect_slashes = False  # the API does not either
    return app


def start_demo(*, pace: float = 0.06) -> str:
    """Serve the demo on a free port of the loopback address until the process ends; return its URL, without a path.

    The socket listens before this returns: a client that comes before the thread is up waits in the backlog.
    """
    # Named as TCP, which `socket.create_server` does not: only then does asyncio switch Nagle's algorithm off, which
    # would hold back the second part of every answer for 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    # In a thread uvicorn leaves signals alone. Its log would be one more on the screen of a newcomer.
    config = uvicorn.Config(
        create_demo(pace=pace),
        loop="asyncio",
        ws="websockets-sansio",
        lifespan="off",
        access_log=False,
        log_config=None,
    )
    threading.Thread(target=uvicorn.Server(config).run, args=([listener],), name="demo", daemon=True).start()
    host, port = listener.getsockname()
    return f"http://{host}:{port}"
