"""HTML from the templates: the one place where text becomes HTML, so that it is escaped in one place."""

import hashlib
import html
import re
from importlib.resources import files
from string import Template

TEMPLATES = files("proxy") / "templates"  # it may lie in a zip
ASSETS = {"board.css": "text/css", "board.js": "text/javascript", "icon.svg": "image/svg+xml"}
ASSETS_AT = "/log/"
REFUSED = re.compile(r"q=0(\.0*)?")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


NOTHING = Html()


class View:
    """A template. What it is given is escaped, unless it is `Html`."""

    def __init__(self, name: str) -> None:
        self._template = Template((TEMPLATES / f"{name}.html").read_text(encoding="utf-8"))

    def __call__(self, **values: object) -> Html:
        """Return the template with these values in it."""
        safe = {name: value if isinstance(value, Html) else html.escape(str(value)) for name, value in values.items()}
        return Html(self._template.substitute(safe))


def joined(*pieces: Html) -> Html:
    """Return pieces of HTML as one."""
    return Html("".join(pieces))


def asset(name: str) -> bytes:
    """Return the content of a style sheet, a script or an icon of ours."""
    return (TEMPLATES / name).read_bytes()


def asset_url(name: str) -> str:
    """Return where a browser finds it. Another content has another URL, so that it may be kept for good."""
    return f"{ASSETS_AT}{name}?v={hashlib.sha256(asset(name)).hexdigest()[:12]}"


def asks_for_html(accept: str) -> bool:
    """Tell whether an Accept field names HTML, as a browser's does; who takes anything is none (RFC 9110 12.5.1)."""
    for choice in accept.lower().split(","):
        kind, *parameters = map(str.strip, choice.split(";"))
        if kind == "text/html":
            return not any(map(REFUSED.fullmatch, parameters))
    return False
