"""Many clients in bad weather: what holds for each message alone holds for all of them at once.

Two fixed seeds of some hundred answers each run with the suite. A seed fixes the traffic and the weather, not the order in
which the machine gets to them. For a longer look, by hand:

    STORM_SEED=7 STORM_ANSWERS=10000 pytest tests/faults/test_storm.py
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from typing import Final

import pytest

from mcp_sidecar.facts import SidecarFault
from tests.faults.storm import ANSWER_BOUND_S, CLIENT_HEADER, Report, Visitor
from tests.faults.weather import Weather
from tests.support.fake_upstream import FakeUpstream
from tests.support.ledger import Ledger
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

SEEDS: Final = [int(os.environ["STORM_SEED"])] if "STORM_SEED" in os.environ else [1, 2]
ANSWERS: Final = int(os.environ.get("STORM_ANSWERS", "300"))

_VISITORS: Final = 20
_SETTINGS: Final = {
    "healing__hold_timeout": 1.0,
    "healing__connect_hold_timeout": 1.0,
    "healing__max_heals_per_minute": 10_000,
    "upstream__idle_timeout": 2.0,
}


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in SEEDS])
@pytest.mark.long
async def test_nothing_is_doubled_mixed_up_or_left_over(seed: int) -> None:
    """Whatever the upstream does, an unsafe call runs once at most, every call gets its own answer, and all is let go of."""
    report = Report(ANSWERS)
    async with FakeUpstream() as upstream, running_sidecar(upstream.url, **_SETTINGS) as sidecar:
        await _storm(upstream, sidecar, report, seed)
        assert report.complaints == []
        assert _ran_twice(upstream.ledger) == {}
        assert _shared_sessions(upstream.ledger) == {}
        assert sidecar.of(SidecarFault) == []
        await eventually(lambda: not any(_left_over(sidecar).values()))


async def _storm(upstream: FakeUpstream, sidecar: WatchedSidecar, report: Report, seed: int) -> None:
    visitors = [Visitor(n, sidecar.url, random.Random(f"{seed}-{n}"), report) for n in range(_VISITORS)]
    weather = Weather(upstream, random.Random(seed), report)
    visits = [asyncio.create_task(visitor.visit()) for visitor in visitors]
    raging = asyncio.create_task(weather.rage())
    try:
        await asyncio.wait({raging, *visits}, return_when=asyncio.FIRST_COMPLETED)
        report.wanted = 0
        await raging
        await weather.clear_up()
        async with asyncio.timeout(3 * ANSWER_BOUND_S):
            await asyncio.gather(*visits)
    finally:
        for task in (raging, *visits):
            task.cancel()
        await asyncio.gather(raging, *visits, return_exceptions=True)


def _ran_twice(ledger: Ledger) -> dict[int, int]:
    """The amounts that were charged more than once: each is asked for once."""
    charges = Counter(execution.arguments["amount"] for execution in ledger.executions("charge"))
    return {amount: times for amount, times in charges.items() if times > 1}


def _shared_sessions(ledger: Ledger) -> dict[str, set[str | None]]:
    """The upstream's sessions that served more than one client."""
    clients: defaultdict[str, set[str | None]] = defaultdict(set)
    for arrival in ledger.arrivals:
        if arrival.session_id and 200 <= (arrival.answer_status or 0) < 300:
            clients[arrival.session_id].add(arrival.header(CLIENT_HEADER))
    return {session_id: names for session_id, names in clients.items() if len(names) > 1}


def _left_over(sidecar: WatchedSidecar) -> dict[str, int]:
    """What the sidecar still holds of what is over."""
    services = sidecar.services
    return {
        "held": len(services.holds),
        "flights": len(services.sessions.healer._flights),
        "renumbered": sum(len(session.progress.new_ids) for session in services.sessions.table),
        "GET streams": services.streams.open.get_streams,
        "POST streams": services.streams.open.post_streams,
        "under way": sidecar._ingress._under_way,
    }
