"""The command line: `oxy`, or `python -m proxy`."""

import argparse
import os
import sys
from pathlib import Path

from proxy import __version__
from proxy.check import check
from proxy.recall import NoHistory
from proxy.report import usage
from proxy.server import CannotListen, listen, local_url, serve
from proxy.settings import BadSettings, Settings, history, load

OPTIONS = {
    "host": ("OXY_HOST", "the address to listen on (default 0.0.0.0: all interfaces)"),
    "port": ("OXY_PORT", "the port to listen on (default 18443; 0: any free one)"),
    "target": ("OXY_TARGET", "where calls go (default https://api.openai.com)"),
    "tls-cert": ("PROXY_TLS_CERT", "the certificate to listen with, a PEM file (default: plain HTTP)"),
    "tls-key": ("PROXY_TLS_KEY", "its key, a PEM file without a password"),
    "workers": ("PROXY_WORKERS", "how many processes share the work (default 1)"),
}
# What is set for another upstream is none of the demo's.
OF_AN_UPSTREAM = (
    *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION", "PROXY_AZURE", "PROXY_AZURE_DEPLOYMENTS"),
    *("PROXY_UPSTREAM_AUTH", "PROXY_ENTRA_SCOPE", "OXY_HTTP2"),
    *("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the proxy; return its exit status: 0 after an ordered stop, 1 if it cannot listen, 2 for bad settings.

    With `check` before its options, look whether it would run well instead: 0 if so, 1 if not.
    """
    occupy_standard_streams()
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    try:
        if command == "usage":
            return tell_usage(rest[:-1])
        if command == "check":
            return check(rest[:-1], described(), settings_of, sys.stdout)
    except BrokenPipeError:  # its reader, such as `head`, has enough
        sys.stdout = None  # to which the interpreter would write the rest
        return 1
    options = parser().parse_args(arguments)
    try:
        settings = settings_of(options)
        sock = listen(settings.host, settings.port)
    except (BadSettings, CannotListen) as problem:
        print(f"oxy: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, BadSettings) else 1
    if options.demo:
        print(invitation(local_url(sock, tls=settings.tls_cert is not None)), flush=True)
    serve(settings, sock)
    return 0


def occupy_standard_streams() -> None:
    """Open what is closed of the descriptors 0, 1 and 2, here and in the workers.

    A socket of ours would get the number, and hear what is meant for a log; libuv aborts where it is to close one.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def tell_usage(arguments: list[str]) -> int:
    """Print who used how many tokens; return the exit status: 1 where there is no history to read."""
    try:
        print(usage(arguments, history(os.environ, Path.cwd())), flush=True)
    except (BadSettings, NoHistory) as problem:
        print(f"oxy usage: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, BadSettings) else 1
    return 0


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings with these options laid over them. Raises `BadSettings`; ends the program on a bad option."""
    if options.demo and options.target:
        parser().error("--demo brings a target of its own: leave --target out")
    given = {
        name: value for option, (name, _) in OPTIONS.items() if (value := getattr(options, option.replace("-", "_")))
    }
    if options.demo:
        return load({**os.environ, **given, **demo()}, None)
    return load({**os.environ, **given}, Path.cwd())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="oxy",
        parents=[described()],
        description="A transparent streaming reverse proxy for the OpenAI API. "
        "Settings come from the environment, .env.local and .env; options override them.",
        epilog="`oxy check` takes the same options, and looks whether all that calls depend on is well. `oxy usage` "
        "tells who used how many tokens.",
    )
    found.add_argument("--version", action="version", version=f"oxy {__version__}")
    return found


def described() -> argparse.ArgumentParser:
    """Return the options that say which settings are in force."""
    found = argparse.ArgumentParser(add_help=False)
    for option, (name, text) in OPTIONS.items():
        found.add_argument(f"--{option}", metavar=option.upper(), help=f"{text}; overrides {name}")
    found.add_argument("--demo", action="store_true", help="put the proxy before a stand-in of the API, to try it")
    return found


def demo() -> dict[str, str]:
    """Start the stand-in of the API; return the settings that put the proxy before it, in swap mode.

    Whatever the newcomer has set for other proxies, what the demo prints is to work as printed.
    """
    from proxy.demo import CLIENT_KEY, UPSTREAM_KEY, start_demo  # not loaded by those who do not ask for it

    return {
        **dict.fromkeys(OF_AN_UPSTREAM, ""),
        "OXY_TARGET": start_demo(),
        "OPENAI_API_KEY": UPSTREAM_KEY,
        "PROXY_X_API_KEY": CLIENT_KEY,
        "SECURITY_KEY": "",
        "PROXY_KEY_NAMES": "",
        "PROXY_OPEN": "",
        "PROXY_ENDPOINTS": "",
        "PROXY_HISTORY": "",  # what is said for nothing is nobody's usage
    }


def invitation(url: str) -> str:
    """Return what `--demo` prints: something to paste into another terminal."""
    from proxy.demo import CLIENT_KEY

    return f"""
The demo runs: no OpenAI key, no network, nothing is billed. In another terminal, watch words arrive one by one:

  curl -N {url}/v1/chat/completions \\
    -H "Authorization: Bearer {CLIENT_KEY}" -H "Content-Type: application/json" \\
    -d '{{"model": "gpt-4o-mini", "stream": true, "messages": [{{"role": "user", "content": "Say hello"}}]}}'

Or with an OpenAI SDK, here Python's:

  from openai import OpenAI

  client = OpenAI(base_url="{url}/v1", api_key="{CLIENT_KEY}")
  print(client.responses.create(model="gpt-4o-mini", input="Say hello").output_text)

Ctrl-C ends it.
"""


if __name__ == "__main__":
    sys.exit(main())
