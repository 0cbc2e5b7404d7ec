"""Open loop: what a proxy adds to each call at a fixed rate, and its CPU when it is not busy."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Final

from bench import sampling, work
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import LATENCY, Plan
from bench.results import Results, Row, of_rounds
from bench.rig import SESSIONS_OF_LOAD, Rig, Target
from bench.sampling import Used, Watch
from bench.statistics import median, ratio

WARM_UP_CALLS: Final = 50
SHARE_OF_TIME: Final = 0.5
"""An MCP proxy is not asked for more calls than would keep it busy for so much of the time, one after the other: beyond that
the queue is measured."""

_Seen = dict[tuple[int, str], list[tuple[dict[str, float], Used]]]


def case_name(rate: int) -> str:
    """Name the case as the report does."""
    return f"{rate} calls per second"


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Interleave as the throughput does."""
    seen: _Seen = defaultdict(list)
    with rig.targets(rig.fast_url, *Kind) as targets:
        ready = {}
        for target in targets:
            try:
                sessions = rig.sessions(target, SESSIONS_OF_LOAD)
                durations_us = rig.call(target, sessions, count=WARM_UP_CALLS)
            except NoAnswer as trouble:
                rig.say(f"latency: {target.name} is left out: {trouble}")
            else:
                most = SHARE_OF_TIME * 1e6 / (median(durations_us) or 1e6)
                ready[target.name] = (target, sessions, most if target.contender.kind is Kind.MCP_PROXY else math.inf)
        for number in range(plan.rounds):
            for rate in plan.rates:
                rig.say(f"latency: {case_name(rate)}, round {number + 1} of {plan.rounds}")
                for target, sessions, most in ready.values():
                    if rate <= most:
                        _run(rig, target, sessions, rate, plan.rate_s, seen)
    results.rows.extend([_row(rate, name, rounds) for (rate, name), rounds in seen.items()])


def _run(rig: Rig, target: Target, sessions: list[str], rate: int, seconds: float, seen: _Seen) -> None:
    try:
        with Watch(target.pids(), rig.cores) as watch:
            answer = rig.rate(target, sessions, work.JSON, rate, seconds)
    except NoAnswer as trouble:
        rig.say(f"latency: {target.name}: {trouble}")
    else:
        seen[rate, target.name].append((answer, watch.used))


def _row(rate: int, name: str, rounds: list[tuple[dict[str, float], Used]]) -> Row:
    notes = sampling.told(used.flags() if used.run_time_s else () for _, used in rounds)
    if errors := sum(answer["errors"] for answer, _ in rounds):
        notes += (f"{errors:.0f} errors",)
    return of_rounds(LATENCY, case_name(rate), name, [_figures(*one) for one in rounds], notes)


def _figures(answer: dict[str, float], used: Used) -> dict[str, float | None]:
    found: dict[str, float | None] = {name: answer[name] for name in ("p50_us", "p99_us")}
    if used.run_time_s:
        # A few milliseconds of CPU: the ticks of utime and stime would be too coarse.
        found["cpu_us"] = ratio(used.run_time_s * 1e6, answer["count"])
    return found
