"""Settings: where each comes from, what each may be, and all that is wrong with them said at once."""

import itertools
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.settings import BadSettings, Settings, load
from proxy.values import Target, target
from tests.conftest import SettingsOf

OPENAI = Target(scheme="https", host="api.openai.com", port=443)
SECRET = "sk-planted"
LISTENER = str(Path(__file__).with_name("listener.pem"))  # a certificate for localhost and its key
AUTHORITY = str(Path(__file__).with_name("authority.pem"))
EXAMPLE = Path(__file__).parent.parent / ".env.example"

CLIENT: dict[str, str] = {"SECURITY_KEY": "client"}
DEPLOYMENTS = {"PROXY_AZURE": "deployments", "OPENAI_API_VERSION": "1"}
# What a setting cannot stand without.
BESIDE = {
    "PROXY_KEY_NAMES": {"PROXY_X_API_KEY": "one", "SECURITY_KEY": "two"},
    "OPENAI_API_KEY": CLIENT,
    "AZURE_OPENAI_API_KEY": CLIENT,
    "PROXY_AZURE_DEPLOYMENTS": DEPLOYMENTS,
    "PROXY_TLS_CERT": {"PROXY_TLS_KEY": LISTENER},
    "PROXY_TLS_KEY": {"PROXY_TLS_CERT": LISTENER},
}

# One value for each setting there is, other than its default, and what becomes of it.
TAKEN: list[tuple[str, str, str, Any]] = [
    ("OXY_TARGET", "http://a.example", "target", Target(scheme="http", host="a.example", port=80)),
    (
        "OPENAI_BASE_URL",
        "https://b.example/v1",
        "target",
        Target(scheme="https", host="b.example", port=443, path="/v1"),
    ),
    ("OXY_HOST", "127.0.0.1", "host", "127.0.0.1"),
    ("OXY_PORT", "9000", "port", 9000),
    ("PROXY_WORKERS", "4", "workers", 4),
    ("OXY_HOP_HEADER_PREFIX", "X-Int-, CF-", "hop_header_prefixes", ("X-Int-", "CF-")),
    ("OPENAI_API_KEY", "sk-1", "openai_api_key", "sk-1"),
    ("OPENAI_PROJECT_KEY", "proj_1", "openai_project", "proj_1"),
    ("OPENAI_ORGANIZATION", "org-1", "openai_organization", "org-1"),
    ("PROXY_X_API_KEY", "one,two words,ü", "client_keys", ("one", "two words", "ü")),
    ("SECURITY_KEY", "three", "client_keys", ("three",)),
    ("PROXY_KEY_NAMES", "alice, b.ob", "key_names", ("alice", "b.ob")),
    ("PROXY_OPEN", "1", "open", True),
    ("PROXY_ENDPOINTS", "/v1/responses,/v1/images/*", "endpoints", ("/v1/responses", "/v1/images/*")),
    ("PROXY_FORWARDED", "append", "forwarded", "append"),
    ("PROXY_CORS_ORIGINS", "https://a.example", "cors_origins", ("https://a.example",)),
    ("OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS", "1500", "connect_timeout", 1.5),
    ("OPENAI_PROXY_UPSTREAM_TIMEOUT_MS", "1000", "upstream_timeout", 1.0),
    ("OPENAI_PROXY_UPSTREAM_MAX_TIMEOUT_MS", "1000000", "upstream_max_timeout", 1000.0),
    ("DEFAULT_MODEL", "gpt-5", "default_model", "gpt-5"),
    ("PROXY_MAX_BODY_MB", "5", "max_body", 5 * 2**20),
    ("PROXY_KEEP_ALIVE_MS", "0.5", "keep_alive", 0.0005),
    ("PROXY_HEAD_TIMEOUT_MS", "500", "head_timeout", 0.5),
    ("PROXY_CLIENT_TIMEOUT_MS", "60000", "client_timeout", 60.0),
    ("OPENAI_PROXY_MAX_PARALLEL_REQUESTS", "5", "max_parallel", 5),
    ("PROXY_SHUTDOWN_GRACE_MS", "1e3", "shutdown_grace", 1.0),
    ("PROXY_SERVER_TIMING", "1", "server_timing", True),
    ("PROXY_INCLUDE_USAGE", "1", "include_usage", True),
    ("PROXY_TLS_CERT", LISTENER, "tls_cert", Path(LISTENER)),
    ("PROXY_TLS_KEY", LISTENER, "tls_key", Path(LISTENER)),
    ("PROXY_UPSTREAM_CA", AUTHORITY, "upstream_ca", Path(AUTHORITY)),
    ("PROXY_LOG_FORMAT", "Text", "log_format", "text"),
    ("PROXY_HISTORY", "/var/lib/oxy/history.sqlite", "history", Path("/var/lib/oxy/history.sqlite")),
    ("PROXY_HISTORY_DAYS", "7", "history_days", 7),
    ("PROXY_WEBSOCKETS", "off", "websockets", False),
    ("PROXY_WEBSOCKET_MAX_MB", "1", "websocket_max", 1024 * 1024),
    ("ACCESS_TOKEN", "letmein", "access_token", "letmein"),
    ("OXY_TRANSPORT", "HTTPX", "transport", "httpx"),
    ("OXY_HTTP2", "1", "http2", True),
    ("AZURE_OPENAI_ENDPOINT", "https://c.example/", "target", Target(scheme="https", host="c.example", port=443)),
    ("AZURE_OPENAI_API_KEY", "azure-1", "openai_api_key", "azure-1"),
    ("PROXY_UPSTREAM_AUTH", "API-Key", "upstream_auth", "api-key"),
    ("PROXY_AZURE", "V1", "azure", "v1"),
    ("OPENAI_API_VERSION", "2024-10-21", "azure_version", "2024-10-21"),
    ("PROXY_AZURE_DEPLOYMENTS", "gpt-4o = prod, a=b=c,", "azure_deployments", (("gpt-4o", "prod"), ("a", "b=c"))),
    ("PROXY_ENTRA_SCOPE", "https://a.example/.default", "entra_scope", "https://a.example/.default"),
    ("HTTPS_PROXY", "http://proxy.example:3128", "outbound_proxy", "http://proxy.example:3128"),
    ("ALL_PROXY", "https://u:p@proxy.example", "outbound_proxy", "https://u:p@proxy.example"),
]

