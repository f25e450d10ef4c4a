"""`oxy check`: looks at all that calls depend on before there are any, and says line by line what to do."""

import argparse
import asyncio
import http.client
import json
import os
import ssl
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from proxy import __version__, values
from proxy.access import Access
from proxy.probes import MODELS, Place, Step
from proxy.recall import NoHistory, Recall
from proxy.redaction import Redaction
from proxy.server import ALL_INTERFACES, CannotListen, listen, local_url, serving
from proxy.settings import BadSettings, Settings
from proxy.values import Target
from proxy.verdicts import Trouble

BOUND = 20.0  # seconds for everything
SILENCE = 5  # seconds of it, where no other number is asked for
DEMO_MODEL = "gpt-4o-mini"
NOT_KEPT = "Until that is mended, calls go on, but log pages and `oxy usage` know nothing of them."
TAKEN = "The demo has to take its place: stop it for a moment, or, without --through, name another port with --port."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, at which place, and what to do about it. `ok` is None where it was not tried."""

    place: str = ""
    check: str
    ok: bool | None
    said: str
    advice: str = ""
    seconds: float = 0.0


class Report:
    """What was found: told to people as it is found, or as JSON at the end. No secret gets out of it."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._marks = marks(stream)
        self._place = ""
        self.findings: list[Finding] = []
        self.redact = Redaction()  # until the secrets are known

    def tell(self, finding: Finding) -> None:
        """Take a finding."""
        finding = replace(finding, said=self.redact(finding.said), advice=self.redact(finding.advice))
        self.findings.append(finding)
        if self._as_json:
            return
        if finding.place != self._place:
            self._place = finding.place
            print(f"{finding.place}:", file=self._stream)
        print(f"  {self._marks[finding.ok]} {finding.check:<9}{finding.said}", file=self._stream, flush=True)
        if finding.advice:
            margin = " " * 13
            print(
                textwrap.fill(finding.advice, 110, initial_indent=margin, subsequent_indent=margin), file=self._stream
            )

    def close(self) -> int:
        """End it; return the exit status: 0 where nothing is wrong, else 1."""
        ok = all(finding.ok for finding in self.findings)
        if self._as_json:
            findings = [asdict(finding) for finding in self.findings]
            told = json.dumps({"ok": ok, "version": __version__, "findings": findings}, indent=2)
            print(told, file=self._stream, flush=True)
        return 0 if ok else 1


def check(arguments: list[str], described: argparse.ArgumentParser, read: "Read", stream: TextIO) -> int:
    """Print what was found to `stream`; return the exit status.

    `described` is the parser of the options that say which settings are in force, and `read` reads those.
    """
    options = parser(described).parse_args(arguments)
    if bool(options.model) != options.stream or (options.idle and not options.demo):
        parser(described).error("--stream and --model go together, and --idle goes with --demo")
    report = Report(stream, as_json=options.json)
    asyncio.run(look(options, read, report))
    return report.close()


