"""Questions to a store: one per session id at a time, however many requests wait, and few for ids that nobody knows."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum

from mcp_sidecar.sessions.stores.store import Entry, Key, Store

MISS_REMEMBERED_S, MISSES_REMEMBERED = 1.0, 10_000
"""An id that nobody knows is looked up so often, and so many of them are remembered: invented ids must not load a store."""

AT_A_TIME = 32
"""So many look-ups are under way at once, whoever invents ids; the others wait for their turn."""


class Missing(Enum):
    """Why a session cannot be had."""

    UNKNOWN = "nobody has a session with this id"
    FOREIGN = "only another principal has"
    ENDED = "it was ended"
    REJECTED = "it is a token that counts for nothing"
    STORE_AWAY = "the store that may know it is away"


class LookUps:
    """Asks one store. Session ids are hashes here."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._store = store
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self._under_way: dict[bytes, asyncio.Task[Mapping[bytes, Entry]]] = {}
        self._missed: OrderedDict[Key, tuple[float, Missing]] = OrderedDict()

    async def entries(self, session: bytes) -> Mapping[bytes, Entry]:
        """What stands under this id. Raises ``StoreAway``."""
        task = self._under_way.get(session)
        if task is None:
            task = self._under_way[session] = asyncio.create_task(self._get(session))
            task.add_done_callback(lambda _: self._under_way.pop(session, None))
        return await asyncio.shield(task)  # it goes on although one of those who wait leaves

    async def _get(self, session: bytes) -> Mapping[bytes, Entry]:
        async with self._turns:
            return await self._store.get(session)

    def missed(self, key: Key) -> Missing | None:
        """What came of the latest look-up for this principal, if it was just now and in vain."""
        until, why = self._missed.get(key, (0.0, None))
        return why if self._clock() < until else None

    def note_missed(self, key: Key, why: Missing) -> None:
        """There is nothing for this principal."""
        self._missed[key] = self._clock() + MISS_REMEMBERED_S, why
        self._missed.move_to_end(key)
        if len(self._missed) > MISSES_REMEMBERED:
            self._missed.popitem(last=False)

    def is_known(self, key: Key) -> None:
        """Something is about to stand there."""
        self._missed.pop(key, None)
