"""Questions to a store: one per session id at a time, however many requests wait, and few for ids that nobody knows."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping

from mcp_sidecar.sessions.stores.store import Entry, Store

MISS_REMEMBERED_S, MISSES_REMEMBERED = 1.0, 10_000
"""An id that nobody knows is looked up so often, and so many of them are remembered: invented ids must not load a store."""


class LookUps:
    """Asks one store. Session ids are hashes here."""

    def __init__(self, store: Store, clock: Callable[[], float], timeout_s: float) -> None:
        """``clock`` gives monotonic seconds; nobody waits longer than ``timeout_s``."""
        self._store = store
        self._clock = clock
        self._timeout_s = timeout_s
        self._under_way: dict[bytes, asyncio.Task[Mapping[bytes, Entry]]] = {}
        self._missed: OrderedDict[bytes, float] = OrderedDict()

    async def entries(self, session: bytes) -> Mapping[bytes, Entry]:
        """What stands under this id. Raises ``StoreAway`` and ``TimeoutError``."""
        if self._clock() < self._missed.get(session, 0.0):
            return {}
        task = self._under_way.get(session)
        if task is None:
            task = self._under_way[session] = asyncio.create_task(self._get(session))
            task.add_done_callback(lambda _: self._under_way.pop(session, None))
        return await asyncio.shield(task)  # it goes on although one of those who wait leaves

    def is_known(self, session: bytes) -> None:
        """Something is about to stand there."""
        self._missed.pop(session, None)

    async def _get(self, session: bytes) -> Mapping[bytes, Entry]:
        async with asyncio.timeout(self._timeout_s):
            found = await self._store.get(session)
        if not found:
            self._missed[session] = self._clock() + MISS_REMEMBERED_S
            self._missed.move_to_end(session)
            if len(self._missed) > MISSES_REMEMBERED:
                self._missed.popitem(last=False)
        return found
