"""Spans of requests and of what is done for them, for OpenTelemetry.

The law of this file: it listens. What is about to happen comes through ``spans``, what has happened as facts, and nothing
here changes what becomes of a request but the trace context that goes to the upstream with it. It is imported only where
``OTEL_*`` variables ask for traces (``ops.exporters``).

A request's span continues the client's trace: that of the header ``traceparent``, else of ``params._meta`` (SEP-414; where
both are there, the other one is linked). The upstream gets the context of the attempt in the header; what stands in ``_meta``
passes as it is, as bodies do. Names and attributes are those of OpenTelemetry's conventions for MCP and HTTP; the session id,
the query of a URL, the arguments of a call and a resource's URI are in none of them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar
from urllib.parse import urlsplit

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace import Tracer as Spans

from mcp_sidecar import facts, spans
from mcp_sidecar.healing import attachment, exchange
from mcp_sidecar.healing.labels import OTHER, http_label, rpc_label
from mcp_sidecar.ops import logs
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import Message
from mcp_sidecar.wire.origins import DEFAULT_PORTS
from mcp_sidecar.wire.revisions import PROTOCOL_VERSION_HEADER

T = TypeVar("T")
Attributes = dict[str, str | int | float | bool]

MAX_NAME = 128
"""Of what a client calls a tool or a prompt, so many characters are shown."""

LAST_SPANS_S = 3.0
"""How long the end waits for a collector that is slow or away."""

STEPS: Final[Mapping[type, str]] = {
    exchange.Ask: "ask",
    exchange.Heal: "heal",
    exchange.Hold: "hold",
    attachment.Wait: "hold",
}
"""The steps that are spans of their own. A message that is sent again is one, too: ``replay``."""

_UNTOLD = frozenset({facts.RequestServed, facts.RequestHeld, facts.StoreAsked})
"""Facts that are no events of a span: there is a span that says as much, or they concern nobody who reads traces."""

_FAILED = frozenset({facts.CallOutcome.UNAVAILABLE, facts.CallOutcome.UNKNOWN, facts.CallOutcome.SESSION_LOST})
CLIENT_LEFT = 499
_NAMED_BY = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}


class Traces:
    """Traces the requests of one sidecar."""

    def __init__(self, provider: TracerProvider, version: str, upstream_origin: str) -> None:
        """``provider`` sends what is recorded. What is left of it is sent by ``close``."""
        self._provider = provider
        self._spans = provider.get_tracer("mcp_sidecar", version)
        self._upstream = _Upstream(upstream_origin)

    def begin(self, begun: spans.Begun) -> None:
        """See ``spans.Tracer``."""
        parent, links = _parent(begun)
        span = self._spans.start_span(
            _name(begun),
            parent,
            SpanKind.SERVER,
            _attributes(begun),
            links,
            start_time=time.time_ns() - int(begun.elapsed_s * 1e9),
        )
        spans.CURRENT.set(_Traced(self._spans, self._upstream, span))

    @staticmethod
    def heard(fact: facts.Fact) -> None:
        """A fact is an event of the span that is under way where it happens; that a request was served ends it."""
        trace = spans.CURRENT.get()
        if not isinstance(trace, _Traced):
            return
        if isinstance(fact, facts.RequestServed):
            spans.CURRENT.set(None)
            trace.served(fact)
        elif type(fact) not in _UNTOLD and trace.span.is_recording():
            trace.span.add_event(logs.LINES[type(fact)].event, logs.fields_of(fact))

    async def close(self) -> None:
        """Send what is left, in the time that there is."""
        loop, is_sent = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(is_sent.set)

        threading.Thread(target=shut_down, daemon=True, name="last spans").start()
        try:
            async with asyncio.timeout(LAST_SPANS_S):
                await is_sent.wait()
        except TimeoutError:
            logs.log().warning("spans_lost", reason="the collector did not take them in time")


def ids() -> Mapping[str, str]:
    """What a log line says of the trace in which it is written."""
    trace = spans.CURRENT.get()
    if not isinstance(trace, _Traced):
        return {}
    context = trace.span.get_span_context()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


class _Upstream:
    """Where attempts go."""

    def __init__(self, origin: str) -> None:
        parts = urlsplit(origin)
        self.origin = origin
        self.attributes: Attributes = {
            "server.address": parts.hostname or "",
            "server.port": parts.port or DEFAULT_PORTS[parts.scheme],
        }


class _Traced:
    """A request, or a step of it, as far as it has come; a ``spans.Trace``."""

    __slots__ = ("_root", "_sent", "_spans", "_upstream", "context", "span")

    def __init__(self, tracer: Spans, upstream: _Upstream, span: Span, root: _Traced | None = None) -> None:
        self._spans = tracer
        self._upstream = upstream
        self._root = self if root is None else root
        self._sent = 0  # by the request's own steps, so far
        self.span = span
        self.context = set_span_in_context(span, Context())

    async def during(self, step: object, work: Awaitable[T]) -> T:
        """See ``spans.Trace``."""
        name = STEPS.get(type(step))
        if isinstance(step, exchange.Send):
            self._root._sent += 1  # noqa: SLF001 - one of its own kind
            name = "replay" if step.cause is not None else None
        if name is None:
            return await work
        with self._below(name) as span:
            if isinstance(step, exchange.Send) and step.cause is not None:
                span.set_attribute("mcp_sidecar.cause", step.cause.value)
            return await work

    def attempt(self, http_method: str, target: str, headers: Iterable[Pair]) -> spans.Attempt:
        """See ``spans.Trace``."""
        attributes = self._upstream.attributes | {
            "http.request.method": http_method,
            "url.full": self._upstream.origin + target.partition("?")[0],
            "network.protocol.name": "http",
        }
        if self._root._sent > 1:  # noqa: SLF001 - one of its own kind
            attributes["http.request.resend_count"] = self._root._sent - 1  # noqa: SLF001 - the same
        span = self._spans.start_span(http_method, self.context, SpanKind.CLIENT, attributes)
        return _Attempt(span, set_span_in_context(span, self.context), headers)

    def served(self, fact: facts.RequestServed) -> None:
        """The request is over."""
        span, outcome = self.span, fact.outcome
        if fact.status != CLIENT_LEFT:
            span.set_attribute("http.response.status_code", fact.status)
        if outcome is not None:
            span.set_attribute("mcp_sidecar.outcome", outcome.value)
        if outcome in _FAILED:
            _fail(span, outcome.value)
        elif fact.status >= 500:
            _fail(span, str(fact.status))
        elif fact.status == CLIENT_LEFT:
            span.set_attribute("error.type", facts.CallOutcome.CLIENT_LEFT.value)
        span.end()

    @contextmanager
    def _below(self, name: str) -> Iterator[Span]:
        span = self._spans.start_span(name, self.context)
        token = spans.CURRENT.set(_Traced(self._spans, self._upstream, span, self._root))
        try:
            yield span
        finally:
            spans.CURRENT.reset(token)
            span.end()


class _Attempt:
    """See ``spans.Attempt``."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Span, context: Context, headers: Iterable[Pair]) -> None:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context)
        # What a client carries besides is its own business, and passes.
        told = {name.lower(): value for name, value in carrier.items() if name.lower() != "baggage"}
        stale = told.keys() | ({"tracestate"} if "traceparent" in told else set())
        self._span = span
        self.headers = [pair for pair in headers if pair[0].lower() not in stale] + list(told.items())

    def answered(self, status: int) -> None:
        """See ``spans.Attempt``."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 400:
            _fail(self._span, str(status))

    def failed(self, fault: Fault) -> None:
        """See ``spans.Attempt``."""
        _fail(self._span, fault.value)

    def end(self) -> None:
        """See ``spans.Attempt``."""
        self._span.end()


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


# -- what a request's span says ---------------------------------------------------------------------------------------


def _parent(begun: spans.Begun) -> tuple[Context, list[Link]]:
    """The context that a request's span continues, and what is linked."""
    headers = {name: value for name, (_, value) in zip(begun.fields.names, begun.fields.pairs, strict=True)}
    carriers: tuple[Mapping[str, str], ...] = (headers, _meta(begun.message))
    known = [context for context in map(_extracted, carriers) if _is_known(context)]
    if not known:
        return Context(), []
    others = [get_current_span(context).get_span_context() for context in known[1:]]
    return known[0], [Link(other) for other in others if other != get_current_span(known[0]).get_span_context()]


