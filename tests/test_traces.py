"""Traces: what a collector gets to see of requests, over the wire, and what it does not."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import set_span_in_context

from mcp_sidecar.facts import HealEnded, RequestServed
from mcp_sidecar.ops import exporters, logs, traces
from tests.ops.collector import Collector, collecting, plain
from tests.support.fake_upstream import FakeUpstream
from tests.support.refusals import generated
from tests.support.scene import connected
from tests.support.waiting import HANG_S, eventually

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
OTHER_PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
UNKNOWN_WORDS = next(refused for refused in generated(seed=3) if refused.said.status == 422)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector that every sidecar of the test exports to."""
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        monkeypatch.setattr(traces, "LAST_SPANS_S", HANG_S)  # a slow machine loses none
        yield collector
        logs.add_to_lines(dict)


def _parents(upstream: FakeUpstream, trace_id: bytes) -> list[str]:
    """The spans that the upstream is to continue in a trace, in the order of its requests."""
    told = [(arrival.header("traceparent") or "--").split("-") for arrival in upstream.ledger.arrivals]
    return [words[2] for words in told if words[1] == trace_id.hex()]


async def test_a_call_over_a_restart_is_one_trace(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the client's own span over try, ask and heal to the try that succeeded, under one trace id, over the wire."""
    clients_own = TracerProvider()
    clients_own.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    async with connected(dialect=UNKNOWN_WORDS.dialect) as (upstream, sidecar, client):
        await upstream.restart(dialect=UNKNOWN_WORDS.dialect)
        span = clients_own.get_tracer("test").start_span("the client's")
        carried: dict[str, str] = {}
        inject(carried, set_span_in_context(span))
        params = {"name": "charge", "arguments": {"text": "secret words"}}
        answer = await client.call("tools/call", params, headers=carried)
        assert "result" in answer.response
        assert len(upstream.ledger.executions("charge")) == 1
        assert [heal.outcome.value for heal in sidecar.of(HealEnded)] == ["healed"]
    await asyncio.to_thread(span.end)
    root = collector.named("the client's")
    call = collector.named("tools/call charge")
    assert call.parent_span_id == root.span_id
    assert collector.tree(call) == [
        *("POST", "ask", ["POST"], "heal", ["POST", "POST"], "replay", ["POST"]),
    ]
    in_trace = [each for each in collector.spans if each.trace_id == root.trace_id]
    assert {each.name for each in in_trace} == {"the client's", "tools/call charge", "POST", "ask", "heal", "replay"}
    assert len(in_trace) == 10
    tries = [each for each in in_trace if each.kind == each.SPAN_KIND_CLIENT]
    assert sorted(_parents(upstream, root.trace_id)) == sorted(each.span_id.hex() for each in tries)
    heal = collector.named("heal")
    assert "heal_ended" in {event.name for event in heal.events}
    assert plain(collector.below(collector.named("replay"))[0].attributes)["http.request.resend_count"] == 1


async def test_what_a_span_says_and_what_it_does_not(collector: Collector) -> None:
    """The conventions' names for what a call is; nothing of ids, queries, credentials, arguments or answers."""
    async with connected() as (_, sidecar, client):
        client.url = f"{sidecar.url}?key=k-secret"
        client.headers = {"Authorization": "Bearer b-secret"}
        await client.initialize()
        await client.call("resources/read", {"uri": "file:///u-secret"})
        await client.tool("echo", text="a-secret")
        opened = client.session_id or ""
    span = collector.named("tools/call echo")
    said = plain(span.attributes)
    assert said["mcp.method.name"] == "tools/call"
    assert said["gen_ai.tool.name"] == "echo"
    assert said["gen_ai.operation.name"] == "execute_tool"
    assert said["mcp.protocol.version"] == client.version
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == said["url.path"] == "/mcp"
    assert said["http.response.status_code"] == 200
    assert said["mcp_sidecar.outcome"] == "answered"
    assert (said["server.address"], said["server.port"]) == ("127.0.0.1", sidecar.port)
    assert collector.resource["service.name"] == "mcp-sidecar"
    everything = b"".join(each.SerializeToString() for each in collector.spans)
    assert b"secret" not in everything
    assert opened.encode() not in everything


@pytest.mark.parametrize(
    ("header", "meta", "parent", "links"),
    [
        pytest.param(TRACEPARENT, None, PARENT, 0, id="the header"),
        pytest.param(None, TRACEPARENT, PARENT, 0, id="the message"),
        pytest.param(TRACEPARENT, OTHER_PARENT, PARENT, 1, id="both: the header, and a link"),
        pytest.param(TRACEPARENT, TRACEPARENT, PARENT, 0, id="twice the same"),
        pytest.param("00-zz-zz-01", None, "", 0, id="what is none"),
        pytest.param("x" * 5000, TRACEPARENT, PARENT, 0, id="a header that is none"),
        pytest.param(None, 7, "", 0, id="a number"),
        pytest.param(None, None, "", 0, id="nothing"),
    ],
)
async def test_the_client_s_trace_goes_on(
    collector: Collector, header: str | None, meta: object, parent: str, links: int
) -> None:
    """Header before message; what is no trace context begins a trace and breaks nothing."""
    async with connected() as (upstream, _, client):
        params = {"name": "echo", "arguments": {"text": "x"}} | ({"_meta": {"traceparent": meta}} if meta else {})
        await client.call("tools/call", params, headers={"traceparent": header} if header else {})
    span = collector.named("tools/call echo")
    assert span.parent_span_id.hex() == parent
    assert (span.trace_id.hex() == TRACE) is bool(parent)
    assert len(span.links) == links
    (attempt,) = collector.below(span)
    assert _parents(upstream, span.trace_id) == [attempt.span_id.hex()]


async def test_who_is_not_sampled_is_not_recorded(collector: Collector) -> None:
    """The client's decision is kept, and passed on; its tracestate and baggage, too."""
    told = {"traceparent": f"00-{TRACE}-{PARENT}-00", "tracestate": "vendor=1", "baggage": "user=7"}
    async with connected() as (upstream, _, client):
        await client.call("tools/call", {"name": "echo", "arguments": {"text": "x"}}, headers=told)
        arrived = upstream.ledger.arrivals[-1].request.headers
    sent = [(name.lower(), value) for name, value in arrived if name.lower() in told]
    assert sorted(sent)[:1] + sorted(sent)[2:] == [("baggage", "user=7"), ("tracestate", "vendor=1")]
    assert dict(sent)["traceparent"].startswith(f"00-{TRACE}-")
    assert dict(sent)["traceparent"].endswith("-00")
    assert PARENT not in dict(sent)["traceparent"]
    assert TRACE not in {span.trace_id.hex() for span in collector.spans}


async def test_a_hold_and_its_end_are_in_the_trace(collector: Collector) -> None:
    """A call that waited in vain shows the try, the hold, and what it was given as an error."""
    async with connected(healing__hold_timeout=0.2) as (upstream, _, client):
        await upstream.stop()
        answer = await client.tool("charge", text="x")
        assert answer.error["data"]["reason"] == "upstream_unavailable"
    span = collector.named("tools/call charge")
    assert collector.tree(span) == ["POST", "hold"]
    said = plain(span.attributes)
    assert (said["error.type"], said["mcp_sidecar.outcome"]) == ("unavailable", "unavailable")
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert plain(collector.below(span)[0].attributes)["error.type"] == "unreachable"


async def test_streams_other_paths_and_refusals_are_traced(collector: Collector) -> None:
    """A listening stream, a DELETE, another path and what is refused unread are a span each."""
    async with connected() as (upstream, sidecar, client):
        async with await client.get_stream() as stream:
            assert stream.status == 200
            await upstream.ledger.wait_for(lambda ledger: ledger.arrived(http_method="GET") != [])
        await client.post(b"not JSON")
        await client.delete()
        assert client.http is not None
        async with client.http.get(f"http://{sidecar.address}/echo/way?secret") as answer:
            await answer.read()
        await eventually(lambda: len(sidecar.of(RequestServed)) >= 6)
    names = [span.name for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
    assert sorted(names) == sorted(
        ["initialize", "notifications/initialized", "GET /mcp", "POST /mcp", "DELETE /mcp", "GET"]
    )
    assert all(collector.below(collector.named(name)) for name in ("GET /mcp", "DELETE /mcp"))
    assert collector.below(collector.named("POST /mcp")) == []


async def test_log_lines_name_the_trace(collector: Collector) -> None:
    """What is logged of a heal is found by the trace id of the call that met the loss."""
    written = io.StringIO()
    logs.configure("json", "info", stream=written)
    async with connected() as (upstream, _, client):
        await upstream.restart()
        await client.call("tools/list", headers={"traceparent": TRACEPARENT})
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (healed,) = [line for line in lines if line["event"] == "heal_ended"]
    heal = collector.named("heal")
    assert (healed["trace_id"], healed["span_id"]) == (TRACE, heal.span_id.hex())


async def test_a_collector_that_is_away_costs_nothing_but_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are answered, and the end comes in its time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    async with connected() as (_, _, client):
        assert (await client.tool("echo", text="x")).status == 200
    logs.add_to_lines(dict)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_only_whoever_asks_for_traces_gets_them(environment: dict[str, str], wanted: bool) -> None:
    """The extra alone changes nothing: an image has it, and most have no collector."""
    assert exporters.are_wanted(environment) is wanted


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        ),
    ],
)
def test_what_is_not_to_be_had_is_said(environment: dict[str, str], says: str) -> None:
    """One line that names the variable; the sidecar serves all the same."""
    written = io.StringIO()
    logs.configure("json", "info", stream=written)
    assert exporters.traces_for(environment, "1", "http://u") is None
    line = json.loads(written.getvalue())
    assert (line["event"], says in line["reason"]) == ("no_traces", True)


LOADS_THE_PROXY = """
import os, sys
if len(sys.argv) > 1:
    sys.modules["opentelemetry"] = None
from mcp_sidecar import app, process
from mcp_sidecar.ops import exporters
assert exporters.traces_for(dict.fromkeys(sys.argv[1:], "http://127.0.0.1:9"), "1", "http://u") is None
print([name for name in sys.modules if name.startswith(("opentelemetry.", "google.", "requests"))])
"""


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        pytest.param([], "", id="nobody asks"),
        pytest.param(["OTEL_EXPORTER_OTLP_ENDPOINT"], "mcp-sidecar[otel]", id="without the extra"),
    ],
)
def test_without_traces_nothing_is_loaded(asks: list[str], says: str) -> None:
    """Neither where nobody asks nor where the extra is missing, which is said with the line that installs it."""
    program = [sys.executable, "-c", LOADS_THE_PROXY, *asks]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert says in done.stdout
