"""The answer of a request that waits for long, opened as a stream before anybody knows what it will be.

Some clients give a request up when no headers come, and some send nothing else until they have them. A stream with comments
on it lets the first wait on and sets the others free. Its price is the status: whatever comes now is an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.upstream.answer import EVENT_STREAM
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import Message

T = TypeVar("T")


class EarlyStream:
    """Opens the response of one request once it has waited for ``early_stream_after_s``, if its client reads streams."""

    def __init__(
        self, after_s: float, keepalive: Keepalive, call: Call, responder: Responder, message: Message
    ) -> None:
        """Only a request in a session, known by its ids, can be answered by an event: `initialize` needs its headers.

        ``after_s`` of 0 is never; ``keepalive`` comments on what is open.
        """
        self._after_s = after_s
        self._keepalive = keepalive
        self._call = call
        self._responder = responder
        self._first_wait_at: float | None = None  # loop time
        self._opening: asyncio.Task[None] | None = None
        self._may_open = (
            self._after_s > 0
            and call.client_id is not None
            and bool(message.requests)
            and all(request.method != "initialize" for request in message.requests)
            and headers.accepts(call.pairs, EVENT_STREAM)
        )

    async def during(self, wait: Awaitable[T]) -> T:
        """Wait, and open the stream in the midst of it when it is time."""
        if not self._may_open or self._responder.is_committed:
            return await wait
        loop = asyncio.get_running_loop()
        if self._first_wait_at is None:
            self._first_wait_at = loop.time()
        timer = loop.call_at(self._first_wait_at + self._after_s, self._begin)
        try:
            return await wait
        finally:
            timer.cancel()
            if self._opening is not None:
                await self._end_opening(self._opening)

    def close(self) -> None:
        """The exchange is over."""
        if self._may_open:
            self._responder.may_comment = False
            self._keepalive.discard(self._responder)

    def _begin(self) -> None:
        self._opening = asyncio.create_task(self._open())

    async def _end_opening(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if self._responder.is_committed:
            await opening  # may be writing the head
        else:
            opening.cancel()

    async def _open(self) -> None:
        await self._responder.start_events(self._head())
        self._responder.may_comment = True
        self._keepalive.add(self._responder)

    def _head(self) -> list[Pair]:
        session = self._call.session
        return [(headers.SESSION_ID, session.client_id)] if session is not None else []
