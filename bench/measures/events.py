"""Events on GET streams: how long one is on its way, and the CPU for passing it on."""

from __future__ import annotations

import time
from typing import Final

from bench import sampling
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import EVENTS, Plan
from bench.processes import NotStarted
from bench.results import Results, Row
from bench.rig import Rig, Target
from bench.sampling import Watch

CASES: Final = ((1, 100), (100, 10))
"""Streams, and events per second on each."""
ARRIVING_S: Final = 0.3


def case_name(streams: int, rate: int) -> str:
    """Name the case as the report does."""
    return f"{streams} stream{'s' if streams > 1 else ''}, {rate} events per second on each"


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Only those that pass the upstream's GET stream on."""
    with rig.targets(rig.scripted_url, Kind.NONE, Kind.PROXY) as targets:
        for streams, rate in CASES:
            for target in targets:
                rig.say(f"events: {case_name(streams, rate)}, {target.name}")
                try:
                    results.rows.append(_row(rig, target, streams, rate, plan.event_s))
                except (NoAnswer, NotStarted) as trouble:
                    rig.say(f"events: {target.name}: {trouble}")
                finally:
                    _close(rig)


def _close(rig: Rig) -> None:
    rig.generator.ask("close_streams")
    for _ in range(50):
        if rig.ask_upstream("stats")["streams"] == 0:
            return
        time.sleep(0.1)


def _row(rig: Rig, target: Target, streams: int, rate: int, seconds: float) -> Row:
    rig.generator.ask("listen", url=target.url, sessions=rig.sessions(target, streams))
    rig.ask_upstream("events", rate=rate, seconds=1)
    time.sleep(ARRIVING_S)
    rig.generator.ask("streams")
    with Watch(target.pids(), rig.cores) as watch:
        sent = rig.ask_upstream("events", rate=rate, seconds=seconds, timeout_s=seconds * 3)["sent"]
        time.sleep(ARRIVING_S)
    seen = rig.generator.ask("streams")
    figures = {"p50_us": seen["p50_us"], "p99_us": seen["p99_us"]}
    if target.running is not None and seen["events"]:
        figures["cpu_us"] = watch.used.run_time_s / seen["events"] * 1e6
    notes: tuple[str, ...] = (
        () if seen["events"] == sent else (f"{sent - seen['events']} of {sent} events did not arrive",)
    )
    if target.running is not None:
        notes += sampling.told([watch.used.flags()])
    return Row(EVENTS, case_name(streams, rate), target.name, figures, notes)
