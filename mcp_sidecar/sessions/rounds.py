"""What is done for the store in the background: changes are written together, and the store hears which sessions are in use.

The rule of this file: it runs only while there is something to do, and never faster than the store answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from mcp_sidecar.healing.principal import Principals
from mcp_sidecar.sessions.keeper import Keeper
from mcp_sidecar.sessions.stores.store import StoreAway, StoreUnusable

FLUSH_AFTER_S: Final = 0.2
"""What is learnt within so long is one write."""

TOUCH_INTERVAL_S: Final = 10.0
CANCEL_AGAIN_S: Final = 0.1

LAST_TRIES: Final = 5
"""So often a process that stops tries to write what nobody else knows, without getting on."""

SLOWEST_PACE_S: Final = 1.0
"""Between tries while the store is away or cannot write."""


class Rounds:
    """Looks after one keeper."""

    def __init__(self, keeper: Keeper, principals: Principals) -> None:
        """``principals`` are hashed with what all who share the store do."""
        self.keeper = keeper
        self._principals = principals
        self._use_keys()
        self._noted = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._is_back = asyncio.Event()
        keeper.on_noted = self._noted.set
        keeper.on_principals = principals.use
        keeper.store.on_back = self._is_back.set

    async def start(self) -> None:
        """Open the store, and begin. Raises ``StoreUnusable``; one that is only away comes back by itself."""
        await self.keeper.store.open()
        try:
            await self.keeper.get_keys()
        except StoreAway:
            pass
        except StoreUnusable:
            await self.keeper.store.close()
            raise
        if self.keeper.outlives_process:
            self._tasks = asyncio.create_task(self._flush()), asyncio.create_task(self._touch())

    async def stop(self) -> None:
        """Write what there is to write, and let go of the store."""
        running = set(self._tasks)
        while running:  # a client library may swallow one
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
        if self.keeper.outlives_process:
            await self._write_all()
        await self.keeper.store.close()

    async def _write_all(self) -> None:
        await self.keeper.touch()
        tries_left, unsaved = LAST_TRIES, self.keeper.unsaved
        while not await self.keeper.flush() and tries_left:
            tries_left = LAST_TRIES if self.keeper.unsaved < unsaved else tries_left - 1
            unsaved = self.keeper.unsaved
            await asyncio.sleep(FLUSH_AFTER_S)

    def read_keys_again(self) -> bool:
        """Seal with the keys that there are now, if they have changed. Raises ``BadKeys``; then those of before stay."""
        has_changed = self.keeper.ring is not None and self.keeper.ring.read_again()
        if has_changed:
            self._use_keys()
        return has_changed

    def _use_keys(self) -> None:
        tokens = self.keeper.tokens
        if tokens is not None:
            tokens.renew()
            self._principals.also_under(tokens.principal_keys)

    async def sweep(self) -> None:
        """Have the store forget what has expired."""
        try:
            await self.keeper.store.sweep()
        except StoreAway:
            return

    async def _flush(self) -> None:
        pace_s = FLUSH_AFTER_S
        while True:
            if self.keeper.has_keys or await self.keeper.has_keys_again():
                break
            await asyncio.sleep(SLOWEST_PACE_S)
        while True:
            await self._noted.wait()
            await asyncio.sleep(pace_s)
            self._noted.clear()
            if await self.keeper.flush():
                pace_s = FLUSH_AFTER_S
            else:
                self._noted.set()
                pace_s = min(pace_s * 2, SLOWEST_PACE_S)

    async def _touch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TOUCH_INTERVAL_S):
                    await self._is_back.wait()
            self._is_back.clear()
            await self.keeper.touch()
