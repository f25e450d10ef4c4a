"""What is known of an exchange over WebSocket when it is over, for whoever writes it down."""

import json
from collections import Counter
from dataclasses import dataclass, field

from proxy.usage import usage_of

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


@dataclass(slots=True, kw_only=True)
class Session:
    """One exchange over WebSocket: what went each way (`sent` upstream, `heard` from there), and how it ended.

    `close_code` is what ended it, by whichever side: None where it never began.
    """

    sent: Flow = field(default_factory=Flow)
    heard: Flow = field(default_factory=Flow)
    usage: Counter[str] = field(default_factory=Counter)
    close_code: int | None = None

    def learn(self, event: str) -> None:
        """Add the usage that a server's event ends a response with; any other event adds nothing."""
        if len(event) > MAX_EVENT or not any(end in event for end in ENDS):
            return
        try:
            said = json.loads(event)
        except (ValueError, RecursionError):
            return
        response = said.get("response") if isinstance(said, dict) else None
        if isinstance(response, dict):
            self.usage.update(usage_of(response.get("usage")) or {})
