"""Questions to a store: one per session id at a time, however many requests wait, and few for ids that nobody knows.

What is there costs a look-up, whoever asks; what is not is counted, so that invented ids load a store no more than it can
well bear. Beyond that an id that is not in memory waits as if the store were away: it may be a real one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum

from mcp_sidecar.sessions.stores.store import Entry, Key, Store, StoreAway

MISS_REMEMBERED_S, MISSES_REMEMBERED = 1.0, 10_000
"""An id that nobody knows is looked up so often, and so many of them are remembered: invented ids must not load a store."""

MISSES_PER_S = 1_000
"""Look-ups in vain, over all ids; as many again may come at once. A tenth of a core here, and half of what SQLite can do."""

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
        self._misses = LookUpAllowance(MISSES_PER_S, clock)
        self._under_way: dict[bytes, asyncio.Task[Mapping[bytes, Entry]]] = {}
        self._missed: OrderedDict[Key, tuple[float, Missing]] = OrderedDict()

    async def entries(self, session: bytes) -> Mapping[bytes, Entry]:
        """What stands under this id. Raises ``StoreAway``, also where it is not to be asked: the id may be invented."""
        task = self._under_way.get(session)
        if task is None:
            task = self._under_way[session] = asyncio.create_task(self._get(session))
            task.add_done_callback(lambda _: self._under_way.pop(session, None))
        return await asyncio.shield(task)  # it goes on although one of those who wait leaves

    async def _get(self, session: bytes) -> Mapping[bytes, Entry]:
        async with self._turns:
            if self._misses.wait_s():
                raise StoreAway("too many ids that nobody knows")
            return await self._store.get(session)

    def may_ask(self) -> asyncio.Future[None]:
        """Done when it is the turn of whoever waits to ask for what may be invented; to be waited for, and not cancelled."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        loop.call_later(self._misses.turn_s(), turn.set_result, None)
        return turn

    def missed(self, key: Key) -> Missing | None:
        """What came of the latest look-up for this principal, if it was just now and in vain."""
        until, why = self._missed.get(key, (0.0, None))
        return why if self._clock() < until else None

    def note_missed(self, key: Key, why: Missing) -> None:
        """There is nothing for this principal."""
        if self.missed(key) is None:  # else several have waited for one look-up
            self._misses.spend()
        self._missed[key] = self._clock() + MISS_REMEMBERED_S, why
        self._missed.move_to_end(key)
        if len(self._missed) > MISSES_REMEMBERED:
            self._missed.popitem(last=False)

    def is_known(self, key: Key) -> None:
        """Something is about to stand there."""
        self._missed.pop(key, None)


class LookUpAllowance:
    """So many a second, and as many again at once."""

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        """Nothing is spent. ``clock`` gives monotonic seconds."""
        self._step_s = 1.0 / per_s
        self._clock = clock
        self._spent_until = self._last_turn_at = clock() - 1.0

    def spend(self) -> None:
        """One more, whether there is one or not."""
        self._spent_until = max(self._spent_until, self._clock() - 1.0) + self._step_s

    def wait_s(self) -> float:
        """How long until there is one; 0 where there is."""
        return max(0.0, self._spent_until - self._clock())

    def turn_s(self) -> float:
        """The same for one more who waits: they do not all come at once."""
        wait_s, now = self.wait_s(), self._clock()
        if not wait_s:
            return 0.0
        self._last_turn_at = max(self._last_turn_at, now + wait_s) + self._step_s
        return self._last_turn_at - now
