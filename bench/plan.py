"""How much is measured: the quick run, which takes about three minutes, and the full one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.contenders import DIRECT, NGINX, SIDECAR

THROUGHPUT: Final = "throughput"
LATENCY: Final = "latency"
STREAMS: Final = "streams"
SESSIONS: Final = "sessions"
EVENTS: Final = "events"
BODIES: Final = "bodies"
HEALS: Final = "heals"
CROWDS: Final = "crowds"
STORES: Final = "stores"
STREAM_LIMIT: Final = 10_000
SPARE_DESCRIPTORS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does. Times are those of one round."""

    name: str
    measures: tuple[str, ...]
    contenders: tuple[str, ...] | None
    """None for all."""
    rounds: int
    load_s: float
    connections: tuple[int, ...]
    answers: tuple[str, ...]
    rates: tuple[int, ...]
    rate_s: float
    streams: tuple[int, ...]
    sessions: int
    restarts_under_streams: bool = False
    mcp_proxy_streams: int = 100
    mcp_proxy_sessions: int = 500
    event_s: float = 10.0
    transfers: int = 3
    heals: int = 20
    outages_s: tuple[float, ...] = (0.5, 2.0, 5.0)
    outages_of_each: int = 5
    storm_sessions: int = 1000
    storm_outage_s: float = 2.0


QUICK: Final = Plan(
    name="quick",
    measures=(THROUGHPUT, LATENCY, STREAMS, SESSIONS, STORES),
    contenders=(DIRECT, NGINX, SIDECAR),
    rounds=3,
    load_s=4,
    connections=(16,),
    answers=("json", "sse"),
    rates=(50,),
    rate_s=5,
    streams=(1000,),
    sessions=10_000,
)
FULL: Final = Plan(
    name="full",
    measures=(THROUGHPUT, LATENCY, STREAMS, SESSIONS, EVENTS, BODIES, CROWDS, HEALS, STORES),
    contenders=None,
    rounds=3,
    load_s=4,
    connections=(1, 16, 64),
    answers=("json", "sse", "sse-pieces"),
    rates=(50, 500),
    rate_s=6,
    streams=(1000, 5000, STREAM_LIMIT),
    sessions=100_000,
    restarts_under_streams=True,
)


def possible_streams(wanted: tuple[int, ...], descriptors: int) -> tuple[int, ...]:
    """Cap the counts at what the descriptors allow: a stream takes two of a proxy."""
    most = max(1, (descriptors - SPARE_DESCRIPTORS) // 2)
    return tuple(sorted({min(count, most) for count in wanted}))
