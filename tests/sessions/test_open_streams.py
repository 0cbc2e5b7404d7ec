"""Whose stream is whose: what a newer one may count on when it takes over from a former one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

from mcp_sidecar.sessions.open_streams import GetStreams, ListenerPort
from mcp_sidecar.streams.subscription import Ahead
from mcp_sidecar.upstream.answer import Answer
from tests.support.sessions import a_session


class ListeningTask:
    """A stream that is ended by cancelling its task."""

    task: asyncio.Task[object] | None = None

    def end(self) -> None:
        assert self.task is not None
        self.task.cancel()


async def test_who_takes_over_goes_on_when_the_former_are_over() -> None:
    """However long they take for it: strict servers refuse a GET while another one is open."""
    streams, session, said = GetStreams(), a_session(), list[str]()
    former, newer = ListeningTask(), ListeningTask()

    async def first() -> None:
        assert not await streams.takes_over(session, cast(ListenerPort, former))
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            said.append("the former is closed")
            streams.leaves(session, cast(ListenerPort, former))

    async def second() -> None:
        assert await streams.takes_over(session, cast(ListenerPort, newer))
        said.append("the newer is opened")

    async def serve(stream: ListeningTask, work: Awaitable[None]) -> bool:
        """Whether the work ended by itself."""
        stream.task = asyncio.current_task()
        streams.enter(stream, session)
        try:
            await work
        except asyncio.CancelledError:
            return False
        finally:
            streams.leave(stream)
        return True

    serving = asyncio.create_task(serve(former, first()))
    await asyncio.sleep(0)
    assert await asyncio.create_task(serve(newer, second()))
    assert not await serving
    assert said == ["the former is closed", "the newer is opened"]
    assert streams.listener_of(session) is cast(ListenerPort, newer)


class Opened:
    """An answer of the upstream that somebody has to close."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


async def test_what_was_opened_ahead_is_closed_although_its_listener_leaves_just_then() -> None:
    """The head has come and nobody has taken it yet: a GET without a client's would swallow messages."""
    opened, may_answer = Opened(), asyncio.Event()

    async def send() -> Answer:
        await may_answer.wait()
        return cast(Answer, opened)

    sending = asyncio.create_task(send())
    sending.add_done_callback(lambda _: listener.cancel())
    listener = asyncio.create_task(Ahead(sending, 2).answer())
    await asyncio.sleep(0)
    may_answer.set()
    await asyncio.wait({listener})
    await asyncio.sleep(0)
    assert listener.cancelled()
    assert opened.is_closed
