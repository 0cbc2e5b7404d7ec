"""One listening stream per client: the newest one, and never two of them upstream."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.client import Event, Stream
from tests.support.listening import Says, attached, ends_cleanly, next_method, scene
from tests.support.waiting import eventually


async def event_with_id(stream: Stream) -> Event:
    event = await stream.next_event()
    while event is not None and event.event_id is None:
        event = await stream.next_event()
    assert event is not None
    return event


async def test_of_ten_streams_at_once_one_survives() -> None:
    """The others end cleanly, nobody hangs, and what the server says comes once."""
    async with scene() as (upstream, sidecar, client), asyncio.timeout(10):
        streams = await asyncio.gather(*(client.get_stream() for _ in range(10)))
        assert {stream.status for stream in streams} == {200}
        await eventually(lambda: sidecar.services.streams.open.get_streams == 1)
        await attached(upstream)
        upstream.notify("notifications/one")
        upstream.notify("notifications/two")
        reading = [asyncio.create_task(stream.next_message()) for stream in streams]
        await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        await eventually(lambda: all(task.done() for task in reading))
        heard = [task.result() for task in reading]
        assert [message["method"] for message in heard if message is not None] == ["notifications/one"]
        survivor = next(stream for stream, message in zip(streams, heard, strict=True) if message is not None)
        assert await next_method(survivor) == "notifications/two"
        assert upstream.sessions[client.session_id or ""].get_streams_open == 1
        assert [session.streams for session in sidecar.services.sessions.table] == [1]
        for stream in streams:
            stream.close()


async def test_streams_that_follow_one_another_all_end() -> None:
    """Each ends the one before it, whatever that one was doing."""
    async with scene() as (upstream, sidecar, client), asyncio.timeout(15):
        former = await client.get_stream()
        for round_ in range(12):
            if round_ % 3 == 0:
                await upstream.stop()
            if round_ % 3 == 1:
                await upstream.restart()
            stream = await client.get_stream()
            assert stream.status == 200
            await ends_cleanly(former)
            former = stream
        await attached(upstream)
        assert sidecar.services.streams.open.get_streams == 1
        former.close()


async def test_a_stream_that_waits_for_the_upstream_is_replaced() -> None:
    """Both are answered by the sidecar, one is left."""
    async with scene() as (upstream, sidecar, client):
        await upstream.stop()
        async with await client.get_stream() as first, await client.get_stream() as second:
            await ends_cleanly(first)
            await upstream.restart()
            await attached(upstream)
            upstream.notify("notifications/one")
            assert await next_method(second) == "notifications/one"
            assert sidecar.services.streams.open.get_streams == 1


async def test_the_former_is_closed_before_the_next_is_opened() -> None:
    """The upstream sees the one's end before the other's beginning, and has no reason to refuse it."""
    async with scene() as (upstream, _, client), await client.get_stream():
        await attached(upstream)
        async with await client.get_stream() as second:
            assert second.status == 200
        first, *_ = gets = upstream.ledger.arrived(http_method="GET")
        assert first.client_left
        assert [arrival.answer_status for arrival in gets] == [200, 200]


async def test_a_stream_replaced_inside_an_event_is_cut() -> None:
    """Half an event must not look like a whole one."""
    async with scene(limits__max_request_body=1024) as (upstream, _, client):
        upstream.inject(Says((b"data: " + b"x" * 5000, b"")), http_method="GET")
        async with await client.get_stream() as first:
            assert len(await first._response.content.readany()) > 1000
            async with await client.get_stream() as second:
                assert second.status == 200
                with pytest.raises(aiohttp.ClientPayloadError):
                    await first.next_event()


async def test_a_resume_leaves_the_listening_stream_alone() -> None:
    """It may be for the stream of a call, which has nothing to do with this one."""
    async with scene({"event_store": True}) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        for _ in range(2):
            upstream.notify("notifications/x")
        first, _ = await event_with_id(stream), await event_with_id(stream)
        async with await client.get_stream(last_event_id=first.event_id) as resumed:
            assert await next_method(resumed) == "notifications/x"
            assert sidecar.services.streams.open.get_streams == 2


async def test_a_resume_behind_the_last_event_replaces() -> None:
    """The client comes back for this very stream, whose former connection it has given up unnoticed."""
    async with scene({"event_store": True}) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.notify("notifications/x")
        last = await event_with_id(stream)
        async with await client.get_stream(last_event_id=last.event_id) as resumed:
            await ends_cleanly(stream)
            upstream.notify("notifications/y")
            assert await next_method(resumed) == "notifications/y"
            assert sidecar.services.streams.open.get_streams == 1


async def test_a_resume_behind_an_event_of_an_earlier_server_replaces() -> None:
    """It cannot be for anything but a new beginning; the former connection is one that the client has given up."""
    async with scene({"event_store": True}) as (upstream, sidecar, client), await client.get_stream() as stream:
        await attached(upstream)
        upstream.notify("notifications/x")
        old = await event_with_id(stream)
        await upstream.restart()
        await attached(upstream)
        upstream.notify("notifications/unseen")
        await event_with_id(stream)
        async with await client.get_stream(last_event_id=old.event_id) as resumed:
            assert resumed.status == 200
            await ends_cleanly(stream)
            await attached(upstream)
            upstream.notify("notifications/y")
            assert await next_method(resumed) == "notifications/y"
            assert sidecar.services.streams.open.get_streams == 1


@pytest.mark.parametrize("mode", ["rewrite", "observe"])
async def test_other_modes_leave_two_streams_to_the_server(mode: str) -> None:
    """There is nothing to be kept there."""
    async with scene(healing__mode=mode) as (upstream, _, client), await client.get_stream() as stream:
        await attached(upstream)
        async with await client.get_stream() as second:
            assert second.status == 409
        upstream.notify("notifications/one")
        assert await next_method(stream) == "notifications/one"


async def test_a_drain_breaks_off_a_stream_that_has_replaced_one() -> None:
    """No stream is forgotten on the way."""
    async with (
        scene() as (upstream, sidecar, client),
        await client.get_stream() as first,
        await client.get_stream() as second,
    ):
        await ends_cleanly(first)
        await attached(upstream)
        await sidecar.drain()
        assert (await second.read()).broken is not None
        assert len(sidecar.services.streams.listening) == 0
