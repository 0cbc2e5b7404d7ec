"""A client that listens in a session, behind a sidecar that comments often; and an upstream that says what a test wants.

The rule: every scene ends with the claim that nothing in the sidecar broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp_sidecar.facts import SidecarFault
from tests.support.client import McpClient, Stream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Stage
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

Scene = tuple[FakeUpstream, WatchedSidecar, McpClient]


@asynccontextmanager
async def scene(behaviour: dict[str, Any] | None = None, **settings: object) -> AsyncIterator[Scene]:
    """A client in a session, behind a sidecar that comments often."""
    settings = {"listen__comment_interval": 0.05, **settings}
    async with (
        FakeUpstream(**(behaviour or {})) as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar, client
        assert sidecar.of(SidecarFault) == []


async def attached(upstream: FakeUpstream) -> None:
    """Wait until the upstream has an open GET stream of somebody."""
    await eventually(lambda: any(session.get_streams_open for session in upstream.sessions.values()))


async def next_method(stream: Stream) -> str:
    """The method of the next message."""
    message = await stream.next_message()
    assert message is not None
    return str(message["method"])


async def ends_cleanly(stream: Stream) -> None:
    """Nothing but comments comes any more, and then a clean end."""
    async with asyncio.timeout(5):
        assert all([event.message is None async for event in stream.rest()])


@dataclass(frozen=True, slots=True)
class Says:
    """A stream of these bytes, one after the other; where one is empty it goes on only after ``upstream.release()``.

    ``is_cut``: it breaks instead of ending.
    """

    parts: tuple[bytes, ...]
    is_cut: bool = False
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.wire.head(200, (("Content-Type", "text/event-stream"),), None)
        for part in self.parts:
            if part:
                await stage.wire.body(part)
            else:
                await stage.released.wait()
        await (stage.wire.reset() if self.is_cut else stage.wire.end())
