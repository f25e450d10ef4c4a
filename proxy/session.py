"""What is known of an exchange over WebSocket when it is over, for whoever writes it down."""

import json
from collections import Counter
from dataclasses import dataclass, field

from proxy.usage import model_of, usage_of

ENDS = (
    *("response.completed", "response.incomplete", "response.failed"),  # Responses
    "response.done",  # Realtime: however a response ended
    "conversation.item.input_audio_transcription.completed",  # Realtime: what it took to write down what was said
)
MAX_EVENT = 1024 * 1024  # characters; a longer event is not looked into


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

    `model` is the first that the upstream named. `close_code` is what ended it, by whichever side: None where it never
    began.
    """

    sent: Flow = field(default_factory=Flow)
    heard: Flow = field(default_factory=Flow)
    usage: Counter[str] = field(default_factory=Counter)
    model: str | None = None
    close_code: int | None = None

    def learn(self, event: str) -> None:
        """Add the usage that a server's event ends something with; keep the first model that one names."""
        if len(event) > MAX_EVENT or not self._may_tell(event):
            return
        try:
            said = json.loads(event)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        told = next((said[name] for name in ("response", "session") if isinstance(said.get(name), dict)), said)
        self.model = self.model or model_of(told.get("model"))
        if said.get("type") in ENDS:
            self.usage.update(usage_of(told.get("usage")) or {})

    def _may_tell(self, event: str) -> bool:
        # Most are pieces of sound of 10 KB, for which each of these names costs 5 us.
        if self.model is None and '"model"' in event:
            return True
        return '"usage"' in event and any(end in event for end in ENDS)
