"""A client that comes back for the stream of a call: it gets the answer or an error, whatever became of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mcp_sidecar.facts import HealEnded
from mcp_sidecar.healing.polled_streams import MAX_POLLED_STREAMS
from tests.support.client import Event, McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Answer, EndStream
from tests.support.listening import attached, ends_cleanly, next_method, scene
from tests.support.sidecar import WatchedSidecar
from tests.support.waiting import eventually

PROGRESS = {"name": "progress", "arguments": {"steps": 2, "wait": True}, "_meta": {"progressToken": "p"}}


async def cut_call(client: McpClient, sidecar: WatchedSidecar) -> list[Event]:
    """A call with the id ``mine`` whose client is gone after two events."""
    stream = await client.open_call("tools/call", PROGRESS, id="mine")
    events = [await _with_id(stream) for _ in range(2)]
    stream.close()
    await eventually(lambda: sidecar.services.streams.open.post_streams == 0)
    return events


async def _with_id(stream: Stream) -> Event:
    event = await stream.next_event()
    while event is not None and event.event_id is None:
        event = await stream.next_event()
    assert event is not None
    return event


async def assert_told(stream: Stream) -> None:
    """The stream brings that call's error, and ends."""
    assert stream.status == 200
    assert stream.headers["Content-Type"] == "text/event-stream"
    message = await stream.next_message()
    assert message is not None
    assert (message["id"], message["error"]["code"]) == ("mine", -32603)
    assert message["error"]["data"] == {"reason": "outcome_unknown"}
    assert await stream.next_message() is None


@pytest.mark.parametrize("behind", [1, 0], ids=["behind the last event", "without the last event"])
@pytest.mark.parametrize("healed_by", ["the resume", "a call"])
async def test_a_call_that_died_with_the_server_is_told(healed_by: str, behind: int) -> None:
    """The client's connection broke, the server restarted, the client resumes: it learns that nobody will answer."""
    async with scene({"event_store": True}) as (upstream, sidecar, client):
        events = await cut_call(client, sidecar)
        await upstream.restart()
        if healed_by == "a call":
            assert (await client.tool("echo", text="on")).text == "on"
        async with await client.get_stream(last_event_id=events[behind].event_id) as stream:
            await assert_told(stream)
        assert len(upstream.ledger.executions("progress")) == 1
        old = {event.event_id for event in events}
        new = upstream.ledger.arrived(process=2)
        assert not [a for a in new if a.session_id in upstream.sessions and a.header("last-event-id") in old]


async def test_a_call_whose_server_lives_is_answered() -> None:
    """The resume goes to the same upstream session as it is, and the stream ends with the answer."""
    async with scene({"event_store": True}) as (upstream, sidecar, client):
        events = await cut_call(client, sidecar)
        async with await client.get_stream(last_event_id=events[0].event_id) as stream:
            assert await next_method(stream) == "notifications/progress"
            upstream.slow_gate.set()
            message = await stream.next_message()
            assert message is not None
            assert (message["id"], message["result"]["isError"]) == ("mine", False)
            assert await stream.next_message() is None
        [resume] = upstream.ledger.arrived(http_method="GET")
        assert resume.header("last-event-id") == events[0].event_id
        assert sidecar.of(HealEnded) == []


async def test_a_resume_that_is_cut_itself_can_be_resumed() -> None:
    """The client is interrupted twice, and the server restarts after that."""
    async with scene({"event_store": True}) as (upstream, sidecar, client):
        events = await cut_call(client, sidecar)
        stream = await client.get_stream(last_event_id=events[0].event_id)
        again = await _with_id(stream)
        stream.close()
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
        await upstream.restart()
        async with await client.get_stream(last_event_id=again.event_id) as resumed:
            await assert_told(resumed)


async def test_a_server_that_dies_under_a_resume_is_told_of() -> None:
    """While the client waits for the answer on its GET."""
    async with scene({"event_store": True}) as (upstream, sidecar, client):
        events = await cut_call(client, sidecar)
        async with await client.get_stream(last_event_id=events[1].event_id) as stream:
            await eventually(lambda: upstream.ledger.count("GET") == 1)
            await upstream.restart()
            await assert_told(stream)


@pytest.mark.parametrize("status", [400, 405, 409, 500])
async def test_a_resume_that_the_server_refuses_is_told(status: int) -> None:
    """A server without an event store says 405, and some clients would wait for ever; it says nothing of listening."""
    refused = Answer(status, (("Content-Type", "text/plain"),), b"no")
    async with scene({"event_ids": True}) as (upstream, sidecar, client):
        events = await cut_call(client, sidecar)
        upstream.inject(refused, http_method="GET")
        async with await client.get_stream(last_event_id=events[1].event_id) as stream:
            await assert_told(stream)
        async with await client.get_stream() as listening:
            assert listening.status == 200
            await attached(upstream)


