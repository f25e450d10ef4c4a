"""What can go wrong with an exchange: one class for each failure, its facts as class attributes, one rendering.

A failure is raised where it is known, translated once where a library's exception crosses into our words, and answered
in one place (`gateway`; what never becomes an exchange in `cycle`, `plain`, `pages`). Its message goes to the client:
it is written here or by the raiser, never taken from a library's exception, which may quote a header or a body.
"""

import json
from typing import ClassVar, Literal

Pairs = list[tuple[bytes, bytes]]
Fields = dict[bytes, bytes]  # the same by name, the first of several

# The one word for how an exchange ended.
Result = Literal[
    "success",
    "validation_error",
    "forbidden",
    "proxy_overloaded",
    "upstream_api_error",
    "upstream_timeout",
    "upstream_transport",
    "client_cancelled",
    "internal_error",
]


class Failure(Exception):
    """Base of all that ends an exchange other than by relaying an answer.

    Facts, the same for every instance of a class:
      status  the HTTP status of the answer, or 499 in the log where nobody is left to hear one
      type    the `error.type` of the JSON body
      code    the `error.code` of the JSON body
      result  the word for the log entry
      headers what the answer carries besides its content type and length
    and of an instance:
      detail  what the operator may read besides, in the log alone
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: ClassVar[str] = "OPENAI_PROXY_INTERNAL"
    result: ClassVar[Result] = "internal_error"
    detail = ""
    headers: Pairs = []  # noqa: RUF012  replaced, never changed

    def body(self, *, request_id: str, incoming_id: str | None) -> bytes:
        """Return the JSON body: `{"error": {"message", "type", "code", "requestId"[, "incomingRequestId"]}}`."""
        error = {"message": str(self), "type": self.type, "code": self.code, "requestId": request_id}
        if incoming_id is not None:
            error["incomingRequestId"] = incoming_id
        return json.dumps({"error": error}).encode()


class BadRequest(Failure):
    """The request cannot be sent on, or is not one at all."""

    status, type, code, result = 400, "invalid_request_error", "OPENAI_PROXY_BAD_REQUEST", "validation_error"


class UpgradeRequired(BadRequest):
    """The client offers to speak WebSocket where it is not spoken, or in another version (RFC 9110 15.5.22)."""

    status = 426

    def __init__(self, message: str, *, headers: Pairs) -> None:
        super().__init__(message)
        self.headers = headers


class RequestTimeout(BadRequest):
    """The head of a request took too long, or its body does not go on."""

    status = 408


class TargetTooLong(BadRequest):
    """The request target is longer than any that is meant."""

    status = 414


class HeadTooLarge(BadRequest):
    """The header fields are too many or too large (RFC 6585 5)."""

    status = 431


class NotImplementedHere(BadRequest):
    """The request is framed in a way that cannot be relayed (RFC 9112 6.1)."""

    status = 501


class Unauthorized(Failure):
    """A relayed route was called with no client key or a wrong one."""

    status, type, code, result = 401, "unauthorized", "OPENAI_PROXY_UNAUTHORIZED", "forbidden"
    headers = [(b"www-authenticate", b"Bearer")]  # noqa: RUF012  RFC 9110 11.6.1: a 401 must name a challenge

    def body(self, *, request_id: str, incoming_id: str | None) -> bytes:
        """Return the one error that keeps its older shape, which clients of such proxies look for."""
        return b'{"error": "unauthorized"}'


class Forbidden(Failure):
    """A convenience route was called with no client key or a wrong one, or an operator's page without its token."""

    status, type, code, result = 403, "forbidden", "OPENAI_PROXY_FORBIDDEN", "forbidden"


class NotFound(Failure):
    """The path is not on the list of what is relayed."""

    status, type, code, result = 404, "not_found", "OPENAI_PROXY_NOT_FOUND", "validation_error"


class BodyTooLarge(Failure):
    """A convenience route was given more than it takes, or a WebSocket a message that is larger."""

    status, type, code = 413, "invalid_request_error", "OPENAI_PROXY_BODY_TOO_LARGE"
    result = "validation_error"


class MethodNotAllowed(Failure):
    """A route of the proxy's own was called with a method that it does not offer."""

    status, type, code = 405, "invalid_request_error", "OPENAI_PROXY_METHOD_NOT_ALLOWED"
    result = "validation_error"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.headers = [(b"allow", allow.encode())]


class RateLimited(Failure):
    """One client address asked for a page too often; `retry_after` is in seconds."""

    status, type, code, result = 429, "rate_limited", "OPENAI_PROXY_RATE_LIMITED", "validation_error"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.headers = [(b"retry-after", str(retry_after).encode())]


class Overloaded(Failure):
    """All slots are taken."""

    status, type, code, result = 503, "proxy_overloaded", "OPENAI_PROXY_OVERLOADED", "proxy_overloaded"
    headers = [(b"retry-after", b"1")]  # noqa: RUF012


class Stopping(Failure):
    """The proxy was told to stop, and does not wait for this exchange any longer: nobody's fault, and worth a retry."""

    status, type, code, result = Overloaded.status, Overloaded.type, Overloaded.code, Overloaded.result
    headers = Overloaded.headers


class UpstreamUnreachable(Failure):
    """No answer, or only a part of one, could be had: DNS, TLS, refused, reset, not HTTP."""

    status, type, code, result = 502, "upstream_transport", "OPENAI_PROXY_TRANSPORT", "upstream_transport"


class UpstreamTimeout(Failure):
    """The upstream took too long to accept a connection, to begin its answer, or to go on with it."""

    status, type, code, result = 504, "upstream_timeout", "OPENAI_PROXY_TIMEOUT", "upstream_timeout"


class DownstreamClosed(Failure):
    """The client hung up; nobody is left to answer."""

    status, type, code, result = 499, "client_cancelled", "OPENAI_PROXY_CANCELLED", "client_cancelled"


class Unforeseen(Failure):
    """Something else went wrong here; the log has the traceback, the client hears only that."""
