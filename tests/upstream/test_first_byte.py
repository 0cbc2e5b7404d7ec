"""``upstream.first_byte_hint``: a server that takes calls and begins no answer is said, and one that is only busy is not."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.facts import UpstreamSilent
from tests.support.behaviour import Answers
from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar
from tests.support.waiting import eventually

HINT_S = 0.4


async def _say_it(upstream: FakeUpstream, sidecar: WatchedSidecar, client: McpClient, times: int) -> None:
    begun = len(upstream.ledger.executions("slow"))
    calls = [asyncio.create_task(client.tool("slow")) for _ in range(3)]
    await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow")) == begun + 3)
    await eventually(lambda: len(sidecar.of(UpstreamSilent)) == times)
    await asyncio.sleep(2 * HINT_S)
    assert len(sidecar.of(UpstreamSilent)) == times
    upstream.slow_gate.set()
    assert all("result" in answer.response for answer in await asyncio.gather(*calls))
    upstream.slow_gate.clear()


@pytest.mark.long
async def test_it_is_said_once_until_somebody_is_answered() -> None:
    """One line however many calls wait and however long, and another one in the next outage."""
    async with connected(answers=Answers.JSON, upstream__first_byte_hint=HINT_S) as (upstream, sidecar, client):
        await _say_it(upstream, sidecar, client, times=1)
        assert sidecar.of(UpstreamSilent)[0].seconds >= HINT_S
        await asyncio.sleep(HINT_S)
        await _say_it(upstream, sidecar, client, times=2)


@pytest.mark.parametrize("settings", [{"upstream__first_byte_hint": HINT_S}, {"upstream__first_byte_hint": 0}])
async def test_a_server_that_answers_others_is_only_busy(settings: dict[str, float]) -> None:
    """A slow tool is no outage; and nothing is said where nobody wants to hear it."""
    async with connected(answers=Answers.JSON, **settings) as (upstream, sidecar, client):
        call = asyncio.create_task(client.tool("slow"))
        await upstream.ledger.wait_for(lambda ledger: ledger.executions("slow") != [])
        for _ in range(20):
            await client.tool("echo", text="x")
            await asyncio.sleep(HINT_S / 8)
        upstream.slow_gate.set()
        await call
    assert sidecar.of(UpstreamSilent) == []


async def test_an_idle_stream_is_no_silence() -> None:
    """Whoever only listens waits for nothing in particular; neither does an answer that has begun."""
    async with connected(upstream__first_byte_hint=HINT_S) as (_, sidecar, client):
        async with await client.get_stream(), await client.open_call("tools/call", {"name": "slow"}) as stream:
            assert stream.status == 200
            await asyncio.sleep(2 * HINT_S)
        assert sidecar.of(UpstreamSilent) == []
