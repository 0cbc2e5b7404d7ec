"""How much is measured: the quick run, which takes less than five minutes, and the full one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench import work
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
    """What a run does. Times are those of a round, in which everybody has a turn: many short ones tell more than few long."""

    name: str
    measures: tuple[str, ...]
    contenders: tuple[str, ...] | None
    """None for all."""
    rounds: int
    load_s: float
    connections: tuple[int, ...]
    asked: tuple[str, ...]
    """Of ``work.ASKED``, over each number of connections."""
    asked_besides: tuple[str, ...]
    """The same over ``connections_besides`` only."""
    asked_at_rate: tuple[str, ...]
    """The same of everybody at ``equal_rate``, calls per second below the limit of each proxy."""
    rates: tuple[int, ...]
    rate_s: float
    streams: tuple[int, ...]
    sessions: int
    streams_of_each_store: int
    """0 leaves them out."""
    connections_besides: int = 16
    equal_rate: int = 2000
    equal_rate_s: float = 1.5
    restarts_under_streams: bool = False
    mcp_proxy_streams: int = 100
    mcp_proxy_sessions: int = 500
    event_s: float = 2.0
    transfers: int = 5
    heals: int = 10
    outages_s: tuple[float, ...] = (0.5, 2.0, 5.0)
    outages_of_each: int = 5
    storm_sessions: int = 1000
    storm_outage_s: float = 2.0


QUICK: Final = Plan(
    name="quick",
    measures=(THROUGHPUT, LATENCY, STREAMS, SESSIONS, STORES),
    contenders=(DIRECT, NGINX, SIDECAR),
    rounds=5,
    load_s=2,
    connections=(16,),
    asked=(work.JSON, work.SSE, work.CHANGING),
    asked_besides=(),
    asked_at_rate=(work.JSON,),
    rates=(50,),
    rate_s=2.5,
    streams=(1000,),
    sessions=10_000,
    streams_of_each_store=0,
)
FULL: Final = Plan(
    name="full",
    measures=(THROUGHPUT, LATENCY, STREAMS, SESSIONS, EVENTS, BODIES, CROWDS, HEALS, STORES),
    contenders=None,
    rounds=5,
    load_s=2,
    connections=(1, 16, 64),
    asked=(work.JSON, work.SSE, work.SSE_IN_PIECES, work.CHANGING),
    asked_besides=(work.LIST, work.TEN_EVENTS, work.HEALED),
    asked_at_rate=(work.JSON, work.SSE),
    rates=(50, 500),
    rate_s=3,
    streams=(1000, 5000, STREAM_LIMIT),
    sessions=100_000,
    streams_of_each_store=5000,
    restarts_under_streams=True,
)


def possible_streams(wanted: tuple[int, ...], descriptors: int) -> tuple[int, ...]:
    """Cap the counts at what the descriptors allow: a stream takes two of a proxy."""
    most = max(1, (descriptors - SPARE_DESCRIPTORS) // 2)
    return tuple(sorted({min(count, most) for count in wanted}))
