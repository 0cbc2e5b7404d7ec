"""Metrics: which counts each fact becomes.

The law of this file: labels are bounded. Whatever a client can make up (an HTTP method) is folded into ``other``; the rest
are names from our own tables. A session is never a label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from mcp_sidecar import facts
from mcp_sidecar.ops import exposition
from mcp_sidecar.ops.exposition import Counter, Gauge, Histogram, Labels, Metric, always, nothing

REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
HEAL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)
REJECTIONS = ("unreadable", "expired", "principal", "unknown_key")
STORE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
STREAM_KINDS = ("get", "post")

PREFIX = "mcp_sidecar_"

_HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


Reading = Callable[[], float]


class Served:
    """What every request counts in: as plain numbers by hand, since it costs each request."""

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

    def metrics(self) -> Iterator[Metric]:
        """The metrics as they stand."""
        sums: dict[Labels, float] = {}
        for (http_method, rpc_method, status, _), number in self._requests.items():
            key = (http_method, rpc_method, str(status))
            sums[key] = sums.get(key, 0) + number
        labels = ("http_method", "rpc_method", "status")
        yield Counter(f"{PREFIX}requests", "Requests of clients that were answered.", labels, sums)
        said = "Calls of clients by what became of them."
        yield Counter(f"{PREFIX}calls", said, ("rpc_method", "outcome"), dict(self.calls().items()))
        seconds = Histogram(
            f"{PREFIX}request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            REQUEST_BUCKETS,
            ("rpc_method",),
        )
        seconds.counts = {(rpc_method,): buckets for rpc_method, buckets in self._buckets.items()}
        seconds.sums = {(rpc_method,): total for rpc_method, total in self._seconds.items()}
        yield seconds


class Metrics:
    """All counts of one sidecar.

    ``signatures`` and ``rpc_methods`` are the label values known in advance; their series begin at 0 instead of missing
    until the first event, so that a rate over them is right from the first one on.
    """

    def __init__(self, *, signatures: Iterable[str] = (), rpc_methods: Iterable[str] = ()) -> None:
        self._served = Served()
        self._metrics: list[Metric] = []
        self._make_healing_metrics()
        self._make_store_metrics()
        self._make_gauges()
        self._begin_at_zero(signatures, rpc_methods)
        self._recorders: Mapping[type[facts.Fact], Callable[[Any], None]] = {
            facts.RequestServed: self._request_served,
            facts.RequestHeld: lambda fact: self._held_seconds.observe(fact.seconds),
            facts.SessionLost: lambda fact: self._lost.add(fact.signature),
            facts.RefusalAsked: lambda fact: self._asked.add(fact.outcome.value),
            facts.HealEnded: self._heal_ended,
            facts.RequestReplayed: lambda fact: self._replays.add(fact.cause.value),
            facts.AnswerRewritten: lambda fact: self._rewritten.add(str(fact.from_status)),
            facts.OutcomeUnknown: lambda fact: self._unknown.add(fact.rpc_method),
            facts.MessageDropped: lambda fact: self._dropped.add(fact.kind.value),
            facts.RestoreRefused: lambda fact: self._restores_refused.add(fact.step.value),
            facts.ListsChanged: lambda fact: self._lists_changed.add(fact.kind.value),
            facts.HintDropped: lambda fact: self._hints_dropped.add(fact.kind.value),
            facts.ActionObserved: lambda fact: self._observed.add(fact.action.value),
            facts.StoreAsked: self._store_asked,
            facts.SessionIdRejected: lambda fact: self._ids_rejected.add(fact.reason),
            facts.SessionAdopted: lambda fact: self._adopted.add(fact.source.value),
        }

    def _make_healing_metrics(self) -> None:
        self._lost = self._counter("sessions_lost", "Sessions that the upstream forgot.", "signature")
        self._asked = self._counter(
            "refusals_asked", "Refusals that a ping was to settle, by what it found.", "outcome"
        )
        self._heals = self._counter("heals", "Heals that came to an end.", "outcome")
        self._heal_seconds = self._histogram(
            "heal_seconds", "Seconds from a session's loss to its being healed.", HEAL_BUCKETS
        )
        self._held_seconds = self._histogram(
            "held_seconds", "Seconds that requests waited for the upstream or for a heal.", HEAL_BUCKETS
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
        self._store_seconds = self._histogram(
            "store_seconds", "Seconds that the store of sessions took to answer.", STORE_BUCKETS, "operation"
        )
        self._store_errors = self._counter("store_errors", "Questions that it did not answer.", "operation")
        self._adopted = self._counter("sessions_adopted", "Sessions opened elsewhere that go on here.", "from")
        self._ids_rejected = self._counter(
            "session_ids_rejected", "Session ids that claim to be tokens and count for nothing.", "reason"
        )
        self._store_up = self._gauge("store_up", "Whether the store of sessions has answered when it was asked last.")
        self._store_up.read = always(1)
        self._unsaved = self._gauge("store_unsaved_records", "Records and ends that the store does not know yet.")

    def _store_asked(self, fact: facts.StoreAsked) -> None:
        self._store_seconds.observe(fact.seconds, fact.operation)
        if fact.failed:
            self._store_errors.add(fact.operation)

    def _make_gauges(self) -> None:
        self._log_lines_dropped = self._gauge("log_lines_dropped", "Log lines that could not be written.")
        self._log_lines_dropped.kind = "counter"
        self._sessions = self._gauge("sessions", "Sessions that are remembered.")
        self._held = self._gauge("held_requests", "Requests that wait for the upstream.")
        self._upstream_up = self._gauge("upstream_up", "1 until a connect to the upstream fails, 0 until one succeeds.")
        self._upstream_up.read = always(1)
        self._last_answer = self._gauge(
            "upstream_last_answer_timestamp_seconds",
            "When the upstream last gave an answer that was a success; 0 is never.",
        )
        self._build_info = self._gauge("build_info", "What runs here.", "version", "mode", "store")
        self._clients = self._gauge("clients", "Sessions by the client's name.", "name")
        self._streams = self._gauge("streams", "Event streams that are open.", "kind")

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        counter = Counter(PREFIX + name, documentation, labels)
        self._metrics.append(counter)
        return counter

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        gauge = Gauge(PREFIX + name, documentation, nothing if labels else always(0), labels)
        self._metrics.append(gauge)
        return gauge

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(PREFIX + name, documentation, bounds, labels)
        self._metrics.append(histogram)
        return histogram

    def _begin_at_zero(self, signatures: Iterable[str], rpc_methods: Iterable[str]) -> None:
        known: tuple[tuple[Counter, Iterable[str]], ...] = (
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
            (self._adopted, facts.AdoptedFrom),
            (self._ids_rejected, REJECTIONS),
        )
        for metric, values in known:
            metric.values.update({(str(value),): 0 for value in values})
        self._streams.read = lambda: {(kind,): 0 for kind in STREAM_KINDS}

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
        self._sessions.read = lambda: {(): sessions()}
        self._held.read = lambda: {(): held_requests()}
        self._upstream_up.read = lambda: {(): upstream_up()}
        self._last_answer.read = lambda: {(): last_answer()}
        self._clients.read = lambda: {(name,): number for name, number in clients().items()}
        self._streams.read = lambda: {("get",): get_streams(), ("post",): post_streams()}
        self._log_lines_dropped.read = lambda: {(): log_lines_dropped()}

    def describe(self, *, version: str, mode: str, store: str) -> None:
        """Say what runs here."""
        self._build_info.read = lambda: {(version, mode, store): 1}

    def calls(self) -> Mapping[tuple[str, str], int]:
        """Calls so far, by method and outcome."""
        return self._served.calls()

    def bind_store(self, *, is_up: Reading, unsaved_records: Reading) -> None:
        """The same for the gauges of the store."""
        self._store_up.read = lambda: {(): is_up()}
        self._unsaved.read = lambda: {(): unsaved_records()}

    def record(self, fact: facts.Fact) -> None:
        """Count a fact; one that no metric tells is let pass."""
        recorder = self._recorders.get(type(fact))
        if recorder is not None:
            recorder(fact)

    def _request_served(self, fact: facts.RequestServed) -> None:
        method = fact.http_method if fact.http_method in _HTTP_METHODS else "other"
        self._served.count(method, fact.rpc_method, fact.status, fact.seconds, fact.outcome)

    def _heal_ended(self, fact: facts.HealEnded) -> None:
        self._heals.add(fact.outcome.value)
        if fact.outcome is facts.HealOutcome.HEALED:
            self._heal_seconds.observe(fact.seconds)

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """Write all metrics and name their content type: Prometheus text, or OpenMetrics where ``accept`` asks for it."""
        return exposition.render(chain(self._served.metrics(), self._metrics, exposition.of_process()), accept)
