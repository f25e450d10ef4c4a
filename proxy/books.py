"""The books of one process: what its exchanges are written into, from the start of the server to its end."""

import asyncio
import os
import sys
from collections.abc import Sequence

from proxy.entry import Book
from proxy.history import History
from proxy.ledger import Ledger
from proxy.lines import log_lines
from proxy.metrics import Metrics, Reading
from proxy.redaction import Redaction
from proxy.settings import Settings


class Books:
    """The ledger, and what it writes into: metrics, the log on stdout, and the history, where there are to be any."""

    def __init__(self, settings: Settings, readings: Sequence[Reading]) -> None:
        self._books: list[Book] = []
        self.ledger = Ledger(self._books, Redaction(settings.secrets))
        self.metrics = Metrics(readings, self.ledger.losses)
        self._books.append(self.metrics)
        self._settings = settings

    def open(self) -> None:
        """Begin to write. What opens a file or starts a thread does so here, in the process that serves."""
        settings = self._settings
        if (lines := log_lines(sys.stdout, settings.log_format, os.environ)) is not None:
            self._books.append(lines)
        if settings.history is not None:
            self._books.append(History(settings.history, settings.history_days))
        self.ledger.start()

    async def aclose(self) -> None:
        """Write what is left, within a bound."""
        await asyncio.to_thread(self.ledger.close)
