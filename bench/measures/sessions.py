"""Memory of idle sessions: initialized, and then nothing."""

from __future__ import annotations

from typing import Final

from bench import procfs
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import SESSIONS, Plan
from bench.processes import NotStarted
from bench.results import Results, Row
from bench.rig import Rig, Target

WARM_UP: Final = 200


def case_name(count: int) -> str:
    """Name the case as the report does."""
    return f"{count:,} sessions"


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Only those that keep sessions: nginx and the plain proxy know none."""
    for contender in rig.contenders:
        if contender.heals or contender.kind is Kind.MCP_PROXY:
            count = plan.sessions if contender.heals else plan.mcp_proxy_sessions
            try:
                with rig.target(contender, rig.scripted_url) as target:
                    results.rows.append(_row(rig, target, min(count, contender.max_sessions)))
            except (NoAnswer, NotStarted) as trouble:
                rig.say(f"sessions: {contender.name}: {trouble}")


def _row(rig: Rig, target: Target, count: int) -> Row:
    rig.say(f"sessions: {target.name}, {count:,}")
    warm_up = min(WARM_UP, count // 4)
    rig.call(target, rig.sessions(target, warm_up), count=warm_up * 2)
    before_kib, cpu_before = rig.memory_kib(target), procfs.cpu_time(target.pids())
    added = min(count, target.contender.max_sessions - warm_up)
    rig.sessions(target, added)
    cpu = procfs.cpu_time(target.pids()) - cpu_before
    after_kib = rig.memory_kib(target)
    figures = {
        "kib_each": (after_kib - before_kib) / added,
        "total_mib": after_kib / 1024,
        "cpu_us": cpu.total_s / added * 1e6,
    }
    return Row(SESSIONS, case_name(added), target.name, figures)
