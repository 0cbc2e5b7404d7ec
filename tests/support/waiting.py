"""Waiting for a state that nobody announces. The rule: bounded, and the claim is what a test would assert anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

HANG_S: Final = 180.0
"""The limit of whatever has no limit of its own: it says nothing about how fast something is, and only ends a hang."""

_LOOK_EVERY_S, _LOOK_SELDOM_S = 0.002, 0.1


async def eventually(claim: Callable[[], object], timeout_s: float = HANG_S) -> None:
    """Return once ``claim()`` holds; ``TimeoutError`` when it does not within ``timeout_s``."""
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_LOOK_EVERY_S if clock() < began + 1 else _LOOK_SELDOM_S)
