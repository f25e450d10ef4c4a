"""How a request becomes a call: what each route can do, and the relay, which takes what is no other's."""

from typing import Protocol

from proxy.access import Access
from proxy.downstream import Downstream
from proxy.endpoints import Endpoints
from proxy.errors import MethodNotAllowed, NotFound, Pairs
from proxy.exchange import Call, Exchange, Request
from proxy.headers import (
    CLIENT_ADDRESS,
    CLIENT_ADDRESS_PREFIX,
    END_HERE,
    OPERATOR_COOKIE,
    Crossing,
    append_forwarded_for,
    outbound,
    without_cookie,
)
from proxy.heads import Shaped
from proxy.settings import Settings

ALIAS = b"/api/openai"  # an older gateway's clients say /api/openai/v1/... for /v1/...
# RFC 9110 9.3.8: no credentials with what they would come back from. TRACK is what older servers of IIS call it.
ECHOES = ("TRACE", "TRACK")
USUAL_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


class Route(Protocol):
    """How a request becomes a call. `shape` writes down what it learns, and raises `Failure` where there is no call."""

    async def shape(self, exchange: Exchange, downstream: Downstream) -> Call: ...


class Relay:
    """Any method, any path: the call is the request, less what ends here, with the credentials put in."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._access = access
        self._endpoints = Endpoints(settings.endpoints)
        self._append = settings.forwarded == "append"
        drop = END_HERE | access.withheld
        prefixes = tuple(prefix.lower().encode() for prefix in settings.hop_header_prefixes)
        if settings.forwarded == "drop":
            drop |= CLIENT_ADDRESS
            prefixes += (CLIENT_ADDRESS_PREFIX,)
        self._crossing = Crossing(drop, prefixes)

    async def shape(self, exchange: Exchange, downstream: Request) -> Call:
        """Check the client's key and the path, then return the call. Of a head that came before, it is what it was."""
        head = downstream.head
        if head is not None and (shaped := head.shaped) is not None:
            exchange.key = shaped.key
            headers = shaped.headers.stating(downstream.fields.get(b"content-length", b""))
            return Call(downstream.method, shaped.target, headers, downstream.upload, shaped=shaped)
        admitted, exchange.key = self._access.admit(downstream.headers)
        if self._access.signs and downstream.method.upper() in ECHOES:
            raise MethodNotAllowed("The answer to TRACE would have the upstream key in it", allow=USUAL_METHODS)
        target = downstream.target
        if target.startswith(ALIAS + b"/v1/"):
            target = target[len(ALIAS) :]
        self.check(target)
        headers = self.cleaned(admitted, downstream)
        headers = headers + self._access.signature(headers)
        if head is not None and head.text and not self._append and head.comes_again():
            head.shaped = Shaped(exchange.key, target, headers)
        return Call(downstream.method, target, headers, downstream.upload)

    def check(self, target: bytes) -> None:
        """Raise `NotFound` if the target's path is not on the list of what is relayed."""
        if not self._endpoints.include(target.partition(b"?")[0]):
            raise NotFound("This endpoint is not served here")

    def cleaned(self, admitted: Pairs, downstream: Request) -> Pairs:
        """Return what of an admitted request's fields goes on."""
        headers = outbound(admitted, self._crossing)
        if b"cookie" in downstream.fields:
            headers = without_cookie(headers, OPERATOR_COOKIE)
        if self._append and downstream.client_address:
            headers = append_forwarded_for(headers, downstream.client_address)
        return headers
