"""A bounded number of places for work that many want to do at once.

Whoever is waited for goes before whoever only looks after itself; within a class, first come, first served.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class SlotRequest:
    """One who wants a place. ``is_urgent``: somebody waits for the work, and it goes before what is not."""

    is_urgent: bool = False
    granted: asyncio.Future[None] | None = field(default=None, init=False)
    has_place: bool = field(default=False, init=False)
    overdue: asyncio.TimerHandle | None = field(default=None, init=False)


class Slots:
    """Hands out the places."""

    def __init__(self, places: int, patience_s: float | None = None) -> None:
        """``places``: how many may work at a time. Who takes longer than ``patience_s`` loses the place, and works on."""
        self._free = places
        self._patience_s = patience_s
        # A plain dict seeks its first item among all that have left.
        self._urgent: OrderedDict[SlotRequest, None] = OrderedDict()
        self._idle: OrderedDict[SlotRequest, None] = OrderedDict()

    @asynccontextmanager
    async def place(self, turn: SlotRequest) -> AsyncIterator[bool]:
        """Have a place while the block runs; the value tells whether it had to be waited for."""
        queued = await self.take(turn)
        try:
            yield queued
        finally:
            self.give_back(turn)

    async def take(self, turn: SlotRequest) -> bool:
        """Take a place, to be given back; true if there was none free at once."""
        granted = self.ask(turn)
        if granted is None:
            return False
        try:
            await granted
        except asyncio.CancelledError:
            self.leave(turn)
            raise
        return True

    def ask(self, turn: SlotRequest) -> asyncio.Future[None] | None:
        """Take a place at once, or queue for it: the future is done when it is there. ``leave`` ends both."""
        if self._free:
            self._free -= 1
            self._seat(turn)
            return None
        turn.granted = asyncio.get_running_loop().create_future()
        self._queue_of(turn)[turn] = None
        return turn.granted

    def leave(self, turn: SlotRequest) -> None:
        """Give the place back, or want none any more. Does nothing where neither is the case."""
        self._queue_of(turn).pop(turn, None)
        self.give_back(turn)

    def give_back(self, turn: SlotRequest) -> None:
        """Give the place to the next one. Does nothing where ``turn`` has none."""
        if not turn.has_place:
            return
        turn.has_place = False
        if turn.overdue is not None:
            turn.overdue.cancel()
            turn.overdue = None
        following = self._next()
        if following is None:
            self._free += 1
        else:
            self._seat(following)

    def promote(self, turn: SlotRequest) -> None:
        """From now on a request waits for this one, too."""
        if turn.is_urgent:
            return
        is_waiting = turn in self._idle
        self._idle.pop(turn, None)
        turn.is_urgent = True
        if is_waiting:
            self._urgent[turn] = None

    def _seat(self, turn: SlotRequest) -> None:
        turn.has_place = True
        if self._patience_s is not None:
            turn.overdue = asyncio.get_running_loop().call_later(self._patience_s, self.give_back, turn)

    def _queue_of(self, turn: SlotRequest) -> OrderedDict[SlotRequest, None]:
        return self._urgent if turn.is_urgent else self._idle

    def _next(self) -> SlotRequest | None:
        for queue in (self._urgent, self._idle):
            while queue:
                turn, _ = queue.popitem(last=False)
                if turn.granted is not None and not turn.granted.done():  # else it is about to leave
                    turn.granted.set_result(None)
                    return turn
        return None


AT_A_TIME = 32
HEAD_PATIENCE_S = 0.250
"""How long a stream is waited for by others: some servers send no head before their first event."""

SPREAD_PER_STREAM_S, LONGEST_SPREAD_S = 0.001, 2.0
"""A thousand streams come back within about a second, one alone at once."""


class ReturnQueue:
    """The streams of this process that are on their way back."""

    def __init__(self) -> None:
        """Nobody is."""
        self._turns = Slots(AT_A_TIME, HEAD_PATIENCE_S)
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
        return self._turns.place(SlotRequest())
