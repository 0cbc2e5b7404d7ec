"""Servers that have no time just now: "come back later" is not "never", neither for a heal nor for a call."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import pytest

from mcp_sidecar.facts import HealEnded, HealOutcome
from tests.support.client import McpClient, new_http
from tests.support.dialects import JSON
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import AS_USUAL, Answer, Fault, IngressPage, Stage
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar

pytestmark = pytest.mark.long

JSON_TYPE = (("Content-Type", JSON),)
STARTING = Answer(503, JSON_TYPE, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Starting up"}}')


@dataclass(frozen=True, slots=True)
class Limited:
    """Lets so many through in so many seconds, and sends the others away."""

    refusal: Answer
    count: int = 15
    per_s: float = 3.0
    passed: deque[float] = field(default_factory=deque)
    executes: bool = True

    async def play(self, stage: Stage) -> None:
        now = asyncio.get_running_loop().time()
        while self.passed and self.passed[0] <= now - self.per_s:
            self.passed.popleft()
        if len(self.passed) >= self.count:
            await self.refusal.play(stage)
            return
        self.passed.append(now)
        await stage.serve(stage.wire, AS_USUAL)


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(Answer(429, (("Retry-After", "1"),), b"too many requests"), id="429 with a pause"),
        pytest.param(Answer(429, (), b"too many requests"), id="429 without a word"),
        pytest.param(STARTING, id="503 of the server's own"),
    ],
)
async def test_forty_sessions_go_through_a_limit_of_fifteen_in_three_seconds(refusal: Answer) -> None:
    """One after the other, all within the hold; each unsafe call has run once."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        new_http() as http,
    ):
        clients = [McpClient(sidecar.url, http=http) for _ in range(40)]
        for client in clients:
            await client.initialize()
        await upstream.restart()
        upstream.inject(Limited(refusal=refusal), rpc_method="initialize", times=None)
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(client.tool("charge", amount=1) for client in clients))
        assert ["result" in answer.response for answer in answers] == [True] * 40
        assert asyncio.get_running_loop().time() - began < 15
        assert len(upstream.ledger.executions("charge")) == 40
        assert {fact.outcome for fact in sidecar.of(HealEnded)} == {HealOutcome.HEALED}


LATER = [
    pytest.param(Answer(429, (("Retry-After", "2"),), b"later"), id="429 with a pause"),
    pytest.param(Answer(429), id="429"),
    pytest.param(STARTING, id="503 of an MCP server"),
    pytest.param(Answer(503, (("Retry-After", "2"),), b"<html>"), id="503 with a pause"),
    pytest.param(Answer(400, (("Retry-After", "2"),), b"later"), id="any refusal with a pause"),
    pytest.param(IngressPage(503), id="503 of a gateway"),
]


@pytest.mark.parametrize("method", ["initialize", "notifications/initialized"])
@pytest.mark.parametrize("later", LATER)
async def test_a_heal_waits_for_a_server_that_has_no_time(later: Fault, method: str) -> None:
    """Some seconds long; then the call succeeds, and its client has heard of nothing."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        upstream.inject(later, rpc_method=method, times=None)
        called = asyncio.create_task(client.tool("charge"))
        await asyncio.sleep(5)
        assert not called.done()
        await upstream.clear()
        assert "result" in (await called).response
        assert len(upstream.ledger.executions("charge")) == 1


@pytest.mark.parametrize("method", ["initialize", "notifications/initialized"])
@pytest.mark.parametrize("later", LATER)
async def test_a_hold_that_is_over_is_no_404(later: Fault, method: str) -> None:
    """The client is told that the server is away, and its session stays: the next call, later, is healed."""
    async with connected() as (upstream, sidecar, client):
        await upstream.restart()
        upstream.inject(later, rpc_method=method, times=None)
        answer = await client.tool("charge")
        assert (answer.status, answer.error["data"]["reason"]) == (200, "upstream_unavailable")
        assert len(sidecar.services.sessions.table) == 1
        await upstream.clear()
        assert "result" in (await client.tool("charge")).response
        assert len(upstream.ledger.executions("charge")) == 1


@pytest.mark.parametrize("tool", ["echo", "charge"])
async def test_a_server_that_has_no_time_for_anything_is_waited_for(tool: str) -> None:
    """Two seconds of 503 in JSON-RPC for whatever comes: the call waits, and has run once."""
    async with connected() as (upstream, sidecar, client):
        await client.call("tools/list")
        upstream.inject(STARTING, times=None)
        called = asyncio.create_task(client.tool(tool, text="x"))
        await asyncio.sleep(2)
        assert not called.done()
        await upstream.clear()
        assert "result" in (await called).response
        assert len(upstream.ledger.executions(tool)) == 1
        assert sidecar.of(HealEnded) == []


async def test_a_busy_answer_of_a_living_session_passes() -> None:
    """The server has time for a ping: what it says to the call is the call's, and it is not sent again."""
    async with connected() as (upstream, _, client):
        upstream.inject(Answer(503, STARTING.headers, STARTING.body, executes=True), tool="charge")
        answer = await client.tool("charge")
        assert (answer.status, answer.error["message"]) == (503, "Starting up")
        assert len(upstream.ledger.executions("charge")) == 1


async def test_a_pause_longer_than_the_hold_is_not_undercut() -> None:
    """A limit that is asked again and again may never end."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        upstream.inject(Answer(429, (("Retry-After", "60"),)), rpc_method="initialize", times=None)
        answer = await client.tool("charge")
        assert answer.error["data"]["reason"] == "upstream_unavailable"
        assert len(upstream.ledger.initializes) == 2


@pytest.mark.parametrize("pause", ["0", "soon", "-1", "Wed, 21 Oct 2099 07:28:00 GMT", "99999999999999999999", "1.5"])
async def test_any_pause_is_kept_within_the_hold(pause: str) -> None:
    """Whatever a server writes there: the hold ends as always, and a server is never asked in a loop."""
    async with connected() as (upstream, _, client):
        await upstream.restart()
        upstream.inject(Answer(429, (("Retry-After", pause),)), rpc_method="initialize", times=None)
        answer = await client.tool("charge")
        assert answer.error["data"]["reason"] == "upstream_unavailable"
        assert len(upstream.ledger.initializes) <= 60