NO_WORKERS = "write a whole number from 1 to 256"
NO_NUMBER = "write a whole number from 1 to 999999999"
NO_PORT = "not a port: write a number from 0 to 65535"
NO_TIME = "write a number of milliseconds above 0"
NO_KEY = "it holds a space or a character that cannot stand in a header"
NO_HOST = "its host name is not one"
NO_ADDRESS = "not an address to listen on (a port belongs into OXY_PORT)"
NO_PAIR = "write model=deployment, several separated by commas"
NO_ORIGIN = "an origin is scheme and host, and a port if it has one, as in https://app.example.com"
NO_PREFIX = "no header's name begins so: write X-Internal-, several separated by commas"
NO_PATH = "a path holds no space and no character beyond ASCII: write those percent-encoded"
NO_PRINT = "it holds a character that cannot be printed"

NO_FILE = "the file cannot be read: no such file or directory"
NO_CERTIFICATE = "there is no certificate in PEM form in the file"
NO_PROXY_URL = "not a proxy: write http://host:port, https://host:port or socks5://host:port"
NO_PROXIES = ("proxy.example:3128", "ftp://proxy.example", "http://", "http://a:b", "http://[::1", "http://a:0")

REFUSED = [
    *(("PROXY_WORKERS", text, NO_WORKERS) for text in ("0", "-1", "1.5", "two", "٣", "1 0", "257", "99999")),
    *(("PROXY_MAX_BODY_MB", text, NO_NUMBER) for text in ("0", "64MB")),
    *(("OXY_PORT", text, NO_PORT) for text in ("65536", "-1", "80.0", "http", "٣", "0x50", "8 0")),
    *(("PROXY_SHUTDOWN_GRACE_MS", text, NO_TIME) for text in ("0", "-1", "nan", "inf", "1e999", "30s")),
    *(("OPENAI_PROXY_UPSTREAM_TIMEOUT_MS", text, NO_TIME) for text in ("0", "ten")),
    *(("OPENAI_PROXY_UPSTREAM_MAX_TIMEOUT_MS", text, NO_TIME) for text in ("0", "ten")),
    *(("OPENAI_PROXY_TRANSPORT_CONNECT_TIMEOUT_MS", text, NO_TIME) for text in ("0", "ten")),
    *((f"PROXY_{name}_TIMEOUT_MS", text, NO_TIME) for name in ("HEAD", "CLIENT") for text in ("0", "ten")),
    *(("OPENAI_PROXY_MAX_PARALLEL_REQUESTS", text, NO_NUMBER) for text in ("0", "-1", "many")),
    *(("PROXY_KEEP_ALIVE_MS", text, NO_TIME) for text in ("0", "ten")),
    *(("PROXY_WEBSOCKET_MAX_MB", text, NO_NUMBER) for text in ("0", "1.5", "much")),
    *(("PROXY_WEBSOCKETS", text, "write 1 or 0") for text in ("2", "ws")),
    *(("PROXY_OPEN", text, "write 1 or 0") for text in ("2", "maybe", "-")),
    *(("PROXY_FORWARDED", text, "write drop, append or pass") for text in ("none", "1", "drop,append")),
    *(("PROXY_SERVER_TIMING", text, "write 1 or 0") for text in ("2", "ms")),
    *(("PROXY_INCLUDE_USAGE", text, "write 1 or 0") for text in ("2", "always")),
    *((f"PROXY_{name}", "/nowhere/a.pem", NO_FILE) for name in ("TLS_CERT", "TLS_KEY", "UPSTREAM_CA")),
    ("PROXY_TLS_KEY", "/", "the file cannot be read: is a directory"),
    *((f"PROXY_{name}", str(EXAMPLE), NO_CERTIFICATE) for name in ("TLS_CERT", "UPSTREAM_CA")),
    *(("PROXY_LOG_FORMAT", text, "write json or text") for text in ("yaml", "1")),
    *(("PROXY_HISTORY_DAYS", text, NO_NUMBER) for text in ("0", "1.5", "30d", "1000000000")),
    *(("OXY_TRANSPORT", text, "write auto, fast or httpx") for text in ("slow", "1")),
    *(("OXY_HTTP2", text, "write 1 or 0") for text in ("2", "h2c")),
    *(("PROXY_AZURE", text, "write off, v1 or deployments") for text in ("on", "v2", "1")),
    *(("PROXY_UPSTREAM_AUTH", text, "write auto, bearer, api-key or entra") for text in ("key", "api_key")),
    *(("PROXY_AZURE_DEPLOYMENTS", text, NO_PAIR) for text in ("gpt-4o", "a=b,c", "=b", "a=", "a= ,c=d")),
    ("PROXY_AZURE_DEPLOYMENTS", ",", "it lists nothing"),
    *(("PROXY_AZURE_DEPLOYMENTS", text, "a model is there twice") for text in ("a=b,a=c", "a=b,c=d,a=b")),
    *(("PROXY_CORS_ORIGINS", text, NO_ORIGIN) for text in ("foo", "app.example", "https://", "https://a.example/x")),
    *(
        ("PROXY_CORS_ORIGINS", text, NO_ORIGIN)
        for text in ("https://a b", "https://a?b", "https://u@a", "*,https://*.a")
    ),
    *(("OXY_HOP_HEADER_PREFIX", text, NO_PREFIX) for text in ("a b", "X-Int-,CF:", "X-ü")),
    *(("PROXY_ENDPOINTS", text, NO_PATH) for text in ("/v1/a b", "/v1/models,/v1/ü")),
    *((name, "a b", NO_KEY) for name in ("AZURE_OPENAI_API_KEY", "OPENAI_API_VERSION", "PROXY_ENTRA_SCOPE")),
    (
        "AZURE_OPENAI_ENDPOINT",
        "https://u:p@a",
        "it holds a user name or password: put the key into OPENAI_API_KEY instead",
    ),
    *(("HTTPS_PROXY", text, "its host name is not one") for text in ("http://a..b:3128", "http://256.1.1.1:3128")),
    *((name, text, NO_PROXY_URL) for name in ("HTTPS_PROXY", "ALL_PROXY") for text in NO_PROXIES),
    *(("OPENAI_API_KEY", text, NO_KEY) for text in ("sk 1", "sk-ü")),
    *(("OPENAI_PROJECT_KEY", text, NO_KEY) for text in ("proj 1", "ü")),
    *(("OPENAI_ORGANIZATION", text, NO_KEY) for text in ("org 1", "ü")),
    *(("OXY_HOST", text, NO_HOST) for text in ("a b", "a..b", "x" * 64, "1.2.3", "256.0.0.1", "http//a")),
    *(("OXY_HOST", text, NO_ADDRESS) for text in ("localhost:80", "http://a", "[::1]:80", "::g")),
    ("PROXY_ENDPOINTS", "/v1/models,v1/images/*", "a pattern begins with a slash, as in /v1/images/*"),
    *((name, " , ", "it lists nothing") for name in ("PROXY_X_API_KEY", "SECURITY_KEY", "PROXY_ENDPOINTS")),
    *((name, ",", "it lists nothing") for name in ("OXY_HOP_HEADER_PREFIX", "PROXY_CORS_ORIGINS")),
    *((name, f"{text[:2]}\x7f{text[2:]}", NO_PRINT) for name, text, _, _ in TAKEN),
    *((name, f"{text[:2]}\udcff{text[2:]}", NO_PRINT) for name, text, _, _ in TAKEN),  # what is not UTF-8 in a shell
]


