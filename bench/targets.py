"""What must hold, as data: each bound is on a ratio or an amount within one run, and beside it stands what is aimed at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench import work
from bench.contenders import DIRECT, NGINX, SIDECAR, Kind
from bench.plan import BODIES, CROWDS, EVENTS, HEALS, LATENCY, SESSIONS, STORES, STREAMS, THROUGHPUT
from bench.results import Results, Row
from bench.statistics import difference, ratio

MET: Final = "holds"
MISSED: Final = "falls short"
REACHED: Final = "reached"
NOT_REACHED: Final = "not reached"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim about one case, beside what was measured."""

    claim: str
    measured: float
    bound: float
    is_upper: bool
    unit: str
    aim: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return self._keeps(self.bound)

    def _keeps(self, limit: float) -> bool:
        return self.measured <= limit if self.is_upper else self.measured >= limit

    @property
    def word(self) -> str:
        """The same for a table."""
        return MET if self.holds else MISSED

    @property
    def text(self) -> str:
        """The figure with its unit."""
        return f"{self.measured:,.2f}{self.unit}"

    @property
    def bound_text(self) -> str:
        """The bound with its unit."""
        return self._limit_text(self.bound)

    @property
    def aim_text(self) -> str:
        """What is aimed at beyond the bound, and whether it is reached."""
        if self.aim is None:
            return ""
        return f"{self._limit_text(self.aim)}, {REACHED if self._keeps(self.aim) else NOT_REACHED}"

    def _limit_text(self, limit: float) -> str:
        return f"{'≤' if self.is_upper else '≥'} {limit:,g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Bound:
    """A claim about each case that it has a figure for. ``bound`` holds in every version, ``aim`` is wished for."""

    measure: str
    cases: Callable[[str], bool]
    claim: str
    value: Callable[[Results, Row], float | None]
    bound: float
    unit: str = "×"
    is_upper: bool = True
    aim: float | None = None


def _figure(name: str, scale: float = 1.0) -> Callable[[Results, Row], float | None]:
    def value(_: Results, row: Row) -> float | None:
        found = row.figures.get(name)
        return None if found is None else found / scale

    return value


def _of_nginx(name: str) -> Callable[[Results, Row], float | None]:
    return lambda results, row: ratio(row.figures.get(name), results.figure(row.measure, row.case, NGINX, name))


def _of_best_mcp_proxy(results: Results, row: Row) -> float | None:
    rivals = results.of_kind(Kind.MCP_PROXY.value)
    found = [results.figure(row.measure, row.case, rival, "per_second") for rival in rivals]
    return ratio(row.figures.get("per_second"), max((value for value in found if value), default=None))


def _added_of_nginx(results: Results, row: Row) -> float | None:
    direct = results.figure(row.measure, row.case, DIRECT, "p50_us")
    nginx = results.figure(row.measure, row.case, NGINX, "p50_us")
    return ratio(difference(row.figures.get("p50_us"), direct), difference(nginx, direct))


def _every(_: str) -> bool:
    return True


def _at_many(*kinds: str) -> Callable[[str], bool]:
    """Requests of these kinds over 16 or 64 connections."""
    names = {f"{work.ASKED[kind].label}, {connections} connections" for kind in kinds for connections in (16, 64)}
    return names.__contains__


BOUNDS: Final = (
    Bound(THROUGHPUT, _at_many(work.JSON), "CPU per call, to nginx", _of_nginx("cpu_us"), 6, aim=2.5),
    Bound(THROUGHPUT, _at_many(work.SSE, work.SSE_IN_PIECES), "CPU per call, to nginx", _of_nginx("cpu_us"), 6, aim=3),
    Bound(THROUGHPUT, _at_many(work.CHANGING), "CPU per call, to plain JSON", _figure("to_plain"), 1.2),
    Bound(
        THROUGHPUT,
        lambda case: " 16 " in case,
        "calls per second, to the best MCP proxy",
        _of_best_mcp_proxy,
        10,
        is_upper=False,
        aim=20,
    ),
    Bound(LATENCY, lambda case: case.startswith("50 "), "added p50, to nginx", _added_of_nginx, 2),
    Bound(STREAMS, lambda case: case == "5,000 streams", "memory of an idle stream", _figure("kib_each"), 8, " KiB"),
    Bound(STREAMS, lambda case: "restart" in case, "peak memory", _figure("peak_mib"), 1024, " MiB"),
    Bound(
        STREAMS,
        lambda case: "restart" in case,
        "streams attached again, of those open",
        lambda _, row: ratio(row.figures.get("attached"), row.figures.get("open")),
        1,
        is_upper=False,
    ),
    Bound(SESSIONS, _every, "memory of an idle session", _figure("kib_each"), 2, " KiB"),
    Bound(
        STORES,
        lambda case: case in ("sqlite:", "redis:"),
        "CPU of a call, to that without a store",
        _figure("to_memory"),
        1.03,
    ),
    Bound(STORES, lambda case: case == "sealed:", "CPU of a call, to that without a store", _figure("to_memory"), 1.15),
    Bound(
        STORES,
        lambda case: case == "sqlite:",
        "CPU to open a session, to that without a store",
        _figure("opening_to_memory"),
        1.5,
    ),
    Bound(
        STORES,
        lambda case: case == "redis:",
        "CPU to open a session, to that without a store",
        _figure("opening_to_memory"),
        2,
    ),
    Bound(EVENTS, lambda case: case.startswith("1 stream,"), "CPU per event, to nginx", _of_nginx("cpu_us"), 3, aim=2),
    Bound(
        EVENTS, lambda case: case.startswith("100 streams,"), "CPU per event, to nginx", _of_nginx("cpu_us"), 2, aim=1.5
    ),
    Bound(BODIES, lambda case: "down" in case, "growth at the peak", _figure("peak_growth_mib"), 2, " MiB"),
    # Held whole, so that it can be sent again, and once more on its way to the upstream.
    Bound(BODIES, lambda case: "up" in case, "growth at the peak", _figure("peak_growth_mib"), 48, " MiB"),
    Bound(CROWDS, _every, "CPU, to json.loads", _figure("to_loads"), 3),
    Bound(CROWDS, _every, "CPU per byte, to that of a quarter", _figure("to_fewer"), 1.25),
    Bound(CROWDS, _every, "another client's longest ping", _figure("longest_ping_us", 1000), 50, " ms"),
    Bound(
        HEALS,
        lambda case: case.startswith("held"),
        "answered after the upstream accepts, p50",
        _figure("p50_us", 1000),
        20,
        " ms",
        aim=5,
    ),
    Bound(HEALS, lambda case: "lost" in case, "call that is healed, p50", _figure("p50_us", 1000), 10, " ms", aim=1.3),
    Bound(HEALS, lambda case: "waiting" in case, "CPU per request of a heal, to a plain call", _figure("to_plain"), 3),
    Bound(
        HEALS, lambda case: "waiting" in case, "calls answered with a result", _figure("good"), 1000, "", is_upper=False
    ),
)


def verdicts(results: Results, contender: str = SIDECAR) -> list[Verdict]:
    """Hold every bound against what the run has for it."""
    return [verdict for bound in BOUNDS for verdict in _judged(results, bound, contender)]


def _judged(results: Results, bound: Bound, contender: str) -> Iterator[Verdict]:
    for row in results.rows:
        if row.measure == bound.measure and row.contender == contender and bound.cases(row.case):
            measured = bound.value(results, row)
            if measured is not None:
                yield Verdict(
                    f"{bound.claim}: {row.case}", measured, bound.bound, bound.is_upper, bound.unit, bound.aim
                )
