"""An upstream side of its own before a raw server, and what becomes of an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mcp_sidecar.config import Limits, UpstreamConfig
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.wire.faults import Fault
from tests.support.raw_upstream import Conversation, Play


@contextlib.asynccontextmanager
async def sender(origin: str, *, idle_timeout_s: float = 5.0, **settings: Any) -> AsyncIterator[Upstream]:
    """An upstream side of its own, without the rest of the sidecar."""
    config = UpstreamConfig(origin=origin, connect_timeout_s=2.0, idle_timeout_s=idle_timeout_s, **settings)
    upstream = Upstream(config, Limits(), lambda _connected, _why: None, lambda _why: None)
    await upstream.open()
    try:
        yield upstream
    finally:
        await upstream.close()


async def whole(answer: Answer) -> bytes:
    """The body of an answer, which is then let go of."""
    async with answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def fault_of(sending: Callable[[], object]) -> Fault:
    """The fault that a send ends in."""
    with pytest.raises(UpstreamFault) as caught:
        await sending()  # type: ignore[misc]
    return caught.value.fault


async def to_the_fault(answer: Answer) -> tuple[bytes, Fault | None]:
    """What is handed out of a body, and the fault in which it ends."""
    got = b""
    try:
        async for chunk in answer.chunks():
            got += chunk
    except UpstreamFault as fault:
        return got, fault.fault
    return got, None


def sends(*parts: bytes, then: str = "close") -> Play:
    """Read the request, send each part on its own, and close, cut, reset or keep the connection."""

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        for part in parts:
            await conversation.send(part)
            await asyncio.sleep(0.02)  # as segments of their own
        if then == "wait":
            await conversation.client_left.wait()
        elif then == "reset":
            conversation.reset()
        elif then == "cut":
            conversation.cut()
        else:
            conversation.close()

    return play
