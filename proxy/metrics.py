"""Metrics for Prometheus, counted from the entries of the ledger, in a registry of our own.

Every label is bounded: routes by their names, methods and results by the lists of them, models by the first hundred.
Names that begin with `gen_ai_` are those of OpenTelemetry's conventions for generative AI, spelled as Prometheus does:
gen_ai.client.token.usage, gen_ai.client.operation.duration and gen_ai.client.operation.time_to_first_chunk, with their
attributes and buckets (opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics).

They are counted in numbers of our own (`figures`), a batch at a time: prometheus_client's objects take a lock and
a look for each value, four times as much. The library still says how it is all spelled.
"""

import logging
import math
import os
import threading
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.entry import Entry, FirstFew, status_class
from proxy.figures import DIRECTORY, Figures, Labels, Otherwise, SharedFile
from proxy.pace import in_slices
from proxy.usage import KINDS

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SHARING = 1.0  # seconds; what a worker that is killed has counted since is lost
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
MOST_MODELS = 100
SLICE = 25  # entries, about 50 us; see `pace`
# What alerts wait for is there at nothing before it happens: Prometheus sees no rise in a series that is new.
REFUSALS = frozenset(("validation_error", "forbidden", "proxy_overloaded"))
FAULT = "internal_error"

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

OF_A_MODEL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model")
COUNTERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "oxy_exchanges_total": ("Exchanges that have ended", ("route", "method", "status_class", "result")),
    "oxy_received_bytes_total": ("Bytes of bodies that clients sent", ("route",)),
    "oxy_sent_bytes_total": ("Bytes of bodies that clients got", ("route",)),
    "oxy_refusals_total": ("Exchanges that the proxy refused, by result", ("route", "result")),
    "oxy_cancellations_total": ("Exchanges whose client hung up", ("route",)),
    "oxy_retries_total": ("Calls that went out once more", ("route",)),
    "oxy_timeouts_total": ("Exchanges that took too long, by what did", ("route", "kind")),
    "oxy_tokens_total": (
        f"Tokens by kind ({', '.join(KINDS)}) and model; cached is a part of input, reasoning of output",
        ("kind", "model"),
    ),
    "process_cpu_seconds_total": ("User and system CPU time", ()),
    "oxy_log_entries_dropped_total": ("Entries that the log or another book of the ledger did not get", ("book",)),
}
HISTOGRAMS: Mapping[str, tuple[str, Sequence[str], Sequence[float]]] = {
    "oxy_exchange_duration_seconds": ("Whole exchanges", ("route",), TIMES),
    "oxy_first_byte_seconds": ("Until the first byte of the answer", ("route",), TIMES),
    "oxy_overhead_seconds": ("The proxy's own part of the time to the first byte", ("route",), SHORT_TIMES),
    "gen_ai_client_operation_duration_seconds": ("GenAI operation duration", OF_A_MODEL, GEN_AI_TIMES),
    "gen_ai_client_operation_time_to_first_chunk_seconds": (
        "Time to the first chunk of a streamed answer",
        OF_A_MODEL,
        GEN_AI_TIMES,
    ),
    "gen_ai_client_token_usage": ("Input and output tokens", (*OF_A_MODEL, "gen_ai_token_type"), GEN_AI_TOKENS),
}
GaugeName = Literal[
    "oxy_exchanges_in_flight",
    "oxy_exchanges_in_flight_max",
    "oxy_slots",
    "oxy_slots_taken",
    "oxy_upstream_connections_idle",
    "oxy_upstream_connections_open",
]
GAUGES: Mapping[GaugeName, tuple[str, Sequence[str]]] = {
    "oxy_exchanges_in_flight": ("Exchanges that have begun and not ended", ()),
    "oxy_exchanges_in_flight_max": ("The most exchanges that were in flight at once since the start", ()),
    "oxy_slots": ("How many exchanges may be with the upstream at once", ("guard",)),
    "oxy_slots_taken": ("How many of those are", ("guard",)),
    "oxy_upstream_connections_idle": ("Connections to the upstream that are kept and wait for a request", ()),
    "oxy_upstream_connections_open": ("All connections to the upstream", ()),
}
# Of the process, by the convention for clients of Prometheus.
PROCESS_GAUGES: Mapping[str, tuple[str, Sequence[str]]] = {
    "process_virtual_memory_bytes": ("Virtual memory", ()),
    "process_resident_memory_bytes": ("Resident memory", ()),
    "process_start_time_seconds": ("When it was started, in seconds since 1970", ()),
    "process_open_fds": ("Open file descriptors", ()),
    "process_max_fds": ("How many there may be", ()),
}
# What several workers tell of the same thing: when the first was started, and what all of them know.
OTHERWISE: Otherwise = {"process_start_time_seconds": min, "oxy_slots": max, "oxy_exchanges_in_flight_max": max}
if os.name != "posix":  # pragma: no cover  there each worker has a share of the bound to itself (see `tally`)
    OTHERWISE = {"process_start_time_seconds": min}

