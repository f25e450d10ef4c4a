"""`/debug/runtime`: the settings in force, less what is secret in them, the versions of what runs, and for how long."""

import os
import platform
import sqlite3
import ssl
import sys
import time
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from proxy import __version__
from proxy.markup import Html, View, joined
from proxy.readable import span
from proxy.settings import Settings
from proxy.shell import Shell

PACKAGES = ("httptools", "httpx", "prometheus_client", "starlette", "uvicorn", "uvloop")
SECRET, NOT_SET = "set, not shown", "unset"


class Runtime:
    """Shows this process: its settings, its versions, itself."""

    def __init__(self, settings: Settings, shell: Shell) -> None:
        self._shell = shell
        self._settings = {"mode": settings.mode, "way": settings.way, **effective(settings)}
        self._versions = versions()
        self._started = datetime.now(UTC)
        self._began = time.monotonic()  # the clock may be set anew meanwhile
        self._page, self._section, self._fact = View("runtime"), View("facts"), View("fact")

    async def page(self, request: Request) -> Response:
        """Return the page, or the same as JSON for who asks for that."""
        facts = {"process": self._process(), "settings": self._settings, "versions": self._versions}
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(facts)
        sections = joined(*(self._show(name.capitalize(), values) for name, values in facts.items()))
        return HTMLResponse(self._shell("Runtime", self._page(sections=sections), at="/debug/runtime"))

    def _process(self) -> dict[str, str]:
        return {
            "uptime": span(time.monotonic() - self._began),
            "started": self._started.isoformat(timespec="seconds"),
            "process": str(os.getpid()),
        }

    def _show(self, title: str, values: dict[str, str]) -> Html:
        return self._section(title=title, facts=joined(*(self._fact(name=n, value=v) for n, v in values.items())))


def effective(settings: Settings) -> dict[str, str]:
    """Return the settings by their names in the code. Of those that are in no `repr`, only whether they are set."""
    chosen = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        chosen[field.name] = _told(value) if field.repr else _masked(value)
    return chosen


def _masked(value: Any) -> str:
    if not value:
        return NOT_SET
    return f"{len(value)} {SECRET}" if isinstance(value, tuple) else SECRET


def _told(value: Any) -> str:
    if value is None or value == ():
        return NOT_SET
    if isinstance(value, float):  # a time
        return f"{value:g} s"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@cache
def versions() -> dict[str, str]:
    """Return the versions of what this process is made of."""
    return {
        "oxy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "openssl": ssl.OPENSSL_VERSION,
        "sqlite": sqlite3.sqlite_version,
        **{package: version(package) for package in PACKAGES if package in sys.modules},
    }
