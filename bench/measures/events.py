"""Events on GET streams: how long one is on its way, and the CPU for passing it on."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from bench import sampling
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import EVENTS, Plan
from bench.processes import NotStarted
from bench.results import Figures, Results, Row, of_rounds
from bench.rig import Rig, Target
from bench.sampling import Watch

CASES: Final = ((1, 100), (100, 10))
"""Streams, and events per second on each."""
ARRIVING_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class _Round:
    figures: Figures
    sent: int
    lost: int
    flags: tuple[str, ...]


def case_name(streams: int, rate: int) -> str:
    """Name the case as the report does."""
    return f"{streams} stream{'s' if streams > 1 else ''}, {rate} events per second on each"


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Only those that pass the upstream's GET stream on."""
    with rig.targets(rig.scripted_url, Kind.NONE, Kind.PROXY) as targets:
        for streams, rate in CASES:
            seen: dict[str, list[_Round]] = defaultdict(list)
            for number in range(plan.rounds):
                rig.say(f"events: {case_name(streams, rate)}, round {number + 1} of {plan.rounds}")
                for target in targets:
                    try:
                        seen[target.name].append(_round(rig, target, streams, rate, plan.event_s))
                    except (NoAnswer, NotStarted) as trouble:
                        rig.say(f"events: {target.name}: {trouble}")
                    finally:
                        _close(rig)
            results.rows.extend(_row(case_name(streams, rate), name, rounds) for name, rounds in seen.items())


def _close(rig: Rig) -> None:
    rig.generator.ask("close_streams")
    for _ in range(50):
        if rig.ask_upstream("stats")["streams"] == 0:
            return
        time.sleep(0.1)


def _round(rig: Rig, target: Target, streams: int, rate: int, seconds: float) -> _Round:
    rig.generator.ask("listen", url=target.url, sessions=rig.sessions(target, streams))
    rig.ask_upstream("events", rate=rate, seconds=1)
    time.sleep(ARRIVING_S)
    rig.generator.ask("streams")
    with Watch(target.pids(), rig.cores) as watch:
        sent = rig.ask_upstream("events", rate=rate, seconds=seconds, timeout_s=seconds * 3)["sent"]
        time.sleep(ARRIVING_S)
    seen = rig.generator.ask("streams")
    figures: dict[str, float | None] = {"p50_us": seen["p50_us"], "p99_us": seen["p99_us"]}
    if target.running is not None and seen["events"]:
        figures["cpu_us"] = watch.used.run_time_s / seen["events"] * 1e6
    flags = watch.used.flags() if target.running is not None else ()
    return _Round(figures, sent, sent - seen["events"], flags)


def _row(case: str, name: str, rounds: list[_Round]) -> Row:
    notes = sampling.told(one.flags for one in rounds)
    if lost := sum(one.lost for one in rounds):
        notes += (f"{lost} of {sum(one.sent for one in rounds)} events did not arrive",)
    return of_rounds(EVENTS, case, name, [one.figures for one in rounds], notes)
