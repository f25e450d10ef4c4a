"""The operator's pages in a real browser: Chromium, if this machine has one. `make browser` runs these alone.

Whatever a page does besides, each of these tests fails if it complains in the console or asks another host.
"""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Route, async_playwright, expect

from proxy import board
from proxy.settings import load
from tests.conftest import desk_of
from tests.desk import TOKEN, Desk
from tests.test_board import HOSTILE
from tests.test_history import written

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 10_000  # milliseconds
# Chromium says of every error status that a resource failed to load; that of the form is meant.
MEANT = "Failed to load resource: the server responded with a status of 403 (Forbidden)"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)"),
    pytest.mark.asyncio(loop_scope="module"),
]

Open = Callable[..., Awaitable[Page]]

# What is said of each text that is hard to read: WCAG 2.2, 1.4.3.
FAINT = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (value) => value <= 10.3 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parts(color).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!says || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(paper(element))].sort((a, b) => b - a);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faint.push(`${element.tagName}.${element.className} ${contrast.toFixed(2)}`);
  }
  return faint;
}"""

# Fields without a label, columns without a scope, pictures without a text.
NAMELESS = """() => [
  ...[...document.querySelectorAll("input:not([hidden]), select, button")]
    .filter((field) => !(field.labels?.length || field.textContent.trim() || field.ariaLabel)),
  ...document.querySelectorAll("th:not([scope]), svg:not([aria-label]), img:not([alt])"),
].map((element) => element.outerHTML)"""


TUNED = "ft:gpt-4o-mini-2024-07-18:acme::9xYzAb"
FITS = "document.documentElement.scrollWidth <= innerWidth"
# Figures that reach beyond their card.
BEYOND = """() => [...document.querySelectorAll(".card dt, .card dd, .card small, .card td")].filter((element) => {
  const words = document.createRange();
  words.selectNodeContents(element);
  return words.getBoundingClientRect().right > element.closest(".card").getBoundingClientRect().right;
}).map((element) => element.textContent)"""

# An event of the page's stream, once the page has heard it.
NEXT = "(kind) => new Promise((heard) => source.addEventListener(kind, () => heard(), {once: true}))"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests: to start it takes longer than any of them."""
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # it refuses to run as root otherwise
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    """The operator's pages, in the browser's loop and in a hurry."""
    monkeypatch.setattr(board, "TURN", 0.05)
    monkeypatch.setattr(board, "OVERVIEW_LIFE", 0.05)
    async with desk_of(load({"ACCESS_TOKEN": TOKEN}, None), tmp_path / "history.sqlite") as desk:
        yield desk


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(desk: Desk, browser: Browser) -> AsyncIterator[Open]:
    """Open a page in a window of its own, where nobody has logged in yet."""
    complaints: list[str] = []
    asked: set[str] = set()
    windows: list[BrowserContext] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and message.text != MEANT:
            complaints.append(message.text)

    async def open_page(path: str, *, let_in: bool = True, **facts: Any) -> Page:
        windows.append(await browser.new_context(**facts))
        windows[-1].set_default_timeout(PATIENCE)
        page = await windows[-1].new_page()
        page.on("console", hear)
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.on("request", lambda request: asked.add(request.url))
        token = f"{'&' if '?' in path else '?'}access_token={TOKEN}" if let_in else ""
        await page.goto(f"{desk.proxy.url}{path}{token}")
        return page

    yield open_page
    for window in windows:
        await window.close()
    assert not complaints
    assert all(url.startswith(f"{desk.proxy.url}/") for url in asked), asked


def paths(page: Page) -> Any:
    return page.locator("#entries .path")


