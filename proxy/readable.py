"""Numbers as people read them. What is not known is a dash."""

UNKNOWN = "\N{EN DASH}"


def count(value: float | None) -> str:
    """Return a number with at most three digits, or four and more up to ten thousand, and a unit."""
    if value is None:
        return UNKNOWN
    if value < 10_000:
        return f"{value:,.0f}"
    for unit in ("k", "M", "G"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value:,.0f} G"


def span(seconds: float | None) -> str:
    """Return a time: `12 ms`, `1.23 s`, `2 min 5 s`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(value: float) -> str:
    """Return a number of bytes: `12 B`, `1.2 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def share(part: float, whole: float) -> str:
    """Return a part of a whole in per cent."""
    return f"{part / whole:.1%}" if whole else UNKNOWN
