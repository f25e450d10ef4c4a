"""How many files, sockets among them, a process may have open at once."""


def allow(needed: int) -> int:
    """Let this process, and those that it starts, have so many open; return how many of them it may have.

    That is fewer where the hard limit, which is not ours to raise, is lower.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # a sandbox, or macOS, which has a bound of its own beside that one
        return soft
    return most
