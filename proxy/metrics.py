"""Metrics for Prometheus, counted from the entries of the ledger, in a registry of our own.

Every label is bounded: routes by their names, methods and results by the lists of them, models by the first hundred.
Names that begin with `gen_ai_` are those of OpenTelemetry's conventions for generative AI, spelled as Prometheus does:
gen_ai.client.token.usage, gen_ai.client.operation.duration and gen_ai.client.operation.time_to_first_chunk, with their
attributes and buckets (opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics).

Several workers add up through prometheus_client's multiprocess mode, in which each keeps its figures in mapped files of
a common directory. The library chooses the mode when it is imported, by PROMETHEUS_MULTIPROC_DIR (see `workspace`).
"""

import os
import threading
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from proxy.entry import KINDS, Entry, Facts, FirstFew, status_class

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
MOST_MODELS = 100
REFUSALS = frozenset(("validation_error", "forbidden", "proxy_overloaded"))

TIMES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
SHORT_TIMES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
GEN_AI_TIMES = tuple(0.01 * 2**power for power in range(14))
GEN_AI_TOKENS = tuple(4**power for power in range(14))

# The end of a path, and the well-known value of gen_ai.operation.name for it; the first that fits.
OPERATIONS = (
    ("/chat/completions", "chat"),
    ("/completions", "text_completion"),
    ("/embeddings", "embeddings"),
    ("/responses", "chat"),
    ("/openai", "chat"),
    ("/openai2", "chat"),
    ("/chatgpt", "chat"),
)