async def test_the_token_is_taken_once_by_a_form(desk: Desk, open_page: Open) -> None:
    page = await open_page("/log_errors?status=5xx", let_in=False)
    await expect(page.get_by_label("Access token")).to_be_focused()
    await page.keyboard.type("wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("This is not the ACCESS_TOKEN of the proxy.")
    await page.get_by_label("Access token").fill(TOKEN)
    await page.get_by_role("button", name="Open").click()
    await expect(page).to_have_url(f"{desk.proxy.url}/log_errors?status=5xx")
    for name, heading in (("Log", "Newest entries"), ("Runtime", "Settings"), ("Errors", "Newest entries")):
        await page.get_by_role("link", name=name, exact=True).click()
        await expect(page.get_by_role("heading", name=heading)).to_be_visible()
    kept = await page.context.cookies()
    assert {cookie["path"] for cookie in kept} == {"/log", "/log_errors", "/debug/runtime", "/metrics", "/health2"}
    assert all(cookie["httpOnly"] and cookie["sameSite"] == "Strict" for cookie in kept)
    assert await page.evaluate("document.cookie") == ""


async def test_whoever_leaves_by_the_keyboard_is_asked_for_the_token_again(desk: Desk, open_page: Open) -> None:
    page = await open_page("/log?status=5xx")
    await expect(page.get_by_role("status")).to_have_text("Live")
    for _ in range(6):  # behind the link to the content, the name and three pages
        await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Log out")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("This page wants the ACCESS_TOKEN of the proxy.")
    await expect(page.get_by_role("button", name="Log out")).to_have_count(0)
    assert await page.context.cookies() == []
    await page.get_by_label("Access token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{desk.proxy.url}/log?status=5xx")
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()


async def test_entries_and_totals_appear_as_they_come_unless_paused(desk: Desk, open_page: Open) -> None:
    desk.history.write([written(path="/v1/first")])
    page = await open_page("/log")
    await expect(page.get_by_role("status")).to_have_text("Live")
    await expect(paths(page)).to_have_text(["/v1/first"])
    desk.history.write([written(path="/v1/second", status=500, result="upstream_api_error")])
    await expect(paths(page)).to_have_text(["/v1/second", "/v1/first"])
    await expect(page.locator("dt:text-is('Requests') + dd")).to_contain_text("2")

    pause = page.get_by_role("button", name="Pause")
    await pause.focus()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("status")).to_have_text("Paused")
    await expect(pause).to_have_attribute("aria-pressed", "true")
    desk.history.write([written(path="/v1/third")])
    other = await open_page("/log")
    await expect(paths(other)).to_have_count(3)
    await expect(paths(page)).to_have_count(2)
    await pause.click()
    await expect(paths(page)).to_have_text(["/v1/third", "/v1/second", "/v1/first"])


async def test_a_page_says_that_the_history_fails_for_as_long_as_it_does(desk: Desk, open_page: Open) -> None:
    desk.history.write([written()])
    page = await open_page("/log")
    await expect(page.get_by_role("status")).to_have_text("Live")
    away = desk.file.rename(desk.file.with_name("away"))
    await expect(page.get_by_role("status")).to_contain_text("cannot be read")
    await expect(page.locator("dt:text-is('Requests') + dd")).to_contain_text("1")
    away.rename(desk.file)
    await expect(page.get_by_role("status")).to_have_text("Live")


