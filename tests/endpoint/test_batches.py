"""Batches of 2025-03-26: as safe as their least safe member, and every request of them gets its own answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.behaviour import Answers
from tests.support.client import McpClient
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import CutStream, ResetAfterExecution, ResetBeforeExecution
from tests.support.sidecar import WatchedSidecar, running_sidecar

ANSWERS = pytest.mark.parametrize("answers", Answers, ids=lambda answers: answers.value)

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
LIST = {"jsonrpc": "2.0", "id": "two", "method": "tools/list"}
CHARGE = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "charge", "arguments": {}}}
CHANGED = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}


@asynccontextmanager
async def connected(**behaviour: Any) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient]]:
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url, healing__hold_timeout=0.05) as sidecar,
        McpClient(sidecar.url, version="2025-03-26") as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client


def by_id(messages: list[dict[str, Any]]) -> dict[object, str]:
    """For each id whether it got a result or an error, and which; an id that got two fails."""
    found: dict[object, str] = {}
    for message in messages:
        assert message["id"] not in found, message
        found[message["id"]] = message["error"]["data"]["reason"] if "error" in message else "result"
    return found


@ANSWERS
async def test_a_batch_survives_a_restart(answers: Answers) -> None:
    """It did not run, so all of it goes again, unsafe members too."""
    async with connected(answers=answers) as (upstream, _, client):
        await upstream.restart()
        answer = await client.batch([PING, CHANGED, CHARGE])
        assert by_id(answer.messages) == {1: "result", 3: "result"}
        assert len(upstream.ledger.executions("charge")) == 1
        assert len(upstream.ledger.initializes) == 2


@ANSWERS
async def test_a_harmless_batch_goes_again(answers: Answers) -> None:
    """Under new ids, which are mapped back."""
    async with connected(answers=answers) as (upstream, _, client):
        upstream.inject(ResetAfterExecution())
        answer = await client.batch([PING, LIST, CHANGED])
        assert by_id(answer.messages) == {1: "result", "two": "result"}
        assert len(upstream.ledger.executions("tools/list")) == 2


@ANSWERS
async def test_one_unsafe_member_holds_a_batch_back(answers: Answers) -> None:
    """One error for each request, as an array."""
    async with connected(answers=answers) as (upstream, _, client):
        upstream.inject(ResetBeforeExecution())
        answer = await client.batch([PING, CHANGED, CHARGE])
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert by_id(answer.messages) == {1: "outcome_unknown", 3: "outcome_unknown"}
        assert upstream.ledger.executions("charge") == []


@pytest.mark.parametrize("last", [CHARGE, LIST], ids=["unsafe", "harmless"])
async def test_only_what_was_not_answered_gets_an_error(last: dict[str, Any]) -> None:
    """Of a stream that broke behind the first answer the client has that one; nothing is answered twice."""
    async with connected() as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=False))
        answer = await client.batch([PING, last])
        messages = [
            part for message in answer.messages for part in (message if isinstance(message, list) else [message])
        ]
        assert by_id(messages) == {1: "result", last["id"]: "outcome_unknown"}
        assert upstream.ledger.count("ping") == 1


async def test_a_batch_gets_an_error_for_each_request_when_the_hold_ends() -> None:
    """An array of errors; a batch without requests gets 202."""
    async with connected() as (upstream, _, client):
        await upstream.stop()
        answer = await client.batch([PING, CHANGED, CHARGE])
        assert by_id(answer.messages) == {1: "upstream_unavailable", 3: "upstream_unavailable"}
        silent = await client.batch([CHANGED])
        assert (silent.status, silent.body) == (202, b"")


async def test_old_answers_are_taken_out_of_a_batch() -> None:
    """After a heal an old answer goes nowhere; what came with it is sent."""
    old = {"jsonrpc": "2.0", "id": 0, "result": {}}
    async with connected() as (upstream, _, client):
        await client.batch([old])
        assert [reply.rpc_id for reply in upstream.ledger.replies] == [0]
        await upstream.restart()
        await client.call("tools/list")
        answer = await client.batch([old, PING])
        assert by_id(answer.messages) == {1: "result"}
        silent = await client.batch([old, old])
        assert (silent.status, silent.body) == (202, b"")
        assert len(upstream.ledger.replies) == 1
