"""CPU per request, and requests per second: each kind of request as fast as the answers come, and some at an equal rate.

A proxy that is asked for less than it can do finds cold caches and waits more often: each of its calls costs more, and
nginx's the more so, which is further from its limit. So the ratio at the limit is not that at a rate which all of them stand.
"""

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
from bench.results import Results, Row, of_rounds
from bench.rig import SESSIONS_OF_LOAD, Rig, Target
from bench.sampling import Used, Watch
from bench.statistics import ratio
from bench.wrk import Load

WARM_UP_CALLS: Final = 50
REACHED: Final = 0.95
"""A rate counts as reached from here on."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request, over so many connections as fast as it goes, or at so many per second."""

    kind: str
    connections: int = 0
    rate: int = 0

    @property
    def name(self) -> str:
        """As the report has it."""
        label = work.ASKED[self.kind].label
        if self.rate:
            return f"{label}, {self.rate:,} per second"
        return f"{label}, {self.connections} connection{'s' if self.connections > 1 else ''}"


def cases(plan: Plan) -> list[Case]:
    """Return those of a run."""
    return [
        *(Case(kind, connections) for kind in plan.asked for connections in plan.connections),
        *(Case(kind, plan.connections_besides) for kind in plan.asked_besides),
        *(Case(kind, rate=plan.equal_rate) for kind in plan.asked_at_rate),
    ]


@dataclass(frozen=True, slots=True)
class _Round:
    load: Load
    used: Used
    spent_s: dict[str, float]
    """CPU, by the names that its figures per call have."""

    def figures(self) -> dict[str, float | None]:
        """Return what the round gives for the row."""
        load = self.load
        found = {"per_second": load.per_second, "p50_us": load.p50_us, "p99_us": load.p99_us}
        each_us = {name: ratio(seconds * 1e6, load.requests) for name, seconds in self.spent_s.items()}
        return {**found, "other_core_share": self.used.other_core_share} | (each_us if self.used.run_time_s else {})


@dataclass(frozen=True, slots=True)
class _Ready:
    """A target with its sessions and the calls that wrk sends, each by the kind of request."""

    target: Target
    sessions: dict[str, list[str]]
    calls: dict[str, Path]

    def takes_part(self, case: Case) -> bool:
        """Whether it can be asked for this. An MCP proxy's limit may lie below the rate."""
        return case.kind in self.calls and not (case.rate and self.target.contender.kind is Kind.MCP_PROXY)


