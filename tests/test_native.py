"""Compiled speed-ups are used where they are whole and new enough, and else done without."""

import sys
from types import ModuleType

import pytest

from proxy.native import has_llhttp
from proxy.settings import BadSettings
from tests.conftest import SettingsOf


def test_httptools_is_here_and_taken(settings_of: SettingsOf) -> None:
    assert has_llhttp()
    assert settings_of().way == "fast"


@pytest.fixture(params=["missing", "without its compiled part", "too old"])
def unusable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("httptools")
    if request.param == "too old":
        vars(module)["HttpRequestParser"] = object
    monkeypatch.setitem(sys.modules, "httptools", None if request.param == "missing" else module)


@pytest.mark.usefixtures("unusable")
def test_an_httptools_that_cannot_be_used_is_done_without(settings_of: SettingsOf) -> None:
    assert not has_llhttp()
    assert settings_of().way == "httpx"


@pytest.mark.usefixtures("unusable")
def test_our_own_transport_cannot_be_asked_for_without_it(settings_of: SettingsOf) -> None:
    with pytest.raises(BadSettings, match="OXY_TRANSPORT: fast takes one more package: pip install httptools"):
        settings_of(OXY_TRANSPORT="fast")
