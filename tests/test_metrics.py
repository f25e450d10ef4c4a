"""Metrics: every fact of an entry is counted under a bounded label, and several workers add up."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.figures import DIRECTORY
from proxy.metrics import GAUGES, Metrics, Reading, operation
from tests.test_entry import Usage
from tests.test_history import written

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "docs" / "grafana.json"
PATIENCE = 20


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([], dict)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
ENDED = {"route": "relay", "method": "POST", "status_class": "2xx", "result": "success"}
RELAY = {"route": "relay"}
CHAT = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai", "gen_ai_response_model": "m"}


def samples(exposition: bytes) -> Samples:
    """The value of each sample by its name and its labels, which come in any order."""
    families = text_string_to_metric_families(exposition.decode())
    return {series(sample.name, **sample.labels): sample.value for family in families for sample in family.samples}


def series(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics.exposition()).get(series(name, **labels))


def models(metrics: Metrics) -> set[str]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {sample.labels["model"] for family in families for sample in family.samples if "model" in sample.labels}


@pytest.mark.parametrize(
    ("facts", "name", "labels", "amount"),
    [
        ({}, "oxy_exchanges_total", ENDED, 1),
        ({"method": "BREW"}, "oxy_exchanges_total", {**ENDED, "method": "other"}, 1),
        ({"status": None}, "oxy_exchanges_total", {**ENDED, "status_class": "none"}, 1),
        ({"bytes_in": 7}, "oxy_received_bytes_total", RELAY, 7),
        ({"bytes_out": 9, "route": "openai"}, "oxy_sent_bytes_total", {"route": "openai"}, 9),
        ({"result": "proxy_overloaded"}, "oxy_refusals_total", {**RELAY, "result": "proxy_overloaded"}, 1),
        ({"result": "forbidden"}, "oxy_refusals_total", {**RELAY, "result": "forbidden"}, 1),
        ({"result": "upstream_timeout"}, "oxy_refusals_total", {**RELAY, "result": "upstream_timeout"}, None),
        ({"cancelled": True}, "oxy_cancellations_total", RELAY, 1),
        ({}, "oxy_cancellations_total", RELAY, None),
        ({"retries": 2}, "oxy_retries_total", RELAY, 2),
        ({"timed_out": "head"}, "oxy_timeouts_total", {**RELAY, "kind": "head"}, 1),
        ({"usage": Usage(), "model": "m"}, "oxy_tokens_total", {"kind": "cached", "model": "m"}, 20),
        ({"usage": Usage()}, "oxy_tokens_total", {"kind": "output_audio", "model": "unknown"}, 5),
        ({"usage": Usage(), "asked": "m"}, "oxy_tokens_total", {"kind": "output_audio", "model": "unknown"}, 5),
        ({"usage": Usage(), "asked": "m"}, "oxy_tokens_total", {"kind": "output_audio", "model": "m"}, None),
        ({"duration": 3.0}, "oxy_exchange_duration_seconds_sum", RELAY, 3.0),
        ({"duration": 3.0}, "oxy_exchange_duration_seconds_bucket", {**RELAY, "le": "2.5"}, 0),
        ({"duration": 3.0}, "oxy_exchange_duration_seconds_bucket", {**RELAY, "le": "5.0"}, 1),
        ({"first_byte": 0.5}, "oxy_first_byte_seconds_sum", RELAY, 0.5),
        ({}, "oxy_first_byte_seconds_count", RELAY, None),
        ({"first_byte": 0.5, "upstream_wait": 0.375}, "oxy_overhead_seconds_sum", RELAY, 0.125),
        ({"first_byte": 0.5, "upstream_wait": 0.75}, "oxy_overhead_seconds_sum", RELAY, 0),
        ({"first_byte": 0.5}, "oxy_overhead_seconds_count", RELAY, None),
        (
            {"model": "m", "duration": 3.0, "path": "/v1/chat/completions"},
            "gen_ai_client_operation_duration_seconds_sum",
            CHAT,
            3.0,
        ),
        (
            {"model": "m", "first_byte": 0.5, "stream": True},
            "gen_ai_client_operation_time_to_first_chunk_seconds_sum",
            CHAT,
            0.5,
        ),
        (
            {"model": "m", "first_byte": 0.5},
            "gen_ai_client_operation_time_to_first_chunk_seconds_count",
            CHAT,
            None,
        ),
        (
            {"model": "m", "usage": Usage(output=None)},
            "gen_ai_client_token_usage_sum",
            {**CHAT, "gen_ai_token_type": "input"},
            120,
        ),
        (
            {"model": "m", "usage": Usage(output=None)},
            "gen_ai_client_token_usage_count",
            {**CHAT, "gen_ai_token_type": "output"},
            None,
        ),
    ],
)
def test_each_fact_is_counted(
    metrics: Metrics, facts: dict[str, Any], name: str, labels: dict[str, str], amount: float | None
) -> None:
    metrics.write([written(**facts)])
    assert value(metrics, name, **labels) == amount


def test_what_an_alert_waits_for_is_there_at_nothing_before_it_happens(metrics: Metrics) -> None:
    # Prometheus sees no rise in a series that is new: of a first burst of 503, or a first fault, it would tell nobody.
    metrics.write([written()])
    assert value(metrics, "oxy_refusals_total", **RELAY, result="proxy_overloaded") == 0
    for status_class in ("2xx", "5xx"):
        fault = {**ENDED, "status_class": status_class, "result": "internal_error"}
        assert value(metrics, "oxy_exchanges_total", **fault) == 0
    metrics.write([written(result="internal_error"), written(result="proxy_overloaded", status=503)])
    assert value(metrics, "oxy_exchanges_total", **{**ENDED, "result": "internal_error"}) == 1
    assert value(metrics, "oxy_refusals_total", **RELAY, result="proxy_overloaded") == 1


def test_figures_add_up_over_batches(metrics: Metrics) -> None:
    metrics.write([written(bytes_in=1), written(bytes_in=2)])
    metrics.write([])
    metrics.write([written(bytes_in=4)])
    assert value(metrics, "oxy_received_bytes_total", route="relay") == 7
    assert value(metrics, "oxy_exchange_duration_seconds_count", route="relay") == 3


@pytest.mark.untraced
def test_of_many_models_the_first_hundred_have_labels_of_their_own(metrics: Metrics) -> None:
    metrics.write([written(model=f"model-{number}", usage=Usage(input=1)) for number in range(150)])
    assert len(models(metrics)) == 101
    assert value(metrics, "oxy_tokens_total", kind="input", model="other") == 50


def test_a_hostile_name_is_only_a_label(metrics: Metrics) -> None:
    metrics.write([written(model='m"} 1\noxy_exchanges_total 7\n\N{SNOWMAN}', usage=Usage())])
    assert models(metrics) == {"m%22}%201%0Aoxy_exchanges_total%207%0A%E2%98%83"}


def test_gauges_are_read_when_they_are_asked_for() -> None:
    now = {"open": 1.0}
    readings = [
        Reading(gauge="oxy_upstream_connections_open", read=lambda: now["open"]),
        Reading(gauge="oxy_slots", read=lambda: 32, guard="convenience"),
        Reading(gauge="oxy_slots", read=lambda: 1024, guard="relay"),
    ]
    metrics = Metrics(readings, dict)
    now["open"] = 5
    assert value(metrics, "oxy_upstream_connections_open") == 5
    assert value(metrics, "oxy_slots", guard="convenience") == 32
    assert value(metrics, "oxy_slots", guard="relay") == 1024


def test_lost_entries_are_counted_once() -> None:
    losses = {"log": 3}
    metrics = Metrics([], lambda: losses)
    metrics.write([])
    losses.update(log=5, history=1)
    assert value(metrics, "oxy_log_entries_dropped_total", book="log") == 5
    assert value(metrics, "oxy_log_entries_dropped_total", book="history") == 1


def test_the_process_is_measured(metrics: Metrics) -> None:
    names = {name for name, _ in samples(metrics.exposition()) if name.startswith("process_")}
    assert names >= {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"}
    before = value(metrics, "process_cpu_seconds_total")
    assert before is not None
    sum(range(3_000_000))
    after = value(metrics, "process_cpu_seconds_total")
    assert after is not None
    assert before < after < before + 10
    metrics.close(0)


def test_there_is_nothing_but_ours(metrics: Metrics) -> None:
    metrics.write([written()])
    families = [family.name for family in text_string_to_metric_families(metrics.exposition().decode())]
    assert len(families) == len(set(families))
    assert all(name.startswith(("oxy_", "gen_ai_", "process_")) for name in families)
    assert not [name for name in families if name.endswith("_created")]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("/v1/chat/completions", "chat"), ("/v1/completions", "text_completion"), ("/v1/embeddings", "embeddings")),
        *(("/openai/deployments/d/chat/completions", "chat"), ("/v1/responses", "chat"), ("/openai2", "chat")),
        *(("/v1/models", "other"), ("", "other")),
    ],
)
def test_an_operation_has_the_name_that_the_conventions_give_it(path: str, name: str) -> None:
    assert operation(path) == name


# ---- several workers

WORKER = """
    import sys
    from proxy.metrics import Metrics, Reading
    from tests.test_entry import Usage
    from tests.test_history import written

    metrics = Metrics([Reading(gauge="oxy_exchanges_in_flight", read=lambda: int(sys.argv[1]))], lambda: {"log": 2})
    metrics.write([written(model="m", usage=Usage(input=100), duration=0.02)] * int(sys.argv[1]))
    print("counted", flush=True)
    for order in sys.stdin:
        print(metrics.exposition().decode() + "# END", flush=True)
