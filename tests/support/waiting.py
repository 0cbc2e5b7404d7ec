"""Waiting for a state that nobody announces. The rule: bounded, and the claim is what a test would assert anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LOOK_EVERY_S = 0.002


async def eventually(claim: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Return once ``claim()`` holds; ``TimeoutError`` when it does not within ``timeout_s``."""
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_LOOK_EVERY_S)