def _extracted(carrier: Mapping[str, str]) -> Context:
    return propagate.extract(carrier, Context())


def _is_known(context: Context) -> bool:
    return get_current_span(context).get_span_context().is_valid


def _meta(message: Message | None) -> dict[str, str]:
    """What the first request of a body carries beside its arguments."""
    if message is None:
        return {}
    first = message if not message.members else message.members[0]
    meta = first.params.get("_meta")
    return {name: value for name, value in meta.items() if isinstance(value, str)} if isinstance(meta, dict) else {}


def _name(begun: spans.Begun) -> str:
    message = begun.message
    if message is not None and message.method is not None:
        return " ".join(filter(None, (rpc_label(message), _target(message))))
    method = http_label(begun.http_method)
    return f"{'HTTP' if method == OTHER else method} {begun.route}" if begun.route else method


def _target(message: Message) -> str:
    named = message.params.get("name") if message.method in _NAMED_BY else None
    return named[:MAX_NAME] if isinstance(named, str) else ""


def _attributes(begun: spans.Begun) -> Attributes:
    method = http_label(begun.http_method)
    host = urlsplit(f"//{begun.fields.value('host') or ''}")
    found: Attributes = {
        "http.request.method": "_OTHER" if method == OTHER else method,
        "url.path": begun.path,
        "url.scheme": begun.scheme,
        "network.transport": "tcp",
        "network.protocol.name": "http",
        **_authority(host.hostname, lambda: host.port),
    }
    if begun.route is not None:
        found["http.route"] = begun.route
    version = begun.fields.value(PROTOCOL_VERSION_HEADER.lower())
    if version is not None:
        found["mcp.protocol.version"] = version[:MAX_NAME]
    return found | (_of_message(begun.message) if begun.message is not None else {})


def _authority(host: str | None, port: Callable[[], int | None]) -> Attributes:
    try:
        number = port()
    except ValueError:
        return {}
    found: Attributes = {} if host is None else {"server.address": host}
    return found if number is None else found | {"server.port": number}


def _of_message(message: Message) -> Attributes:
    if message.method is None:
        return {}
    found: Attributes = {"mcp.method.name": rpc_label(message)}
    if isinstance(message.id, int):
        found["jsonrpc.request.id"] = str(message.id)
    target = _target(message)
    if target:
        found[_NAMED_BY[message.method]] = target
    if message.method == "tools/call":
        found["gen_ai.operation.name"] = "execute_tool"
    return found
