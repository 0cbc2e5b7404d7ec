"""Calls under way at a restart: continued where the server can, else each ends with an answer that can be believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcp_sidecar.facts import OutcomeUnknown
from tests.support.behaviour import Answers, Priming
from tests.support.client import Answer, McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import CutStream, EndStream, Refuse
from tests.support.own_answers import is_error
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

UNKNOWN = {"reason": "outcome_unknown"}
PROGRESS = {"name": "progress", "arguments": {"steps": 2, "wait": True}, "_meta": {"progressToken": "t"}}


@asynccontextmanager
async def connected(
    settings: dict[str, object] | None = None, **behaviour: Any
) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar, McpClient]]:
    """A client that has seen which tools are harmless."""
    async with (
        FakeUpstream(**behaviour) as upstream,
        running_sidecar(upstream.url, **(settings or {})) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        await client.call("tools/list")
        yield upstream, sidecar, client


async def begun(upstream: FakeUpstream, *tools: str) -> None:
    """Wait until this process has begun all of these."""
    await upstream.ledger.wait_for(
        lambda ledger: all(ledger.executions(tool, process=upstream.process) for tool in tools)
    )


async def last_of(stream: Stream) -> Any:
    """The last message of a stream that ends cleanly."""
    messages = [event.message async for event in stream.rest() if event.message is not None]
    return messages[-1]


# -- a restart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", Answers, ids=lambda form: form.value)
async def test_everything_in_flight_ends(answers: Answers) -> None:
    """Many calls at once: the harmless get their results, the others their error, in one re-initialize."""
    async with connected(answers=answers) as (upstream, sidecar, client):

        def calls(name: str) -> list[asyncio.Task[Answer]]:
            return [asyncio.create_task(client.call("tools/call", {"name": name}, id=f"{name}{n}")) for n in range(10)]

        unsafe, harmless = calls("slow"), calls("slow_read")
        await upstream.ledger.wait_for(
            lambda ledger: len(ledger.executions("slow") + ledger.executions("slow_read")) == 20
        )
        await upstream.restart()
        upstream.slow_gate.set()
        for n, answer in enumerate(await asyncio.gather(*unsafe)):
            assert (answer.response["id"], answer.error["data"]) == (f"slow{n}", UNKNOWN)
        for n, answer in enumerate(await asyncio.gather(*harmless)):
            assert (answer.response["id"], answer.text) == (f"slow_read{n}", "at last")
        assert len(upstream.ledger.executions("slow")) == 10
        assert len(upstream.ledger.initializes) == 2
        assert len(sidecar.of(OutcomeUnknown)) == 10


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param({}, id="plain"),
        pytest.param({"event_ids": True}, id="event ids"),
        pytest.param({"event_store": True}, id="an event store"),
        pytest.param({"event_store": True, "priming": Priming.WITH_ID}, id="priming events"),
    ],
)
async def test_a_call_that_died_is_not_looked_for_in_another_session(behaviour: dict[str, Any]) -> None:
    """Its last event id never reaches the new session, where it might name another call's event."""
    async with connected(**behaviour) as (upstream, _, client):
        async with await client.open_call("tools/call", PROGRESS, id="mine") as stream:
            assert await stream.next_message() is not None
            await upstream.restart()
            assert (await client.tool("echo", text="on")).text == "on"
            last = await last_of(stream)
        assert (last["id"], last["error"]["data"]) == ("mine", UNKNOWN)
        resumes = [arrival for arrival in upstream.ledger.arrived(http_method="GET") if arrival.header("last-event-id")]
        assert {arrival.session_id for arrival in resumes} <= {client.session_id}
        assert len(upstream.ledger.executions("progress")) == 1


async def test_the_session_outlives_its_connections() -> None:
    """The connections are gone and the server is not, nor its sessions: the call is continued under its own id."""
    async with connected(event_store=True) as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=True), tool="progress")
        async with await client.open_call("tools/call", PROGRESS, id="mine") as stream:
            for step in (1, 2):
                message = await stream.next_message()
                assert message is not None
                assert message["params"]["progress"] == step
            upstream.slow_gate.set()
            last = await last_of(stream)
        assert (last["id"], last["result"]["content"][0]["text"]) == ("mine", "2 steps")
        [resume] = upstream.ledger.arrived(http_method="GET")
        assert resume.session_id == client.session_id
        assert len(upstream.ledger.initializes) == 1


async def test_a_restart_under_a_continued_call() -> None:
    """Cut, continued, and then the server dies: the error comes on the same open stream."""
    async with connected(event_store=True) as (upstream, _, client):
        upstream.inject(CutStream(1, event_ids=True), tool="progress")
        async with await client.open_call("tools/call", PROGRESS, id="mine") as stream:
            for _ in range(2):
                assert await stream.next_message() is not None
            await upstream.restart()
            last = await last_of(stream)
        assert (last["id"], last["error"]["data"]) == ("mine", UNKNOWN)
        assert (await client.tool("charge")).text == "charged 1"


async def test_an_upstream_that_stays_away_is_told() -> None:
    """There is nobody to continue the stream: the error comes at once, and does not wait for a hold."""
    async with connected(event_store=True) as (upstream, _, client):
        async with await client.open_call("tools/call", PROGRESS, id="mine") as stream:
            assert await stream.next_message() is not None
            upstream.inject(Refuse())
            async with asyncio.timeout(2):
                last = await last_of(stream)
        assert (last["id"], last["error"]["data"]) == ("mine", UNKNOWN)


