"""Memory of open, idle GET streams, each of a session of its own; and one restart under the most of them."""

from __future__ import annotations

import time
from typing import Final

from bench import procfs
from bench.contenders import Contender, Kind
from bench.lines import NoAnswer
from bench.plan import STREAMS, Plan, possible_streams
from bench.processes import NotStarted
from bench.results import Results, Row
from bench.rig import Rig, Target

WARM_UP: Final = 20
REATTACHING_S: Final = 60.0
OUTAGE_S: Final = 1.0


def case_name(count: int) -> str:
    """Name the case as the report does."""
    return f"{count:,} streams"


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Each contender fresh, since memory that was used once is not given back."""
    for contender in rig.contenders:
        if contender.kind is not Kind.NONE:
            try:
                with rig.target(contender, rig.scripted_url) as target:
                    if counts := _counts(rig, plan, contender):
                        results.rows.extend(opened(rig, target, counts))
                    if counts and plan.restarts_under_streams and contender.heals:
                        results.rows.append(_restart(rig, target, WARM_UP + counts[-1]))
            except (NoAnswer, NotStarted) as trouble:
                rig.say(f"streams: {contender.name}: {trouble}")
            finally:
                rig.generator.ask("close_streams")


def _counts(rig: Rig, plan: Plan, contender: Contender) -> tuple[int, ...]:
    wanted = plan.streams if contender.kind is Kind.PROXY else (plan.mcp_proxy_streams,)
    return tuple(count for count in possible_streams(wanted, rig.descriptors) if count <= contender.max_sessions)


def opened(rig: Rig, target: Target, counts: tuple[int, ...]) -> list[Row]:
    """Open streams and leave them open, one count after the other; a row for each."""
    rig.say(f"streams: {target.name}, up to {counts[-1]:,}")
    sessions = rig.sessions(target, WARM_UP + counts[-1])
    rig.call(target, sessions[:WARM_UP], count=WARM_UP * 5)
    rig.generator.ask("listen", url=target.url, sessions=sessions[:WARM_UP])
    before_kib, already, rows = rig.memory_kib(target), 0, []
    for count in counts:
        some = sessions[WARM_UP + already : WARM_UP + count]
        began = rig.generator.ask("listen", url=target.url, sessions=some, timeout_s=300)["began"]
        already = count
        total_kib = rig.memory_kib(target)
        figures = {
            "kib_each": (total_kib - before_kib) / count,
            "total_mib": total_kib / 1024,
            "open": float(rig.generator.ask("streams")["open"] - WARM_UP),
        }
        notes = () if began == len(some) else (f"{len(some) - began} did not open",)
        rows.append(Row(STREAMS, case_name(count), target.name, figures, notes))
    return rows


def _restart(rig: Rig, target: Target, streams: int) -> Row:
    """Take the upstream away under the streams and bring it back without its sessions."""
    procfs.forget_peak(target.pids())
    cpu_before = procfs.cpu_time(target.pids())
    rig.ask_upstream("down")
    time.sleep(OUTAGE_S)
    begin = rig.ask_upstream("up")["at"]
    attached, seconds = 0, 0.0
    while attached < streams and seconds < REATTACHING_S:
        time.sleep(0.1)
        attached = rig.ask_upstream("stats")["streams"]
        seconds = time.monotonic() - begin
    cpu = procfs.cpu_time(target.pids()) - cpu_before
    figures = {
        "open": float(rig.generator.ask("streams")["open"]),
        "attached": float(attached),
        "seconds": seconds,
        "peak_mib": procfs.memory_kib(target.pids(), "VmHWM") / 1024,
        "cpu_us": cpu.total_s / streams * 1e6,
    }
    return Row(STREAMS, f"restart under {streams:,} streams", target.name, figures)