log = logging.getLogger("oxy")


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
        self._file = SharedFile(Path(os.environ[DIRECTORY])) if DIRECTORY in os.environ else None
        self._figures = Figures()
        self._readings = readings
        self._losses = losses
        self._model = FirstFew(MOST_MODELS)
        self._process = ProcessCollector(registry=None)
        self._counting = threading.Lock()
        self._next_sharing = -math.inf
        self._failing = False

    def write(self, entries: Sequence[Entry]) -> None:
        """Count these entries."""
        for some in in_slices(entries, SLICE):
            self._count(some)
        if time.monotonic() >= self._next_sharing:
            with self._counting:
                self._share()

    def _count(self, entries: Sequence[Entry]) -> None:
        """Count some, what has the same labels together."""
        by_route, by_model = defaultdict(list), defaultdict(list)
        for entry in entries:
            exchange = entry.exchange
            by_route[exchange.route].append(entry)
            if exchange.model is not None or exchange.usage:
                by_model[exchange.model, operation(exchange.path)].append(entry)
        with self._counting:
            for route, group in by_route.items():
                self._count_route(route, group)
            for (model, name), group in by_model.items():
                self._count_model(model, name, group)

    def close(self, patience: float) -> None:
        """Leave the others what was counted last; it stays for as long as the directory does."""
        with self._counting:
            self._share()

    def exposition(self) -> bytes:
        """Return all metrics, those of all workers, in Prometheus' text format.

        It takes milliseconds, with many models more: to be called in a thread.
        """
        return spelled(self._of_all())

    def totals(self, *gauges: GaugeName) -> list[float]:
        """Return the sum of each of these gauges over its labels and all workers. May block, as `exposition`."""
        together = self._of_all().gauges
        return [sum(together[gauge].values()) for gauge in gauges]

    def _of_all(self) -> Figures:
        """Share our figures and return those of all workers, ours too, as they were shared.

        What is not shared, because it is counted meanwhile or there is no room for it, is not in them: another worker,
        asked next, would not know it, and a counter falls.
        """
        with self._counting:
            self._share()
            if self._file is None:
                alone = Figures()
                alone.add(self._figures, lives=True, otherwise=OTHERWISE)
                return alone
        return self._file.together(OTHERWISE)

    def _share(self) -> None:
        """Bring the figures up to date, for the other workers too; what cannot be shared now is with the next."""
        self._read()
        self._next_sharing = time.monotonic() + SHARING
        if self._file is None:
            return
        failed, self._failing = self._failing, False
        try:
            self._file.write(self._figures)
        except OSError as problem:
            self._failing = True
            if not failed:
                log.warning("metrics cannot be shared: %s. Exchanges go on; it is tried again", problem)
        else:
            if failed:
                log.warning("metrics are shared again")

    def _read(self) -> None:
        """Take in all that is not counted from entries."""
        for reading in self._readings:
            labels = () if reading.guard is None else (reading.guard,)
            self._figures.gauges[reading.gauge][labels] = reading.read()
        for book, count in self._losses().items():
            self._figures.counters["oxy_log_entries_dropped_total"][book,] = count
        # The library's collector of the process cannot add up: it tells of whichever is asked.
        for family in self._process.collect():
            ((name, _, value, *_),) = family.samples
            (self._figures.counters if name in COUNTERS else self._figures.gauges)[name][()] = value

    def _count_route(self, route: str, group: Sequence[Entry]) -> None:
        exchanges = [entry.exchange for entry in group]
        count, ended = self._figures.count, Tally([(each.method, each.status, each.result) for each in exchanges])
        for result in REFUSALS:
            count("oxy_refusals_total", (route, result), 0)
        for (method, status, result), number in ended.items():
            known, kind = method if method in METHODS else "other", status_class(status)
            count("oxy_exchanges_total", (route, known, kind, result), number)
            for each in (kind, "5xx"):
                count("oxy_exchanges_total", (route, known, each, FAULT), 0)
            if result in REFUSALS:
                count("oxy_refusals_total", (route, result), number)
        count("oxy_received_bytes_total", (route,), sum([each.bytes_in for each in exchanges]))
        count("oxy_sent_bytes_total", (route,), sum([each.bytes_out for each in exchanges]))
        if cancelled := sum([each.cancelled for each in exchanges]):
            count("oxy_cancellations_total", (route,), cancelled)
        if retries := sum([each.retries for each in exchanges]):
            count("oxy_retries_total", (route,), retries)
        for kind, number in Tally([each.timed_out for each in exchanges if each.timed_out is not None]).items():
            count("oxy_timeouts_total", (route, kind), number)
        first_bytes = [each.first_byte for each in exchanges if each.first_byte is not None]
        own = [overhead for each in exchanges if (overhead := each.overhead) is not None]
        self._observe("oxy_exchange_duration_seconds", (route,), [each.duration for each in exchanges])
        self._observe("oxy_first_byte_seconds", (route,), first_bytes)
        self._observe("oxy_overhead_seconds", (route,), own)

    def _count_model(self, model: str | None, name: str, group: Sequence[Entry]) -> None:
        bounded = self._model("unknown" if model is None else model)
        spent = defaultdict(list)
        for entry in group:
            for kind, amount in (entry.exchange.usage or {}).items():
                spent[kind].append(amount)
        for kind, amounts in spent.items():
            self._figures.count("oxy_tokens_total", (kind, bounded), sum(amounts))
            if model is not None and kind in ("input", "output"):
                self._observe("gen_ai_client_token_usage", (name, "openai", bounded, kind), amounts)
        if model is not None:
            labels, exchanges = (name, "openai", bounded), [entry.exchange for entry in group]
            chunks = [first for each in exchanges if each.stream and (first := each.first_chunk or each.first_byte)]
            self._observe("gen_ai_client_operation_duration_seconds", labels, [each.duration for each in exchanges])
            self._observe("gen_ai_client_operation_time_to_first_chunk_seconds", labels, chunks)

    def _observe(self, name: str, labels: Labels, values: Sequence[float]) -> None:
        self._figures.observe(name, labels, values, HISTOGRAMS[name][2])


class Shown(Collector):
    """Figures as the library's families, so that it can spell them."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield every family, those without a series too."""
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for values, amount in self._figures.counters[name].items():
                counter.add_metric(values, amount)
            yield counter
        for name, (text, labels) in (*GAUGES.items(), *PROCESS_GAUGES.items()):
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for values, amount in self._figures.gauges[name].items():
                gauge.add_metric(values, amount)
            yield gauge
        for name, (text, labels, bounds) in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for values, (*counts, total) in self._figures.histograms[name].items():
                buckets = zip(map(floatToGoString, (*bounds, math.inf)), counts, strict=True)
                histogram.add_metric(values, list(buckets), total)
            yield histogram


def spelled(figures: Figures) -> bytes:
    """Return figures in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(Shown(figures))
    return generate_latest(registry)


@lru_cache(maxsize=256)
def operation(path: str) -> str:
    """Return the gen_ai.operation.name for a path, `other` where the conventions know none."""
    for end, name in OPERATIONS:
        if path.endswith(end):
            return name
    return "other"
