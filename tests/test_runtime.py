"""What /debug/runtime shows of the settings: all of them, and nothing that is secret."""

import json
import time
from dataclasses import fields

import pytest
from starlette.requests import Request

from proxy import __version__
from proxy.readable import span
from proxy.runtime import Runtime, effective, versions
from proxy.settings import Settings
from proxy.shell import Shell
from tests.conftest import SettingsOf

SECRETS = {
    "OPENAI_API_KEY": "sk-planted-1",
    "PROXY_X_API_KEY": "planted-2,planted-3",
    "ACCESS_TOKEN": "planted-4",
    "HTTPS_PROXY": "http://me:planted-5@proxy.example:3128",
}


def test_every_setting_is_shown_as_it_is_in_force(settings_of: SettingsOf) -> None:
    chosen = effective(settings_of(OXY_HOP_HEADER_PREFIX="X-A-,X-B-", PROXY_KEEP_ALIVE_MS="1500", OXY_PORT="9000"))
    assert chosen.keys() == {field.name for field in fields(Settings)}
    assert chosen["target"] == "https://api.openai.com"
    assert chosen["hop_header_prefixes"] == "X-A-, X-B-"
    assert chosen["keep_alive"] == "1.5 s"
    assert chosen["port"] == "9000"
    assert chosen["endpoints"] == chosen["history"] == chosen["openai_api_key"] == chosen["client_keys"] == "unset"


def test_of_a_secret_only_that_it_is_set_is_shown(settings_of: SettingsOf) -> None:
    chosen = effective(settings_of(**SECRETS))
    assert "planted" not in str(chosen)
    assert chosen["openai_api_key"] == chosen["access_token"] == chosen["outbound_proxy"] == "set, not shown"
    assert chosen["client_keys"] == "2 set, not shown"


def test_a_secret_is_in_no_repr_and_so_on_no_page(settings_of: SettingsOf) -> None:
    assert all(secret not in repr(settings_of(**SECRETS)) for secret in settings_of(**SECRETS).secrets)


def test_versions_are_those_of_what_runs() -> None:
    found = versions()
    assert found["oxy"] == __version__
    assert {"python", "openssl", "sqlite", "starlette", "uvicorn"} <= found.keys()
    assert all(found.values())


async def test_the_uptime_is_that_of_the_process_whatever_becomes_of_the_clock(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(settings_of(), Shell())
    runtime._began -= 7200
    asks = Request({"type": "http", "headers": [(b"accept", b"application/json")]})
    for seconds in (-3600, 3600):
        now = time.time() + seconds
        with monkeypatch.context() as set_anew:
            set_anew.setattr(time, "time", lambda now=now: now)
            facts = json.loads(bytes((await runtime.page(asks)).body))
        assert facts["process"]["uptime"] == span(7200)