def parser(described: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of what follows `oxy check`."""
    parser = argparse.ArgumentParser(
        prog="oxy check",
        parents=[described],
        description="Look at settings, history, port, DNS, TCP, TLS, key and streaming, and say what to do where "
        "something is wrong. It takes 20 seconds at most, and costs nothing unless --stream is given. Exit status 0: "
        "all is well.",
    )
    parser.add_argument(
        "--through",
        type=through,
        metavar="URL",
        help="look as well at what stands before the proxy, as clients call it",
    )
    parser.add_argument("--stream", action="store_true", help="ask for a short stream (BILLED: a few tokens)")
    parser.add_argument("--model", help="of that stream")
    parser.add_argument(
        "--idle", type=seconds, metavar="SECONDS", help=f"with --demo: how long a stream is silent (default {SILENCE})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


Read = Callable[[argparse.Namespace], Settings]


async def look(options: argparse.Namespace, read: Read, report: Report) -> None:
    """Look at everything, in an order in which each thing needs those before it."""
    try:
        settings = read(options)
    except BadSettings as problem:
        *complaints, last = map(str.strip, str(problem).splitlines()[1:])
        for complaint in complaints:
            report.tell(Finding(check="settings", ok=False, said=complaint))
        report.tell(Finding(check="settings", ok=False, said=last, advice="The README's table has each setting."))
        return
    report.redact = Redaction(settings.secrets)
    report.tell(Finding(check="settings", ok=True, said=f"mode {settings.mode}, target {settings.target}"))
    for note in settings.notes:
        report.tell(Finding(check="settings", ok=False, said=note, advice="It is not read. Correct or remove it."))
    if settings.history is not None:
        report.tell(kept(settings.history))
    idle = options.idle or SILENCE
    give_up = asyncio.get_running_loop().time() + BOUND + max(0, idle - SILENCE)
    with port(settings, report, options) as served:
        for place, streams in places(settings, options, served):
            model = (options.model or DEMO_MODEL) if streams else None
            steps = place.steps(stream=model, silence=idle if streams and options.demo else None)
            try:
                await take(steps, str(place.target), report, give_up)
            finally:
                await place.aclose()


def kept(path: Path) -> Finding:
    """See whether the history can go on, or be begun, where it is to be; nothing is written there."""
    folder = path.absolute().parent
    try:
        there = path.exists()
        if path.is_dir() or not folder.is_dir():
            raise NoHistory(f"{path} is a folder" if path.is_dir() else f"there is no folder {folder}")
        if there and path.stat().st_size:
            Recall(path).latest()
        for place in (folder, path) if there else (folder,):
            if not os.access(place, os.W_OK):
                raise NoHistory(f"this user may not write to {place}")
    except (NoHistory, OSError) as problem:
        return Finding(check="history", ok=False, said=str(problem), advice=NOT_KEPT)
    return Finding(check="history", ok=True, said=f"{path} {'goes on' if there else 'can be begun'}")


async def take(steps: Iterator[Step], place: str, report: Report, give_up: float) -> None:
    """Take one step after the other, up to the first one that fails and is needed for the others."""
    loop = asyncio.get_running_loop()
    stopped = False
    for step in steps:
        if stopped:
            report.tell(Finding(place=place, check=step.name, ok=None, said="not tried"))
            continue
        began, advice = loop.time(), ""
        try:
            async with asyncio.timeout_at(min(began + step.patience, give_up)):
                said = await step.look()
        except TimeoutError:
            said = f"nothing for {loop.time() - began:.1f} s"
            advice = "A firewall that drops what it does not like answers so; so does a server that hangs."
        except Trouble as trouble:
            said, advice = str(trouble), trouble.advice
        stopped = step.needed and bool(advice)
        took = round(loop.time() - began, 3)
        report.tell(Finding(place=place, check=step.name, ok=not advice, said=said, advice=advice, seconds=took))


def places(settings: Settings, options: argparse.Namespace, served: str | None) -> Iterator[tuple[Place, bool]]:
    """Yield where to look, and whether a stream is to be asked for there: at the last place, for it may be billed."""
    front: Target | None = options.through
    if not options.demo:
        yield at_target(settings), options.stream and front is None
    elif served is None:
        return  # what answers there is not the demo, and knows nothing of its keys
    else:
        front = front or values.target(served)
    if front is not None:
        yield at_front(settings, front), options.stream or options.demo


def at_target(settings: Settings) -> Place:
    """Return the target, with the key that calls show there."""
    signed = settings.mode in ("swap", "open")
    return Place(
        settings,
        Access(settings).signature([]),
        key="OPENAI_API_KEY",
        signed=signed,
        ours=False,
        models=models(settings),
    )


def at_front(settings: Settings, front: Target) -> Place:
    """Return what clients call, with the key that they show."""
    credentials = [(b"x-api-key", key.encode()) for key in settings.client_keys[:1]]
    signed = settings.mode in ("swap", "open")
    return Place(
        Settings(target=front, upstream_ca=settings.upstream_ca),
        credentials,
        key="PROXY_X_API_KEY",
        signed=signed,
        ours=True,
        models=models(settings),
    )


def models(settings: Settings) -> bytes:
    """Return the path at which a client finds the list of models."""
    azure_s_own = settings.target.is_azure and settings.azure == "off" and not settings.target.path
    return b"/openai/v1/models" if azure_s_own else MODELS


@contextmanager
def port(settings: Settings, report: Report, options: argparse.Namespace) -> Iterator[str | None]:
    """See whether the port is free; with the demo, serve there inside, and yield the URL."""
    where = f"port {settings.port} on {settings.host}"
    try:
        sock = listen(settings.host, settings.port)
    except CannotListen as problem:
        version = running(settings)
        if version is None:
            report.tell(Finding(check="port", ok=False, said=f"{where} is not to be had", advice=f"{problem}."))
        elif options.demo:
            said = f"an Oxy {version} serves on {where}, so that nothing was tried"
            report.tell(Finding(check="port", ok=False, said=said, advice=TAKEN))
        else:
            report.tell(Finding(check="port", ok=True, said=f"an Oxy {version} serves on {where}"))
        yield None
        return
    with sock:
        report.tell(Finding(check="port", ok=True, said=f"{where} is free"))
        if not options.demo:
            yield None
            return
        if options.through is None:  # nobody but us asks, by an address that no certificate is for
            settings = replace(settings, tls_cert=None, tls_key=None)
        with serving(settings, sock):
            yield local_url(sock)


def running(settings: Settings) -> str | None:
    """Return the version of the Oxy that listens where this one is to listen, None where there is none."""
    host = ALL_INTERFACES.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    if settings.tls_cert is not None:
        # No certificate is for the address that we ask by, and nothing is shown there.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, settings.port, timeout=2, context=context)
    try:
        connection.request("GET", "/health")
        told = json.loads(connection.getresponse().read(4096))
        return str(told["version"]) if told["status"] in ("ok", "draining") else None
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
    finally:
        connection.close()


def through(text: str) -> Target:
    """Read the URL of what stands before the proxy."""
    try:
        return values.target(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def seconds(text: str) -> int:
    """Read for how long to be silent; the demo knows no longer pause."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 999:
        raise argparse.ArgumentTypeError("write a whole number of seconds, from 1 to 999")
    return int(text)


def marks(stream: TextIO) -> dict[bool | None, str]:
    """Return what stands before a line: a tick, a cross, or what a stream has in their place."""
    found = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "-"}
    try:
        "".join(found.values()).encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return {True: "+", False: "x", None: "-"}
    return found