async def test_a_call_that_asks_dies_with_its_question() -> None:
    """A question of the dead call may be open at the client: the call ends, and nothing is asked a second time."""
    async with connected() as (upstream, _, client):
        async with await client.open_call("tools/call", {"name": "ask"}, id="mine") as stream:
            question = await stream.next_message()
            assert question is not None
            await upstream.restart()
            last = await last_of(stream)
            assert (await client.respond(question["id"], {"action": "accept"})).status == 202
        assert (last["id"], last["error"]["data"]) == ("mine", UNKNOWN)
        assert len(upstream.ledger.executions("ask")) == 1
        assert upstream.ledger.replies == []


async def test_a_batch_in_flight() -> None:
    """What was answered before the break is not told twice; the rest gets its error."""
    async with connected() as (upstream, _, client):
        batch = [
            client.request("tools/call", {"name": "charge"}, id="done"),
            client.request("tools/call", {"name": "slow"}, id="waits"),
        ]
        async with Stream(await client._send("POST", batch)) as stream:
            first = await stream.next_message()
            assert first is not None
            assert (first["id"], "result" in first) == ("done", True)
            await upstream.restart()
            [last] = await last_of(stream)
        assert (last["id"], last["error"]["data"]) == ("waits", UNKNOWN)
        assert len(upstream.ledger.executions("charge")) == 1


# -- polling ----------------------------------------------------------------------------------------------------------


async def test_polling_is_an_ordinary_thing() -> None:
    """The stream ends where the server ends it, byte for byte, and no second request is made for the client."""
    async with connected(event_store=True, retry_ms=20, priming=Priming.WITH_ID) as (upstream, sidecar, client):
        upstream.inject(EndStream(1, event_ids=True), tool="slow")
        answer = await client.call("tools/call", {"name": "slow"}, id="mine")
        [event] = answer.events
        assert (answer.broken, event.data, event.retry_ms) == (None, "", 20)
        assert upstream.ledger.count("GET") == 0
        async with await client.get_stream(last_event_id=event.event_id) as poll:
            upstream.slow_gate.set()
            message = await poll.next_message()
            assert message is not None
            assert (message["id"], message["result"]["content"][0]["text"]) == ("mine", "at last")
            assert await poll.next_event() is None
        [resume] = upstream.ledger.arrived(http_method="GET")
        assert resume.header("last-event-id") == event.event_id
        assert sidecar.of(OutcomeUnknown) == []
        assert upstream.ledger.count(tool="slow") == 1


async def test_a_restart_under_an_open_poll() -> None:
    """The client waits on its poll when the server dies: it gets the call's error, and the poll ends."""
    async with connected(event_store=True) as (upstream, sidecar, client):
        upstream.inject(EndStream(1, event_ids=True), tool="progress")
        [event] = (await client.call("tools/call", PROGRESS, id="mine")).events
        async with await client.get_stream(last_event_id=event.event_id) as poll:
            assert await poll.next_message() is not None
            await upstream.restart()
            last = await last_of(poll)
        assert (last["id"], last["error"]["data"]) == ("mine", UNKNOWN)
        assert len(sidecar.of(OutcomeUnknown)) == 1
        assert len(upstream.ledger.executions("progress")) == 1


async def test_a_poll_in_an_outage_waits() -> None:
    """The server is away and comes back with its sessions: the poll is held open meanwhile, and ends with the answer."""
    async with connected(event_store=True) as (upstream, sidecar, client):
        upstream.inject(EndStream(1, event_ids=True), tool="charge")
        [event] = (await client.call("tools/call", {"name": "charge"}, id="mine")).events
        upstream.inject(Refuse())
        async with await client.get_stream(last_event_id=event.event_id) as poll:
            assert poll.status == 200
            await eventually(lambda: sidecar.services.holds.waiting() == 1)
            await upstream.clear()
            last = await last_of(poll)
        assert (last["id"], last["result"]["content"][0]["text"]) == ("mine", "charged 1")


async def test_a_poll_beside_the_listening_stream() -> None:
    """Polling for one call does not end the session's listening stream, and the restart tells each its own."""
    async with (
        connected(event_store=True, second_get_status=None) as (upstream, _, client),
        await client.get_stream() as listening,
    ):
        upstream.inject(EndStream(1, event_ids=True), tool="slow")
        [event] = (await client.call("tools/call", {"name": "slow"}, id="mine")).events
        async with await client.get_stream(last_event_id=event.event_id) as poll:
            await upstream.restart()
            last = await last_of(poll)
        assert (last["id"], last["error"]["data"]) == ("mine", UNKNOWN)
        await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))
        upstream.notify("notifications/prompts/list_changed")
        message = await listening.next_message()
        while message is not None and message["method"] != "notifications/prompts/list_changed":
            message = await listening.next_message()
        assert message is not None


async def test_an_error_without_a_stream_is_the_contracts() -> None:
    """Nothing of the answer had come yet: the error is a plain answer."""
    async with connected() as (upstream, _, client):
        calling = asyncio.create_task(client.call("tools/call", {"name": "slow"}, id="mine"))
        await begun(upstream, "slow")
        upstream.become(answers=Answers.JSON)
        await upstream.restart()
        answer = await calling
        assert answer.error["data"] == UNKNOWN
        calling = asyncio.create_task(client.call("tools/call", {"name": "slow"}, id="again"))
        await begun(upstream, "slow")
        await upstream.restart()
        assert is_error(await calling, "again", "outcome_unknown")