"""


class Worker:
    """A process that counts as many exchanges as it is told, and then shows the metrics of all."""

    def __init__(self, directory: Path, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", dedent(WORKER), str(count)],
            cwd=ROOT,
            env={**os.environ, DIRECTORY: str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self, end: str) -> str:
        assert self.process.stdout is not None
        heard = ""
        while not heard.endswith(f"{end}\n"):
            line = self.process.stdout.readline()
            assert line, "it ended"
            heard += line
        return heard

    def show(self) -> Samples:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return samples(self.hear("# END").encode())

    def end(self) -> None:
        self.process.communicate(timeout=PATIENCE)  # it hears no more orders


@pytest.mark.untraced
def test_the_metrics_of_three_workers_add_up_also_after_one_is_killed(tmp_path: Path) -> None:
    workers = [Worker(tmp_path, count) for count in (1, 2, 4)]
    for worker in workers:
        worker.hear("counted")
    shown: Samples = {}
    for worker in workers:
        shown = worker.show()
        assert shown[series("oxy_exchanges_total", **ENDED)] == 7
        assert shown[series("oxy_tokens_total", kind="input", model="m")] == 700
        assert shown[series("oxy_exchange_duration_seconds_bucket", route="relay", le="0.025")] == 7
        assert shown[series("oxy_exchange_duration_seconds_bucket", route="relay", le="0.01")] == 0
        assert shown[series("gen_ai_client_token_usage_count", **CHAT, gen_ai_token_type="input")] == 7
        assert shown[series("oxy_exchanges_in_flight")] == 7
        assert shown[series("oxy_log_entries_dropped_total", book="log")] == 6
    whole, start = (
        shown[series("process_resident_memory_bytes")],
        shown[series("process_start_time_seconds")],
    )

    workers[2].process.kill()
    workers[2].end()
    shown = workers[0].show()
    assert shown[series("oxy_exchanges_total", **ENDED)] == 7
    assert shown[series("oxy_exchanges_in_flight")] == 3
    assert shown[series("process_resident_memory_bytes")] < 0.9 * whole
    assert shown[series("process_start_time_seconds")] >= start
    for worker in workers[:2]:
        worker.end()


def test_figures_are_shared_once_a_second_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen_by_others() -> float | None:
        return value(asked, "oxy_exchange_duration_seconds_count", route="relay")

    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    asked, ending = Metrics([], dict), Metrics([], dict)
    ending.write([written()])
    assert seen_by_others() == 1
    ending.write([written()])
    assert seen_by_others() == 1
    monkeypatch.setattr(ending, "_next_sharing", 0.0)
    ending.write([written()])
    assert seen_by_others() == 3
    ending.write([written()])
    ending.close(0)
    assert seen_by_others() == 4


def test_a_full_disk_costs_all_workers_what_is_new_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    full, other = Metrics([], dict), Metrics([], dict)
    full.write([written()])
    with monkeypatch.context() as patch:
        patch.setattr(full._file, "write", no_room)
        for asked in (full, other, full, other):  # a counter does not fall from one worker to the next
            full.write([written()])
            assert value(asked, "oxy_exchanges_total", **ENDED) == 1
        full.close(0)
    (line,) = told
    assert re.fullmatch(r"metrics cannot be shared: .*No space left on device\. Exchanges go on; .*", line)
    monkeypatch.setattr(full, "_next_sharing", 0.0)
    full.write([])
    assert value(other, "oxy_exchanges_total", **ENDED) == 5
    assert told[1:] == ["metrics are shared again"]


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_gauge_is_the_total_of_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    readings = [
        [
            Reading(gauge="oxy_slots", read=lambda: 32, guard="convenience"),
            Reading(gauge="oxy_slots", read=lambda: 1024, guard="relay"),
            Reading(gauge="oxy_upstream_connections_open", read=lambda: 7),
        ],
        [Reading(gauge="oxy_slots", read=lambda: 16, guard="all")],
    ]
    asked, other = (Metrics(some, dict) for some in readings)
    other.write([])
    assert asked.totals("oxy_slots", "oxy_upstream_connections_open") == [1072, 7]
    monkeypatch.delenv(DIRECTORY)
    assert Metrics(readings[0], dict).totals("oxy_slots", "oxy_upstream_connections_idle") == [1056, 0]


# ---- the dashboard


def expressions(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [
            *([node["expr"]] if "expr" in node else []),
            *(e for child in node.values() for e in expressions(child)),
        ]
    return [e for child in node for e in expressions(child)] if isinstance(node, list) else []


def labels_by_name() -> dict[str, set[str]]:
    """The labels of every series that there can be."""
    metrics = Metrics(
        [Reading(gauge=name, read=lambda: 1, guard="g" if GAUGES[name][1] else None) for name in GAUGES],
        lambda: {"log": 1},
    )
    everything = {"model": "m", "usage": Usage(), "first_byte": 1.0, "upstream_wait": 0.5, "stream": True, "retries": 1}
    metrics.write([written(**everything, cancelled=True, timed_out="head", result="forbidden")])
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def asked_by(expression: str, known: dict[str, set[str]]) -> set[str]:
    """The names of the series that it asks for; they exist, and have the labels that it says."""
    names = set(
        re.findall(r"\b(?:oxy|gen_ai|process)_\w+(?=[\[{) ]|$)", re.sub(r"by \([^)]*\)|\{[^}]*\}", "", expression))
    )
    assert names, expression
    assert names <= known.keys(), expression
    labels = {each.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for each in group.split(",")}
    labels |= set(re.findall(r"[{,]\s*(\w+)\s*[!=]", expression))
    assert all(labels - {"job", "instance"} <= known[name] for name in names), expression  # which Prometheus adds
    return names


def test_the_dashboard_asks_for_series_and_labels_that_exist_and_shows_every_metric() -> None:
    known, asked = labels_by_name(), set()
    for expression in expressions(json.loads(DASHBOARD.read_text(encoding="utf-8"))):
        asked |= asked_by(expression, known)
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {name for name in stems - shown if not name.startswith("process_")} == set()


def test_the_alerts_ask_for_series_and_labels_that_exist() -> None:
    rules = (ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8")
    of_prometheus, *alerts = re.findall(r"^ +expr: (?:>-)?(.+?)^ +(?:for|labels): ", rules, re.MULTILINE | re.DOTALL)
    assert of_prometheus.startswith("up{")
    assert len(alerts) == 7
    known = labels_by_name()
    assert all(asked_by(alert, known) for alert in alerts)
    assert all(alert.count("process_") == alert.count('{job=~".*oxy.*"}') for alert in alerts), "others have them too"


def test_the_dashboard_shows_oxy_alone_though_others_have_metrics_of_the_same_names() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    (job,) = (each for each in dashboard["templating"]["list"] if each["name"] == "job")
    assert job["query"]["query"] == "label_values(oxy_exchanges_in_flight, job)"
    for expression in expressions(dashboard):
        assert expression.count('job=~"$job"') == len(asked_by(expression, labels_by_name())), expression


def test_a_line_of_the_dashboard_is_of_all_instances_or_says_of_which() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for target in (target for panel in dashboard["panels"] for target in panel.get("targets", [])):
        summed = re.match(r"(sum|max|histogram_quantile)\b", target["expr"])
        assert summed or "{{instance}}" in target["legendFormat"], target


def test_the_dashboard_can_be_imported_anywhere() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in panels)
    assert all(panel["title"] and panel["targets"] for panel in panels)
    assert dashboard["id"] is None