async def test_a_page_asks_again_where_it_hears_nothing_or_is_refused(
    desk: Desk, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = await open_page("/log", let_in=False)
    await page.clock.install()
    await page.goto(f"{desk.proxy.url}/log?access_token={TOKEN}")
    status = page.get_by_role("status")
    await expect(status).to_have_text("Live")
    monkeypatch.setattr(board, "TURN", PATIENCE)  # as if it had gone without a word
    await page.wait_for_timeout(200)
    await page.route("**/live*", lambda route: route.fulfill(status=403))  # as a server in front would
    await page.clock.fast_forward(46_000)
    await expect(status).to_contain_text("Not live: trying again")
    monkeypatch.setattr(board, "TURN", 0.05)
    desk.history.write([written(path="/v1/new")])
    await page.unroute("**/live*")
    stuck: list[Route] = []

    async def hold_the_first(route: Route) -> None:
        if stuck:
            await route.continue_()
        stuck.append(route)

    await page.route("**/live*", hold_the_first)
    await page.clock.fast_forward(21_000)
    await expect(status).to_have_text("Connecting")
    await page.clock.fast_forward(46_000)
    await expect(paths(page)).to_have_text(["/v1/new"])
    await expect(page.get_by_text("Nothing yet")).to_have_count(0)
    await expect(status).to_have_text("Live")


async def test_a_page_that_hears_how_it_is_asks_once_and_never_while_it_pauses(
    desk: Desk, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "SILENCE", 1)
    page = await open_page("/log", let_in=False)
    await page.clock.install()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/live?" in request.url else None)
    await page.goto(f"{desk.proxy.url}/log?access_token={TOKEN}")
    await expect(page.get_by_role("status")).to_have_text("Live")
    for _ in range(3):
        await page.clock.fast_forward(40_000)
        await page.evaluate(NEXT, "alive")
    desk.file.rename(desk.file.with_name("away"))
    for _ in range(3):
        await expect(page.get_by_role("status")).to_contain_text("cannot be read")
        await page.clock.fast_forward(40_000)
        await page.evaluate(NEXT, "trouble")
    await page.get_by_role("button", name="Pause").click()
    await page.clock.fast_forward(120_000)
    await expect(page.get_by_role("status")).to_have_text("Paused")
    assert len(asked) == 1


async def test_an_entry_that_is_open_stays_where_it_is(desk: Desk, open_page: Open) -> None:
    desk.history.write([written(path="/v1/first")])
    page = await open_page("/log")
    status = page.get_by_role("status")
    await expect(status).to_have_text("Live")
    await page.locator("summary").click()
    desk.history.write([written(path="/v1/second")])
    await expect(status).to_have_text("Live; new entries wait while one is open")
    await expect(page.locator("dt:text-is('Requests') + dd")).to_contain_text("2")
    desk.history.write([written(path="/v1/third")])
    await expect(page.locator("dt:text-is('Requests') + dd")).to_contain_text("3")
    await expect(paths(page)).to_have_text(["/v1/first"])
    await page.locator("summary").click()
    await expect(paths(page)).to_have_text(["/v1/third", "/v1/second", "/v1/first"])
    await expect(status).to_have_text("Live")
    desk.history.write([written(path="/v1/fourth")])
    await expect(page.locator("dt:text-is('Requests') + dd")).to_contain_text("4")
    await page.wait_for_timeout(200)  # in which it would come once more, were it asked for twice
    await expect(paths(page)).to_have_text(["/v1/fourth", "/v1/third", "/v1/second", "/v1/first"])


async def test_an_entry_that_is_closed_while_the_page_pauses_lets_nothing_in(desk: Desk, open_page: Open) -> None:
    desk.history.write([written(path="/v1/first")])
    page = await open_page("/log")
    status, pause = page.get_by_role("status"), page.get_by_role("button", name="Pause")
    await expect(status).to_have_text("Live")
    await page.locator("summary").click()
    desk.history.write([written(path="/v1/second")])
    await expect(status).to_have_text("Live; new entries wait while one is open")
    await pause.click()
    await page.locator("summary").click()
    await page.wait_for_timeout(200)
    await expect(status).to_have_text("Paused")
    await expect(paths(page)).to_have_text(["/v1/first"])
    await pause.click()
    await expect(paths(page)).to_have_text(["/v1/second", "/v1/first"])


async def test_the_form_filters_and_what_comes_is_filtered_too(desk: Desk, open_page: Open) -> None:
    desk.history.write([written(path="/v1/a", model="m-1"), written(path="/v1/b", model="m-2", route="openai")])
    page = await open_page("/log")
    await page.get_by_label("Route").select_option("openai")
    await page.get_by_label("Model").fill("m-2")
    await page.keyboard.press("Enter")
    await expect(paths(page)).to_have_text(["/v1/b"])
    await expect(page.get_by_role("status")).to_have_text("Live")
    desk.history.write([written(path="/v1/c", model="m-1"), written(path="/v1/d", model="m-2", route="openai")])
    await expect(paths(page)).to_have_text(["/v1/d", "/v1/b"])
    await page.get_by_role("link", name="Reset").click()
    await expect(paths(page)).to_have_count(4)


async def test_the_key_is_a_column_and_a_filter_once_there_is_one(desk: Desk, open_page: Open) -> None:
    desk.history.write([written(path="/v1/a")])
    page = await open_page("/log")
    await expect(page.get_by_role("status")).to_have_text("Live")
    column = page.get_by_role("columnheader", name="Key")
    await expect(column).to_be_hidden()
    await expect(page.get_by_label("Key")).to_have_count(0)
    desk.history.write(
        [written(path="/v1/b", key="alice", model=TUNED, result="client_cancelled"), written(path="/v1/c", key="bob")]
    )
    await expect(column).to_be_visible()
    await page.reload()
    await page.get_by_label("Key").select_option("alice")
    await page.get_by_label("Result").select_option("client_cancelled")
    await page.get_by_role("button", name="Filter").click()
    await expect(paths(page)).to_have_text(["/v1/b"])
    await expect(page.locator("dt:text-is('Requests') + dd")).to_contain_text("1")
    await expect(page.locator(".note")).to_contain_text("Totals and charts: only result client_cancelled, key alice.")
    await page.set_viewport_size({"width": 390, "height": 800})
    await expect(page.get_by_role("cell", name="alice")).to_be_visible()
    model = await page.get_by_role("cell", name=TUNED).bounding_box()
    assert model is not None
    assert model["height"] < 30, "it has the line to itself"
    assert await page.evaluate(FITS)


async def test_a_page_keeps_two_hundred_rows(desk: Desk, open_page: Open) -> None:
    desk.history.write([written() for _ in range(199)])
    page = await open_page("/log")
    await expect(page.get_by_role("status")).to_have_text("Live")
    desk.history.write([written(path=f"/v1/{number}") for number in range(3)])
    await expect(paths(page).first).to_have_text("/v1/2")
    await expect(paths(page)).to_have_count(200)


async def test_nothing_in_an_entry_runs_or_breaks_the_page(desk: Desk, open_page: Open) -> None:
    hostile = {"path": f"/{HOSTILE}" + "A" * 1_000_000, "model": HOSTILE, "failure": HOSTILE, "detail": HOSTILE}
    desk.history.write([written(**hostile, status=502, result="upstream_transport")])
    page = await open_page("/log", viewport={"width": 390, "height": 800})
    dialogs: list[object] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog))
    desk.history.write([written(**hostile, status=502, result="upstream_transport")])
    await expect(paths(page)).to_have_count(2)
    await page.locator("summary").first.click()
    assert await page.locator("script").count() == 1
    assert await page.evaluate(FITS)
    assert not dialogs


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_can_be_read_and_named_on_every_screen(desk: Desk, open_page: Open, scheme: str) -> None:
    statuses = (200, 304, 404, 503, 499)
    desk.history.write([written(status=status, failure="why", model="text-embedding-3-small") for status in statuses])
    page = await open_page("/log", let_in=False, color_scheme=scheme)  # a window for each takes longer than all else
    for path in ("", f"/log?access_token={TOKEN}", f"/debug/runtime?access_token={TOKEN}"):
        if path:
            await page.goto(f"{desk.proxy.url}{path}")
        for width in (360, 1280):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate(FAINT) == []
            assert await page.evaluate(NAMELESS) == []
            assert await page.evaluate(FITS)
        await page.keyboard.press("Tab")
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "where the focus is does not show"