_Seen = dict[tuple[Case, str], list[_Round]]


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Interleave: every contender has its turn before any has its second one."""
    seen: _Seen = defaultdict(list)
    troubles: dict[str, str] = {}
    with rig.targets(rig.fast_url, *Kind) as targets:
        wanted = list(dict.fromkeys(case.kind for case in cases(plan)))
        ready = _prepare(rig, targets, wanted, troubles)
        for number in range(plan.rounds):
            for case in cases(plan):
                rig.say(f"throughput: {case.name}, round {number + 1} of {plan.rounds}")
                for one in ready:
                    if one.takes_part(case) and one.target.name not in troubles:
                        _run(rig, plan, one, case, seen, troubles)
    results.rows.extend(_row(case, name, rounds, seen) for (case, name), rounds in seen.items())
    for name, trouble in troubles.items():
        rig.say(f"{name}: {trouble}")


def _prepare(rig: Rig, targets: list[Target], wanted: list[str], troubles: dict[str, str]) -> list[_Ready]:
    # The sessions that are to be lost come first: the others would be lost with them.
    healed = _healed_sessions(rig, targets, troubles) if any(work.ASKED[kind].is_after_heal for kind in wanted) else {}
    ready = []
    for target in targets:
        try:
            ready.append(_ready(rig, target, [kind for kind in wanted if kind in target.contender.asked], healed))
        except NoAnswer as trouble:
            troubles[target.name] = str(trouble)
    return ready


def _healed_sessions(rig: Rig, targets: list[Target], troubles: dict[str, str]) -> dict[str, list[str]]:
    """Sessions of each target that were lost and healed; new ones where nobody heals."""
    able = [target for target in targets if work.HEALED in target.contender.asked]
    found = {target.name: rig.sessions(target, SESSIONS_OF_LOAD) for target in able}
    rig.ask_upstream("forget")
    for target in able:
        try:
            if target.contender.heals:
                rig.call(target, found[target.name], work.HEALED, SESSIONS_OF_LOAD)
            else:
                found[target.name] = rig.sessions(target, SESSIONS_OF_LOAD)
        except NoAnswer as trouble:
            troubles[target.name] = str(trouble)
    return found


def _ready(rig: Rig, target: Target, kinds: list[str], healed: dict[str, list[str]]) -> _Ready:
    usual = rig.sessions(target, SESSIONS_OF_LOAD)
    sessions = {kind: healed[target.name] if work.ASKED[kind].is_after_heal else usual for kind in kinds}
    host = target.url.removeprefix("http://").removesuffix(work.ENDPOINT)
    calls = {kind: rig.folder / f"calls-{target.name.replace(' ', '-')}-{kind}" for kind in kinds}
    for kind in kinds:
        rig.call(target, sessions[kind], kind, WARM_UP_CALLS)
        wrk.write_calls(calls[kind], host, sessions[kind], kind)
    return _Ready(target, sessions, calls)


def _run(rig: Rig, plan: Plan, one: _Ready, case: Case, seen: _Seen, troubles: dict[str, str]) -> None:
    try:
        found = _at_rate(rig, plan, one, case) if case.rate else _at_the_limit(rig, plan, one, case)
    except (NoAnswer, subprocess.SubprocessError, ValueError) as trouble:
        troubles[one.target.name] = f"{case.name}: {trouble}"
    else:
        seen[case, one.target.name].append(found)


def _at_the_limit(rig: Rig, plan: Plan, one: _Ready, case: Case) -> _Round:
    with Watch(one.target.pids(), rig.cores) as watch:
        load = wrk.run(one.target.url, one.calls[case.kind], case.connections, plan.load_s)
    # What wrk takes for an answer may be an error: one more is looked into.
    rig.call(one.target, one.sessions[case.kind], case.kind)
    cpu = watch.used.cpu
    return _Round(load, watch.used, {"cpu_us": cpu.total_s, "user_us": cpu.user_s, "system_us": cpu.system_s})


def _at_rate(rig: Rig, plan: Plan, one: _Ready, case: Case) -> _Round:
    with Watch(one.target.pids(), rig.cores) as watch:
        answer = rig.rate(one.target, one.sessions[case.kind], case.kind, case.rate, plan.equal_rate_s)
    load = Load(answer["count"], answer["seconds"], answer["errors"], answer["p50_us"] or 0, answer["p99_us"] or 0)
    # The ticks of utime and stime would be too coarse.
    return _Round(load, watch.used, {"cpu_us": watch.used.run_time_s})


def _row(case: Case, name: str, rounds: list[_Round], seen: _Seen) -> Row:
    plain = seen.get((Case(work.JSON, case.connections, case.rate), name), [])
    figures = [one.figures() for one in rounds]
    if case.kind != work.JSON and len(plain) == len(rounds):
        for own, other in zip(figures, plain, strict=True):
            own["to_plain"] = ratio(own.get("cpu_us"), other.figures().get("cpu_us"))
    notes = sampling.told(one.used.flags() if one.used.run_time_s else () for one in rounds)
    if errors := sum(one.load.errors for one in rounds):
        notes += (f"{errors} errors",)
    if slow := sum(one.load.per_second < REACHED * case.rate for one in rounds):
        notes += (f"did not reach the rate ({slow} of {len(rounds)} rounds)",)
    return of_rounds(THROUGHPUT, case.name, name, figures, notes)
