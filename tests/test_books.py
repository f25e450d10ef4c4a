"""The books of a process: opened when it begins to serve, closed with all in them when it ends."""

import json
import os
import re
from pathlib import Path

import pytest

from proxy.books import Books
from proxy.exchange import Exchange
from proxy.recall import Recall
from tests.conftest import SWAP, UPSTREAM_KEY, SettingsOf


async def test_what_is_entered_is_in_each_book_when_they_are_closed(
    settings_of: SettingsOf, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    books = Books(settings_of(**SWAP, PROXY_HISTORY=str(tmp_path / "history.sqlite")), [])
    books.ledger.enter(Exchange(id="1", method="GET", path="/v1/models", failure=f"it said {UPSTREAM_KEY}"))
    books.open()
    await books.aclose()
    line = json.loads(capfd.readouterr().out)
    assert (line["id"], line["failure"]) == ("1", "it said ***")
    assert [entry["id"] for entry in Recall(tmp_path / "history.sqlite").newest()] == ["1"]
    (counted,) = re.findall(rb"^oxy_exchanges_total\{(.*)\} ([1-9].*)$", books.metrics.exposition(), re.MULTILINE)
    assert b'route="relay"' in counted[0]
    assert counted[1] == b"1.0"


async def test_without_a_history_there_is_none(settings_of: SettingsOf, tmp_path: Path) -> None:
    books = Books(settings_of(), [])
    books.open()
    await books.aclose()
    assert os.listdir(tmp_path) == []
