"""All bytes in memory at a time, whoever they belong to, against one limit.

What has arrived is in memory already: it is counted, and what waits is the reading of more. The few bytes that each may have
in any case never wait, so that small ones pass however large the others are.

Where all have a part and none can go on, they would wait for each other for ever. So of each queue one at a time goes on
beyond the limit, the first that met it: what it holds is by how much the limit can be exceeded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

FREE_BYTES = 64 * 1024
"""What a claim may hold without ever waiting: a socket's buffer brings as much before anybody can ask."""


class Budget:
    """``used`` are the bytes that are claimed now."""

    def __init__(self, limit_bytes: int) -> None:
        """Nothing is claimed. Whoever waits for what others hold must not stand in their queue: there are two."""
        self._limit_bytes = limit_bytes
        self.used = 0
        self.requests = Queue(self)
        self.answers = Queue(self)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more are within the limit."""
        return self.used + size <= self._limit_bytes

    def give_back(self, size: int) -> None:
        """So many bytes are held no more. Answers go first, since with each of them a request goes, too."""
        self.used -= size
        self.answers.let_go_on()
        self.requests.let_go_on()


class Queue:
    """Those who wait to read more, in the order in which they came."""

    def __init__(self, budget: Budget) -> None:
        """Nobody waits."""
        self.budget = budget
        self._waiting: deque[tuple[Claim, int, asyncio.Future[None]]] = deque()
        self._ahead: int | None = None  # the id of the claim that may exceed the limit, which must be free to end

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def claim(self) -> Claim:
        """Of no bytes so far."""
        return Claim(self)

    def passes(self, claim: Claim, size: int) -> bool:
        """Count so many bytes more if there is room for them."""
        passes = self._may_pass(claim, size) or (not self._waiting and self._goes_on(claim, size))
        if passes:
            claim.count(size)
        return passes

    async def wait(self, claim: Claim, size: int) -> None:
        """Count so many bytes more as soon as there is room for them."""
        if self.passes(claim, size):
            return
        woken = asyncio.get_running_loop().create_future()
        self._waiting.append((claim, size, woken))
        try:
            await woken
        except asyncio.CancelledError:
            self.let_go_on()  # there may be room for those behind it
            raise

    def let_go_on(self) -> None:
        """There may be room."""
        while self._waiting:
            claim, size, woken = self._waiting[0]
            if not woken.done():  # else it has given up
                if not self._goes_on(claim, size):
                    return
                claim.count(size)
                woken.set_result(None)
            self._waiting.popleft()

    def leave(self, claim: Claim) -> None:
        """It holds nothing any more: another one may go ahead."""
        if self._ahead == id(claim):
            self._ahead = None

    def _may_pass(self, claim: Claim, size: int) -> bool:
        return claim.size + size <= FREE_BYTES or self._ahead == id(claim)

    def _goes_on(self, claim: Claim, size: int) -> bool:
        if self.budget.has_room(size):
            return True
        if self._ahead is None:
            self._ahead = id(claim)
        return self._ahead == id(claim)


class Claim:
    """What one holder has of the budget: ``size`` in bytes. Given back at the end of the block, or with the holder."""

    __slots__ = ("_queue", "size")

    def __init__(self, queue: Queue) -> None:
        """Nothing so far."""
        self._queue = queue
        self.size = 0

    async def grow(self, size: int) -> None:
        """Wait until so many bytes more may be held, and hold them."""
        await self._queue.wait(self, size)

    def count(self, size: int) -> None:
        """Hold so many bytes more, which are here already."""
        self.size += size
        self._queue.budget.used += size

    async def resize(self, size: int) -> None:
        """Hold so many bytes from now on; wait if they are more than before."""
        if size > self.size:
            await self.grow(size - self.size)
        else:
            self._shrink(size)

    def resize_now(self, size: int) -> bool:
        """The same if it need not wait; false if it must."""
        if size > self.size and not self._queue.passes(self, size - self.size):
            return False
        self._shrink(size)
        return True

    def release(self) -> None:
        """Hold nothing any more."""
        self._shrink(0)

    def _shrink(self, size: int) -> None:
        less, self.size = self.size - size, size
        if not size:
            self._queue.leave(self)
        if less:
            self._queue.budget.give_back(less)

    def __enter__(self) -> Self:
        """Enter."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()

    def __del__(self) -> None:
        """Whoever held it is gone, and its bytes with it."""
        self.release()
