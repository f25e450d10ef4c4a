"""Reaching a host: its addresses tried in turn (RFC 8305), a socket fit for a relay, TLS on top where asked for."""

import asyncio
import itertools
import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from proxy.fresh import Fresh

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
P = TypeVar("P", bound=asyncio.Protocol)
Lookups = dict[tuple[str, int], Fresh[list[AddressInfo]]]

# RFC 8305 5, 8: how long, in seconds, an address is tried alone before the next one is tried beside it.
ATTEMPT_DELAY = 0.25
# A connection that is silent for minutes while a model thinks is cut by middle boxes. (A system may lack some of them.)
KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 4))


GOOD_FOR = 1.0  # seconds: whoever connects to a host meanwhile takes the addresses that were found for another
LONGEST = 2**31 - 1  # milliseconds; what an option of a socket takes
INFO = struct.Struct("=8B13I")  # the beginning of Linux's tcp_info
MANY = 6  # tries without an answer take 12 s at least; before that, it may be silent since nobody said anything

_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, Lookups] = (
    WeakKeyDictionary()
)  # by the host, of which there are few


class Dial(Protocol):
    """A way to a host, as `dial`."""

    async def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], P],
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
        /,
    ) -> P: ...


async def dial(
    loop: asyncio.AbstractEventLoop, factory: Callable[[], P], address: tuple[str, int], tls: ssl.SSLContext | None
) -> P:
    """Connect to (host, port) and return the protocol that `factory` made. Raises `OSError`, TLS's included."""
    host, port = address
    found = await resolved(loop, host, port)
    if len(found) == 1 and tls is None and not any(found[0][4][2:]):  # the last: a scope, which IPv6 may need
        return await straight(loop, factory, found[0])
    return await over(loop, factory, await first_of(loop, host, found), host, tls)


async def over(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], P],
    sock: socket.socket,
    host: str,
    tls: ssl.SSLContext | None,
) -> P:
    """Return the protocol that `factory` made, over a socket that is connected to the host; it is closed on failure."""
    try:
        _, protocol = await loop.create_connection(
            factory, sock=sock, ssl=tls, server_hostname=host.strip("[]") if tls else None
        )
    except BaseException:
        # By now the loop has closed the socket, or is about to. Where TLS is reset before it has begun, uvloop does not
        # tell the object, which would close that number once more: by then it may be another connection's.
        if not isinstance(loop, asyncio.BaseEventLoop):
            sock.detach()
        raise
    return protocol


async def straight(loop: asyncio.AbstractEventLoop, factory: Callable[[], P], info: AddressInfo) -> P:
    """Connect to the one address that there is: with uvloop a third of the work of a socket of our own."""
    host, port, *_ = cast(tuple[str, int], info[4])
    transport, protocol = await loop.create_connection(factory, host, port)
    prepare(transport.get_extra_info("socket"))
    return protocol


