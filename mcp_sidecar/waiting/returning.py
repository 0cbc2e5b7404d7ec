"""Streams that come back to an upstream: not all at once.

A server that is restarted under a thousand listeners has better things to do first. The more come back together, the
longer each waits by chance, and only some may ask at a time.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager

from mcp_sidecar.waiting.slots import Turn, Turns

AT_A_TIME = 32
HEAD_PATIENCE_S = 0.250
"""How long a stream is waited for by others: some servers send no head before their first event."""

SPREAD_PER_STREAM_S, LONGEST_SPREAD_S = 0.001, 2.0
"""A thousand streams come back within about a second, one alone at once."""


class Returning:
    """The streams of this process that are on their way back."""

    def __init__(self) -> None:
        """Nobody is."""
        self._turns = Turns(AT_A_TIME, HEAD_PATIENCE_S)
        self._count = 0

    async def spread(self) -> None:
        """Wait by chance, the longer the more come back."""
        self._count += 1
        try:
            await asyncio.sleep(random.uniform(0, min(self._count * SPREAD_PER_STREAM_S, LONGEST_SPREAD_S)))
        finally:
            self._count -= 1

    def place(self) -> AbstractAsyncContextManager[bool]:
        """Be one of those that ask now, until the block ends or the answer lets wait for too long."""
        return self._turns.place(Turn())
