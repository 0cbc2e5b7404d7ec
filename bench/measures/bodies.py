"""20 MiB in one message, up and down: time, CPU, and by how much the process grows at its peak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bench import procfs
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import BODIES, Plan
from bench.results import Figures, Results, Row, of_rounds
from bench.rig import Rig, Target

SIZE: Final = 20 * 2**20
CASES: Final = {
    "upload": "20 MiB up",
    "download-json": "20 MiB down, JSON",
    "download-sse": "20 MiB down, SSE",
}
WARM_UP_CALLS: Final = 50


@dataclass(slots=True)
class _Ready:
    """A target that is warm, and what its transfers took."""

    target: Target
    session: str
    before_kib: int
    rounds: list[Figures] = field(default_factory=list)


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """A fresh process per case, warm from calls only: memory that an earlier case took would hide what this one needs."""
    for tool, case in CASES.items():
        rig.say(f"bodies: {case}")
        with rig.targets(rig.scripted_url, Kind.NONE, Kind.PROXY) as targets:
            ready = {target.name: _ready(rig, target) for target in targets}
            for _ in range(plan.transfers):
                for name, one in list(ready.items()):
                    try:
                        one.rounds.append(_transfer(rig, one, tool))
                    except NoAnswer as trouble:
                        rig.say(f"bodies: {case}: {name}: {trouble}")
                        del ready[name]
            results.rows.extend(_row(case, one) for one in ready.values())


def _ready(rig: Rig, target: Target) -> _Ready:
    sessions = rig.sessions(target, 1)
    rig.call(target, sessions, count=WARM_UP_CALLS)
    procfs.forget_peak(target.pids())
    return _Ready(target, sessions[0], rig.memory_kib(target))


def _transfer(rig: Rig, one: _Ready, tool: str) -> Figures:
    pids, size = one.target.pids(), SIZE if tool == "upload" else 0
    before_s = procfs.run_time_s(pids)
    answer = rig.generator.ask("transfer", url=one.target.url, session=one.session, tool=tool, upload_bytes=size)
    spent_s = procfs.run_time_s(pids) - before_s
    return {"ms": answer["seconds"] * 1000} | ({"cpu_ms": spent_s * 1000} if pids else {})


def _row(case: str, one: _Ready) -> Row:
    pids = one.target.pids()
    growth_mib = (procfs.memory_kib(pids, "VmHWM") - one.before_kib) / 1024 if pids else None
    return of_rounds(BODIES, case, one.target.name, one.rounds, peak_growth_mib=growth_mib)
