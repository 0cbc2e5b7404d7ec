"""Closed loop: requests per second and CPU per request, for JSON and for short event streams."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import sampling, work, wrk
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import THROUGHPUT, Plan
from bench.results import Results, Row
from bench.rig import SESSIONS_OF_LOAD, Rig, Target
from bench.sampling import Used, Watch
from bench.statistics import median
from bench.wrk import Load

ANSWERS: Final = {"json": "JSON", "sse": "SSE", "sse-pieces": "SSE in three packets"}
WARM_UP_CALLS: Final = 50


def case_name(tool: str, connections: int) -> str:
    """Name the case as the report does."""
    return f"{ANSWERS[tool]}, {connections} connection{'s' if connections > 1 else ''}"


@dataclass(frozen=True, slots=True)
class _Round:
    load: Load
    used: Used


@dataclass(frozen=True, slots=True)
class _Ready:
    """A target with its sessions and the calls that wrk sends."""

    target: Target
    sessions: list[str]
    calls: dict[str, Path]


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Interleave: every contender has its turn before any has its second one."""
    seen: dict[tuple[str, int, str], list[_Round]] = defaultdict(list)
    troubles: dict[str, str] = {}
    with rig.targets(rig.fast_url, *Kind) as targets:
        ready = [found for target in targets if (found := _prepare(rig, target, troubles))]
        for number in range(plan.rounds):
            for tool in plan.answers:
                for connections in plan.connections:
                    rig.say(f"throughput: {case_name(tool, connections)}, round {number + 1} of {plan.rounds}")
                    for one in ready:
                        if tool in one.calls and one.target.name not in troubles:
                            _run(rig, one, (tool, connections), plan.load_s, seen, troubles)
    for (tool, connections, name), rounds in seen.items():
        results.rows.append(_row(tool, connections, name, rounds))
    for name, trouble in troubles.items():
        rig.say(f"{name}: {trouble}")


def _prepare(rig: Rig, target: Target, troubles: dict[str, str]) -> _Ready | None:
    try:
        sessions = rig.sessions(target, SESSIONS_OF_LOAD)
        for tool in target.contender.answers_as:
            rig.call(target, sessions, tool, WARM_UP_CALLS)
    except NoAnswer as trouble:
        troubles[target.name] = str(trouble)
        return None
    calls = {}
    host = target.url.removeprefix("http://").removesuffix(work.ENDPOINT)
    for tool in target.contender.answers_as:
        calls[tool] = rig.folder / f"calls-{target.name.replace(' ', '-')}-{tool}"
        wrk.write_calls(calls[tool], host, sessions, tool)
    return _Ready(target, sessions, calls)


def _run(
    rig: Rig,
    one: _Ready,
    case: tuple[str, int],
    seconds: float,
    seen: dict[tuple[str, int, str], list[_Round]],
    troubles: dict[str, str],
) -> None:
    tool, connections = case
    try:
        with Watch(one.target.pids(), rig.cores) as watch:
            load = wrk.run(one.target.url, one.calls[tool], connections, seconds)
        # What wrk takes for an answer may be an error: one more is looked into.
        rig.call(one.target, one.sessions, tool)
    except (NoAnswer, subprocess.SubprocessError, ValueError) as trouble:
        troubles[one.target.name] = f"{case_name(tool, connections)}: {trouble}"
    else:
        seen[tool, connections, one.target.name].append(_Round(load, watch.used))


def _row(tool: str, connections: int, name: str, rounds: list[_Round]) -> Row:
    figures = {
        "per_second": median(one.load.per_second for one in rounds),
        "p50_us": median(one.load.p50_us for one in rounds),
        "p99_us": median(one.load.p99_us for one in rounds),
        "other_core_share": median(one.used.other_core_share for one in rounds),
    }
    if any(one.used.run_time_s for one in rounds):
        figures |= {
            "cpu_us": median(_each_us(one, one.used.cpu.total_s) for one in rounds),
            "user_us": median(_each_us(one, one.used.cpu.user_s) for one in rounds),
            "system_us": median(_each_us(one, one.used.cpu.system_s) for one in rounds),
        }
    notes = sampling.told(one.used.flags() if one.used.run_time_s else () for one in rounds)
    if errors := sum(one.load.errors for one in rounds):
        notes += (f"{errors} errors",)
    return Row(THROUGHPUT, case_name(tool, connections), name, figures, notes)


def _each_us(one: _Round, seconds: float) -> float | None:
    return seconds / one.load.requests * 1e6 if one.load.requests else None
