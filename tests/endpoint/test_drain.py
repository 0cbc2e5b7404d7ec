"""A drain announces itself: for ``listen.drain_delay`` all goes on, and every answer says that its connection ends."""

from __future__ import annotations

import asyncio

from tests.support.client import McpClient
from tests.support.scene import connected
from tests.support.unhurried import now


async def test_a_drain_waits_before_it_accepts_nobody_any_more() -> None:
    """A balancer that has not heard of the drain yet still sends newcomers: they are served, and told to leave."""
    async with connected(listen__drain_delay=5) as (upstream, sidecar, client):
        begun = now()
        drain = asyncio.create_task(sidecar.drain())
        await asyncio.sleep(1)
        answer = await client.tool("echo", text="still here")
        assert (answer.text, answer.headers["Connection"]) == ("still here", "close")
        async with McpClient(sidecar.url) as newcomer:
            assert (await newcomer.initialize()).status == 200
        await drain
        assert now() - begun >= 5
        assert len(upstream.ledger.initializes) == 2
