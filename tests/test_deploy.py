"""What is handed to other programs to run Oxy: the unit, the manifest, the container, each checked by who reads it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.settings import load

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "release/.venv/bin"  # which `make dist-check` installs
UNIT = (ROOT / "deploy/oxy.service").read_text(encoding="utf-8")
MANIFEST = (ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8")
ALERTS = (ROOT / "deploy/alerts.yaml").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def run(*command: str, folder: Path = ROOT) -> str:
    """What a program says that ends well; the test is skipped where it is missing."""
    program = shutil.which(command[0], path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{command[0]} is not installed here")
    done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """The unit with a program that is there, which systemd looks for."""
    path = tmp_path / "oxy.service"
    path.write_text(UNIT.replace("ExecStart=/opt/oxy/bin/oxy", "ExecStart=/bin/true"))
    return str(path)


def test_systemd_understands_the_unit(unit: str) -> None:
    assert run("systemd-analyze", "verify", unit) == ""


def test_the_unit_is_hardened(unit: str) -> None:
    told = run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)  # tenths, of 10
    assert "OK" in told.splitlines()[-1]


def test_kubernetes_understands_the_manifest() -> None:
    told = run("kubernetes-validate", "--strict", str(ROOT / "deploy/kubernetes.yaml"))
    assert told.count(" passed for resource ") == 3  # all but the PodMonitor, which is Prometheus's own


def test_the_manifest_has_each_of_its_documents_once() -> None:
    kinds = ["Deployment", "Service", "HorizontalPodAutoscaler", "PodMonitor"]
    assert re.findall(r"^kind: (\w+)$", MANIFEST, re.MULTILINE) == kinds
    assert len(re.split(r"^---$", MANIFEST, flags=re.MULTILINE)) == len(kinds)
    assert "\t" not in MANIFEST
    assert MANIFEST.count("readOnlyRootFilesystem: true") == 1


def test_prometheus_shows_the_token_that_the_metrics_want() -> None:
    monitor = MANIFEST.rpartition("\n---\n")[2]
    assert re.search(
        r"^      authorization:.*\n        credentials: {name: oxy, key: ACCESS_TOKEN}$", monitor, re.MULTILINE
    )
    assert "--from-literal=ACCESS_TOKEN=" in MANIFEST


def test_prometheus_understands_the_alerts(tmp_path: Path) -> None:
    """Two instances, of which one lacks everything that can be lacking, and the other nothing."""
    well, ill = 'job="oxy",instance="well"', 'job="oxy",instance="ill"'
    series = {
        f"up{{{well}}}": "1x10",
        f"up{{{ill}}}": "0x10",
        f'oxy_exchanges_total{{{well},result="success"}}': "0+60x10",
        f'oxy_exchanges_total{{{well},result="internal_error"}}': "0x10",
        f'oxy_exchanges_total{{{well},result="upstream_timeout"}}': "0+1x10",
        f'oxy_exchanges_total{{{ill},result="success"}}': "0+30x10",
        f'oxy_exchanges_total{{{ill},result="internal_error"}}': "0x4 1x5",
        f'oxy_exchanges_total{{{ill},result="upstream_transport_error"}}': "0+6x10",
        f'oxy_exchanges_total{{{ill},result="upstream_api_error"}}': "0+60x10",
        f'oxy_slots{{{well},guard="relay"}}': "100x10",
        f'oxy_slots{{{ill},guard="relay"}}': "100x10",
        f'oxy_slots_taken{{{well},guard="relay"}}': "80x10",
        f'oxy_slots_taken{{{ill},guard="relay"}}': "81x10",
        f'oxy_refusals_total{{{well},route="relay",result="proxy_overloaded"}}': "7x10",
        f'oxy_refusals_total{{{ill},route="relay",result="proxy_overloaded"}}': "0x4 1x5",
        f'oxy_log_entries_dropped_total{{{well},book="log"}}': "7x10",
        f'oxy_log_entries_dropped_total{{{ill},book="log"}}': "0x4 1x5",
        f"process_open_fds{{{well}}}": "10x10",
        f"process_open_fds{{{ill}}}": "90x10",
        f"process_max_fds{{{well}}}": "100x10",
        f"process_max_fds{{{ill}}}": "100x10",
    }
    given = "".join(f"      - {{series: '{name}', values: '{values}'}}\n" for name, values in series.items())
    rings = "".join(
        f'          - {{labels: \'{{alertname="{name}", instance="ill"}}\', value: 1}}\n'
        for name in re.findall(r"alert: (\w+)", ALERTS)
    )
    (tmp_path / "test.yaml").write_text(
        f"rule_files: [{ROOT / 'deploy/alerts.yaml'}]\ntests:\n  - interval: 1m\n    input_series:\n{given}"
        "    promql_expr_test:\n"
        "      - expr: sum by (alertname, instance) (ALERTS{alertstate='firing'})\n"
        f"        eval_time: 7m\n        exp_samples:\n{rings}"
    )
    assert "SUCCESS" in run("promtool", "test", "rules", str(tmp_path / "test.yaml"))


def test_compose_understands_its_file(tmp_path: Path) -> None:
    if "compose" not in run("docker", "--help"):
        pytest.skip("docker has no compose here")
    told = run("docker", "compose", "-f", str(ROOT / "docker-compose.yml"), "config")
    assert "/var/lib/oxy" in told
    assert "18443" in told


def test_each_waits_longer_than_the_drain(tmp_path: Path) -> None:
    drain = load({}, tmp_path).shutdown_grace
    pause = int(re.findall(r"time\.sleep\((\d+)\)", MANIFEST)[0])
    for text, pattern, before in (
        (UNIT, r"TimeoutStopSec=(\d+)", 0),
        (MANIFEST, r"terminationGracePeriodSeconds: (\d+)", pause),
        (COMPOSE, r"stop_grace_period: (\d+)s", 0),
    ):
        (told,) = re.findall(pattern, text)
        assert int(told) > drain + before


def test_each_keeps_the_history_where_it_may_write() -> None:
    for text in (UNIT, MANIFEST, COMPOSE):
        assert "/var/lib/oxy/history.sqlite" in text
    assert "StateDirectory=oxy" in UNIT
    assert "mountPath: /var/lib/oxy" in MANIFEST
    assert "history:/var/lib/oxy" in COMPOSE
    assert "/var/lib/oxy" in DOCKERFILE


def test_the_image_s_last_stage_runs_as_nobody_and_hears_signals() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER \d+:\d+$", last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["oxy"\]$', last, re.MULTILINE)
    assert not re.search(r"\b(pip|apt-get|curl|gcc)\b", last)
    assert DOCKERFILE.count("\nFROM ") == 2


def test_hadolint_has_nothing_to_say() -> None:
    assert run("hadolint", "Dockerfile") == ""
