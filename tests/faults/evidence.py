"""The faults of the matrix, as a table. The rule: each says what it lets an observer know, and nothing of what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.support.faults import (
    Answer,
    Break,
    CloseBeforeHeaders,
    CutStream,
    EndStream,
    Fault,
    GarbageHeaders,
    HugeHeaders,
    IngressPage,
    Refuse,
    ResetAfterExecution,
    ResetBeforeExecution,
    RoutePage,
    Router,
    Stall,
    StallAt,
    TruncateJson,
)


class Evidence(Enum):
    """What a fault lets an observer know."""

    NOT_SENT = "not sent"  # nothing can have arrived
    IN_DOUBT = "in doubt"  # it may have run
    STALLED = "stalled"  # it may have run, and nothing says that anybody still works
    GATEWAY = "gateway"  # it may have run; an ingress answered in the server's place
    ROUTE = "route"  # a router that knows no such path
    BUSY = "busy"  # the server itself says that it has no time, and to whoever asks, too
    ERROR = "error"  # the server itself says that it failed, in words that say nothing of when
    ENDED = "ended"  # a stream without its response: asked about, since some servers tell a lost session so
    RESUMABLE = "resumable"  # cut, but the server keeps the events of its streams
    POLLING = "polling"  # not a failure: the client is to come back with a GET


@dataclass(frozen=True, slots=True)
class Case:
    """A fault under its name. ``spoils_answers``: it needs an answer with a body, a 202 has none to spoil."""

    name: str
    fault: Fault
    evidence: Evidence
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    spoils_answers: bool = False


def _pages() -> list[Case]:
    return [
        Case(
            f"page-{status}-{'html' if html else 'text'}-{'ran' if executes else 'lost'}",
            IngressPage(status, html=html, executes=executes),
            Evidence.GATEWAY,
        )
        for status, html, executes in [
            (502, True, True),
            (502, False, False),
            (503, False, True),
            (504, True, True),
            (520, False, True),
            (530, True, False),
        ]
    ]


def _truncated() -> list[Case]:
    return [
        Case(
            f"json-cut-{'chunked' if chunked else 'length'}-{how.value}-{after}",
            TruncateJson(after, chunked=chunked, how=how),
            Evidence.IN_DOUBT,
            spoils_answers=True,
        )
        for chunked, how, after in [
            (False, Break.CLOSE, 10),
            (False, Break.RESET, 0),
            (True, Break.CLOSE, 10),
            (True, Break.RESET, 10),
        ]
    ]


def _cut() -> list[Case]:
    plain = [
        ("sse-reset-at-once", CutStream(0, event_ids=False)),
        ("sse-closed-at-once", CutStream(0, event_ids=False, how=Break.CLOSE)),
        ("sse-reset-in-event", CutStream(0, event_ids=False, mid_event=True)),
        ("sse-reset-after-id-no-store", CutStream(1, event_ids=True)),
        ("sse-reset-in-event-after-id-no-store", CutStream(1, event_ids=True, mid_event=True)),
    ]
    store = {"event_store": True}
    kept = [
        ("sse-reset-after-id", CutStream(1, event_ids=True)),
        ("sse-closed-in-event-after-id", CutStream(1, event_ids=True, mid_event=True, how=Break.CLOSE)),
    ]
    return [
        *(Case(name, fault, Evidence.IN_DOUBT, spoils_answers=True) for name, fault in plain),
        Case("sse-ended-without-id", EndStream(0, event_ids=False), Evidence.ENDED, spoils_answers=True),
        *(Case(name, fault, Evidence.RESUMABLE, store, spoils_answers=True) for name, fault in kept),
        Case("sse-polling", EndStream(1, event_ids=True), Evidence.POLLING, store, spoils_answers=True),
    ]


JSON_RPC_503 = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Overloaded"}}'
JSON_TYPE = (("Content-Type", "application/json"),)

CASES = (
    Case("refused", Refuse(), Evidence.NOT_SENT),
    Case("reset-before", ResetBeforeExecution(), Evidence.IN_DOUBT),
    Case("reset-after", ResetAfterExecution(), Evidence.IN_DOUBT),
    Case("closed-before", CloseBeforeHeaders(), Evidence.IN_DOUBT),
    Case("closed-after", CloseBeforeHeaders(executes=True), Evidence.IN_DOUBT),
    Case("garbage", GarbageHeaders(executes=True), Evidence.IN_DOUBT),
    Case("not-http", GarbageHeaders(b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n", executes=True), Evidence.IN_DOUBT),
    Case("huge-headers", HugeHeaders(), Evidence.IN_DOUBT),
    Case("stalled-before", Stall(StallAt.BEFORE_EXECUTION), Evidence.STALLED),
    Case("stalled-head", Stall(StallAt.BEFORE_HEADERS), Evidence.STALLED),
    *_truncated(),
    *_cut(),
    *_pages(),
    *(Case(f"route-{router.name.lower()}", RoutePage(router), Evidence.ROUTE) for router in Router),
    Case("json-rpc-503", Answer(503, JSON_TYPE, JSON_RPC_503), Evidence.BUSY),
    Case("server-error", Answer(500, (("Content-Type", "text/plain"),), b"Internal Server Error"), Evidence.ERROR),
)
