"""The table of the convenience routes: which path and method is taken by which."""

from functools import partial

from proxy.access import Access
from proxy.counter import Counter
from proxy.downstream import Downstream
from proxy.errors import MethodNotAllowed, NotFound
from proxy.exchange import Call, Exchange
from proxy.forms import Forms
from proxy.objects import Objects, Queries
from proxy.rewrites import chat, embeddings, responses
from proxy.routes import Relay, Route
from proxy.settings import Settings

Offered = dict[str, tuple[str, Route]]  # by method: what log and metrics call it, and the route


class Convenience:
    """All convenience routes as one. `paths` are theirs, and what begins with `prefix` is too."""

    prefix = responses.PREFIX + b"/"

    def __init__(self, settings: Settings, access: Access, relay: Relay) -> None:
        counter = Counter(settings, access, relay)
        prompt = partial(chat.prompt, default_model=settings.default_model)
        self._exact: dict[bytes, Offered] = {
            b"/openai": {"POST": ("openai", Objects(counter, chat.completion, target=chat.TARGET))},
            b"/chatgpt": {"POST": ("chatgpt", Objects(counter, prompt, target=chat.TARGET, retell=chat.told))},
            b"/embeddings": {"POST": ("embeddings", Objects(counter, embeddings.embedding, target=embeddings.TARGET))},
            b"/openai/audio/transcriptions": {"POST": ("transcriptions", Forms(counter))},
        }
        self._operations: dict[responses.Operation, Route] = {
            operation: _posted(counter, operation) if method == "POST" else Queries(counter)
            for _, offered in responses.OPERATIONS
            for method, operation in offered.items()
        }
        self.paths = frozenset((*self._exact, responses.PREFIX))

    async def shape(self, exchange: Exchange, downstream: Downstream) -> Call:
        """Let the route of path and method make the call. Raises `NotFound` and `MethodNotAllowed` besides."""
        offered = self._exact.get(downstream.path) or self._responses(downstream.path)
        if not offered:
            raise NotFound("There is no such route, or its id is not one")
        if downstream.method not in offered:
            allow = ", ".join(offered)
            raise MethodNotAllowed(f"This route takes {allow}", allow=allow)
        exchange.route, route = offered[downstream.method]
        return await route.shape(exchange, downstream)

    def _responses(self, path: bytes) -> Offered:
        offered = responses.operations(path)
        return {method: (operation.name, self._operations[operation]) for method, operation in offered.items()}


def _posted(counter: Counter, operation: responses.Operation) -> Route:
    return Objects(counter, empty=operation.empty, idempotent=operation.idempotent)
