"""What is around each of the operator's pages, and the page that refuses."""

from proxy import __version__
from proxy.markup import NOTHING, Html, View, asset_url, joined

PAGES = {"/log": "Log", "/log_errors": "Errors", "/debug/runtime": "Runtime"}

# Nothing but what comes from here, and no script or style in the page itself (Content Security Policy Level 3).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "vary": "Accept, Authorization, Cookie",
}


class Shell:
    """Puts content into the frame that all pages share."""

    def __init__(self) -> None:
        self._frame, self._link, self._script = View("frame"), View("link"), View("script")
        self._notice, self._form, self._leave = View("notice"), View("login"), View("leave")
        self._style, self._icon = asset_url("board.css"), asset_url("icon.svg")

    def __call__(self, title: str, content: Html, *, at: str = "", script: str | None = None) -> Html:
        """Return a page. `at` is the path of it that the navigation marks as the one that is shown."""
        marks = {True: Html(' aria-current="page"'), False: NOTHING}
        links = [self._link(path=path, name=name, current=marks[path == at]) for path, name in PAGES.items()]
        return self._frame(
            title=title,
            content=content,
            links=joined(*links) if at else NOTHING,
            leave=self._leave() if at else NOTHING,
            style=self._style,
            icon=self._icon,
            script=self._script(url=asset_url(script)) if script else NOTHING,
            version=__version__,
        )

    def notice(self, title: str, text: str, *, at: str = "") -> Html:
        """Return a page that says why there is none."""
        return self(title, self._notice(title=title, text=text), at=at)

    def form(self, text: str) -> Html:
        """Return the page that asks for the token."""
        return self("Access", self._form(text=text))
