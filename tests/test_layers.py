"""Where settings come from: names that are none of ours are noted, if they look as if they were meant to be."""

from pathlib import Path

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


def test_a_name_in_the_environment_is_noted_if_it_is_nearly_one_of_ours(tmp_path: Path) -> None:
    others = {"PROXY_URL": "1", "PROXY_USER": "1", "OXY_QQQ": "1", "OPENAI_API_KEYS": "1", "PROXY": "1"}
    assert load({"PROXY_X_API_KYE": SECRET, **others}, tmp_path).notes == (
        "environment: PROXY_X_API_KYE is not a setting; did you mean PROXY_X_API_KEY?",
    )
