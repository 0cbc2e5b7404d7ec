"""A GET that a heal sends for a listener, before the new session is told `initialized`.

Servers speak first on that stream: what they send while nobody listens is lost.
"""

from __future__ import annotations

import asyncio

from mcp_sidecar.upstream.answer import is_event_stream
from mcp_sidecar.upstream.upstream import Answer


class Ahead:
    """One GET under way, for an upstream session that is not the client's yet."""

    def __init__(self, sending: asyncio.Task[Answer], generation: int) -> None:
        """``generation`` is the one that the session will have if the heal succeeds."""
        self._sending = sending
        self.generation = generation

    async def may_become_a_stream(self, patience_s: float) -> bool:
        """Wait for the head, but not for long; false where it shows that there will be no stream."""
        await asyncio.wait({self._sending}, timeout=patience_s)
        if not self._sending.done():
            return True
        if self._sending.cancelled() or self._sending.exception() is not None:
            return False
        answer = self._sending.result()
        return answer.status == 200 and is_event_stream(answer)

    async def answer(self) -> Answer:
        """The head, whatever it says. Raises ``UpstreamFault``."""
        try:
            return await self._sending
        except asyncio.CancelledError:
            self.close()  # the head may have come just now
            raise

    def close(self) -> None:
        """Nobody wants it."""
        self._sending.cancel()
        self._sending.add_done_callback(_let_go)


def _let_go(sending: asyncio.Task[Answer]) -> None:
    if not sending.cancelled() and sending.exception() is None:
        sending.result().close()
