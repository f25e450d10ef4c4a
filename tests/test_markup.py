"""Text becomes HTML in one place, and is escaped there."""

import re
from pathlib import Path

import pytest

from proxy.markup import ASSETS, Html, View, asks_for_html, asset, asset_url, joined

TEMPLATES = Path(__file__).parent.parent / "proxy" / "templates"


def test_what_a_template_is_given_is_escaped() -> None:
    shown = View("fact")(name="<script>alert(1)</script>", value="\"'&$name")
    assert shown == (
        '<tr><th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;</th><td>&quot;&#x27;&amp;$name</td></tr>'
    )


def test_what_is_html_already_is_left_as_it_is() -> None:
    assert View("script")(url=Html("<b>")) == '<script src="<b>" defer></script>'
    assert joined(Html("<a>"), Html("<b>")) == "<a><b>"
    assert type(joined()) is Html


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.stem)
def test_no_template_has_a_script_a_style_or_a_handler_in_it(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    assert not re.search(r"<script(?! src=)|\son\w+=|\sstyle=|javascript:", text)
    assert "<style>" not in text or template.name == "welcome.html"
    assert not re.search(r"(src|href|action)=\S?https?:", text), "something comes from another host"
    assert not re.search(r"=\$", text), "an attribute without quotation marks"


@pytest.mark.parametrize("name", ASSETS)
def test_a_file_asks_no_other_host_and_its_address_changes_with_it(name: str) -> None:
    text = asset(name).decode()
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert re.fullmatch(rf"/log/{re.escape(name)}\?v=[0-9a-f]{{12}}", asset_url(name))
    assert len({asset_url(name) for name in ASSETS}) == len(ASSETS)


@pytest.mark.parametrize(
    ("accept", "asked_for"),
    [
        ("text/html", True),
        ("application/json, Text/HTML;charset=utf-8;Q=0.1", True),
        ("text/html;q=0", False),
        ("text/html ; level=1 ; q=0.000, */*", False),
        ("text/html-sandboxed, x/text/html", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_html_is_asked_for_by_its_name(accept: str, asked_for: bool) -> None:
    assert asks_for_html(accept) is asked_for