class Asked(dict[str, str]):
    """An environment that notes which names are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        if name.isupper():  # small letters are a second spelling
            self.names.add(name)
        return default


def complaints(folder: Path | None, **environ: str) -> list[str]:
    """What is wrong with these settings, one by one."""
    with pytest.raises(BadSettings) as told:
        load(environ, folder)
    headline, *each = str(told.value).splitlines()
    assert headline == "settings are not usable:"
    assert all(line.startswith("  ") for line in each)
    return [line.strip() for line in each]


# ---- what each may be


def test_without_settings_it_is_a_transparent_proxy_for_openai(settings_of: SettingsOf) -> None:
    assert settings_of() == Settings(target=OPENAI)
    assert settings_of().mode == "transparent"


@pytest.mark.parametrize(("name", "text", "field", "value"), TAKEN, ids=[row[0] for row in TAKEN])
def test_each_setting_arrives(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setattr("proxy.values.find_spec", lambda _: object())
    settings = settings_of(**{name: f" {text} "}, **BESIDE.get(name, {}))
    assert getattr(settings, field) == value
    assert getattr(Settings(target=OPENAI), field) != value


def test_the_table_above_has_every_setting(tmp_path: Path) -> None:
    asked = Asked()
    load(asked, tmp_path)
    assert sorted(asked.names - {"NO_PROXY"}) == sorted(name for name, _, _, _ in TAKEN)  # it only takes away


@pytest.mark.parametrize(("name", "text", "complaint"), REFUSED, ids=[f"{row[0]}={row[1]!a}" for row in REFUSED])
def test_what_a_setting_cannot_be_is_said(name: str, text: str, complaint: str) -> None:
    assert f"{name}: {complaint}" in complaints(None, **{name: text})


@pytest.mark.parametrize(
    ("text", "meaning"),
    [*((word, True) for word in ("1", "true", "YES", "On")), *((word, False) for word in ("0", "False", "no", "OFF"))],
)
def test_yes_and_no_are_said_in_several_ways(settings_of: SettingsOf, text: str, meaning: bool) -> None:
    assert settings_of(PROXY_OPEN=text).open is meaning


@pytest.mark.parametrize("word", ["drop", "append", "PASS"])
def test_what_becomes_of_client_addresses_is_a_word(settings_of: SettingsOf, word: str) -> None:
    assert settings_of(PROXY_FORWARDED=word).forwarded == word.lower()


@pytest.mark.parametrize(
    ("text", "host"),
    [("[::1]", "::1"), ("::", "::"), ("fe80::1%eth0", "fe80::1%eth0"), ("bücher.example", "xn--bcher-kva.example")],
)
def test_an_address_to_listen_on_may_be_of_any_kind(settings_of: SettingsOf, text: str, host: str) -> None:
    assert settings_of(OXY_HOST=text).host == host


def test_items_of_a_list_are_trimmed_and_empty_ones_dropped(settings_of: SettingsOf) -> None:
    assert settings_of(PROXY_X_API_KEY=" a ,, b,").client_keys == ("a", "b")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://A.Example/", "https://a.example"),
        ("HTTPS://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_an_origin_is_compared_as_browsers_write_it(settings_of: SettingsOf, text: str, read: str) -> None:
    assert settings_of(PROXY_CORS_ORIGINS=text).cors_origins == (read,)


def test_both_names_of_client_keys_count_together(settings_of: SettingsOf) -> None:
    assert settings_of(PROXY_X_API_KEY="a,b", SECURITY_KEY="c").client_keys == ("a", "b", "c")


@pytest.mark.parametrize(
    ("default", "maximum", "effective"),
    [("1000", "2000", 2.0), ("2000", "1000", 2.0), ("", "1000", 600.0), ("2000000", "", 2000.0)],
)
def test_a_maximum_below_the_default_timeout_is_raised_to_it(
    settings_of: SettingsOf, default: str, maximum: str, effective: float
) -> None:
    settings = settings_of(OPENAI_PROXY_UPSTREAM_TIMEOUT_MS=default, OPENAI_PROXY_UPSTREAM_MAX_TIMEOUT_MS=maximum)
    assert settings.upstream_max_timeout == effective


# ---- the target


@pytest.mark.parametrize(
    ("text", "written", "authority", "port"),
    [
        ("https://api.openai.com", "https://api.openai.com", "api.openai.com", 443),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1", "api.openai.com", 443),
        ("HTTP://A.Example:80/V1//", "http://a.example/V1", "a.example", 80),
        ("https://a.example:8443/x/%2F/y;z", "https://a.example:8443/x/%2F/y;z", "a.example:8443", 8443),
        ("http://a.example:443", "http://a.example:443", "a.example:443", 443),
        ("https://a.example:", "https://a.example", "a.example", 443),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000", "127.0.0.1:9000", 9000),
        ("http://[::1]/v1", "http://[::1]/v1", "[::1]", 80),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443", "[2001:db8::1]:8443", 8443),
        ("https://bücher.example", "https://xn--bcher-kva.example", "xn--bcher-kva.example", 443),
        ("http://my_service", "http://my_service", "my_service", 80),
    ],
)
def test_a_target_keeps_host_port_and_path(text: str, written: str, authority: str, port: int) -> None:
    read = target(text)
    assert (str(read), read.authority, read.port) == (written, authority, port)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *(
            (text, "not an address to call")
            for text in ("api.openai.com", "localhost:80", "ftp://a", "//a", "http:///v1")
        ),
        *((f"http://a:{port}", "not a URL") for port in ("http", "-1", "65536", "٣", " 80", "+80")),
        ("http://[::1", "not a URL"),
        ("http://a:0", "port 0 is none to call"),
        *((f"http://{user}@a", "it holds a user name or password") for user in ("u", "u:p", ":p", "")),
        *((f"http://a/v1{more}", "it holds a query or fragment") for more in ("?", "?a=1", "#", "#a")),
        *((f"http://a/{path}", "its path holds a space or a character beyond ASCII") for path in ("v 1", "ü")),
        *((f"http://{host}", NO_HOST) for host in ("a b", "a..b", ".a", "x" * 64, "a\\b", "a%20b", "a,b", "ü" * 64)),
        *((f"http://{host}", NO_HOST) for host in ("256.0.0.1", "1.2.3.4.5", "1.2.3", "01.2.3.4", "1")),
    ],
)
def test_what_is_no_target_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        target(text)


@given(st.sampled_from(["http", "https"]), st.text("019aZ.-_%:[]ü", min_size=1), st.sampled_from(["", "/", "/%2F/ü"]))
@example("http", "1.2.3.999", "")
@example("http", "-ü", "/v1")
def test_every_target_that_is_taken_can_be_called(scheme: str, authority: str, path: str) -> None:
    try:
        read = target(f"{scheme}://{authority}{path}")
    except ValueError:
        return
    called = httpx.URL(str(read))
    assert called.raw_host.decode() == read.host.strip("[]")
    assert (called.port or {"http": 80, "https": 443}[scheme]) == read.port


def test_the_proxy_s_own_name_for_the_target_comes_before_the_one_that_sdks_share(settings_of: SettingsOf) -> None:
    both = settings_of(OXY_TARGET="http://a.example", OPENAI_BASE_URL="http://b.example")
    assert both.target.host == "a.example"


# ---- where settings come from


@pytest.mark.parametrize("given", [*itertools.product([True, False], repeat=3)][:-1])
def test_the_environment_beats_env_local_which_beats_env(tmp_path: Path, given: tuple[bool, ...]) -> None:
    in_environment, in_local, in_env = given
    if in_local:
        (tmp_path / ".env.local").write_text("OXY_PORT=2\n")
    if in_env:
        (tmp_path / ".env").write_text("OXY_PORT=3\n")
    settings = load({"OXY_PORT": "1"} if in_environment else {}, tmp_path)
    assert settings.port == given.index(True) + 1


def test_without_a_folder_no_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OXY_PORT=3\n")
    assert Path.cwd() == tmp_path
    assert load({}, None) == Settings(target=OPENAI)


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_an_empty_value_counts_as_unset(tmp_path: Path, empty: str) -> None:
    assert load({"OXY_PORT": empty, "OPENAI_API_KEY": empty}, tmp_path) == Settings(target=OPENAI)
    (tmp_path / ".env").write_text("OXY_PORT=3\n")
    (tmp_path / ".env.local").write_text(f"OXY_PORT={empty}\n")
    assert load({"OXY_PORT": empty}, tmp_path).port == 3


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SECURITY_KEY=a$PATH${PATH}$$", "a$PATH${PATH}$$"),
        ('SECURITY_KEY="two words $PATH"', "two words $PATH"),
        ("SECURITY_KEY='#1 \"x\"'  # the rest is a comment", '#1 "x"'),
        ("SECURITY_KEY=a#b # the rest is a comment", "a#b"),
        ("export SECURITY_KEY=a", "a"),
        ("  SECURITY_KEY = a  ", "a"),
        ("\ufeffSECURITY_KEY=a", "a"),
        ("SECURITY_KEY=first\r\nSECURITY_KEY=ü\r", "ü"),
    ],
)
def test_a_line_of_a_file_is_read_as_shells_and_editors_write_it(tmp_path: Path, line: str, value: str) -> None:
    (tmp_path / ".env").write_bytes(f"{line}\n".encode())
    assert load({}, tmp_path).client_keys == (value,)


@pytest.mark.parametrize("file", [".env", ".env.local"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, file: str) -> None:
    (tmp_path / file).mkdir()
    assert complaints(tmp_path) == [f"{file} cannot be read: Is a directory"]


@pytest.mark.parametrize("text", ["OXY_PORT=1\n".encode("utf-16"), b"SECURITY_KEY=\xfc\n"], ids=["UTF-16", "Latin-1"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / ".env").write_bytes(text)
    assert complaints(tmp_path) == [".env cannot be read: it is not UTF-8 text"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"OPENAI_API_KEY {SECRET}", [1]),
        (f"# a comment\n\n \nOXY_PORT=1\n\n\t\n{SECRET}\n", [7]),
        (f"OXY_HOST='{SECRET}\nOXY_PORT=1\n={SECRET}\nexport OXY_HOST\n", [1, 3, 4]),
        (f"SECURITY_KEY='two\nlines'\n{SECRET} = \n{SECRET}\n", [4]),
    ],
    ids=["no equals sign", "after blank lines", "several", "after a value of two lines"],
)
def test_a_malformed_line_is_named_by_file_and_number_and_not_quoted(
    tmp_path: Path, text: str, lines: list[int]
) -> None:
    (tmp_path / ".env.local").write_text(text)
    told = [line for line in complaints(tmp_path) if "SECURITY_KEY" not in line]
    assert told == [f".env.local line {line}: this is not NAME=value" for line in lines]


# ---- settings that are each fine alone


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "transparent"),
        ({"PROXY_OPEN": "1"}, "transparent"),
        ({"PROXY_X_API_KEY": "c", "OPENAI_API_KEY": "u"}, "swap"),
        ({"SECURITY_KEY": "c", "OPENAI_API_KEY": "u"}, "swap"),
        ({"PROXY_X_API_KEY": "c"}, "guarded"),
        ({"SECURITY_KEY": "c"}, "guarded"),
        ({"OPENAI_API_KEY": "u", "PROXY_OPEN": "1"}, "open"),
        ({"AZURE_OPENAI_API_KEY": "u", "PROXY_X_API_KEY": "c"}, "swap"),
        ({"PROXY_UPSTREAM_AUTH": "entra", "PROXY_X_API_KEY": "c"}, "swap"),
        ({"PROXY_UPSTREAM_AUTH": "entra", "PROXY_OPEN": "1"}, "open"),
        ({"PROXY_UPSTREAM_AUTH": "api-key", "PROXY_X_API_KEY": "c"}, "guarded"),
    ],
)
def test_the_mode_follows_from_the_keys(settings_of: SettingsOf, environ: dict[str, str], mode: str) -> None:
    assert settings_of(**environ).mode == mode


@pytest.mark.parametrize(
    ("environ", "beginning"),
    [
        ({"OPENAI_API_KEY": "u"}, "OPENAI_API_KEY is set, but no client key"),
        ({"OPENAI_API_KEY": "u", "PROXY_OPEN": "0"}, "OPENAI_API_KEY is set, but no client key"),
        ({"OPENAI_API_KEY": "u", "PROXY_OPEN": "1", "SECURITY_KEY": "c"}, "PROXY_OPEN=1 asks nobody for a key"),
        ({"PROXY_OPEN": "1", "PROXY_X_API_KEY": "c"}, "PROXY_OPEN=1 asks nobody for a key"),
        ({"OPENAI_API_KEY": "u", "PROXY_X_API_KEY": "c,u"}, "a client key is the same as OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": "u", "SECURITY_KEY": "u"}, "a client key is the same as OPENAI_API_KEY"),
        ({"SECURITY_KEY": "a", "PROXY_KEY_NAMES": "alice,bob"}, "PROXY_KEY_NAMES has 2 names for 1 client keys"),
        ({"PROXY_KEY_NAMES": "alice"}, "PROXY_KEY_NAMES has 1 names for 0 client keys"),
        ({"SECURITY_KEY": "a,b", "PROXY_KEY_NAMES": "x,x"}, "PROXY_KEY_NAMES: a name is there twice"),
        ({"SECURITY_KEY": "a", "PROXY_KEY_NAMES": "a b"}, "PROXY_KEY_NAMES: a name is made of letters"),
        ({"SECURITY_KEY": "a", "PROXY_KEY_NAMES": "x" * 41}, "PROXY_KEY_NAMES: a name is made of letters"),
        ({"SECURITY_KEY": "a", "PROXY_KEY_NAMES": "jörg"}, "PROXY_KEY_NAMES: a name is made of letters from a to z"),
        ({"ACCESS_TOKEN": "c", "SECURITY_KEY": "a,c"}, "ACCESS_TOKEN is a key as well"),
        ({"ACCESS_TOKEN": "u", "OPENAI_API_KEY": "u", "SECURITY_KEY": "c"}, "ACCESS_TOKEN is a key as well"),
        ({"OPENAI_API_KEY": '"u"'}, "OPENAI_API_KEY: it stands in quotation marks"),
        ({"PROXY_X_API_KEY": "'c'"}, "PROXY_X_API_KEY: it stands in quotation marks"),
        ({"AZURE_OPENAI_API_KEY": "u", "SECURITY_KEY": "u"}, "a client key is the same as OPENAI_API_KEY"),
        ({"AZURE_OPENAI_API_KEY": "u"}, "OPENAI_API_KEY is set, but no client key"),
        ({"PROXY_UPSTREAM_AUTH": "entra"}, "PROXY_UPSTREAM_AUTH is set, but no client key"),
        (
            {"PROXY_UPSTREAM_AUTH": "entra", "OPENAI_API_KEY": "u", **CLIENT},
            "PROXY_UPSTREAM_AUTH=entra takes the place",
        ),
        (
            {"OPENAI_API_KEY": "u", "AZURE_OPENAI_API_KEY": "v", **CLIENT},
            "AZURE_OPENAI_API_KEY and OPENAI_API_KEY are both set, and differ: remove one of the two",
        ),
        (
            {"OXY_TARGET": "https://a.example", "AZURE_OPENAI_ENDPOINT": "https://b.example"},
            "AZURE_OPENAI_ENDPOINT and OXY_TARGET are both set, and differ: remove one of the two",
        ),
        (
            {"OPENAI_BASE_URL": "https://a.example", "AZURE_OPENAI_ENDPOINT": "https://b.example"},
            "AZURE_OPENAI_ENDPOINT and OPENAI_BASE_URL are both set, and differ: remove one of the two",
        ),
        ({"PROXY_AZURE": "deployments"}, "PROXY_AZURE=deployments needs OPENAI_API_VERSION"),
        ({"PROXY_AZURE_DEPLOYMENTS": "a=b"}, "PROXY_AZURE_DEPLOYMENTS is for PROXY_AZURE=deployments alone"),
        ({"PROXY_AZURE_DEPLOYMENTS": "a=b", "PROXY_AZURE": "v1"}, "PROXY_AZURE_DEPLOYMENTS is for"),
        ({"PROXY_AZURE": "v1", "OXY_TARGET": "https://a.example/openai/v1/"}, "PROXY_AZURE makes the paths"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    tmp_path: Path, environ: dict[str, str], beginning: str
) -> None:
    (told,) = complaints(tmp_path, **environ)
    assert told.startswith(beginning)


def ours() -> list[str]:
    """The ways in which this machine can be named on this machine."""
    names = ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "0.0.0.0"]
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        names += ["[::1]", "[::]", "[::ffff:127.0.0.1]"]
    try:
        socket.getaddrinfo(socket.gethostname(), 1)
    except OSError:
        return names
    return [*names, socket.gethostname()]


@pytest.mark.parametrize("name", ["OXY_TARGET", "OPENAI_BASE_URL"])
@pytest.mark.parametrize("host", ours())
def test_a_target_that_is_the_proxy_itself_is_refused(tmp_path: Path, host: str, name: str) -> None:
    (told,) = complaints(tmp_path, **{name: f"http://{host}:18443/v1"})
    assert told.startswith(f"the target http://{host.lower()}:18443/v1 is this proxy itself. ")
    assert "set OXY_TARGET" in told


def test_the_scheme_s_own_port_counts_as_a_port_of_this_machine(tmp_path: Path) -> None:
    (told,) = complaints(tmp_path, OXY_TARGET="https://localhost", OXY_PORT="443")
    assert told.startswith("the target https://localhost is this proxy itself. ")


def test_a_target_is_the_proxy_itself_whatever_speaks_udp_there(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        (told,) = complaints(tmp_path, OXY_TARGET=f"http://127.0.0.1:{port}", OXY_PORT=f"{port}")
    assert "is this proxy itself" in told


def test_what_was_chosen_is_told_without_secrets_and_notes(tmp_path: Path) -> None:
    environ = {"PROXY_WORKERS": "3", "PROXY_X_API_KEY": "a-client-key", "PROXY_WORKER": "4", "OXY_TARGET": "http://a"}
    settings = load(environ, tmp_path)
    assert settings.notes
    assert [*settings.changed()] == ["workers=3", "client_keys set"]


TOO_LONG_TO_ASK_FOR = ".".join(["x" * 60] * 5)  # no resolver is asked for a name beyond 253 characters


@pytest.mark.parametrize(
    "environ",
    [
        {"OXY_TARGET": "http://localhost:18444"},
        {"OXY_TARGET": "http://localhost:18443", "OXY_PORT": "18444"},
        {"OXY_TARGET": "http://localhost:18443", "OXY_PORT": "0"},
        {"OXY_TARGET": "http://192.0.2.1:18443"},
        {"OXY_TARGET": "http://[2001:db8::1]:18443"},
        {"OXY_TARGET": f"http://{TOO_LONG_TO_ASK_FOR}:18443"},
    ],
    ids=["another port", "our other port", "any free port", "another machine", "another one, IPv6", "unknown host"],
)
def test_any_other_target_is_fine(settings_of: SettingsOf, environ: dict[str, str]) -> None:
    assert str(settings_of(**environ).target) == environ["OXY_TARGET"]


# ---- all at once, and no secret


def test_all_complaints_come_at_once(tmp_path: Path) -> None:
    (tmp_path / ".env.local").mkdir()
    (tmp_path / ".env").write_text("one\nOXY_PORT=none\nOPENAI_API_KEY=u\n")
    told = complaints(tmp_path, OXY_TARGET="ftp://a", PROXY_OPEN="perhaps", PROXY_SHUTDOWN_GRACE_MS="long")
    assert [line[:20] for line in told] == [
        ".env.local cannot be",
        ".env line 1: this is",
        "OXY_TARGET: not an a",
        "OXY_PORT: not a port",
        "PROXY_OPEN: write 1 ",
        "PROXY_SHUTDOWN_GRACE",
        "OPENAI_API_KEY is se",
    ]


@pytest.mark.parametrize("wrong", [f"{SECRET} x", f"{SECRET}\x7f", f"https://u:{SECRET}@a", f"http://a?{SECRET}"])
def test_no_complaint_quotes_what_it_complains_of(tmp_path: Path, wrong: str) -> None:
    told = complaints(tmp_path, **{name: wrong for name, _, _, _ in TAKEN})
    assert len(told) >= 12
    assert SECRET not in str(told)


def test_keys_do_not_show_in_repr(settings_of: SettingsOf) -> None:
    settings = settings_of(OPENAI_API_KEY=SECRET, PROXY_X_API_KEY=f"{SECRET}-1", SECURITY_KEY=f"{SECRET}-2")
    assert SECRET in str(settings.client_keys)
    assert SECRET not in repr(settings)
    assert "api.openai.com" in repr(settings)


# ---- TLS

LISTENING = {"PROXY_TLS_CERT": LISTENER, "PROXY_TLS_KEY": LISTENER}


@pytest.mark.parametrize("name", LISTENING)
def test_of_a_pair_only_what_is_missing_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    assert complaints(tmp_path, **{**LISTENING, name: "/nowhere"}) == [f"{name}: {NO_FILE}"]
    assert len(complaints(tmp_path, **{name: "/nowhere"})) == 2


def test_a_certificate_and_its_key_go_together(tmp_path: Path) -> None:
    for name in LISTENING:
        assert complaints(tmp_path, **{name: LISTENER}) == [
            "PROXY_TLS_CERT and PROXY_TLS_KEY go together: set both to listen with TLS, or none"
        ]


@pytest.mark.parametrize("password", [[], ["-aes128", "-passout", "pass:secret"]], ids=["another", "behind a password"])
def test_a_key_that_cannot_serve_the_certificate_is_said(tmp_path: Path, password: list[str]) -> None:
    made = tmp_path / "key.pem"
    asked = ["openssl", "pkey", "-in", LISTENER, "-out", str(made), *password]
    if not password:
        asked = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(made)]
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command")
    subprocess.run(asked, check=True, capture_output=True)
    assert complaints(tmp_path, **{**LISTENING, "PROXY_TLS_KEY": str(made)}) == [
        "PROXY_TLS_KEY is no key without a password that belongs to the certificate in PROXY_TLS_CERT"
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"\x18\x0f2126", b"\x18\x0f2020", "in force from 2026-11-21 to 2020-"),
        (b"\x17\x0d26", b"\x17\x0d49", "in force from 2049-"),
        (b"\x17\x0d26", b"\x17\x0d50", None),  # RFC 5280 4.1.2.5.1: that is 1950
        (b"\x17\x0d26", b"\x16\x0d26", NO_CERTIFICATE),
    ],
)
def test_a_certificate_is_in_force_today(
    settings_of: SettingsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes, told: str | None
) -> None:
    monkeypatch.setattr("proxy.values.belong_together", lambda *_: True)
    made = tmp_path / "made.pem"
    pem = re.search(r"-----BEGIN CERT.*?CERTIFICATE-----", Path(LISTENER).read_text(), re.DOTALL)
    assert pem
    made.write_text(ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(pem[0]).replace(old, new)))
    environ = {**LISTENING, "PROXY_TLS_CERT": str(made)}
    if told is None:
        assert settings_of(**environ).tls_cert == made
    else:
        (complaint, *_) = complaints(tmp_path, **environ)
        assert told in complaint


def test_what_only_looks_like_a_certificate_is_none(tmp_path: Path) -> None:
    (tmp_path / "made.pem").write_text("-----BEGIN CERTIFICATE-----\n?x=\n-----END CERTIFICATE-----")
    (complaint, *_) = complaints(tmp_path, **{**LISTENING, "PROXY_TLS_CERT": str(tmp_path / "made.pem")})
    assert complaint == f"PROXY_TLS_CERT: {NO_CERTIFICATE}"


# ---- .env.example


def lines_of_the_example() -> list[tuple[str, re.Match[str]]]:
    """Each setting of `.env.example`, with the line before it."""
    lines = EXAMPLE.read_text().splitlines()
    found = [(before, re.fullmatch(r"(# )?([A-Z][A-Z0-9_]+)=(.*)", line)) for before, line in itertools.pairwise(lines)]
    return [(before, line) for before, line in found if line]


def test_the_example_explains_every_setting_once_and_nothing_else() -> None:
    assert sorted(line[2] for _, line in lines_of_the_example()) == sorted(
        [*(name for name, _, _, _ in TAKEN), "NO_PROXY"]
    )
    for before, line in lines_of_the_example():
        assert re.match(r"# .{15}", before), f"{line[2]} has no explanation above it"


def test_the_example_begins_with_the_two_keys() -> None:
    assert [line[0] for _, line in lines_of_the_example()][:2] == ["OPENAI_API_KEY=", "PROXY_X_API_KEY="]


def test_the_example_as_it_stands_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(EXAMPLE.read_bytes())
    assert load({}, tmp_path) == Settings(target=OPENAI)


def test_what_the_example_shows_commented_out_can_be_taken_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("\n".join(f"{line[2]}={line[3]}" for _, line in lines_of_the_example()))
    assert load({}, tmp_path).endpoints == ("/v1/responses", "/v1/images/*")


@pytest.mark.parametrize(
    ("target", "environ", "found"),
    [
        ("https://api.example", {"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "http://a:1"),
        ("https://api.example", {"https_proxy": "http://a:1"}, "http://a:1"),
        ("https://api.example", {"all_proxy": "http://b:2"}, "http://b:2"),
        ("https://api.example", {"HTTP_PROXY": "http://c:3"}, None),
        ("http://api.example", {"HTTP_PROXY": "http://c:3", "HTTPS_PROXY": "http://a:1"}, "http://c:3"),
        ("https://api.example", {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "other.example, .example"}, None),
        ("https://api.example", {"HTTPS_PROXY": "http://a:1", "no_proxy": "*"}, None),
        ("https://api.example:8443", {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "api.example:8443"}, None),
        ("https://api.example", {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "api.example.org"}, "http://a:1"),
        ("http://10.1.2.3", {"HTTP_PROXY": "http://c:3", "NO_PROXY": "localhost, 10.0.0.0/8"}, None),
        ("http://10.1.2.3", {"HTTP_PROXY": "http://c:3", "NO_PROXY": "10.9.9.9/8"}, None),
        ("http://10.1.2.3", {"HTTP_PROXY": "http://c:3", "NO_PROXY": "10.2.0.0/16,::/0"}, "http://c:3"),
        ("http://[fd00::1]:80", {"HTTP_PROXY": "http://c:3", "NO_PROXY": "10.0.0.0/8,fd00::/8"}, None),
        ("http://[::1]", {"HTTP_PROXY": "http://c:3", "NO_PROXY": "::1"}, None),
        ("http://api.example", {"HTTP_PROXY": "http://c:3", "NO_PROXY": "0.0.0.0/0"}, "http://c:3"),
        ("https://api.example", {"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
        ("https://api.example", {}, None),
    ],
)
def test_the_proxy_on_the_way_out_is_the_one_that_other_programs_would_take(
    settings_of: SettingsOf, target: str, environ: dict[str, str], found: str | None
) -> None:
    settings = settings_of(OXY_TARGET=target, **environ)
    assert settings.outbound_proxy == found


@pytest.mark.parametrize(
    ("target", "proxy", "way"),
    [
        ("https://api.example", "http://proxy.example:3128", "fast"),
        ("https://api.example", "HTTP://me:secret@proxy.example", "fast"),
        ("https://api.example", "https://proxy.example", "httpx"),
        ("https://api.example", "socks5://proxy.example", "httpx"),
        ("http://api.example", "http://proxy.example", "httpx"),
    ],
)
def test_our_own_way_leads_through_a_plain_proxy_to_a_target_with_tls(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, target: str, proxy: str, way: str
) -> None:
    monkeypatch.setattr("proxy.values.find_spec", lambda _: object())
    assert settings_of(OXY_TARGET=target, ALL_PROXY=proxy).way == way


def test_a_proxys_password_is_in_no_representation(settings_of: SettingsOf) -> None:
    assert "secret" not in repr(settings_of(HTTPS_PROXY="http://me:secret@proxy.example"))


@pytest.mark.parametrize(
    ("name", "value", "package"),
    [("OXY_HTTP2", "1", "h2"), ("ALL_PROXY", "socks5://proxy.example:1080", "socksio")],
)
def test_what_takes_one_more_package_says_so_unless_it_is_there(
    settings_of: SettingsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, package: str
) -> None:
    monkeypatch.setattr("proxy.values.find_spec", lambda _: None)
    (complaint,) = complaints(tmp_path, **{name: value})
    assert complaint.endswith(f"pip install {package}")
    monkeypatch.setattr("proxy.values.find_spec", lambda _: object())
    assert settings_of(**{name: value}).way == "httpx"


def test_azure_s_names_may_say_the_same_as_ours(settings_of: SettingsOf) -> None:
    ours = {"OXY_TARGET": "https://a.example/", "OPENAI_API_KEY": "u", **CLIENT}
    both = settings_of(**ours, AZURE_OPENAI_ENDPOINT="https://A.example:443", AZURE_OPENAI_API_KEY="u")
    assert both == settings_of(**ours)


@pytest.mark.parametrize("there", [(), ("azure",)], ids=["nothing of Azure", "another part of Azure"])
def test_entra_takes_a_package_and_says_so_unless_it_is_there(
    settings_of: SettingsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]
) -> None:
    def find(name: str) -> object:
        if name == "azure.identity" and not there:
            raise ModuleNotFoundError(name)  # as importlib does where the package around it is missing
        return object() if name in there else None

    wanted = {"PROXY_UPSTREAM_AUTH": "Entra", **CLIENT}
    assert settings_of(**wanted).upstream_auth == "entra"
    monkeypatch.setattr("proxy.values.find_spec", find)
    (complaint,) = complaints(tmp_path, **wanted)
    assert complaint == "PROXY_UPSTREAM_AUTH: entra takes one more package: pip install azure-identity"


@pytest.mark.parametrize("wish", [{"OXY_HTTP2": "1"}, {"HTTPS_PROXY": "https://proxy.example"}])
def test_our_own_way_cannot_be_asked_for_what_it_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: dict[str, str]
) -> None:
    monkeypatch.setattr("proxy.values.find_spec", lambda _: object())
    (complaint,) = complaints(tmp_path, OXY_TRANSPORT="fast", **wish)
    assert complaint.startswith("OXY_TRANSPORT=fast")
