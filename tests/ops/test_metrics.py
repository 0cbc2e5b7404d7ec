"""Which counts each fact becomes, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mcp_sidecar import facts
from mcp_sidecar.ops.metrics import Metrics

# The contract's table, which users' dashboards are built on, and what came on top of it.
CONTRACT = {
    "mcp_sidecar_requests_total": ("counter", {"http_method", "rpc_method", "status"}),
    "mcp_sidecar_request_seconds": ("histogram", {"rpc_method"}),
    "mcp_sidecar_sessions": ("gauge", set()),
    "mcp_sidecar_sessions_lost_total": ("counter", {"signature"}),
    "mcp_sidecar_refusals_asked_total": ("counter", {"outcome"}),
    "mcp_sidecar_heals_total": ("counter", {"outcome"}),
    "mcp_sidecar_heal_seconds": ("histogram", set()),
    "mcp_sidecar_replays_total": ("counter", {"cause"}),
    "mcp_sidecar_answers_rewritten_total": ("counter", {"from_status"}),
    "mcp_sidecar_outcomes_unknown_total": ("counter", {"rpc_method"}),
    "mcp_sidecar_messages_dropped_total": ("counter", {"kind"}),
    "mcp_sidecar_observed_total": ("counter", {"action"}),
    "mcp_sidecar_restores_refused_total": ("counter", {"step"}),
    "mcp_sidecar_hints_dropped_total": ("counter", {"kind"}),
    "mcp_sidecar_lists_changed_total": ("counter", {"kind"}),
    "mcp_sidecar_held_requests": ("gauge", set()),
    "mcp_sidecar_streams": ("gauge", {"kind"}),
    "mcp_sidecar_upstream_up": ("gauge", set()),
    "mcp_sidecar_calls_total": ("counter", {"rpc_method", "outcome"}),
    "mcp_sidecar_held_seconds": ("histogram", set()),
    "mcp_sidecar_upstream_last_answer_timestamp_seconds": ("gauge", set()),
    "mcp_sidecar_build_info": ("gauge", {"version", "mode", "store"}),
    "mcp_sidecar_clients": ("gauge", {"name"}),
    "mcp_sidecar_log_lines_dropped_total": ("counter", set()),
    "mcp_sidecar_store_up": ("gauge", set()),
    "mcp_sidecar_store_seconds": ("histogram", {"operation"}),
    "mcp_sidecar_store_errors_total": ("counter", {"operation"}),
    "mcp_sidecar_store_unsaved_records": ("gauge", set()),
    "mcp_sidecar_sessions_adopted_total": ("counter", {"from"}),
    "mcp_sidecar_session_ids_rejected_total": ("counter", {"reason"}),
}

HEALED = facts.HealEnded("ab12", facts.HealOutcome.HEALED, "python-404", "as before", 1, 0.02)
EVERYTHING: tuple[facts.Fact, ...] = (
    facts.RequestServed("POST", "tools/call", 200, 0.02, facts.CallOutcome.ANSWERED),
    facts.SessionLost("ab12", "python-404", 404, 0),
    HEALED,
    facts.RequestReplayed("ab12", facts.ReplayCause.SESSION_LOST, "tools/call"),
    facts.AnswerRewritten("ab12", 400),
    facts.OutcomeUnknown("ab12", "tools/call"),
    facts.MessageDropped("ab12", facts.DroppedKind.NOTIFICATION, "upstream away"),
    facts.ActionObserved("ab12", facts.ObservedAction.HEAL, "python-404"),
    facts.RestoreRefused("ab12", facts.RestoreStep.SUBSCRIBE),
    facts.HintDropped("ab12", facts.HintKind.UPDATED),
    facts.ListsChanged("ab12", facts.ListKind.PROMPTS, promised=False),
    facts.StoreAsked("get", 0.001, failed=True),
    facts.SessionAdopted("ab12", facts.AdoptedFrom.STORE, 0.02),
    facts.SessionIdRejected("expired"),
)


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    """Read one sample; None where there is none."""
    families = text_string_to_metric_families(metrics.render(None)[0].decode())
    found = (sample for family in families for sample in family.samples)
    return next((sample.value for sample in found if (sample.name, sample.labels) == (name, labels)), None)


def test_the_metrics_are_the_contract_s() -> None:
    """Exactly these names, kinds and labels, besides the standard ones of process and Python."""
    metrics = Metrics()
    for fact in EVERYTHING:
        metrics.record(fact)
    metrics.describe(version="1", mode="heal", store="memory")
    metrics._clients.read = lambda: {("mcp",): 1}
    found = {}
    for family in text_string_to_metric_families(metrics.render(None)[0].decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = set().union(*(set(sample.labels) for sample in family.samples)) - {"le"}
        if name.startswith("mcp_sidecar_"):
            found[name] = (family.type, labels)
        else:
            assert name.startswith(("process_", "python_"))
    assert found == CONTRACT


@pytest.mark.parametrize(
    ("fact", "name", "labels"),
    [
        pytest.param(EVERYTHING[0], "requests_total", {"http_method": "POST", "rpc_method": "tools/call", "status": "200"}, id="requests"),
        pytest.param(EVERYTHING[0], "calls_total", {"rpc_method": "tools/call", "outcome": "answered"}, id="calls"),
        pytest.param(facts.RequestHeld(0.5), "held_seconds_count", {}, id="held"),
        pytest.param(EVERYTHING[0], "request_seconds_count", {"rpc_method": "tools/call"}, id="request-seconds"),
        pytest.param(EVERYTHING[1], "sessions_lost_total", {"signature": "python-404"}, id="lost"),
        pytest.param(HEALED, "heals_total", {"outcome": "healed"}, id="healed"),
        pytest.param(HEALED, "heal_seconds_count", {}, id="heal-seconds"),
        pytest.param(EVERYTHING[3], "replays_total", {"cause": "session_lost"}, id="replays"),
        pytest.param(EVERYTHING[4], "answers_rewritten_total", {"from_status": "400"}, id="rewritten"),
        pytest.param(EVERYTHING[5], "outcomes_unknown_total", {"rpc_method": "tools/call"}, id="unknown"),
        pytest.param(EVERYTHING[6], "messages_dropped_total", {"kind": "notification"}, id="dropped"),
        pytest.param(EVERYTHING[7], "observed_total", {"action": "heal"}, id="observed"),
        pytest.param(EVERYTHING[8], "restores_refused_total", {"step": "resources/subscribe"}, id="restores-refused"),
        pytest.param(EVERYTHING[11], "store_seconds_count", {"operation": "get"}, id="store-seconds"),
        pytest.param(EVERYTHING[11], "store_errors_total", {"operation": "get"}, id="store-errors"),
        pytest.param(EVERYTHING[13], "session_ids_rejected_total", {"reason": "expired"}, id="rejected"),
        pytest.param(EVERYTHING[12], "sessions_adopted_total", {"from": "store"}, id="adopted"),
        pytest.param(EVERYTHING[9], "hints_dropped_total", {"kind": "updated"}, id="hints-dropped"),
        pytest.param(EVERYTHING[10], "lists_changed_total", {"kind": "prompts"}, id="lists-changed"),
    ],
)  # fmt: skip
def test_a_fact_is_counted_once(fact: facts.Fact, name: str, labels: dict[str, str]) -> None:
    """Each fact adds one to its metric under its labels."""
    metrics = Metrics()
    metrics.record(fact)
    metrics.record(fact)
    assert value(metrics, f"mcp_sidecar_{name}", **labels) == 2


@pytest.mark.parametrize(
    "fact",
    [
        pytest.param(facts.SessionOpened("ab12", "2025-11-25"), id="opened"),
        pytest.param(facts.UpstreamLost("refused"), id="upstream-lost"),
        pytest.param(facts.SidecarFault("KeyError", "x:1"), id="fault"),
    ],
)
def test_other_facts_are_let_pass(fact: facts.Fact) -> None:
    """A fact without a metric changes none."""
    metrics = Metrics()
    before = metrics.render(None)[0].count(b"mcp_sidecar_")
    metrics.record(fact)
    assert metrics.render(None)[0].count(b"mcp_sidecar_") == before


@pytest.mark.parametrize("outcome", [each for each in facts.HealOutcome if each is not facts.HealOutcome.HEALED])
def test_only_heals_that_healed_have_a_duration(outcome: facts.HealOutcome) -> None:
    """A hold that ran out would drown the time that healing takes."""
    metrics = Metrics()
    metrics.record(facts.HealEnded("ab12", outcome, "python-404", "no answer", 0, 15.0))
    assert value(metrics, "mcp_sidecar_heals_total", outcome=outcome.value) == 1
    assert value(metrics, "mcp_sidecar_heal_seconds_count") == 0


def test_a_made_up_method_is_other() -> None:
    """Clients choose the method; a thousand different ones are one series."""
    metrics = Metrics()
    for number in range(1000):
        metrics.record(facts.RequestServed(f"M{number}", "other", 405, 0.001))
    assert value(metrics, "mcp_sidecar_requests_total", http_method="other", rpc_method="other", status="405") == 1000


def test_bounded_series_begin_at_zero() -> None:
    """A dashboard sees a series before its first event, and the first event is an increase."""
    metrics = Metrics(signatures=["python-404"], rpc_methods=["tools/call"])
    assert value(metrics, "mcp_sidecar_sessions_lost_total", signature="python-404") == 0
    assert value(metrics, "mcp_sidecar_outcomes_unknown_total", rpc_method="tools/call") == 0
    for name, label, kinds in (
        ("heals", "outcome", facts.HealOutcome),
        ("replays", "cause", facts.ReplayCause),
        ("messages_dropped", "kind", facts.DroppedKind),
        ("observed", "action", facts.ObservedAction),
        ("restores_refused", "step", facts.RestoreStep),
        ("hints_dropped", "kind", facts.HintKind),
    ):
        assert [value(metrics, f"mcp_sidecar_{name}_total", **{label: str(kind)}) for kind in kinds] == [0] * len(kinds)


def test_gauges_are_read_when_they_are_shown() -> None:
    """Before they are bound nothing is open and the upstream counts as up; afterwards each scrape asks anew."""
    metrics = Metrics()
    names = [
        ("sessions", {}),
        ("held_requests", {}),
        ("streams", {"kind": "get"}),
        ("streams", {"kind": "post"}),
        ("upstream_up", {}),
        ("log_lines_dropped_total", {}),
    ]

    def read() -> list[float | None]:
        return [value(metrics, f"mcp_sidecar_{name}", **labels) for name, labels in names]

    assert read() == [0, 0, 0, 0, 1, 0]
    levels = [1, 2, 3, 4, 0, 5]

    def reading(place: int) -> Callable[[], float]:
        return lambda: levels[place]

    metrics.bind(
        sessions=reading(0),
        held_requests=reading(1),
        get_streams=reading(2),
        post_streams=reading(3),
        upstream_up=reading(4),
        last_answer=lambda: 0.0,
        clients=lambda: {"mcp": 12, "other": 13},
        log_lines_dropped=reading(5),
    )
    assert read() == [1, 2, 3, 4, 0, 5]
    levels[0] = 7
    assert read()[0] == 7
    assert value(metrics, "mcp_sidecar_clients", name="other") == 13


def test_requests_and_calls_are_counted_in_one_step() -> None:
    """Every outcome of a method is there from its first call on, and requests do not fall apart by outcome."""
    metrics = Metrics()
    for outcome in (None, facts.CallOutcome.ANSWERED, facts.CallOutcome.ANSWERED_AFTER_HEAL):
        metrics.record(facts.RequestServed("POST", "tools/call", 200, 0.01, outcome))
    labels = {"http_method": "POST", "rpc_method": "tools/call", "status": "200"}
    assert value(metrics, "mcp_sidecar_requests_total", **labels) == 3
    counts = {
        outcome: value(metrics, "mcp_sidecar_calls_total", rpc_method="tools/call", outcome=outcome.value)
        for outcome in facts.CallOutcome
    }
    assert {outcome for outcome, number in counts.items() if number} == {"answered", "answered_after_heal"}
    assert None not in counts.values()


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        pytest.param(None, "text/plain; version=0.0.4; charset=utf-8", b"\n", id="none"),
        pytest.param("*/*", "text/plain; version=0.0.4; charset=utf-8", b"\n", id="any"),
        pytest.param("application/openmetrics-text;version=1.0.0,text/plain;q=0.1", "application/openmetrics-text; version=1.0.0", b"# EOF\n", id="openmetrics"),
        pytest.param("application/openmetrics-text;version=abc", "text/plain; version=0.0.4; charset=utf-8", b"\n", id="nonsense"),
    ],
)  # fmt: skip
def test_the_format_is_what_was_asked_for(accept: str | None, content_type: str, end: bytes) -> None:
    """Prometheus text unless OpenMetrics is accepted; nonsense is no reason to fail a scrape."""
    body, kind = Metrics().render(accept)
    assert kind.startswith(content_type)
    assert body.endswith(end)


def test_no_session_is_a_label() -> None:
    """A session's hash appears in no metric."""
    metrics = Metrics()
    for fact in EVERYTHING:
        metrics.record(fact)
    assert b"ab12" not in metrics.render(None)[0]
    assert b"_created" not in metrics.render(None)[0]
