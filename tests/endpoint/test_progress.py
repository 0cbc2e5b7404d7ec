"""Progress over a restart: whatever is run again, the client sees it increase."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.behaviour import Answers
from tests.support.client import McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer as Says
from tests.support.faults import CutStream, ResetBeforeExecution
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

HARMLESS = {"tools": [{"name": name, "annotations": {"readOnlyHint": True}} for name in ("progress", "slow_read")]}
TOKENS = pytest.mark.parametrize("token", ["mine", 7], ids=["text", "number"])


@asynccontextmanager
async def connected(**behaviour: Any) -> AsyncIterator[tuple[FakeUpstream, McpClient]]:
    """A client whose server has declared the tool `progress` harmless."""
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        await hear_hints(upstream, client)
        yield upstream, client


async def hear_hints(upstream: FakeUpstream, client: McpClient) -> None:
    """Let the client see a list in which all of this is harmless."""
    body = json.dumps({"jsonrpc": "2.0", "id": "list", "result": HARMLESS}).encode()
    upstream.inject(Says(200, (("Content-Type", "application/json"),), body), rpc_method="tools/list")
    assert (await client.call("tools/list", id="list")).result == HARMLESS


def call_of(token: str | int, steps: int, *, name: str = "progress", wait: bool = False) -> dict[str, Any]:
    """A call that wants to hear of its progress."""
    return {"name": name, "arguments": {"steps": steps, "wait": wait}, "_meta": {"progressToken": token}}


def steps_in(messages: list[dict[str, Any]], token: str | int) -> list[float]:
    """The progress that the client saw, all of it under its own token."""
    reports = [m["params"] for m in messages if m.get("method") == "notifications/progress"]
    assert {report["progressToken"] for report in reports} <= {token}
    return [report["progress"] for report in reports]


async def steps_until_answer(stream: Stream, token: str | int) -> tuple[list[float], dict[str, Any]]:
    """The rest of a call's stream."""
    messages = [event.message async for event in stream.rest() if event.message is not None]
    return steps_in(messages, token), messages[-1]


def report(upstream: FakeUpstream, *values: float) -> None:
    """Progress of the call under way, on the standalone stream, as servers do that do not say which call it is about."""
    arrival = upstream.ledger.arrived(tool="slow_read")[-1]
    token = json.loads(arrival.body)["params"]["_meta"]["progressToken"]
    for value in values:
        upstream.notify("notifications/progress", {"progressToken": token, "progress": value})


# -- on the call's own stream -----------------------------------------------------------------------------------------


@TOKENS
async def test_a_cut_call_that_begins_anew_goes_on(token: str | int) -> None:
    """Sent again in one session under a new id and token: what the client saw does not come twice."""
    async with connected() as (upstream, client):
        upstream.inject(CutStream(2, event_ids=False), tool="progress")
        answer = await client.call("tools/call", call_of(token, 4), id=4)
        assert steps_in(answer.messages, token) == [1, 2, 3, 4]
        assert (answer.response["id"], answer.text) == (4, "4 steps")
        assert upstream.ledger.count(tool="progress") == 2


@TOKENS
async def test_a_restart_under_a_call_that_reports(token: str | int) -> None:
    """Cut by a restart, healed, begun anew in the new session: the progress on the open stream increases strictly."""
    async with connected() as (upstream, client):
        async with await client.open_call("tools/call", call_of(token, 2, wait=True), id=4) as stream:
            for step in (1, 2):
                message = await stream.next_message()
                assert message is not None
                assert message["params"]["progress"] == step
            await upstream.restart()
            await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("progress", process=2)) == 1)
            upstream.slow_gate.set()
            steps, last = await steps_until_answer(stream, token)
        assert steps == []
        assert (last["id"], last["result"]["content"][0]["text"]) == (4, "2 steps")
        assert len(upstream.ledger.initializes) == 2


