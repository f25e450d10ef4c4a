"""How an operator's text becomes a value: one function for each kind. Each raises `ValueError` in the operator's words,
and never quotes the text, which may be a secret in the wrong place.
"""

import ipaddress
import math
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from proxy import native

MEGABYTE = 1024 * 1024
MOST_WORKERS = 256  # more than any machine has processors for; a mistyped number is not to start processes for ever
DEFAULT_PORTS = {"http": 80, "https": 443}
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# RFC 5280 4.1.2.5: when a certificate begins and ends, each as a UTCTime or a GeneralizedTime.
VALIDITY = re.compile(rb"\x30[\x1e-\x22](\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)")

Forwarded = Literal["drop", "append", "pass"]
LogFormat = Literal["json", "text"]
Transport = Literal["auto", "fast", "httpx"]
Azure = Literal["off", "v1", "deployments"]
UpstreamAuth = Literal["auto", "bearer", "api-key", "entra"]
Word = TypeVar("Word", bound=str)
# Resources of Azure, in its clouds. They take a key as `api-key`.
AZURE_HOSTS = tuple(
    f".{service}.azure.{cloud}"
    for service in ("openai", "cognitiveservices", "services.ai")
    for cloud in ("com", "us", "cn")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where calls go: `scheme://host[:port]` and the path that stands before every request's own.

    `host` is as it goes into a URL (IPv6 in brackets), `path` has no trailing slash ("" for none).
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """The value of the `Host` field: no port where it is the scheme's own."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"

    @property
    def is_azure(self) -> bool:
        """Whether it is a resource of Azure."""
        return self.host.lower().removesuffix(".").endswith(AZURE_HOSTS)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def target(text: str) -> Target:
    """Read a target such as `https://api.openai.com` or `http://[::1]:9000/v1`."""
    try:
        parts = urlsplit(text)
        given_port = parts.port
    except ValueError:
        raise ValueError("not a URL: write https://host, https://host:port or https://host/path") from None
    _only_what_a_target_has(parts, text)
    host = parts.hostname or ""
    return Target(
        scheme=parts.scheme,
        host=f"[{host}]" if ":" in host else _ascii_host(host),
        port=given_port or DEFAULT_PORTS[parts.scheme],
        path=parts.path.rstrip("/"),
    )


def _only_what_a_target_has(parts: SplitResult, text: str) -> None:
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("not an address to call: write https://host, https://host:port or https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a user name or password: put the key into OPENAI_API_KEY instead")
    if parts.port == 0:
        raise ValueError("port 0 is none to call")
    if "?" in text or "#" in text:
        raise ValueError("it holds a query or fragment: only scheme, host, port and path belong here")
    if not re.fullmatch(r"[!-~]*", parts.path):
        raise ValueError("its path holds a space or a character beyond ASCII: write those percent-encoded")


def _ascii_host(host: str) -> str:
    try:
        ascii_host = host.encode("idna").decode("ascii")
        if re.fullmatch(r"[0-9.]+", ascii_host):
            ipaddress.IPv4Address(ascii_host)
    except ValueError:
        raise ValueError("its host name is not one") from None
    if not re.fullmatch(r"[A-Za-z0-9._-]+", ascii_host):
        raise ValueError("its host name is not one")
    return ascii_host


def address(text: str) -> str:
    """Read an address to listen on: a host name, IPv4, or IPv6 with or without its brackets."""
    host = text.removeprefix("[").removesuffix("]")
    if ":" not in host:
        return _ascii_host(host)
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ValueError("not an address to listen on (a port belongs into OXY_PORT)") from None


def port(text: str) -> int:
    """Read a port number; 0 lets the system choose a free one."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError("not a port: write a number from 0 to 65535")
    return int(text)


def at_least_one(text: str, most: int = 999_999_999) -> int:
    """Read a whole number above zero, of at most nine digits: what is counted with it stays within 64 bits."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ValueError(f"write a whole number from 1 to {most}")
    return int(text)


def megabytes(text: str) -> int:
    """Read a size in megabytes; return bytes."""
    return at_least_one(text) * MEGABYTE


def milliseconds(text: str) -> float:
    """Read a time in milliseconds; return seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ValueError("write a number of milliseconds above 0")
    return value / 1000


def switch(text: str) -> bool:
    """Read a yes or no."""
    meanings = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if (word := text.lower()) in meanings:
        return meanings[word]
    raise ValueError("write 1 or 0")


def key(text: str) -> str:
    """Read something that is to stand in a header: printable ASCII without spaces."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("it holds a space or a character that cannot stand in a header")
    return text


def listed(text: str) -> tuple[str, ...]:
    """Read a list separated by commas. One of commas alone is an error: as no list it would let everyone in."""
    if items := tuple(item for piece in text.split(",") if (item := piece.strip())):
        return items
    raise ValueError("it lists nothing")


def names(text: str) -> tuple[str, ...]:
    """Read names separated by commas, such as log and tables show them."""
    found = listed(text)
    if not all(re.fullmatch(r"[\w.@-]{1,40}", item, re.ASCII) for item in found):
        raise ValueError("a name is made of letters from a to z, digits and any of .@_-, 40 at most")
    if len({*found}) < len(found):
        raise ValueError("a name is there twice")
    return found


def patterns(text: str) -> tuple[str, ...]:
    """Read path patterns separated by commas."""
    found = listed(text)
    if not all(item.startswith("/") for item in found):
        raise ValueError("a pattern begins with a slash, as in /v1/images/*")
    if not all(re.fullmatch(r"[!-~]+", item) for item in found):
        raise ValueError("a path holds no space and no character beyond ASCII: write those percent-encoded")
    return found


def prefixes(text: str) -> tuple[str, ...]:
    """Read how names of headers begin, separated by commas: by RFC 9110 5.6.2 they are tokens."""
    found = listed(text)
    if not all(re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", item, re.ASCII) for item in found):
        raise ValueError("no header's name begins so: write X-Internal-, several separated by commas")
    return found


def origins(text: str) -> tuple[str, ...]:
    """Read the origins of web pages separated by commas, and return them as browsers send them (RFC 6454 6.1)."""
    return tuple(item if item in ("*", "null") else _origin(item) for item in listed(text))


def _origin(text: str) -> str:
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?/?", text.lower())
    if found is None:
        raise ValueError("an origin is scheme and host, and a port if it has one, as in https://app.example.com")
    scheme, host, given_port = found.groups()
    own = given_port is None or int(given_port) == DEFAULT_PORTS.get(scheme)
    return f"{scheme}://{host}" if own else f"{scheme}://{host}:{given_port}"


def forwarded(text: str) -> Forwarded:
    """Read what becomes of the headers that name the client's address."""
    return _one_of(text, "drop", "append", "pass")


def transport(text: str) -> Transport:
    """Read which way calls take upstream."""
    way: Transport = _one_of(text, "auto", "fast", "httpx")
    if way == "fast" and not native.has_llhttp():
        raise ValueError("fast takes one more package: pip install httptools")
    return way


def log_format(text: str) -> LogFormat:
    """Read how an exchange is written down."""
    return _one_of(text, "json", "text")


def azure(text: str) -> Azure:
    """Read whether, and in which style, OpenAI's paths become Azure's."""
    return _one_of(text, "off", "v1", "deployments")


def upstream_auth(text: str) -> UpstreamAuth:
    """Read how the upstream is shown its key."""
    auth: UpstreamAuth = _one_of(text, "auto", "bearer", "api-key", "entra")
    if auth == "entra" and (find_spec("azure") is None or find_spec("azure.identity") is None):
        raise ValueError("entra takes one more package: pip install azure-identity")
    return auth


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read pairs such as `gpt-4o=prod-4o,o3=reasoner`."""
    found = tuple(tuple(part.strip() for part in item.partition("=")[::2]) for item in listed(text))
    if not all(name and value for name, value in found):
        raise ValueError("write model=deployment, several separated by commas")
    if len({name for name, _ in found}) < len(found):
        raise ValueError("a model is there twice")
    return found  # type: ignore[return-value]  # two of them


def readable(text: str) -> Path:
    """Read the path of a file that is there to be read."""
    try:
        with Path(text).open("rb"):
            return Path(text)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "it is no path"
        raise ValueError(f"the file cannot be read: {reason.lower()}") from None


def certificate(text: str) -> Path:
    """Read the path of a certificate that is in force; those that vouch for it may follow it in the file."""
    path = readable(text)
    pem = PEM.search(path.read_text("latin-1"))
    try:
        validity = VALIDITY.search(ssl.PEM_cert_to_DER_cert(pem[0])) if pem else None
    except ValueError:
        validity = None
    if validity is None:
        raise ValueError("there is no certificate in PEM form in the file")
    begins, ends = (_moment(time) for time in validity.groups())
    if not begins <= datetime.now(UTC) <= ends:
        raise ValueError(f"the certificate is in force from {begins.date()} to {ends.date()}, and not today")
    return path


def _one_of(text: str, *words: Word) -> Word:
    for word in words:
        if text.lower() == word:
            return word
    raise ValueError(f"write {', '.join(words[:-1])} or {words[-1]}")


def _moment(time: bytes) -> datetime:
    digits = time[2:-1].decode()
    if len(digits) == 12:  # RFC 5280 4.1.2.5.1: two digits of the year
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits + "+0000", "%Y%m%d%H%M%S%z")


def belong_together(certificate: Path, key: Path) -> bool:
    """Tell whether a key is that of a certificate, and can be read without a password."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return False
    return True


def _no_password() -> str:
    raise ValueError("a service has nobody to ask for one")


def authorities(text: str) -> Path:
    """Read the path of a file of authorities to believe."""
    path = readable(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError("there is no certificate in PEM form in the file") from None
    return path


def outbound_proxy(text: str) -> str:
    """Read the address of a proxy that stands between here and the target; it may hold a user name and password."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        scheme = parts.scheme if host and parts.port != 0 else ""
    except ValueError:
        host = scheme = ""
    if scheme not in PROXY_SCHEMES:
        raise ValueError("not a proxy: write http://host:port, https://host:port or socks5://host:port")
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise ValueError("a SOCKS proxy takes one more package: pip install socksio")
    if ":" not in host:
        _ascii_host(host)
    return text


def networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Read what in a list, separated by commas, is a network such as 10.0.0.0/8, or an address; others may be names."""
    found = []
    for item in text.split(","):
        with suppress(ValueError):
            found.append(ipaddress.ip_network(item.strip(), strict=False))
    return found


def http2(text: str) -> bool:
    """Read whether HTTP/2 is to be spoken to the upstream."""
    wanted = switch(text)
    if wanted and find_spec("h2") is None:
        raise ValueError("HTTP/2 takes one more package: pip install h2")
    return wanted
