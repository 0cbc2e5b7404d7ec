"""One module per thing that is measured; each has a function that takes the rig and the plan and gives rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench import plan
from bench.measures import bodies, crowds, events, heals, latency, sessions, stores, streams, throughput
from bench.plan import Plan
from bench.results import Results
from bench.rig import Rig

Measure = Callable[[Rig, Plan, Results], None]

MEASURES: Final[dict[str, Measure]] = {
    plan.THROUGHPUT: throughput.measure,
    plan.LATENCY: latency.measure,
    plan.STREAMS: streams.measure,
    plan.SESSIONS: sessions.measure,
    plan.EVENTS: events.measure,
    plan.BODIES: bodies.measure,
    plan.CROWDS: crowds.measure,
    plan.HEALS: heals.measure,
    plan.STORES: stores.measure,
}
