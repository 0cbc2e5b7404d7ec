"""Everything restarted at once: every session is healed once, and the store is asked for each record once."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, SidecarFault, StoreAsked
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.principal import ANONYMOUS
from mcp_sidecar.healing.session import ClientSessionId
from tests.support.client import McpClient, new_http
from tests.support.fake_upstream import FakeUpstream
from tests.support.redis_server import NEEDS_REDIS
from tests.support.sidecar import running_sidecar
from tests.support.stores import shared_store

SESSIONS: Final = int(os.environ.get("HERD_SESSIONS", "500"))
AT_A_TIME: Final = 200
"""Calls under way; as many clients may have come at once as hold places."""

PARAMS: Final = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "many", "version": "1"}}
RESULT: Final = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "serverInfo": {"name": "fake-upstream", "version": "1.0"},
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=NEEDS_REDIS)])
async def test_all_are_healed(kind: str, tmp_path: Path) -> None:
    """``HERD_SESSIONS=10000`` has more of them. Each call runs once, each session is loaded and initialized once."""
    names = [ClientSessionId(f"client-{number}") for number in range(SESSIONS)]
    async with FakeUpstream() as upstream, shared_store(kind, tmp_path) as store, new_http() as http:
        async with running_sidecar(upstream.url, **store) as former:
            for name in names:
                former.services.sessions.table.open(name, ANONYMOUS, Handshake.of(PARAMS, RESULT))
        async with running_sidecar(upstream.url, healing__hold_timeout="60s", **store) as sidecar:
            places = asyncio.Semaphore(AT_A_TIME)

            async def call(number: int) -> str:
                async with places:
                    client = McpClient(sidecar.url, http=http, session_id=names[number])
                    return (await client.tool("charge", amount=number)).text

            told = await asyncio.gather(*map(call, range(SESSIONS)))
            unexpected = {number: text for number, text in enumerate(told) if text != f"charged {number}"}
            assert not unexpected  # two lists of thousands are not to be compared by pytest: that takes it hours
            asked = Counter(fact.operation for fact in sidecar.of(StoreAsked))
            assert asked["get"] == asked["holder"] == asked["lease"] == SESSIONS
            assert Counter(fact.outcome for fact in sidecar.of(HealEnded)) == {HealOutcome.HEALED: SESSIONS}
            assert sidecar.of(SidecarFault) == []
        assert len(upstream.ledger.initializes) == len(upstream.sessions) == SESSIONS
