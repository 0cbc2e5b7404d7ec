"""Everything restarted at once, sidecar and server, under many sessions: what that costs each, by counts."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from itertools import accumulate
from typing import Final

from mcp_sidecar.facts import HealEnded, HealOutcome, SidecarFault, StoreAsked, StoreLost
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.principal import ANONYMOUS
from mcp_sidecar.healing.session import ClientSessionId
from tests.support.client import McpClient, new_http
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.stores import Settings
from tests.support.waiting import HANG_S

SESSIONS: Final = int(os.environ.get("HERD_SESSIONS", "400"))
AT_A_TIME: Final = 200
"""Calls under way; as many clients may have come at once as hold places."""

HEALS_AT_A_TIME: Final = 16
"""So that all but a few queue, and that none takes long by the real clock, however slow the machine is."""

PARAMS: Final = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "many", "version": "1"}}
RESULT: Final = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "serverInfo": {"name": "fake-upstream", "version": "1.0"},
}


async def all_are_healed(store: Settings) -> None:
    """Each call runs once; each session is loaded, found unchanged, initialized and written once; few heals at a time."""
    names = [ClientSessionId(f"client-{number}") for number in range(SESSIONS)]
    patient = {"healing__hold_timeout": HANG_S, "healing__max_concurrent_heals": HEALS_AT_A_TIME, **store}
    async with FakeUpstream() as upstream:
        async with running_sidecar(upstream.url, **store) as former:
            for name in names:
                former.services.sessions.table.open(name, ANONYMOUS, Handshake.of(PARAMS, RESULT))
        async with running_sidecar(upstream.url, **patient) as sidecar:
            told = await _called(sidecar, names)
            # Not two lists of thousands, which pytest would compare for hours.
            assert [number for number, text in enumerate(told) if text != f"charged {number}"] == []
            _assert_counts(sidecar)
            attempts = len(sidecar.of(HealEnded))
        assert len(upstream.ledger.executions("charge")) == SESSIONS
        assert SESSIONS <= len(upstream.ledger.initializes) <= attempts


async def _called(sidecar: WatchedSidecar, names: list[ClientSessionId]) -> list[str]:
    places = asyncio.Semaphore(AT_A_TIME)
    async with new_http() as http:

        async def call(number: int) -> str:
            async with places:
                client = McpClient(sidecar.url, http=http, session_id=names[number])
                return (await client.tool("charge", amount=number)).text

        return await asyncio.gather(*map(call, range(len(names))))


def _assert_counts(sidecar: WatchedSidecar) -> None:
    questions = sidecar.of(StoreAsked)
    asked = Counter(fact.operation for fact in questions)
    ends = Counter(f"{fact.outcome.value}: {fact.reason}" for fact in sidecar.of(HealEnded))
    told = f"{asked} {ends}"
    assert ends.pop(f"{HealOutcome.HEALED.value}: healed") == SESSIONS, told
    # By the real clock a step of a heal can take too long for it on a slow machine: that one is tried again, by its turn.
    assert all("stalled" in end for end in ends), told
    for operation in ("get", "holder", "put"):
        assert asked[operation] == SESSIONS, told
    for operation in ("lease", "give_back"):
        assert asked[operation] == SESSIONS + ends.total(), told
    steps = {"lease": 1, "give_back": -1}  # the first and the last thing that a heal asks for
    assert max(accumulate(steps.get(fact.operation, 0) for fact in questions)) <= HEALS_AT_A_TIME
    assert (sidecar.of(SidecarFault), sidecar.of(StoreLost)) == ([], [])