async def reach(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Return a socket connected to the first address of the host that answers. Raises `OSError` if none does."""
    return await first_of(loop, host, await resolved(loop, host, port))


async def resolved(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[AddressInfo]:
    """Return the addresses of a host, be it a name or an address, that in brackets or not. Raises `OSError`.

    Many who ask at once are one for the resolver: the loop has four threads for it, in which they would queue. But
    nobody joins a lookup that takes long already: a question of the resolver's may have been lost.
    """
    lookups = _lookups.setdefault(loop, {})
    if (host, port) not in lookups:
        lookups[host, port] = Fresh(partial(_look_up, host.strip("[]"), port), GOOD_FOR, patience=GOOD_FOR)
    return await lookups[host, port]()


async def _look_up(host: str, port: int) -> list[AddressInfo]:
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]


async def first_of(loop: asyncio.AbstractEventLoop, host: str, found: list[AddressInfo]) -> socket.socket:
    """Return a socket connected to the first of these addresses that answers. Raises `OSError` if none does."""
    untried = in_turn(found)
    trying: set[asyncio.Task[socket.socket]] = set()
    problem: BaseException = OSError(f"no address for {host}")
    try:
        while untried or trying:
            if untried:
                trying.add(loop.create_task(_connect(loop, untried.pop(0))))
            delay = ATTEMPT_DELAY if untried else None
            done, trying = await asyncio.wait(trying, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            reached = [attempt.result() for attempt in done if attempt.exception() is None]
            for late in reached[1:]:
                late.close()
            if reached:
                return reached[0]
            problem = next((failed for attempt in done if (failed := attempt.exception())), problem)
        raise problem
    finally:
        for attempt in trying:
            if not attempt.cancel() and attempt.exception() is None:
                attempt.result().close()


def in_turn(found: Iterable[AddressInfo]) -> list[AddressInfo]:
    """Return the addresses with their families taking turns, the resolver's first choice first (RFC 8305 4)."""
    families: dict[int, list[AddressInfo]] = {}
    for info in found:
        families.setdefault(info[0], []).append(info)
    return [info for turn in itertools.zip_longest(*families.values()) for info in turn if info is not None]


async def _connect(loop: asyncio.AbstractEventLoop, info: AddressInfo) -> socket.socket:
    family, kind, protocol, _, address = info
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        prepare(sock)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket) -> None:
    """Make a socket fit for a relay: no waiting for more to send, and a sign of life now and then."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def give_up_after(sock: socket.socket, seconds: float) -> None:
    """Give a connection up when the other end has read or acknowledged nothing for so long (RFC 5482)."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(min(seconds * 1000, LONGEST)))


def unread(sock: socket.socket | None) -> Callable[[], Literal["", "some", "all"]]:
    """Return what tells whether something of the other end is here that was not read, or all that it will ever say.

    An upstream that refuses an upload may close at once, which resets the connection. Whoever writes then meets the
    reset before what the upstream had said, which is lost with it.
    """
    if sock is None or not hasattr(select, "poll"):  # Windows has none
        return lambda: ""
    poll = select.poll()
    closed = getattr(select, "POLLRDHUP", 0)  # Linux's
    poll.register(sock, select.POLLIN | closed)

    def look() -> Literal["", "some", "all"]:
        events = poll.poll(0)
        if not events:
            return ""
        return "all" if events[0][1] & (closed | select.POLLHUP | select.POLLERR) else "some"

    return look


def unheard(sock: socket.socket | None) -> float:
    """Return for how many seconds nothing that was sent has been acknowledged; 0 where all was, and but on Linux.

    One that does not read acknowledges all the same. By itself Linux gives up after a quarter of an hour, and signs of
    life are no help: they are not asked for while something is under way.
    """
    if sock is None or sys.platform != "linux":
        return 0.0
    info = INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO.size))
    retransmits, probes, last_ack_recv = info[2], info[3], info[20]
    return last_ack_recv / 1000 if max(retransmits, probes) >= MANY else 0.0


class Resuming(ssl.SSLContext):
    """A client's context that offers each host the newest session had with it: half the work of a handshake is saved.

    TLS 1.3 hands a session's ticket over after the handshake, beside the first answer. So the session is asked for only
    when the next connection is made.
    """

    _newest: dict[object, tuple[ssl.SSLObject, ssl.SSLSession | None]]

    @classmethod
    def of(cls, context: ssl.SSLContext) -> ssl.SSLContext:
        """Return that same context, made one of these."""
        context.__class__ = cls
        cast(Resuming, context)._newest = {}
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Return the TLS of a new connection. A session goes to the very name that its certificate was checked for."""
        if (last := self._newest.get(server_hostname)) is not None:
            newest, session = last
            had = newest.session if newest.version() else None  # in a handshake it cannot be asked for
            if had is not None and (had.has_ticket or had.id):
                session = had
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        self._newest[server_hostname] = made, session
        return made