async def test_a_resume_without_credentials_is_refused() -> None:
    """401 is for the client to act upon."""
    async with scene({"authorization": frozenset({"Bearer a"}), "event_store": True}) as (upstream, sidecar, client):
        client.headers = {"Authorization": "Bearer a"}
        await client.initialize()
        events = await cut_call(client, sidecar)
        upstream.become(authorization=frozenset({"Bearer b"}))
        async with await client.get_stream(last_event_id=events[1].event_id) as stream:
            assert stream.status == 401


@pytest.mark.parametrize("listens", [True, False])
async def test_a_resume_while_the_upstream_is_away_waits(listens: bool) -> None:
    """With comments, also where the session has no listening stream; then it is told."""
    async with scene({"event_store": True, "get_streams": listens}) as (upstream, sidecar, client):
        (await client.get_stream()).close()
        events = await cut_call(client, sidecar)
        await upstream.stop()
        async with await client.get_stream(last_event_id=events[1].event_id) as stream:
            assert stream.status == 200
            comment = await stream.next_event()
            assert comment is not None
            assert comment.raw.startswith(b":")
            await upstream.restart(get_streams=True)
            await assert_told(stream)


async def _by_itself(upstream: FakeUpstream) -> None:
    await upstream.restart()


async def _unnoticed(upstream: FakeUpstream) -> None:
    upstream.crash()
    await upstream.start()


@pytest.mark.parametrize("dies", [_by_itself, _unnoticed])
async def test_a_client_that_never_saw_the_error_gets_it_again(dies: Callable[[FakeUpstream], Awaitable[None]]) -> None:
    """The error went on a connection that was dead already: when the client comes back it is told once more."""
    async with scene({"event_store": True}) as (upstream, _, client):
        stream = await client.open_call("tools/call", PROGRESS, id="mine")
        event = await _with_id(stream)
        await dies(upstream)
        message = await stream.next_message()
        while message is not None and "error" not in message:
            message = await stream.next_message()
        async with await client.get_stream(last_event_id=event.event_id) as resumed:
            await assert_told(resumed)


async def test_the_listening_stream_goes_on_beside_a_resume() -> None:
    """Polling for a call neither ends it nor takes what is meant for it."""
    async with scene({"event_store": True}) as (upstream, sidecar, client), await client.get_stream() as listening:
        await attached(upstream)
        events = await cut_call(client, sidecar)
        async with await client.get_stream(last_event_id=events[1].event_id) as stream:
            await eventually(lambda: upstream.ledger.count("GET") == 2)
            upstream.notify("notifications/one")
            assert await next_method(listening) == "notifications/one"
            await upstream.restart()
            await assert_told(stream)
            await attached(upstream)
            upstream.notify("notifications/two")
            assert await next_method(listening) == "notifications/two"


async def test_an_unknown_event_of_an_earlier_server_is_a_new_beginning() -> None:
    """It never reaches the newer session; the client listens from now on."""
    async with scene({"event_store": True}) as (upstream, _, client):
        await upstream.restart()
        assert (await client.tool("echo", text="on")).text == "on"
        async with await client.get_stream(last_event_id="get-0") as stream:
            assert stream.status == 200
            await attached(upstream)
            upstream.notify("notifications/one")
            assert await next_method(stream) == "notifications/one"
        assert upstream.ledger.arrived(http_method="GET")[-1].header("last-event-id") is None


@pytest.mark.long
async def test_what_is_remembered_of_streams_is_bounded() -> None:
    """Per session: the oldest are forgotten first, and answered calls leave nothing."""
    async with scene({"event_store": True}) as (upstream, sidecar, client):
        [session] = sidecar.services.sessions.table
        assert (await client.tool("charge")).text == "charged 1"
        assert len(session.talk.polled or ()) == 0
        upstream.inject(EndStream(1, event_ids=True), tool="charge", times=None)
        answers = [await client.tool("charge") for _ in range(MAX_POLLED_STREAMS + 20)]
        assert len(session.talk.polled or ()) == MAX_POLLED_STREAMS
        last = answers[-1].events[-1].event_id
        assert last is not None
        assert session.polled_from(last)


async def test_ten_clients_may_resume_one_call() -> None:
    """Nobody hangs: each gets the error and a clean end."""
    async with scene({"event_store": True}) as (upstream, sidecar, client), asyncio.timeout(10):
        events = await cut_call(client, sidecar)
        await upstream.restart()
        streams = await asyncio.gather(*(client.get_stream(last_event_id=events[1].event_id) for _ in range(10)))
        for stream in streams:
            message = await stream.next_message()
            assert message is not None
            assert message["id"] == "mine"
            await ends_cleanly(stream)
        assert len(upstream.ledger.initializes) == 2
