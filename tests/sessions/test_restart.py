"""The main promise: the server behind the sidecar restarts, and the client goes on."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome, SessionLost
from tests.support.behaviour import Answers
from tests.support.client import McpClient
from tests.support.dialects import DIALECTS
from tests.support.fake_upstream import FakeUpstream
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)


@pytest.mark.long
@ANSWERS
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
async def test_every_signature_is_healed(dialect: str, answers: Answers) -> None:
    """After a restart the next call succeeds, runs once, under the same id, for one initialize."""
    async with connected(dialect=dialect, answers=answers) as (upstream, sidecar, client):
        await client.call("tools/list")
        await upstream.restart()
        answer = await client.tool("echo", text="again")
        assert answer.status == 200
        assert answer.text == "again"
        assert len(upstream.ledger.initializes) == 2
        assert len(upstream.ledger.executions("echo")) == 1
        assert set(client.seen_session_ids) == {client.session_id}
        assert [fact.outcome for fact in sidecar.of(HealEnded)] == [HealOutcome.HEALED]
        assert len(sidecar.of(SessionLost)) == 1


@pytest.mark.long
@ANSWERS
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
async def test_an_unsafe_call_goes_again_behind_one_ping(dialect: str, answers: Answers) -> None:
    """A ping that is refused in the same words proves that a call without hints did not run."""
    async with connected(dialect=dialect, answers=answers) as (upstream, _, client):
        await upstream.restart()
        first = await client.tool("charge", amount=1)
        second = await client.tool("charge", amount=2)
        assert first.status == second.status == 200
        assert "result" in second.response
        assert "result" in first.response
        assert len(upstream.ledger.executions("charge")) == 2
        assert upstream.ledger.count("ping") == 1


@pytest.mark.long
async def test_a_burst_after_a_restart_costs_one_initialize_per_session() -> None:
    """50 sessions with 20 concurrent calls each: all succeed with 50 initializes."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        clients = [await McpClient(sidecar.url).__aenter__() for _ in range(50)]
        for client in clients:
            await client.initialize()
        await upstream.restart()
        calls = [client.tool("charge", n=n) for client in clients for n in range(20)]
        answers = await asyncio.gather(*calls)
        assert sum("result" in answer.response for answer in answers) == 1000
        assert len(upstream.ledger.initializes) == 100
        assert len(upstream.ledger.executions("charge")) == 1000
        for client in clients:
            await client.__aexit__(None, None, None)


async def test_calls_during_an_outage_are_held() -> None:
    """Calls sent while the server is down succeed as soon as it accepts again."""
    async with connected() as (upstream, sidecar, client):
        await upstream.stop()
        calls = [asyncio.create_task(client.tool("charge", n=n)) for n in range(10)]
        await eventually(lambda: len(sidecar.services.holds) == 10)
        await upstream.restart()
        answers = await asyncio.gather(*calls)
        assert all("result" in answer.response for answer in answers)
        assert len(upstream.ledger.executions("charge")) == 10
