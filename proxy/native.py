"""Which compiled speed-ups are here: what is missing is done without, and nobody is told."""


def has_llhttp() -> bool:
    """Tell whether httptools is here, and new enough for both ends of our wire.

    It is tried and not only looked for: what is installed may have been compiled for another Python.
    """
    try:
        from httptools import HttpRequestParser
    except ImportError:
        return False
    return hasattr(HttpRequestParser, "set_dangerous_leniencies")
