"""Messages of very many small parts: their CPU, and how long another client's ping waits meanwhile."""

from __future__ import annotations

import json
import time
from typing import Final

from bench import procfs, work
from bench.contenders import Kind
from bench.lines import NoAnswer
from bench.plan import CROWDS, Plan
from bench.results import Results, Row, of_rounds
from bench.rig import Rig, Target
from bench.statistics import median

ZEROS: Final = "1 MiB of [0,0,…"
EVENTS: Final = "64 KiB of tiny events"
MORE_EVENTS: Final = "256 KiB of tiny events"
TIMES: Final = 4
"""So much more than ``EVENTS`` is ``MORE_EVENTS``."""

TOOLS: Final = {ZEROS: "zeros", EVENTS: "tiny-events", MORE_EVENTS: "more-tiny-events"}
WARM_UP_CALLS: Final = 50


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """The sidecar and what does not look into messages, all in one run."""
    loads_ms = _loads_ms(plan.transfers)
    with rig.targets(rig.scripted_url, Kind.PROXY) as targets:
        for target in targets:
            rig.say(f"crowds: {target.name}")
            try:
                results.rows.extend(_rows(rig, target, plan.transfers, loads_ms))
            except NoAnswer as trouble:
                rig.say(f"crowds: {target.name}: {trouble}")


def _loads_ms(times: int) -> float:
    """CPU of reading the zeros with the standard library, which keeps every one of them."""
    body, spent_s = work.zeros(), []
    for _ in range(times):
        begin_s = time.process_time()
        json.loads(body)
        spent_s.append(time.process_time() - begin_s)
    return (median(spent_s) or 0) * 1000


def _rows(rig: Rig, target: Target, times: int, loads_ms: float) -> list[Row]:
    sessions = rig.sessions(target, 2)
    rig.call(target, sessions, count=WARM_UP_CALLS)
    rounds = {case: [_round(rig, target, sessions, tool) for _ in range(times)] for case, tool in TOOLS.items()}
    for one in rounds[ZEROS]:
        one["to_loads"] = one["cpu_ms"] / loads_ms
    for fewer, more in zip(rounds[EVENTS], rounds[MORE_EVENTS], strict=True):
        more["to_fewer"] = more["cpu_ms"] / fewer["cpu_ms"] / TIMES
    return [
        of_rounds(CROWDS, case, target.name, found, longest_ping_us=max(one["ping_us"] for one in found))
        for case, found in rounds.items()
    ]


def _round(rig: Rig, target: Target, sessions: list[str], tool: str) -> dict[str, float]:
    pids, (one, other) = target.pids(), sessions
    before_s = procfs.run_time_s(pids)
    answer = rig.generator.ask("crowd", url=target.url, session=one, other=other, tool=tool)
    return {"cpu_ms": (procfs.run_time_s(pids) - before_s) * 1000, "ping_us": answer["longest_ping_us"]}
