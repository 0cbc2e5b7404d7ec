"""20 MiB in one message, up and down: time, CPU, and by how much the process grows at its peak."""

from __future__ import annotations

from typing import Final

from bench import procfs
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import BODIES, Plan
from bench.results import Results, Row
from bench.rig import Rig, Target
from bench.statistics import median

SIZE: Final = 20 * 2**20
CASES: Final = {
    "upload": "20 MiB up",
    "download-json": "20 MiB down, JSON",
    "download-sse": "20 MiB down, SSE",
}
WARM_UP_CALLS: Final = 50


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """A fresh process per case, warm from calls only: memory that an earlier case took would hide what this one needs."""
    for tool, case in CASES.items():
        rig.say(f"bodies: {case}")
        with rig.targets(rig.scripted_url, Kind.NONE, Kind.PROXY) as targets:
            for target in targets:
                try:
                    results.rows.append(_row(rig, target, tool, plan.transfers))
                except NoAnswer as trouble:
                    rig.say(f"bodies: {case}: {target.name}: {trouble}")


def _row(rig: Rig, target: Target, tool: str, transfers: int) -> Row:
    sessions = rig.sessions(target, 1)
    rig.call(target, sessions, count=WARM_UP_CALLS)
    pids = target.pids()
    procfs.forget_peak(pids)
    before_kib = rig.memory_kib(target)
    seconds, cpu_s = [], []
    for _ in range(transfers):
        cpu_before_s = procfs.run_time_s(pids)
        size = SIZE if tool == "upload" else 0
        answer = rig.generator.ask("transfer", url=target.url, session=sessions[0], tool=tool, upload_bytes=size)
        seconds.append(answer["seconds"])
        cpu_s.append(procfs.run_time_s(pids) - cpu_before_s)
    figures: dict[str, float | None] = {"ms": (median(seconds) or 0) * 1000}
    if target.running is not None:
        figures["peak_growth_mib"] = (procfs.memory_kib(pids, "VmHWM") - before_kib) / 1024
        figures["cpu_ms"] = (median(cpu_s) or 0) * 1000
    return Row(BODIES, CASES[tool], target.name, figures)
