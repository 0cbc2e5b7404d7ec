"""Asking: whatever a server says, a lost session is healed and a living one is left alone, and nothing runs twice."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.facts import HealEnded
from tests.support.client import McpClient
from tests.support.dialects import Dialect, Said
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, Repeats
from tests.support.refusals import STATUSES, Refused, generated
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar

CORPUS = list(generated(seed=20261127))
DAILY = (404,)
"""Of the statuses, what is tried at every change; the others take their time."""


def test_the_corpus_is_large() -> None:
    """At least five hundred refusals, and none of them in the words of another."""
    assert len(CORPUS) >= 500
    assert len({refused.said.body for refused in CORPUS}) == len(CORPUS)


def those(status: int) -> list[Refused]:
    """The refusals of one status."""
    return [refused for refused in CORPUS if refused.said.status == status]


each_status = pytest.mark.parametrize(
    "status", [status if status in DAILY else pytest.param(status, marks=pytest.mark.long) for status in STATUSES]
)


@each_status
async def test_a_lost_session_is_healed_whatever_is_said(status: int) -> None:
    """Safe calls and unsafe ones succeed, the unsafe ones run exactly once, and each loss costs one initialize."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        for refused in those(status):
            upstream.become(dialect=refused.dialect)
            async with McpClient(sidecar.url) as client:
                await client.initialize()
                await client.call("tools/list")
                begun = len(upstream.ledger.initializes)
                for tool in ("echo", "charge"):
                    ran = len(upstream.ledger.executions(tool))
                    upstream.forget()
                    answer = await client.tool(tool, text="again")
                    assert (answer.status, b'"result"' in answer.body) == (200, True), (refused, answer)
                    assert len(upstream.ledger.executions(tool)) == ran + 1, refused
                assert len(upstream.ledger.initializes) == begun + 2, refused
                assert set(client.seen_session_ids) == {client.session_id}


@each_status
async def test_a_living_session_is_left_alone_whatever_is_said(status: int) -> None:
    """What a tool says in the words of a refusal passes, and it does not run again."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        for refused in those(status):
            async with McpClient(sidecar.url) as client:
                await client.initialize()
                await client.call("tools/list")
                begun = len(upstream.ledger.initializes)
                for tool in ("echo", "charge"):
                    ran = len(upstream.ledger.executions(tool))
                    said = refused.said.filled(sid=client.session_id or "", rpc_id="{ID}")
                    upstream.inject(Answer(said.status, tuple(said.headers), said.body, executes=True), tool=tool)
                    answer = await client.tool(tool, text="again")
                    assert len(upstream.ledger.executions(tool)) == ran + 1, refused
                    assert answer.status == status, (refused, answer)
                assert len(upstream.ledger.initializes) == begun, refused
        assert sidecar.of(HealEnded) == []


async def test_one_ping_for_all_who_wait() -> None:
    """Twenty unsafe calls that meet one loss cause one ping and one initialize, and each runs once."""
    refused = those(422)[0]
    async with connected(dialect=refused.dialect) as (upstream, _, client):
        upstream.forget()
        answers = await asyncio.gather(*(client.tool("charge", n=n) for n in range(20)))
        assert all("result" in answer.response for answer in answers)
        assert len(upstream.ledger.executions("charge")) == 20
        assert upstream.ledger.count("ping") == 1
        assert len(upstream.ledger.initializes) == 2


async def test_the_same_refusal_of_a_living_session_is_not_asked_about_again() -> None:
    """An application that always says so costs one ping, not one for every call."""
    said = those(409)[0].said.filled(sid="x", rpc_id=1)
    async with connected() as (upstream, _, client):
        upstream.inject(Answer(said.status, tuple(said.headers), said.body, executes=True), tool="charge", times=None)
        for _ in range(10):
            assert (await client.tool("charge")).status == 409
        assert upstream.ledger.count("ping") == 1


NAMES_A_METHOD = '{"jsonrpc":"2.0","error":{"code":-32050,"message":"no such %s","data":{"method":"ping"}},"id":{ID}}'


@pytest.mark.parametrize("to", ["{ID}", "null"])
async def test_an_answer_that_names_a_method_is_no_question(to: str) -> None:
    """A loss that is told as an event, with the method in its data: the same words again, and the unsafe call runs once."""
    body = "data: " + (NAMES_A_METHOD % "session").replace("{ID}", to) + "\n\n"
    lost = Dialect(name="own", servers="", post=Said(200, body, "text/event-stream"))
    async with connected(dialect=lost) as (upstream, _, client):
        upstream.forget()
        assert "result" in (await client.tool("charge")).response
        assert len(upstream.ledger.executions("charge")) == 1
        assert len(upstream.ledger.initializes) == 2


async def test_a_living_server_may_name_the_method_in_its_answer_to_a_ping() -> None:
    """Its error under the ping's own id shows that it has dispatched it: nothing is healed."""
    said = Said(200, "data: " + NAMES_A_METHOD % "thing" + "\n\n", "text/event-stream")
    async with connected() as (upstream, sidecar, client):
        upstream.inject(Repeats(said), rpc_method="ping", times=None)
        upstream.inject(Answer(422, (), b"no", executes=True), tool="charge")
        assert (await client.tool("charge")).status == 422
        assert len(upstream.ledger.executions("charge")) == 1
        assert sidecar.of(HealEnded) == []
