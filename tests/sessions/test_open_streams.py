"""Whose stream is whose: what a newer one may count on when it takes over from a former one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

from mcp_sidecar.sessions.open_streams import GetStreams, ListenerPort
from mcp_sidecar.streams.subscription import Ahead
from mcp_sidecar.upstream.answer import Answer
from tests.support.sessions import a_session


async def test_who_takes_over_goes_on_when_the_former_are_over() -> None:
    """However long they take for it: strict servers refuse a GET while another one is open."""
    streams, session, said = GetStreams(), a_session(), list[str]()
    former, newer = (cast(ListenerPort, object()) for _ in range(2))

    async def first() -> None:
        assert not await streams.takes_over(session, former)
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            said.append("the former is closed")
            streams.leaves(session, former)

    async def second() -> None:
        assert await streams.takes_over(session, newer)
        said.append("the newer is opened")

    async def serve(work: Awaitable[None]) -> bool:
        """Whether the work ended by itself."""
        streams.enter(session)
        try:
            await work
        except asyncio.CancelledError:
            assert streams.ends_this()
            return False
        finally:
            streams.leave()
        return True

    serving = asyncio.create_task(serve(first()))
    await asyncio.sleep(0)
    assert await asyncio.create_task(serve(second()))
    assert not await serving
    assert said == ["the former is closed", "the newer is opened"]
    assert streams.listener_of(session) is newer


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
