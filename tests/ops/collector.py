"""A collector in the test's own process: takes OTLP over HTTP as protobuf, and keeps the spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What was exported so far."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, object] = field(default_factory=dict)

    async def take(self, request: web.Request) -> web.Response:
        """One export."""
        export = ExportTraceServiceRequest.FromString(await request.read())
        for each in export.resource_spans:
            self.resource = plain(each.resource.attributes)
            self.spans += [span for scope in each.scope_spans for span in scope.spans]
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    def named(self, name: str) -> Span:
        """The first span of a name."""
        return next(span for span in self.spans if span.name == name)

    def below(self, parent: Span) -> list[Span]:
        """The children of a span, in the order in which they began."""
        children = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(children, key=lambda span: span.start_time_unix_nano)

    def tree(self, parent: Span) -> list[object]:
        """The names below a span: each name, and behind it what is below it, if there is anything."""
        found: list[object] = []
        for child in self.below(parent):
            found.append(child.name)
            below = self.tree(child)
            if below:
                found.append(below)
        return found


def plain(attributes: object) -> dict[str, object]:
    """Attributes as plain values."""
    assert not isinstance(attributes, str)
    return {pair.key: _value(pair) for pair in attributes}  # type: ignore[attr-defined]


def _value(pair: KeyValue) -> object:
    kind = pair.value.WhichOneof("value")
    return getattr(pair.value, kind) if kind is not None else None


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port of loopback."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()
