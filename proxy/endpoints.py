"""Which paths are relayed, where the operator chose to list them."""

import re
from urllib.parse import unquote_to_bytes

MANY_DECODINGS = 8  # a path that is still percent-encoded after these is refused like one with dot segments


class Endpoints:
    """The list of `PROXY_ENDPOINTS`: path patterns in which `*` stands for any run of characters. Empty: all paths.

    Paths are compared as they were sent, without decoding: an encoded spelling of a listed path is not on the list.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._listed = re.compile("|".join(map(spelled, patterns)).encode(), re.DOTALL) if patterns else None

    def include(self, path: bytes) -> bool:
        """Tell whether this path (no query) may be relayed.

        One with a fragment may not (RFC 9112 3.2.1 has none): some servers cut it off, which leaves another path.
        """
        if self._listed is None:
            return True
        return self._listed.fullmatch(path) is not None and b"#" not in path and not has_dot_segments(path)


def spelled(pattern: str) -> str:
    """Return a pattern as a regular expression that never goes back over a path: the first place that fits will do."""
    beginning, *rest = map(re.escape, pattern.split("*"))
    if not rest:
        return beginning
    *between, end = rest
    return "".join([beginning, *(f"(?>.*?{part})" for part in between), ".*", end])


def has_dot_segments(path: bytes) -> bool:
    """Tell whether an upstream could read `.` or `..` segments in the path, plain, encoded or encoded again.

    Such a path may mean another one than the pattern it matches (RFC 3986 5.2.4).
    """
    for _ in range(MANY_DECODINGS):
        segments = re.split(rb"[/\\]", path)
        # Some servers cut `;parameters` from a segment before they resolve it.
        if any(segment.partition(b";")[0] in (b".", b"..") for segment in segments):
            return True
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return False
        path = decoded
    return True