Labels = tuple[str, ...]
GaugeName = Literal[
    "oxy_exchanges_in_flight",
    "oxy_slots",
    "oxy_slots_taken",
    "oxy_upstream_connections_idle",
    "oxy_upstream_connections_open",
]
GAUGES: Mapping[GaugeName, tuple[str, Sequence[str]]] = {
    "oxy_exchanges_in_flight": ("Exchanges that have begun and not ended", ()),
    "oxy_slots": ("How many exchanges may be in flight", ("guard",)),
    "oxy_slots_taken": ("How many of those are", ("guard",)),
    "oxy_upstream_connections_idle": ("Connections to the upstream that are kept and wait for a request", ()),
    "oxy_upstream_connections_open": ("All connections to the upstream", ()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Where the value of a gauge is read; `guard` is the name of the guard for those of slots."""

    gauge: GaugeName
    read: Callable[[], float]
    guard: str | None = None


class Metrics:
    """A book that is a set of counters. `losses` tells how many entries did not get into each book."""

    name = "metrics"
    dropped = 0

    def __init__(self, readings: Sequence[Reading], losses: Callable[[], Mapping[str, int]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._shared = DIRECTORY in os.environ
        self._registry = CollectorRegistry()
        self._readings = readings
        self._losses = losses
        self._lost: Mapping[str, int] = {}
        self._refreshing = threading.Lock()
        self._model = FirstFew(MOST_MODELS)
        self._make_counters()
        self._make_histograms()
        self._gauges = {name: self._gauge(name, *GAUGES[name]) for name in GAUGES}
        self._process = Process(self._registry)
        self.refresh()

    def write(self, entries: Sequence[Entry]) -> None:
        """Count these entries. What has the same labels is brought together first: looking labels up is what costs."""
        counted: Tally[tuple[Counter, Labels]] = Tally()
        observed: defaultdict[tuple[Histogram, Labels], list[float]] = defaultdict(list)
        for entry in entries:
            self._count(entry.facts, counted)
            self._observe(entry.facts, observed)
        for (counter, labels), amount in counted.items():
            counter.labels(*labels).inc(amount)
        for (histogram, labels), values in observed.items():
            observe = histogram.labels(*labels).observe
            for value in values:
                observe(value)
        self.refresh()

    def close(self, patience: float) -> None:
        """Do nothing: what is counted stays for as long as the directory does."""

    def refresh(self) -> None:
        """Read all that is not counted from entries."""
        with self._refreshing:
            for reading in self._readings:
                gauge = self._gauges[reading.gauge]
                (gauge if reading.guard is None else gauge.labels(reading.guard)).set(reading.read())
            losses = dict(self._losses())
            for book, count in losses.items():
                self._entries_lost.labels(book).inc(count - self._lost.get(book, 0))
            self._lost = losses
            self._process.refresh()

    def exposition(self) -> bytes:
        """Return all metrics, those of all workers, in Prometheus' text format.

        It takes milliseconds, with many models more: to be called in a thread.
        """
        self.refresh()
        if not self._shared:
            return generate_latest(self._registry)
        if os.name != "nt":  # pragma: no branch  there, the question that is asked of a process ends it
            forget_the_dead(Path(os.environ[DIRECTORY]))
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)

    def _count(self, facts: Facts, counted: Tally[tuple[Counter, Labels]]) -> None:
        route, result, method = facts["route"], facts["result"], facts["method"]
        method = method if method in METHODS else "other"
        counted[self._exchanges, (route, method, status_class(facts.get("status")), result)] += 1
        counted[self._bytes_in, (route,)] += facts["bytes_in"]
        counted[self._bytes_out, (route,)] += facts["bytes_out"]
        if result in REFUSALS:
            counted[self._refusals, (route, result)] += 1
        if facts["cancelled"]:
            counted[self._cancellations, (route,)] += 1
        if facts["retries"]:
            counted[self._retries, (route,)] += facts["retries"]
        if "timed_out" in facts:
            counted[self._timeouts, (route, facts["timed_out"])] += 1
        if "tokens" in facts:
            model = self._model(facts.get("model", "unknown"))
            for kind, count in facts["tokens"].items():
                counted[self._tokens, (kind, model)] += count

    def _observe(self, facts: Facts, observed: dict[tuple[Histogram, Labels], list[float]]) -> None:
        route, duration, first_byte = (facts["route"],), facts["duration"], facts.get("first_byte")
        observed[self._durations, route].append(duration)
        if first_byte is not None:
            observed[self._first_bytes, route].append(first_byte)
            if "upstream_wait" in facts:
                observed[self._overheads, route].append(max(0.0, first_byte - facts["upstream_wait"]))
        if "model" not in facts:
            return
        labels = (operation(facts["path"]), "openai", self._model(facts["model"]))
        observed[self._gen_ai_durations, labels].append(duration)
        if facts["stream"] and first_byte is not None:
            observed[self._gen_ai_first_chunks, labels].append(first_byte)
        tokens = facts.get("tokens", {})
        for kind in ("input", "output"):
            if kind in tokens:
                observed[self._gen_ai_tokens, (*labels, kind)].append(tokens[kind])

    def _make_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self._registry)

        self._exchanges = counter(
            "oxy_exchanges_total", "Exchanges that have ended", "route", "method", "status_class", "result"
        )
        self._bytes_in = counter("oxy_received_bytes_total", "Bytes of bodies that clients sent", "route")
        self._bytes_out = counter("oxy_sent_bytes_total", "Bytes of bodies that clients got", "route")
        self._refusals = counter("oxy_refusals_total", "Exchanges that the proxy refused, by result", "route", "result")
        self._cancellations = counter("oxy_cancellations_total", "Exchanges whose client hung up", "route")
        self._retries = counter("oxy_retries_total", "Calls that went out once more", "route")
        self._timeouts = counter("oxy_timeouts_total", "Exchanges that took too long, by what did", "route", "kind")
        self._tokens = counter(
            "oxy_tokens_total",
            f"Tokens by kind ({', '.join(KINDS)}) and model; cached is a part of input, reasoning of output",
            *("kind", "model"),
        )
        self._entries_lost = counter(
            "oxy_log_entries_dropped_total", "Entries that the log or another book of the ledger did not get", "book"
        )

    def _make_histograms(self) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

        attributes = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model")
        self._durations = histogram("oxy_exchange_duration_seconds", "Whole exchanges", TIMES, "route")
        self._first_bytes = histogram("oxy_first_byte_seconds", "Until the first byte of the answer", TIMES, "route")
        self._overheads = histogram(
            "oxy_overhead_seconds", "The proxy's own part of the time to the first byte", SHORT_TIMES, "route"
        )
        self._gen_ai_durations = histogram(
            "gen_ai_client_operation_duration_seconds", "GenAI operation duration", GEN_AI_TIMES, *attributes
        )
        self._gen_ai_first_chunks = histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time to the first chunk of a streamed answer",
            GEN_AI_TIMES,
            *attributes,
        )
        self._gen_ai_tokens = histogram(
            "gen_ai_client_token_usage", "Input and output tokens", GEN_AI_TOKENS, *attributes, "gen_ai_token_type"
        )

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode="livesum")


class Process:
    """The process metrics that clients of Prometheus have by convention, as figures that several workers can add up.

    The library's own collector, which it is read from, tells of the process that happens to be asked.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._collector = ProcessCollector(registry=None)
        self._gauges: dict[str, Gauge] = {}
        self._cpu = Counter("process_cpu_seconds_total", "User and system CPU time", registry=registry)
        self._cpu_before = 0.0
        for family in self._collector.collect():
            if family.type == "gauge":
                mode: Literal["livemin", "livesum"] = "livemin" if "start_time" in family.name else "livesum"
                self._gauges[family.name] = Gauge(
                    family.name, family.documentation, registry=registry, multiprocess_mode=mode
                )

    def refresh(self) -> None:
        """Read the figures of this process."""
        for family in self._collector.collect():
            value = family.samples[0].value
            if family.type == "gauge":
                self._gauges[family.name].set(value)
            else:
                self._cpu.inc(value - self._cpu_before)
                self._cpu_before = value


def operation(path: str) -> str:
    """Return the gen_ai.operation.name for a path, `other` where the conventions know none."""
    for end, name in OPERATIONS:
        if path.endswith(end):
            return name
    return "other"


def forget_the_dead(directory: Path) -> None:
    """Take the gauges of workers that are gone out of the sum; what they counted stays in it."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in directory.glob("gauge_live*.db")}:
        try:
            os.kill(pid, 0)  # asks whether there is such a process
        except OSError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
