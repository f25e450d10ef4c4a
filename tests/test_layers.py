"""Where settings come from: names that are none of ours are noted, if they look as if they were meant to be."""

from pathlib import Path

import pytest

from proxy.settings import load

SECRET = "sk-planted"


def test_a_mistyped_name_in_a_file_is_noted_with_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text(f"PROXY_X_API_KEYS={SECRET}\nPOSTGRES_PASSWORD=x\nOXY_PORT=1\n")
    (tmp_path / ".env").write_text(f"OXY_QQQ={SECRET}\nOPENAI_PROXY_UPSTREAM_TIMEOUT=1\nOPENAI_LOG=debug\n")
    assert load({"PROXY_ELSEWHERE": "another program's"}, tmp_path).notes == (
        ".env.local: PROXY_X_API_KEYS is not a setting; did you mean PROXY_X_API_KEY?",
        ".env: OXY_QQQ is not a setting",
        ".env: OPENAI_PROXY_UPSTREAM_TIMEOUT is not a setting; did you mean OPENAI_PROXY_UPSTREAM_TIMEOUT_MS?",
    )


MISTYPED = {
    "SECURITY_KEYS": "SECURITY_KEY",
    "SECURITYKEY": "SECURITY_KEY",
    "SECURITY_KY": "SECURITY_KEY",
    "SECRUITY_KEY": "SECURITY_KEY",
    "security_key": "SECURITY_KEY",
    "proxy_x_api_key": "PROXY_X_API_KEY",
    "ACCESS_TOKN": "ACCESS_TOKEN",
    "ACCESSTOKEN": "ACCESS_TOKEN",
    "OPENAI_API_KEYS": "OPENAI_API_KEY",
    "OPENAI_BASEURL": "OPENAI_BASE_URL",
    "OPENAI_ORGANISATION": "OPENAI_ORGANIZATION",
    "DEFAULT_MODL": "DEFAULT_MODEL",
    "HTTPSPROXY": "HTTPS_PROXY",
}
# Short of a word, which others may call their own.
SHORTENED = {
    "OPENAI_KEY": "OPENAI_API_KEY",
    "OPENAI_PROJECT": "OPENAI_PROJECT_KEY",
    "AZURE_OPENAI_KEY": "AZURE_OPENAI_API_KEY",
}
OF_OTHERS = (
    *("PATH", "HOME", "PORT", "HOST", "WORKERS", "TARGET", "MODEL", "TOKEN", "API_KEY", "X_API_KEY", "KEY", "NO_COLOR"),
    *("POSTGRES_PASSWORD", "SECRET_KEY", "DJANGO_SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("GITHUB_ACCESS_TOKEN", "JWT_ACCESS_TOKEN", "FB_ACCESS_TOKEN", "ACCESS_TOKEN_SECRET", "REFRESH_TOKEN"),
    *("OPENAI_MODEL", "OPENAI_LOG", "OPENAI_TIMEOUT", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET"),
    *("OPENAI_API_TYPE", "OPENAI_API_BASE", "ANTHROPIC_API_KEY", "DEFAULT_MODEL_NAME", "EMBEDDING_MODEL"),
    *("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_OPENAI_DEPLOYMENT", "AZURE_API_KEY"),
    *("FTP_PROXY", "ftp_proxy", "SSL_CERT_FILE"),
)
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.mark.parametrize("place", [".env", ".env.local"])
@pytest.mark.parametrize(("name", "meant"), [*MISTYPED.items(), *SHORTENED.items()])
def test_a_name_in_a_file_that_is_nearly_one_of_ours_is_noted(
    tmp_path: Path, place: str, name: str, meant: str
) -> None:
    (tmp_path / place).write_text(f"{name}={SECRET}\n")
    assert load({}, tmp_path).notes == (f"{place}: {name} is not a setting; did you mean {meant}?",)


@pytest.mark.parametrize(("name", "meant"), MISTYPED.items())
def test_a_name_in_the_environment_is_noted_if_it_is_nearly_one_of_ours(tmp_path: Path, name: str, meant: str) -> None:
    assert load({name: SECRET}, tmp_path).notes == (f"environment: {name} is not a setting; did you mean {meant}?",)


def test_names_in_the_environment_that_only_begin_like_ours_are_left_to_other_programs(tmp_path: Path) -> None:
    others = dict.fromkeys(("PROXY_URL", "PROXY_USER", "OXY_QQQ", "PROXY", *SHORTENED), "1")
    assert load(others, tmp_path).notes == ()


@pytest.mark.parametrize("target", ["https://a.example", "http://a.example"])
def test_what_other_programs_read_is_not_noted(tmp_path: Path, target: str) -> None:
    given = {**dict.fromkeys(OF_OTHERS, "1"), **dict.fromkeys(PROXIES, "http://proxy.example")}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    assert load({**given, "OXY_TARGET": target}, tmp_path).notes == ()
