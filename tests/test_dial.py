"""Reaching a host: which address is tried when, what a socket is like, whom TLS believes."""

import asyncio
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import uvloop

from proxy import dial as dialling
from proxy.dial import KEEP_ALIVE, Resuming, dial, first_of, give_up_after, in_turn, reach, resolved, unheard, unread
from proxy.pool import Pool
from tests.peers import PATIENCE, Peer, Upstream, answer
from tests.test_connection import OK, exchange, turns, until

FOUR, SIX = socket.AF_INET, socket.AF_INET6


def sockets() -> int:
    """How many sockets this process holds open, where the system tells."""
    links = (os.readlink(fd) for fd in Path("/proc/self/fd").glob("*") if fd.is_symlink())
    return sum(link.startswith("socket:") for link in links)


@pytest.fixture(autouse=True)
async def no_socket_stays_open() -> AsyncIterator[None]:
    before = sockets()
    yield
    await until(lambda: sockets() <= before)


# Addresses.


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ("", ""),
        ("4a", "4a"),
        ("4a 4b", "4a 4b"),
        ("6a 6b 4a 4b", "6a 4a 6b 4b"),
        ("4a 6a 6b 6c", "4a 6a 6b 6c"),
        ("6a 6b 6c 4a", "6a 4a 6b 6c"),
    ],
)
def test_the_families_of_addresses_take_turns(found: str, tried: str) -> None:
    infos = [(int(name[0]), 1, 6, "", (name,)) for name in found.split()]
    assert " ".join(str(info[4][0]) for info in in_turn(infos)) == tried


