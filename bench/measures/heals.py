"""What only the sidecar does: one session healed, calls held over an outage, and 1,000 sessions healed at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from bench import procfs
from bench.lines import NoAnswer
from bench.plan import HEALS, Plan
from bench.processes import NotStarted
from bench.results import Results, Row, of_rounds
from bench.rig import Rig, Target
from bench.statistics import median, percentile, ratio

WARM_UP_CALLS: Final = 50
SETTLING_S: Final = 0.3
PLAIN_CALLS: Final = 4000


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """Fresh sidecars; the upstream is the one that can be told to forget and to go away."""
    for contender in rig.contenders:
        if contender.heals:
            try:
                with rig.target(contender, rig.scripted_url) as target:
                    rig.call(target, rig.sessions(target, 1), count=WARM_UP_CALLS)
                    results.rows.extend(
                        [_one(rig, target, plan), *_outages(rig, target, plan), _storm(rig, target, plan)]
                    )
            except (NoAnswer, NotStarted) as trouble:
                rig.say(f"heals: {contender.name}: {trouble}")


def _one(rig: Rig, target: Target, plan: Plan) -> Row:
    rig.say(f"heals: one session, {plan.rounds} times {plan.heals}")
    rounds, every = [], []
    for _ in range(plan.rounds):
        plain, healed = [], []
        for session in rig.sessions(target, plan.heals):
            plain += rig.call(target, [session], count=3)[1:]
            rig.ask_upstream("forget")
            healed += rig.call(target, [session])
        rounds.append({"plain_us": median(plain), "p50_us": median(healed)})
        every += healed
    return of_rounds(HEALS, "one session is lost", target.name, rounds, p99_us=percentile(every, 0.99))


def _outages(rig: Rig, target: Target, plan: Plan) -> Iterator[Row]:
    for seconds in plan.outages_s:
        rig.say(f"heals: a call held over {seconds} s, {plan.outages_of_each} times")
        delays = []
        for session in rig.sessions(target, plan.outages_of_each):
            rig.call(target, [session])
            rig.ask_upstream("down")
            rig.generator.ask("wait", url=target.url, sessions=[session])
            time.sleep(seconds)
            accepts = rig.ask_upstream("up")["at"]
            answer = rig.generator.ask("waited")
            delays += [(moment - accepts) * 1e6 for moment in answer["at"] if answer["good"]]
        notes = (
            () if len(delays) == plan.outages_of_each else (f"{plan.outages_of_each - len(delays)} without a result",)
        )
        case, rounds = f"held call, outage of {seconds} s", [{"p50_us": delay} for delay in delays]
        yield of_rounds(HEALS, case, target.name, rounds, notes, p99_us=percentile(delays, 0.99))


def _storm(rig: Rig, target: Target, plan: Plan) -> Row:
    rig.say(f"heals: {plan.storm_sessions:,} sessions at once")
    sessions = rig.sessions(target, plan.storm_sessions)
    plain_us = _plain_cpu_us(rig, target, sessions)
    rig.ask_upstream("down")
    rig.generator.ask("wait", url=target.url, sessions=sessions)
    time.sleep(plan.storm_outage_s)
    sent_before, pids = _sent(rig), target.pids()
    run_before = procfs.run_time_s(pids)
    accepts = rig.ask_upstream("up")["at"]
    answer = rig.generator.ask("waited", timeout_s=90)
    cpu_s = procfs.run_time_s(pids) - run_before
    sent = _sent(rig) - sent_before
    delays = [(moment - accepts) * 1e6 for moment in answer["at"]]
    each_us = ratio(cpu_s * 1e6, sent)
    figures = {
        "p50_us": median(delays),
        "p99_us": percentile(delays, 0.99),
        "all_ms": max(delays) / 1000,
        "good": float(answer["good"]),
        "requests_per_heal": sent / len(sessions),
        "cpu_us": each_us,
        "plain_cpu_us": plain_us,
        "to_plain": ratio(each_us, plain_us),
    }
    return Row(HEALS, f"{plan.storm_sessions:,} sessions with waiting calls", target.name, figures)


def _plain_cpu_us(rig: Rig, target: Target, sessions: list[str]) -> float:
    """CPU of a call that needs nothing, on the same upstream, with as many in flight as a closed loop of 16 has."""
    rig.generator.ask("load", url=target.url, sessions=sessions, count=PLAIN_CALLS // 4, at_once=16)
    before = procfs.run_time_s(target.pids())
    rig.generator.ask("load", url=target.url, sessions=sessions, count=PLAIN_CALLS, at_once=16)
    time.sleep(SETTLING_S)
    return (procfs.run_time_s(target.pids()) - before) / PLAIN_CALLS * 1e6


def _sent(rig: Rig) -> int:
    seen: dict[str, int] = rig.ask_upstream("stats")["seen"]
    return sum(seen.values())