async def test_every_run_that_breaks_is_overtaken_by_the_next() -> None:
    """Two breaks in a row, each further than the last."""
    async with connected() as (upstream, client):
        upstream.inject(CutStream(1, event_ids=False), tool="progress")
        upstream.inject(CutStream(3, event_ids=False), tool="progress")
        answer = await client.call("tools/call", call_of("t", 5), id=4)
        assert steps_in(answer.messages, "t") == [1, 2, 3, 4, 5]
        assert upstream.ledger.count(tool="progress") == 3


async def test_a_continued_stream_misses_nothing() -> None:
    """Resumed in its own session a call goes on reporting: it is the same run."""
    async with connected(event_store=True) as (upstream, client):
        upstream.inject(CutStream(2, event_ids=True), tool="progress")
        answer = await client.call("tools/call", call_of("t", 4), id=4)
        assert steps_in(answer.messages, "t") == [1, 2, 3, 4]


async def test_what_may_have_an_effect_is_not_begun_anew() -> None:
    """Its progress ends with its error, as ever."""
    async with connected() as (upstream, client):
        await client.call("tools/list")
        upstream.inject(CutStream(2, event_ids=False), tool="progress")
        answer = await client.call("tools/call", call_of("t", 4), id=4)
        assert steps_in(answer.messages, "t") == [1, 2]
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert upstream.ledger.count(tool="progress") == 1


async def test_a_token_may_be_used_again() -> None:
    """By another call, after the first has its answer: that one counts from its own beginning, in any generation."""
    async with connected() as (upstream, client):
        assert steps_in((await client.call("tools/call", call_of("t", 3))).messages, "t") == [1, 2, 3]
        await upstream.restart()
        assert steps_in((await client.call("tools/call", call_of("t", 3))).messages, "t") == [1, 2, 3]


async def test_one_run_is_not_judged() -> None:
    """What a server reports without being cut passes as it is, even where it should not."""
    messages: list[dict[str, Any]] = [
        {"method": "notifications/progress", "params": {"progressToken": "t", "progress": 2}},
        {"method": "notifications/progress", "params": {"progressToken": "t", "progress": 1}},
        {"id": 4, "result": {"content": []}},
    ]
    body = b"".join(b"data: " + json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n\n" for message in messages)
    async with connected() as (upstream, client):
        upstream.inject(Says(200, (("Content-Type", "text/event-stream"),), body), tool="progress")
        assert (await client.call("tools/call", call_of("t", 2), id=4)).body == body


# -- on the listening stream ------------------------------------------------------------------------------------------


@TOKENS
@pytest.mark.parametrize("answers", Answers, ids=lambda form: form.value)
async def test_progress_beside_the_call(answers: Answers, token: str | int) -> None:
    """Reported on the GET stream: over the restart and the call's second run the client sees it increase strictly."""
    async with connected(answers=answers) as (upstream, client), await client.get_stream() as listening:
        calling = asyncio.create_task(client.call("tools/call", call_of(token, 0, name="slow_read"), id=4))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow_read")) == 1)
        report(upstream, 1, 2, 3)
        seen = [await listening.next_message() for _ in range(3)]
        await upstream.restart()
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow_read", process=2)) == 1)
        await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))
        report(upstream, 1, 2, 3, 3.5)
        while (message := await listening.next_message()) is not None:
            if message["method"] == "notifications/progress":
                seen.append(message)
                break
        upstream.slow_gate.set()
        assert (await calling).text == "at last"
        assert steps_in([message for message in seen if message], token) == [1, 2, 3, 3.5]


async def test_progress_beside_a_call_under_a_new_token() -> None:
    """Sent again in one session, the call reports under a token of ours: the client hears it under its own."""
    async with connected(answers=Answers.JSON) as (upstream, client), await client.get_stream() as listening:
        upstream.inject(ResetBeforeExecution(), tool="slow_read")
        calling = asyncio.create_task(client.call("tools/call", call_of("mine", 0, name="slow_read"), id=4))
        await upstream.ledger.wait_for(lambda ledger: len(ledger.executions("slow_read")) == 1)
        assert upstream.ledger.count(tool="slow_read") == 2
        report(upstream, 5)
        message = await listening.next_message()
        upstream.slow_gate.set()
        assert (await calling).text == "at last"
        assert message is not None
        assert steps_in([message], "mine") == [5]
