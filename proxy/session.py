"""What is known of an exchange over WebSocket when it is over, for whoever writes it down."""

import json
from dataclasses import dataclass, field
from typing import Any

ENDS = ('"response.done"', '"response.completed"')  # the Realtime API's word and that of Responses
MAX_EVENT = 1024 * 1024  # characters; an event with usage that is longer is not looked into


@dataclass(slots=True)
class Flow:
    """What went one way."""

    messages: int = 0
    size: int = 0  # bytes of payload

    def count(self, message: str | bytes) -> None:
        """Count a message."""
        self.messages += 1
        if isinstance(message, str) and not message.isascii():  # a string knows that without looking
            message = message.encode()
        self.size += len(message)


@dataclass(slots=True)
class Usage:
    """Tokens of all responses of a session together."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    total: int = 0

    def add(self, event: str) -> None:
        """Add the usage that a server's event ends a response with; any other event adds nothing."""
        if len(event) > MAX_EVENT or not any(end in event for end in ENDS):
            return
        try:
            usage = _dig(json.loads(event), "response", "usage")
        except (ValueError, RecursionError):
            return
        self.input += _whole(usage, "input_tokens")
        self.output += _whole(usage, "output_tokens")
        self.total += _whole(usage, "total_tokens")
        for details in ("input_token_details", "input_tokens_details"):
            self.cached += _whole(usage, details, "cached_tokens")
        for details in ("output_token_details", "output_tokens_details"):
            self.reasoning += _whole(usage, details, "reasoning_tokens")


@dataclass(slots=True, kw_only=True)
class Session:
    """One exchange over WebSocket: what went each way (`sent` upstream, `heard` from there), and how it ended.

    `close_code` is what ended it, by whichever side: None where it never began.
    """

    sent: Flow = field(default_factory=Flow)
    heard: Flow = field(default_factory=Flow)
    usage: Usage = field(default_factory=Usage)
    close_code: int | None = None


def _dig(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _whole(usage: Any, *names: str) -> int:
    found = _dig(usage, *names)
    return found if type(found) is int and found > 0 else 0
