"""Metrics: which counts each fact becomes, and how they are shown to Prometheus.

The law of this file: labels are bounded. Whatever a client can make up (an HTTP method) is folded into ``other``; the rest
are names from our own tables. A session is never a label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mcp_sidecar import facts

REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
HEAL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)
REJECTIONS = ("unreadable", "expired", "principal", "unknown_key")
STORE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
STREAM_KINDS = ("get", "post")

_HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})

Reading = Callable[[], float]


class Served(Collector):
    """What every request counts in, kept as plain numbers.

    A counter and a histogram of the library would cost more than all the rest of the bookkeeping of a request.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._requests: dict[tuple[str, str, int, facts.CallOutcome | None], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def count(
        self, http_method: str, rpc_method: str, status: int, seconds: float, outcome: facts.CallOutcome | None = None
    ) -> None:
        """Count one request, and the call in it if there is one. The labels are of bounded sets."""
        series = (http_method, rpc_method, status, outcome)
        self._requests[series] = self._requests.get(series, 0) + 1
        buckets = self._buckets.get(rpc_method)
        if buckets is None:
            buckets = self._buckets[rpc_method] = [0] * (len(REQUEST_BUCKETS) + 1)
            self._seconds[rpc_method] = 0.0
        buckets[bisect_left(REQUEST_BUCKETS, seconds)] += 1
        self._seconds[rpc_method] += seconds

    def calls(self) -> Counts[tuple[str, str]]:
        """Calls so far by method and outcome; the usual outcomes of a method that was called begin at 0."""
        calls: Counts[tuple[str, str]] = Counts()
        for (_, rpc_method, _, outcome), number in self._requests.items():
            if outcome is not None:
                calls.update({(rpc_method, each.value): 0 for each in facts.CallOutcome})
                calls[rpc_method, outcome.value] += number
        return calls

    def collect(self) -> Iterator[Metric]:
        """The metrics, as the library writes them."""
        requests = CounterMetricFamily(
            "mcp_sidecar_requests",
            "Requests of clients that were answered.",
            labels=("http_method", "rpc_method", "status"),
        )
        sums: Counts[tuple[str, str, int]] = Counts()
        for (http_method, rpc_method, status, _), number in self._requests.items():
            sums[http_method, rpc_method, status] += number
        for (http_method, rpc_method, status), number in sums.items():
            requests.add_metric((http_method, rpc_method, str(status)), number)
        yield requests
        calls = CounterMetricFamily(
            "mcp_sidecar_calls", "Calls of clients by what became of them.", labels=("rpc_method", "outcome")
        )
        for labels, number in self.calls().items():
            calls.add_metric(labels, number)
        yield calls
        seconds = HistogramMetricFamily(
            "mcp_sidecar_request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            labels=("rpc_method",),
        )
        for rpc_method, buckets in self._buckets.items():
            shown = zip((*map(floatToGoString, REQUEST_BUCKETS), "+Inf"), accumulate(buckets), strict=True)
            seconds.add_metric((rpc_method,), list(shown), self._seconds[rpc_method])
        yield seconds


class CountedElsewhere(Collector):
    """A counter without labels that somebody else keeps; ``reading`` is called on each scrape."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name, self._documentation = name, documentation
        self.reading: Reading = lambda: 0

    def collect(self) -> Iterator[Metric]:
        """The counter as it stands."""
        yield CounterMetricFamily(self._name, self._documentation, value=self.reading())


class Clients(Collector):
    """Sessions by the client's name, of the bounded set; ``reading`` is called on each scrape."""

    def __init__(self) -> None:
        """There are none before somebody says where they are read."""
        self.reading: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[Metric]:
        """The gauge as it stands."""
        clients = GaugeMetricFamily("mcp_sidecar_clients", "Sessions by the client's name.", labels=("name",))
        for name, number in self.reading().items():
            clients.add_metric((name,), number)
        yield clients


class Metrics:
    """All counts of one sidecar, in a registry of its own.

    ``signatures`` and ``rpc_methods`` are the label values known in advance; their series begin at 0 instead of missing
    until the first event, so that a rate over them is right from the first one on.
    """

    def __init__(self, *, signatures: Iterable[str] = (), rpc_methods: Iterable[str] = ()) -> None:
        # A process-wide switch: without it each counter gets a `_created` series, which the contract does not name.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        # The library looks a series up under a lock, which costs more than to count.
        self._series: Callable[[Counter, str], Counter] = cache(lambda metric, value: metric.labels(value))
        self._make_request_metrics()
        self._make_healing_metrics()
        self._make_store_metrics()
        self._make_gauges()
        self._begin_at_zero(signatures, rpc_methods)
        self._recorders: Mapping[type[facts.Fact], Callable[[Any], None]] = {
            facts.RequestServed: self._request_served,
            facts.RequestHeld: lambda fact: self._held_seconds.observe(fact.seconds),
            facts.SessionLost: lambda fact: self._series(self._lost, fact.signature).inc(),
            facts.RefusalAsked: lambda fact: self._series(self._asked, fact.outcome.value).inc(),
            facts.HealEnded: self._heal_ended,
            facts.RequestReplayed: lambda fact: self._series(self._replays, fact.cause.value).inc(),
            facts.AnswerRewritten: lambda fact: self._series(self._rewritten, str(fact.from_status)).inc(),
            facts.OutcomeUnknown: lambda fact: self._series(self._unknown, fact.rpc_method).inc(),
            facts.MessageDropped: lambda fact: self._series(self._dropped, fact.kind.value).inc(),
            facts.RestoreRefused: lambda fact: self._series(self._restores_refused, fact.step.value).inc(),
            facts.ListsChanged: lambda fact: self._series(self._lists_changed, fact.kind.value).inc(),
            facts.HintDropped: lambda fact: self._series(self._hints_dropped, fact.kind.value).inc(),
            facts.ActionObserved: lambda fact: self._series(self._observed, fact.action.value).inc(),
            facts.StoreAsked: self._store_asked,
            facts.SessionIdRejected: lambda fact: self._series(self._ids_rejected, fact.reason).inc(),
            facts.SessionAdopted: lambda fact: self._series(self._adopted, fact.source.value).inc(),
        }

    def _make_request_metrics(self) -> None:
        self._served = Served()
        self.registry.register(self._served)

    def _make_healing_metrics(self) -> None:
        self._lost = self._counter("sessions_lost", "Sessions that the upstream forgot.", "signature")
        self._asked = self._counter(
            "refusals_asked", "Refusals that a ping was to settle, by what it found.", "outcome"
        )
        self._heals = self._counter("heals", "Heals that came to an end.", "outcome")
        self._heal_seconds = Histogram(
            "mcp_sidecar_heal_seconds",
            "Seconds from a session's loss to its being healed.",
            registry=self.registry,
            buckets=HEAL_BUCKETS,
        )
        self._held_seconds = Histogram(
            "mcp_sidecar_held_seconds",
            "Seconds that requests waited for the upstream or for a heal.",
            registry=self.registry,
            buckets=HEAL_BUCKETS,
        )
        self._replays = self._counter("replays", "Requests that were sent again.", "cause")
        self._rewritten = self._counter(
            "answers_rewritten", "Answers replaced by the 404 that makes a client start over.", "from_status"
        )
        self._unknown = self._counter(
            "outcomes_unknown", "Requests that may have run and were not sent again.", "rpc_method"
        )
        self._dropped = self._counter("messages_dropped", "Messages of clients that went nowhere.", "kind")
        self._restores_refused = self._counter(
            "restores_refused", "HealAttempt steps that a healed session's new server refused.", "step"
        )
        self._hints_dropped = self._counter(
            "hints_dropped", "Hints to clients that no open stream could carry.", "kind"
        )
        self._lists_changed = self._counter(
            "lists_changed", "Lists that a healed session's new server answers differently.", "kind"
        )
        self._observed = self._counter("observed", "What mode heal would have done (mode observe).", "action")

    def _make_store_metrics(self) -> None:
        self._store_seconds = Histogram(
            "mcp_sidecar_store_seconds",
            "Seconds that the store of sessions took to answer.",
            ("operation",),
            registry=self.registry,
            buckets=STORE_BUCKETS,
        )
        self._store_errors = self._counter("store_errors", "Questions that it did not answer.", "operation")
        self._adopted = self._counter("sessions_adopted", "Sessions opened elsewhere that go on here.", "from")
        self._ids_rejected = self._counter(
            "session_ids_rejected", "Session ids that claim to be tokens and count for nothing.", "reason"
        )
        self._store_up = self._gauge("store_up", "Whether the store of sessions has answered when it was asked last.")
        self._store_up.set(1)
        self._unsaved = self._gauge("store_unsaved_records", "Records and ends that the store does not know yet.")

    def _store_asked(self, fact: facts.StoreAsked) -> None:
        self._store_seconds.labels(fact.operation).observe(fact.seconds)
        if fact.failed:
            self._store_errors.labels(fact.operation).inc()

    def _make_gauges(self) -> None:
        self._log_lines_dropped = CountedElsewhere(
            "mcp_sidecar_log_lines_dropped", "Log lines that could not be written."
        )
        self.registry.register(self._log_lines_dropped)
        self._sessions = self._gauge("sessions", "Sessions that are remembered.")
        self._held = self._gauge("held_requests", "Requests that wait for the upstream.")
        self._upstream_up = self._gauge("upstream_up", "1 until a connect to the upstream fails, 0 until one succeeds.")
        self._upstream_up.set(1)
        self._last_answer = self._gauge(
            "upstream_last_answer_timestamp_seconds",
            "When the upstream last gave an answer that was a success; 0 is never.",
        )
        self._build_info = self._gauge("build_info", "What runs here.", "version", "mode", "store")
        self._clients = Clients()
        self.registry.register(self._clients)
        self._streams = self._gauge("streams", "Event streams that are open.", "kind")

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"mcp_sidecar_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"mcp_sidecar_{name}", documentation, labels, registry=self.registry)

    def _begin_at_zero(self, signatures: Iterable[str], rpc_methods: Iterable[str]) -> None:
        known: tuple[tuple[Counter | Gauge, Iterable[str]], ...] = (
            (self._lost, signatures),
            (self._heals, facts.HealOutcome),
            (self._replays, facts.ReplayCause),
            (self._unknown, rpc_methods),
            (self._dropped, facts.DroppedKind),
            (self._asked, facts.AskOutcome),
            (self._observed, facts.ObservedAction),
            (self._restores_refused, facts.RestoreStep),
            (self._hints_dropped, facts.HintKind),
            (self._lists_changed, facts.ListKind),
            (self._streams, STREAM_KINDS),
            (self._adopted, facts.AdoptedFrom),
            (self._ids_rejected, REJECTIONS),
        )
        for metric, values in known:
            for value in values:
                metric.labels(str(value))

    def bind(
        self,
        *,
        sessions: Reading,
        held_requests: Reading,
        get_streams: Reading,
        post_streams: Reading,
        upstream_up: Reading,
        last_answer: Reading,
        clients: Callable[[], Mapping[str, int]],
        log_lines_dropped: Reading,
    ) -> None:
        """Say where the gauges are read; they are 0 before, ``upstream_up`` 1. The functions are called on each scrape."""
        self._sessions.set_function(sessions)
        self._held.set_function(held_requests)
        self._upstream_up.set_function(upstream_up)
        self._last_answer.set_function(last_answer)
        self._clients.reading = clients
        for kind, reading in zip(STREAM_KINDS, (get_streams, post_streams), strict=True):
            self._streams.labels(kind).set_function(reading)
        self._log_lines_dropped.reading = log_lines_dropped

    def describe(self, *, version: str, mode: str, store: str) -> None:
        """Say what runs here."""
        self._build_info.labels(version, mode, store).set(1)

    def calls(self) -> Mapping[tuple[str, str], int]:
        """Calls so far, by method and outcome."""
        return self._served.calls()

    def bind_store(self, *, is_up: Reading, unsaved_records: Reading) -> None:
        """The same for the gauges of the store."""
        self._store_up.set_function(is_up)
        self._unsaved.set_function(unsaved_records)

    def record(self, fact: facts.Fact) -> None:
        """Count a fact; one that no metric tells is let pass."""
        recorder = self._recorders.get(type(fact))
        if recorder is not None:
            recorder(fact)

    def _request_served(self, fact: facts.RequestServed) -> None:
        method = fact.http_method if fact.http_method in _HTTP_METHODS else "other"
        self._served.count(method, fact.rpc_method, fact.status, fact.seconds, fact.outcome)

    def _heal_ended(self, fact: facts.HealEnded) -> None:
        self._series(self._heals, fact.outcome.value).inc()
        if fact.outcome is facts.HealOutcome.HEALED:
            self._heal_seconds.observe(fact.seconds)

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """Write all metrics and name their content type: Prometheus text, or OpenMetrics where ``accept`` asks for it."""
        encode, content_type = _encoder(accept)
        return encode(self.registry), content_type


def _encoder(accept: str | None) -> tuple[Callable[[Any], bytes], str]:
    try:
        return choose_encoder(accept or "")
    except (TypeError, ValueError):
        # prometheus_client 0.26 compares the words of a version such as `version=abc` with numbers.
        return choose_encoder("")
