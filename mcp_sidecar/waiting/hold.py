"""Requests that wait: for the upstream, for a route, or for a heal. Bounded in number, bytes and time.

Whoever waits here can be released early: by a name of its own, by the end of what it belongs to, or by the drain of the
sidecar. What those are is not known here. A client that leaves cancels its task, and the ``with`` block gives its place back.
When the upstream is back they go on in turns.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from mcp_sidecar.facts import Emit, HoldOverflowed, RequestHeld
from mcp_sidecar.waiting.availability import Availability, Route
from mcp_sidecar.waiting.slots import SlotRequest, Slots

T = TypeVar("T")

GO_ON_AT_A_TIME, HEAD_PATIENCE_S = 32, 0.050
"""A server that has just come back is not met by a thousand requests on a thousand new connections: each waits until one
before it has its answer, or has waited so long for one that it must be slow work."""

CancelKey = Hashable
"""By what a request is named that is to be released; its parts are its owner's business."""


class Waited(Enum):
    """How a wait ended."""

    BACK = "back"
    EXPIRED = "expired"  # the deadline, the bounds, or the drain
    CANCELLED = "cancelled"
    ENDED = "ended"  # what the request belongs to


@dataclass(eq=False, slots=True)
class HeldRequest:
    """One request that may have to wait.

    ``size`` in bytes; ``deadline`` is set when the first wait begins; ``cancel_keys`` name its parts, all of which must be
    cancelled to release it; ``owner`` is what it belongs to, whose end is its end.
    ``is_stream``: it is no request but a stream that can wait, and takes no request's place. ``released`` is how somebody
    else ended the present wait; ``turn`` is its place among those who go on; ``waited_s`` is how long it has waited so far.
    """

    size: int
    timeout_s: float
    cancel_keys: frozenset[CancelKey] = frozenset()
    owner: Hashable | None = None
    is_stream: bool = False
    deadline: float | None = None
    released: Waited | None = None
    woken: asyncio.Future[None] | None = None
    cancelled: set[CancelKey] = field(default_factory=set)
    turn: SlotRequest | None = None
    waited_s: float = 0.0

    def wake(self) -> None:
        """Let it look at what has become of what it waits for."""
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)