async def test_large_figures_stay_in_their_cards_on_the_narrowest_screen(desk: Desk, open_page: Open) -> None:
    tokens = dict.fromkeys(("input", "cached", "output", "reasoning", "total"), 123_456_789)
    large = {"duration": 3599.4, "first_byte": 3598.7, "bytes_in": 999 * 10**9, "bytes_out": 999 * 10**9}
    desk.history.write([written(**large, usage=tokens), written(duration=16.4, result="upstream_transport")])
    page = await open_page("/log", viewport={"width": 320, "height": 800})
    for path in ("/log", "/log_errors", "/debug/runtime"):
        await page.goto(f"{desk.proxy.url}{path}")
        assert await page.evaluate(FITS)
        assert await page.evaluate(BEYOND) == []


async def test_forced_colours_leave_what_only_a_colour_says(desk: Desk, open_page: Open) -> None:
    page = await open_page("/log", forced_colors="active")
    marked = "[...document.querySelectorAll('nav a')].filter((a) => getComputedStyle(a).borderBottomWidth !== '0px')"
    assert await page.evaluate(f"{marked}.map((a) => a.textContent)") == ["Log"]
    key = "getComputedStyle(document.querySelector('.key.b'), '::before').backgroundColor"
    assert await page.evaluate(f"{key} !== {key.replace('.b', '.a', 1)}")


async def test_paper_is_light_on_every_screen(desk: Desk, open_page: Open) -> None:
    page = await open_page("/log", color_scheme="dark", reduced_motion="reduce")
    await page.emulate_media(media="print", color_scheme="dark")
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 248)"
    assert await page.evaluate(FAINT) == []


async def test_a_page_is_whole_without_its_script(desk: Desk, open_page: Open) -> None:
    desk.history.write([written(path="/v1/a", model="m-1"), written(path="/v1/b", model="m-2")])
    page = await open_page("/log", java_script_enabled=False)
    await page.get_by_label("Model").fill("m-2")
    await page.get_by_role("button", name="Filter").click()
    await expect(paths(page)).to_have_text(["/v1/b"])
    await expect(page.get_by_role("button", name="Pause")).to_be_hidden()
