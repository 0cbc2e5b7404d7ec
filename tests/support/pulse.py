"""Waiting for a change without sleeping. The rule: whoever changes something fires, whoever waits looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Wakes everybody who waits, each time that it fires. ``fire`` is synchronous, so that records can be written anywhere."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def fire(self) -> None:
        fired, self._next = self._next, asyncio.Event()
        fired.set()

    async def wait(self) -> None:
        await self._next.wait()

    async def until(self, claim: Callable[[], bool], timeout_s: float) -> None:
        """Return once ``claim()`` holds; ``TimeoutError`` when it does not within ``timeout_s``."""
        async with asyncio.timeout(timeout_s):
            while not claim():
                await self.wait()
