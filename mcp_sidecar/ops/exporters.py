"""Whether somebody wants traces, and where to: the ``OTEL_*`` variables, as every program with OpenTelemetry has them.

The rule of this file: the libraries of the extra ``otel`` are imported here, and only where the variables ask for traces.
What they name beyond that (endpoint, headers, sampler, attributes of the resource, limits) OpenTelemetry's own SDK reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mcp_sidecar.ops import logs

if TYPE_CHECKING:
    from mcp_sidecar.ops.traces import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER, PROTOCOL = "otlp", "http/protobuf"


def are_wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are to be exported. The extra alone exports nothing: an image has it without a collector."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter != "none" if exporter else any(map(environment.get, ENDPOINTS))


def cannot(environment: Mapping[str, str]) -> str | None:
    """What of the variables is not to be had here, in one sentence for the log."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", EXPORTER):
        return f"OTEL_TRACES_EXPORTER: only {EXPORTER} and none are known"
    named = next((name for name in PROTOCOLS if environment.get(name)), None)
    if named is not None and environment[named].strip() != PROTOCOL:
        return f"{named}: only {PROTOCOL} is known, which collectors take on port 4318"
    return None


def traces_for(environment: Mapping[str, str], version: str, upstream_origin: str) -> Traces | None:
    """What traces requests, if the environment asks for it; where it cannot be had, a line says why."""
    if not are_wanted(environment):
        return None
    reason = cannot(environment)
    if reason is None:
        try:
            return _traces(version, upstream_origin)
        except ImportError:
            reason = "needs the extra otel: pip install 'mcp-sidecar[otel]'"
        except Exception as error:  # noqa: BLE001 - an unusable value of a variable, in the SDK's own words for it
            reason = f"an OTEL_ variable cannot be used ({type(error).__name__})"
    logs.log().warning("no_traces", reason=reason)
    return None


def _traces(version: str, upstream_origin: str) -> Traces:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mcp_sidecar.ops.traces import Traces, ids

    ours = Resource.create({"service.name": "mcp-sidecar", "service.version": version})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    logs.add_to_lines(ids)
    return Traces(provider, version, upstream_origin)
