"""Is the upstream there? One prober for everybody who waits.

A refused connect costs tens of microseconds, so one prober may try often; one per held request may not. It tries every
``FAST_PACE_S`` for ``FAST_PERIOD_S``, then ever less often, and stops when nobody waits. Where an ingress answers in
the server's place a connect proves nothing: there one of the held requests is the scout, which asks with pings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mcp_sidecar.facts import Emit, UpstreamBack, UpstreamLost
from mcp_sidecar.waiting.pauses import FIRST_PAUSE_S, Pauses

FAST_PACE_S = 0.004
"""Half of it is what a held call waits for nothing. A refused connect takes some 50 µs of CPU: one in a hundred."""

FAST_PERIOD_S = 10.0
"""Within it most servers are back that are restarted."""

SLOWEST_PACE_S = 0.250
SLOWING = 1.5

NO_CONNECTION = "no connection"

MAX_TOLD = 4
"""So many reasons are said in one outage: a server may be down first, and then have the wrong certificate."""

SCOUT_TURN_S = 1.0
"""A scout that has not come back by then is perhaps served, perhaps stuck: another one is sent after it."""


class Pace:
    """When to try next: often at first, then backing off."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._clock = clock
        self._since = clock()
        self._delay_s = FAST_PACE_S

    def next_delay_s(self) -> float:
        """How long to wait before the next try, in seconds."""
        if self._clock() - self._since > FAST_PERIOD_S:
            self._delay_s = min(self._delay_s * SLOWING, SLOWEST_PACE_S)
        return self._delay_s


class Availability:
    """Whether connects succeed, and a future for the moment when they do again."""

    def __init__(
        self,
        can_connect: Callable[[], Awaitable[bool]],
        emit: Emit,
        clock: Callable[[], float],
        waiting: Callable[[], int],
    ) -> None:
        """``waiting`` tells how many requests are held."""
        self._can_connect = can_connect
        self._emit = emit
        self._clock = clock
        self._waiting = waiting
        self._lost_at: float | None = None
        self._told: set[str] = set()  # why it cannot be reached, in this outage
        self._back: asyncio.Future[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self.has_worked = False  # what stands behind the connects has done its work once
        self._worked_at: float | None = None  # when it did so last
        self._is_known = False  # from the last while

    def note_worked(self) -> None:
        """Somebody has got what was asked for."""
        self.has_worked = True
        self._worked_at = self._clock()

    def since_worked_s(self) -> float | None:
        """How long ago somebody has got what was asked for; ``None`` is never."""
        return self._clock() - self._worked_at if self._worked_at is not None else None

    @property
    def is_up(self) -> bool:
        """True until a connect fails, false until one succeeds."""
        return self._lost_at is None

    def note(self, connected: bool, why: str = "") -> None:
        """A request got a connection, or could not get one, and ``why``: a certificate is not trusted, say."""
        self._is_known = True
        if connected:
            if self._lost_at is not None:
                self._note_back(self._lost_at)
            return
        if self._lost_at is None:
            self._lost_at = self._clock()
        elif not why:
            return
        why = why or NO_CONNECTION
        if why not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(why)
            self._emit(UpstreamLost(why))

    @property
    def lost_at(self) -> float | None:
        """Since when it is away; ``None`` while it is there."""
        return self._lost_at

    async def look(self) -> None:
        """Try one connect, unless somebody has tried since this was called last: of an idle one nobody else learns."""
        await self.find_out()
        self._is_known = False

    async def find_out(self) -> bool:
        """Whether it is there, by a try if nobody has tried lately: one for all who ask."""
        if not self._is_known and self._prober_is_idle():
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            await asyncio.shield(self._looking)
        return self.is_up

    async def _look(self) -> None:
        self.note(await self._can_connect())

    def _prober_is_idle(self) -> bool:
        return self._prober is None or self._prober.done()

    def back(self) -> asyncio.Future[None]:
        """A shared future that is done at the next successful connect; asking for it starts the prober."""
        if self._back is None or self._back.done():
            self._back = asyncio.get_running_loop().create_future()
        if self._prober_is_idle():
            self._prober = asyncio.create_task(self._probe())
        return self._back

    async def stop(self) -> None:
        """Stop probing."""
        for task in (self._prober, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _probe(self) -> None:
        pace = Pace(self._clock)
        while self._back is not None and not self._back.done() and self._waiting():
            connected = await self._can_connect()
            self.note(connected)
            if connected:
                self._release()
                return
            await asyncio.sleep(pace.next_delay_s())

    def _note_back(self, lost_at: float) -> None:
        self._lost_at = None
        self._told.clear()
        self._emit(UpstreamBack(self._clock() - lost_at, self._waiting()))
        self._release()

    def _release(self) -> None:
        if self._back is not None and not self._back.done():
            self._back.set_result(None)


class Route:
    """Whether the server itself answers, where an ingress stands in between."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._clock = clock
        self._pace: Pauses | None = None
        self._scout: object | None = None
        self._turn: asyncio.TimerHandle | None = None
        self._changed: asyncio.Future[None] | None = None

    def is_scout(self, who: object) -> bool:
        """Whether this one is to try."""
        return self._scout is who

    def apply(self, who: object) -> bool:
        """Become the scout if there is none; true if ``who`` is the scout now, for ``SCOUT_TURN_S`` from now on."""
        if self._scout is None:
            self._scout = who
            self._pace = self._pace or Pauses()
        if self._scout is not who:
            return False
        self._end_turn()
        self._turn = asyncio.get_running_loop().call_later(SCOUT_TURN_S, self.resign, who)
        return True

    def next_delay_s(self) -> float:
        """How long the scout waits before its next try, in seconds."""
        return self._pace.next_s() if self._pace is not None else FIRST_PAUSE_S

    def changed(self) -> asyncio.Future[None]:
        """A shared future that is done when the server answers again, or the scout has left."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def resign(self, who: object) -> None:
        """The scout leaves, or takes too long; another one takes its place."""
        if self._scout is who:
            self._end_turn()
            self._scout = None
            self._wake()

    def note_served(self) -> None:
        """The server itself has answered: everybody may go."""
        if self._pace is not None:
            self._end_turn()
            self._pace = None
            self._scout = None
            self._wake()

    @property
    def is_away(self) -> bool:
        """Whether an ingress was the last to answer."""
        return self._pace is not None

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