class Holds:
    """Everything that waits."""

    def __init__(
        self,
        *,
        max_requests: int,
        max_bytes: int,
        can_connect: Callable[[], Awaitable[bool]],
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives monotonic seconds; ``can_connect`` tries whether the upstream is there."""
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._emit = emit
        self._clock = clock
        self._held: set[HeldRequest] = set()
        self._by_request: dict[CancelKey, HeldRequest] = {}
        self._by_owner: dict[Hashable, set[HeldRequest]] = {}
        self._waiting_for: dict[asyncio.Future[Any], dict[HeldRequest, None]] = {}
        self._streams = 0
        self._bytes = 0
        self._draining = False
        self._in_vain = False
        self.failure: str | None = None
        self._turns = Slots(GO_ON_AT_A_TIME, HEAD_PATIENCE_S)
        self.route = Route(clock)
        self.availability = Availability(can_connect, emit, clock, self.waiting)

    def __len__(self) -> int:
        """How many requests are held."""
        return len(self._held)

    async def for_connect(self, held: HeldRequest) -> Waited:
        """Wait until the upstream accepts connections."""
        if self._in_vain:
            return Waited.EXPIRED
        with self._room_for(held) as there_is:
            if not there_is:
                return Waited.EXPIRED
            ended, _ = await self._wait(held, self.availability.back())
            return await self._in_turn(held) if ended is Waited.BACK else ended

    async def for_route(self, held: HeldRequest) -> Waited:
        """Wait until it is this request's turn to try, or the server answers again.

        The scout keeps its role until ``route.note_served`` or ``leave``.
        """
        with self._room_for(held) as there_is:
            if not there_is:
                return Waited.EXPIRED
            if self.route.apply(held):
                return await self._pause(held, self.route.next_delay_s())
            while True:
                ended, _ = await self._wait(held, self.route.changed())
                if ended is not Waited.BACK:
                    return ended
                if not self.route.is_away:
                    ended = await self._in_turn(held)
                    if ended is not Waited.BACK or not self.route.is_away:
                        return ended
                    self.went_on(held)  # away again meanwhile
                if self.route.apply(held):
                    return Waited.BACK

    async def for_turn(self, held: HeldRequest, pause_s: float) -> Waited:
        """Wait so long for a server that is there and has no time."""
        with self._room_for(held) as there_is:
            return await self._pause(held, pause_s) if there_is else Waited.EXPIRED

    async def for_result(
        self, held: HeldRequest, result: asyncio.Future[T] | asyncio.Task[T]
    ) -> tuple[Waited, T | None]:
        """Wait for somebody else's work, which goes on whatever becomes of this request."""
        with self._room_for(held) as there_is:
            if not there_is:
                return Waited.EXPIRED, None
            return await self._wait(held, result)

    def went_on(self, held: HeldRequest) -> None:
        """The upstream has answered, or cannot: let the next one go, if this one had to wait."""
        if held.turn is not None:
            self._turns.leave(held.turn)

    def leave(self, held: HeldRequest) -> None:
        """The exchange is over: give back the scout's role, if it had it."""
        self.route.resign(held)
        if held.waited_s and not held.is_stream:
            self._emit(RequestHeld(held.waited_s))

    async def for_stream(self) -> None:
        """Wait as an idle stream does: without a bound, and without taking a request's place."""
        self._streams += 1
        try:
            await self.without_bound(self.availability.back())
        finally:
            self._streams -= 1

    async def without_bound(self, awaited: asyncio.Future[Any]) -> None:
        """Wait for what thousands may wait for, and take no place: whoever leaves costs as little as one who is alone."""
        await self._until_woken(HeldRequest(0, math.inf), math.inf, awaited)

    def waiting(self) -> int:
        """How many wait for the upstream, streams included."""
        return len(self._held) + self._streams

    def held_of(self, owner: Hashable) -> int:
        """How many requests of an owner wait."""
        return len(self._by_owner.get(owner, ()))

    def cancel(self, key: CancelKey) -> bool:
        """Release the held request that is named; false if there is none, or others of its batch still wait."""
        held = self._by_request.get(key)
        if held is None:
            return False
        held.cancelled.add(key)
        if held.cancelled != held.cancel_keys:
            return False
        _release(held, Waited.CANCELLED)
        return True

    def end_of(self, owner: Hashable) -> None:
        """Release everything that belongs to what is over: it must not be sent any more."""
        for held in self._by_owner.get(owner, ()):
            _release(held, Waited.ENDED)

    def expect_no_return(self) -> None:
        """An upstream that cannot be connected to from now on ends with this process: nobody waits for it any more."""
        self._in_vain = True
        if not self.availability.is_up:
            for held in self._held:
                _release(held, Waited.EXPIRED)

    def drain(self) -> None:
        """Release everybody, and hold nobody any more."""
        self._draining = True
        for held in self._held:
            _release(held, Waited.EXPIRED)

    def fail(self, why: str | None) -> None:
        """The server cannot come back by itself: release everybody, and hold nobody until this is told otherwise."""
        self.failure = why
        for held in self._held if why is not None else ():
            _release(held, Waited.EXPIRED)

    async def _in_turn(self, held: HeldRequest) -> Waited:
        """Wait for one of the places that all share who go on."""
        self.went_on(held)  # perhaps nothing came of it last time
        turn = held.turn = held.turn or SlotRequest()
        granted = self._turns.ask(turn)
        if granted is None:
            return Waited.BACK
        ended = Waited.EXPIRED
        try:
            ended, _ = await self._wait(held, granted)
        finally:
            if ended is not Waited.BACK:
                self._turns.leave(turn)
        # Out of time, but the upstream is there: it goes on without a place.
        return held.released or Waited.BACK

    async def _wait(self, held: HeldRequest, awaited: asyncio.Future[T]) -> tuple[Waited, T | None]:
        await self._until_woken(held, self._left_s(held), awaited)
        if held.released is not None:
            return held.released, None
        if awaited.done():
            return Waited.BACK, awaited.result()
        return Waited.EXPIRED, None

    async def _pause(self, held: HeldRequest, delay_s: float) -> Waited:
        left_s = self._left_s(held)
        await self._until_woken(held, min(delay_s, left_s))
        if held.released is not None:
            return held.released
        return Waited.BACK if delay_s < left_s else Waited.EXPIRED

    async def _until_woken(self, held: HeldRequest, seconds: float, awaited: asyncio.Future[T] | None = None) -> None:
        """As ``asyncio.wait`` for the first of them, at a fraction of its price: every held request comes by here."""
        if held.released is not None:
            return
        if awaited is not None and awaited.done():
            await asyncio.sleep(0)  # whoever waits again for what is done must let its callbacks run
            return
        loop = asyncio.get_running_loop()
        held.woken = loop.create_future()
        timer = loop.call_later(seconds, held.wake) if seconds < math.inf else None
        if awaited is not None:
            self._wait_with_others(held, awaited)
        try:
            await held.woken
        finally:
            held.woken = None
            if timer is not None:
                timer.cancel()
            if awaited is not None:
                self._wait_no_more(held, awaited)

    def _wait_with_others(self, held: HeldRequest, awaited: asyncio.Future[T]) -> None:
        """One callback for all who wait for one future, which removes one by looking at all that it has."""
        others = self._waiting_for.get(awaited)
        if others is None:
            others = self._waiting_for[awaited] = {}
            awaited.add_done_callback(self._wake_all)
        others[held] = None

    def _wait_no_more(self, held: HeldRequest, awaited: asyncio.Future[T]) -> None:
        others = self._waiting_for.get(awaited)
        if others is not None:
            others.pop(held, None)
            if not others:
                del self._waiting_for[awaited]
                awaited.remove_done_callback(self._wake_all)

    def _wake_all(self, awaited: asyncio.Future[Any]) -> None:
        for held in self._waiting_for.pop(awaited, ()):
            held.wake()

    def _left_s(self, held: HeldRequest) -> float:
        assert held.deadline is not None
        return max(0.0, held.deadline - self._clock())

    @contextmanager
    def _room_for(self, held: HeldRequest) -> Iterator[bool]:
        if held.deadline is None:
            held.deadline = self._clock() + held.timeout_s
        has_no_place = len(self._held) >= self._max_requests or self._bytes + held.size > self._max_bytes
        full = has_no_place and not held.is_stream
        if full:
            self._emit(HoldOverflowed(len(self._held), self._bytes))
        if full or self._draining or (self.failure is not None and not held.is_stream):
            yield False
            return
        held.released = None
        self._streams += held.is_stream
        if not held.is_stream:
            self._held.add(held)
        self._bytes += held.size
        self._by_request.update(dict.fromkeys(held.cancel_keys, held))
        if held.owner is not None:
            self._by_owner.setdefault(held.owner, set()).add(held)
        began_at = self._clock()
        try:
            yield True
        finally:
            held.waited_s += self._clock() - began_at
            self._streams -= held.is_stream
            self._held.discard(held)
            self._bytes -= held.size
            for key in held.cancel_keys:
                if self._by_request.get(key) is held:
                    del self._by_request[key]
            self._forget_of_owner(held)

    def _forget_of_owner(self, held: HeldRequest) -> None:
        if held.owner is not None:
            others = self._by_owner[held.owner]
            others.discard(held)
            if not others:
                del self._by_owner[held.owner]


def _release(held: HeldRequest, how: Waited) -> None:
    if held.released is None:
        held.released = how
        held.wake()