@contextmanager
def resolving(*ports: int) -> Iterator[None]:
    """Let the name `many.example` have one address for each of these ports, tried in this order."""
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: str, port: int, **options: int) -> list[object]:
        if host == "many.example":
            return [(FOUR, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        found: list[object] = await resolve(host, port, **options)  # type: ignore[assignment]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "getaddrinfo", getaddrinfo)
        yield


@contextmanager
def refusing() -> Iterator[int]:
    """A port that refuses: bound, but nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def hanging() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue is full."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        for filling in (first, second):
            filling.setblocking(False)
            filling.connect_ex(address)
        yield address[1]


async def reached(port: int = 1, host: str = "many.example") -> int:
    """Reach the host; return the port that answered."""
    async with asyncio.timeout(PATIENCE):
        sock = await reach(asyncio.get_running_loop(), host, port)
    with sock:
        return int(sock.getpeername()[1])


async def test_many_who_look_up_a_name_at_once_are_one_for_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, asked, answering = asyncio.get_running_loop(), [], asyncio.Event()

    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        asked.append((host, port))
        await answering.wait()
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "ask again")
        return [(FOUR, socket.SOCK_STREAM, 6, "", (f"192.0.2.{len(asked)}", port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    many = [asyncio.ensure_future(resolved(loop, "[many.example]", 1)) for _ in range(50)]
    await turns()
    many[0].cancel()  # whoever gives up leaves it to the others
    answering.set()
    heard = await asyncio.gather(*many, return_exceptions=True)
    assert [type(each) for each in heard] == [asyncio.CancelledError, *[socket.gaierror] * 49]
    again = [await resolved(loop, "[many.example]", 1) for _ in range(3)]  # no failure is good for a while
    assert {found[0][4] for found in again} == {("192.0.2.2", 1)}
    monkeypatch.setattr(dialling, "GOOD_FOR", 0)
    assert [(await resolved(loop, name, 2))[0][4] for name in ("a", "a", "b")] == [
        ("192.0.2.3", 2),
        ("192.0.2.4", 2),
        ("192.0.2.5", 2),
    ]
    assert asked == [("many.example", 1)] * 2 + [("a", 2)] * 2 + [("b", 2)]


async def test_where_the_first_address_refuses_the_next_is_tried_at_once(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "ATTEMPT_DELAY", PATIENCE)
    with refusing() as first, refusing() as second, resolving(first, second, upstream.port):
        assert await reached() == upstream.port


async def test_where_the_first_address_hangs_the_next_is_tried_beside_it(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "ATTEMPT_DELAY", 0.01)
    with hanging() as first, hanging() as second, resolving(first, second, upstream.port):
        assert await reached() == upstream.port


async def test_the_next_address_is_not_bothered_where_the_first_answers(upstream: Upstream) -> None:
    async with Upstream().listening() as second:
        with resolving(upstream.port, second.port):
            assert await reached() == upstream.port
        await turns(5)
        assert second.accepted == 0


async def test_where_all_addresses_refuse_the_reason_is_told() -> None:
    with refusing() as first, refusing() as second, resolving(first, second), pytest.raises(ConnectionRefusedError):
        await reached()


async def test_a_name_without_an_address_is_an_error() -> None:
    with resolving(), pytest.raises(OSError, match="no address for"):
        await reached()


async def test_a_name_that_does_not_resolve_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        await reached(host="name.invalid")


@pytest.mark.parametrize("host", ["127.0.0.1", "[127.0.0.1]", "localhost"])
async def test_a_host_may_stand_in_brackets(upstream: Upstream, host: str) -> None:
    assert await reached(upstream.port, host) == upstream.port


@contextmanager
def connecting(connect: Callable[[socket.socket], Awaitable[None]]) -> Iterator[list[socket.socket]]:
    """Let connecting a socket be as this says; yield the sockets."""
    socks: list[socket.socket] = []

    async def sock_connect(sock: socket.socket, _: object) -> None:
        socks.append(sock)
        await connect(sock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
        yield socks


def open_ones(socks: list[socket.socket]) -> int:
    return sum(sock.fileno() >= 0 for sock in socks)


async def test_of_two_that_answer_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "ATTEMPT_DELAY", 0.01)
    both = asyncio.Event()

    async def connect(_: socket.socket) -> None:
        if len(socks) == 2:
            both.set()
        await both.wait()

    with resolving(1, 2), connecting(connect) as socks, await reach(asyncio.get_running_loop(), "many.example", 1):
        assert (len(socks), open_ones(socks)) == (2, 1)


@pytest.mark.parametrize("problem", [None, ConnectionRefusedError()], ids=["answers", "refuses"])
async def test_an_address_that_answers_to_nobody_is_closed(problem: Exception | None) -> None:
    decided = asyncio.Event()

    async def connect(_: socket.socket) -> None:
        await decided.wait()
        if problem is not None:
            raise problem

    with resolving(1), connecting(connect) as socks:
        reaching = asyncio.create_task(reach(asyncio.get_running_loop(), "many.example", 1))
        await until(lambda: socks)
        decided.set()
        await turns(1)  # the attempt has ended, and whoever waits for it has not run yet
        reaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reaching
        assert open_ones(socks) == 0


class Kept(asyncio.Protocol):
    """Keeps its transport."""

    transport: asyncio.BaseTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


@pytest.mark.parametrize("turn", range(12))
@pytest.mark.parametrize("addresses", [1, 2])
async def test_giving_up_at_any_turn_leaves_no_socket(upstream: Upstream, turn: int, addresses: int) -> None:
    loop = asyncio.get_running_loop()
    with resolving(*[upstream.port] * addresses):
        dialled = asyncio.create_task(dial(loop, Kept, ("many.example", 1), None))
        await turns(turn)
        if not dialled.cancel():
            dialled.result().transport.close()  # it was through by then
        await asyncio.wait([dialled])


async def test_an_address_that_hangs_is_waited_for_when_it_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "ATTEMPT_DELAY", 0.01)
    with hanging() as first, refusing() as second, resolving(first, second):
        reaching = asyncio.create_task(reached())
        await asyncio.sleep(0.05)
        assert not reaching.done()
        reaching.cancel()
        await asyncio.wait([reaching])


async def test_the_only_address_is_left_to_the_loop(upstream: Upstream) -> None:
    async def connect(_: socket.socket) -> None:
        raise AssertionError("a socket of our own takes three times the work")

    with resolving(upstream.port), connecting(connect):
        kept = await dial(asyncio.get_running_loop(), Kept, ("many.example", 1), None)
    kept.transport.close()


async def test_an_address_keeps_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, scoped, tried = asyncio.get_running_loop(), ("127.0.0.1", 1, 0, 7), []

    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        return [(FOUR, socket.SOCK_STREAM, 6, "", scoped)]

    async def sock_connect(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    with pytest.raises(ConnectionRefusedError):
        await dial(loop, Kept, ("scoped.example", 1), None)
    assert tried == [scoped]


@pytest.mark.parametrize("addresses", [1, 2])
@pytest.mark.parametrize("name", ["TCP_KEEPIDLE", "no such option"])
async def test_a_socket_is_fit_for_a_relay(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, name: str, addresses: int
) -> None:
    monkeypatch.setattr(dialling, "KEEP_ALIVE", (*KEEP_ALIVE, (name, 60)))
    with await reach(asyncio.get_running_loop(), "127.0.0.1", upstream.port) as sock:
        assert not sock.getblocking()
    with resolving(*[upstream.port] * addresses):
        kept = await dial(asyncio.get_running_loop(), Kept, ("many.example", 1), None)
    sock = kept.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if hasattr(socket, "TCP_KEEPIDLE"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    kept.transport.close()


# TLS.


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """An authority of our own, and a server that it vouches for as `localhost` and `127.0.0.1`."""

    file: Path
    server: Path

    def context(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """What a server is made with."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(self.server)
        return context

    def trusted(self) -> ssl.SSLContext:
        """What a client is made with."""
        return Resuming.of(ssl.create_default_context(cafile=self.file))


def found(folder: Path) -> Authority:
    """Make an authority with the `openssl` command in this folder; skip the test where there is none."""
    asked = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    lasting = ["-days", "36500", "-config", "/dev/null"]
    ca = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Authority of a test"]
    signing = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    server = ["-keyout", "server.pem", "-out", "server.crt", "-subj", "/CN=Server", "-CA", "ca.pem", "-CAkey", "ca.key"]
    names = [
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]
    try:
        for command in ([*asked, *lasting, *ca, *signing], [*asked, *lasting, *server, *names]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no openssl command that makes certificates")
    both = folder / "both.pem"
    both.write_text((folder / "server.pem").read_text() + (folder / "server.crt").read_text())
    return Authority(file=folder / "ca.pem", server=both)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return found(tmp_path_factory.mktemp("authority"))


class Secure:
    """An upstream that speaks TLS, and what its clients' handshakes were like."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.names: list[str | None] = []
        self.resumed: list[bool] = []
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.said = answer()
        context.sni_callback = lambda _, name, __: self.names.append(name)

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1") -> AsyncIterator["Secure"]:
        server = await asyncio.start_server(self._serve, host, 0, ssl=self.context)
        self.host = host
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.resumed.append(writer.get_extra_info("ssl_object").session_reused)
        peer = Peer(reader, writer)
        self.peers.put_nowait(peer)
        try:
            while self.said:
                await peer.hear()
                await peer.say(self.said)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


each_version = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@asynccontextmanager
async def trusting(authority: Authority, port: int, host: str = "localhost") -> AsyncIterator[Pool]:
    pool = Pool(host, port, tls=authority.trusted())
    try:
        yield pool
    finally:
        await pool.aclose()


@each_version
async def test_a_connection_tells_by_tls_which_host_it_wants(authority: Authority, version: ssl.TLSVersion) -> None:
    async with Secure(authority.context(version)).listening() as upstream, trusting(authority, upstream.port) as pool:
        for _ in range(3):
            assert (await exchange(pool))[0] == 200
        assert upstream.names == ["localhost"]


@pytest.mark.parametrize(("host", "at"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
async def test_an_address_is_a_name_too_but_is_not_told(authority: Authority, host: str, at: str) -> None:
    async with Secure(authority.context()).listening(at) as upstream:
        async with trusting(authority, upstream.port, host) as pool:
            assert (await exchange(pool))[0] == 200
        assert upstream.names == [None]  # RFC 6066 3


async def test_a_server_that_nobody_vouches_for_is_not_believed(authority: Authority) -> None:
    async with Secure(authority.context()).listening() as upstream:
        pool = Pool("localhost", upstream.port, tls=Resuming.of(ssl.create_default_context()))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await exchange(pool)
        assert repr(pool) == "<Pool 0 busy, 0 idle, 0 dialling, 0 waiting>"


async def test_a_server_of_another_name_is_not_believed(authority: Authority) -> None:
    async with Secure(authority.context()).listening("127.0.0.2") as upstream:
        pool = Pool("127.0.0.2", upstream.port, tls=authority.trusted())
        with pytest.raises(httpx.ConnectError, match="IP address mismatch"):
            await exchange(pool)


async def test_a_server_that_does_not_speak_tls_is_a_connect_error(authority: Authority, upstream: Upstream) -> None:
    async with trusting(authority, upstream.port) as pool:
        asking = asyncio.create_task(exchange(pool))
        await (await upstream.accept()).say(answer())
        with pytest.raises(httpx.ConnectError, match="SSL"):
            await asking


async def test_a_server_that_is_silent_in_the_handshake_is_a_connect_timeout(
    authority: Authority, upstream: Upstream
) -> None:
    async with trusting(authority, upstream.port) as pool:
        with pytest.raises(httpx.ConnectTimeout):
            await exchange(pool, connect=0.05)
        await (await upstream.accept()).closed()


@pytest.mark.parametrize("turn", range(0, 40, 3))
async def test_giving_up_in_the_handshake_leaves_no_socket(authority: Authority, turn: int) -> None:
    async with Secure(authority.context()).listening() as upstream, trusting(authority, upstream.port) as pool:
        asking = asyncio.create_task(exchange(pool))
        await turns(turn)
        asking.cancel()
        await asyncio.wait([asking])
        assert (await exchange(pool))[0] == 200


@pytest.mark.parametrize("make_loop", [uvloop.new_event_loop, asyncio.SelectorEventLoop])
def test_a_reset_in_the_handshake_leaves_no_number_to_be_closed_twice(
    make_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    socks: list[socket.socket] = []

    async def reaching(*to: Any) -> socket.socket:
        socks.append(await first_of(*to))
        return socks[-1]

    async def resetting() -> None:
        async with Upstream().listening() as upstream:
            address = ("127.0.0.1", upstream.port)
            dialled = asyncio.create_task(dial(asyncio.get_running_loop(), Kept, address, ssl.create_default_context()))
            (await upstream.accept()).abort()
            with pytest.raises(ConnectionError):
                await dialled
            await turns()
            assert [sock.fileno() for sock in socks] == [-1]

    monkeypatch.setattr(dialling, "first_of", reaching)
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(resetting())


@pytest.mark.parametrize("make_loop", [uvloop.new_event_loop, asyncio.SelectorEventLoop])
def test_giving_up_a_handshake_leaves_no_socket_whichever_loop_it_is(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def giving_up() -> None:
        before = sockets()
        async with Upstream().listening() as upstream:
            address = ("127.0.0.1", upstream.port)
            dialled = asyncio.create_task(dial(asyncio.get_running_loop(), Kept, address, ssl.create_default_context()))
            there = await upstream.accept()
            dialled.cancel()
            await asyncio.wait([dialled])
            await there.closed()
        await until(lambda: sockets() <= before)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(giving_up(), PATIENCE))


@each_version
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["our end closes", "their end closes"])
async def test_a_second_connection_resumes_the_session_of_the_first(
    authority: Authority, version: ssl.TLSVersion, closing: bytes
) -> None:
    tls = authority.trusted()
    async with Secure(authority.context(version)).listening() as upstream:
        upstream.said = OK + closing + b"Content-Length: 2\r\n\r\nhi"
        for host in ("localhost", "localhost", "127.0.0.1", "localhost", "127.0.0.1"):
            pool = Pool(host, upstream.port, tls=tls)
            assert (await exchange(pool))[2] == b"hi"
            await pool.aclose()
        assert upstream.resumed == [False, True, False, True, True]  # none for another name


@each_version
async def test_a_handshake_that_failed_does_not_lose_the_session(
    authority: Authority, upstream: Upstream, version: ssl.TLSVersion
) -> None:
    tls = authority.trusted()
    async with Secure(authority.context(version)).listening() as secure:
        for port in (secure.port, upstream.port, upstream.port, secure.port):
            pool = Pool("localhost", port, tls=tls)
            asking = asyncio.create_task(exchange(pool))
            if port == upstream.port:
                (await upstream.accept()).abort()
            await asyncio.wait([asking])
            assert (asking.exception() is None) is (port == secure.port)
            await pool.aclose()
        assert secure.resumed == [False, True]


async def test_many_connections_at_once_resume_what_there_was(authority: Authority) -> None:
    async with Secure(authority.context()).listening() as upstream, trusting(authority, upstream.port) as pool:
        upstream.said = OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi"
        await exchange(pool)
        for _ in range(2):
            await asyncio.gather(*[exchange(pool) for _ in range(8)])
        assert upstream.resumed == [False] + [True] * 16


async def test_an_answer_until_close_that_tls_did_not_end_is_not_whole(authority: Authority) -> None:
    # RFC 9112 9.8: anyone on the way can cut a connection; only close_notify comes from the server.
    async with Secure(authority.context()).listening() as upstream, trusting(authority, upstream.port) as pool:
        upstream.said = b""
        for ending, whole in ((Peer.close, True), (cut, False)):
            asking = asyncio.create_task(exchange(pool))
            there = await upstream.peers.get()
            await there.hear()
            await there.say(OK + b"\r\nhello")
            await ending(there)
            if whole:
                assert (await asking)[2] == b"hello"
            else:
                with pytest.raises(httpx.RemoteProtocolError):
                    await asking


async def cut(peer: Peer) -> None:
    """End a connection below its TLS."""
    sock: socket.socket = peer.writer.get_extra_info("socket")
    with socket.socket(fileno=sock.fileno()) as same:
        same.shutdown(socket.SHUT_WR)
        same.detach()


async def test_closing_a_pool_closes_what_speaks_tls(authority: Authority) -> None:
    async with Secure(authority.context()).listening() as upstream, trusting(authority, upstream.port) as pool:
        await asyncio.gather(*[exchange(pool) for _ in range(3)])
        assert repr(pool) == "<Pool 0 busy, 3 idle, 0 dialling, 0 waiting>"
        await pool.aclose()
        assert repr(pool) == "<Pool 0 busy, 0 idle, 0 dialling, 0 waiting>"


async def test_a_connection_closed_by_tls_while_idle_is_not_used(authority: Authority) -> None:
    async with Secure(authority.context()).listening() as upstream, trusting(authority, upstream.port) as pool:
        await exchange(pool)
        await (await upstream.peers.get()).close()
        await until(lambda: repr(pool) == "<Pool 0 busy, 0 idle, 0 dialling, 0 waiting>")
        assert (await exchange(pool, "POST"))[0] == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
@pytest.mark.parametrize(("seconds", "kept"), [(0.5, 500), (2**31 / 1000, 2**31 - 1), (1e300, 2**31 - 1)])
def test_patience_has_the_bound_that_the_system_gives_it(seconds: float, kept: int) -> None:
    with socket.socket() as sock:
        give_up_after(sock, seconds)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == kept


def test_a_system_that_cannot_be_told_when_to_give_up_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    with socket.socket() as sock:
        give_up_after(sock, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_who_acknowledges_is_heard_also_while_it_reads_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        listener.accept()[0],
    ):
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.send(bytes(65536))
        assert unheard(sock) == 0


@pytest.mark.parametrize(
    ("retransmits", "probes", "last_ack_recv", "seconds"),
    [(6, 0, 61_000, 61.0), (0, 6, 61_000, 61.0), (5, 5, 61_000, 0.0), (0, 0, 0, 0.0)],
)
def test_for_how_long_nothing_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch, retransmits: int, probes: int, last_ack_recv: int, seconds: float
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(socket, "TCP_INFO", 11, raising=False)
    info = struct.pack("=8B13I", 1, 0, retransmits, probes, *[0] * 4, *[9] * 12, last_ack_recv)
    assert unheard(cast(socket.socket, SimpleNamespace(getsockopt=lambda *_: info))) == seconds
    assert unheard(None) == 0


async def test_what_of_the_other_end_is_not_read_and_whether_it_has_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        look = unread(sock)
        with listener.accept()[0] as there:
            assert look() == ""
            there.send(b"a word")
            await asyncio.sleep(0.01)
            assert look() == "some"
        await asyncio.sleep(0.01)
        assert look() == "all"
    assert unread(None)() == ""
