"""One re-initialize per lost session, however many requests wait for it.

A heal belongs to the session, not to the request that noticed the loss: it runs in a task of its own, to its end, even
if that client leaves (`initialize` must not be cancelled). ``restoring`` holds the steps of it; here stand how often
and how many at a time.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from mcp_sidecar.facts import HealEnded, HealOutcome
from mcp_sidecar.healing.exchange import Unhealed
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.session import Event, Session
from mcp_sidecar.sessions.heal import HEALED, HealAttempt, HealEnd, HealServices, Loss, tell_loss
from mcp_sidecar.sessions.own_requests import Trigger
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.waiting.hold import HeldRequest, Holds, Waited
from mcp_sidecar.waiting.slots import SlotRequest, Slots
from mcp_sidecar.wire.faults import Fault

FLIGHT_TIMEOUT_S = 60.0
"""A heal that takes longer has met a server that accepts and never answers."""

JITTER_S = 0.050
"""How long a heal that had to queue waits at most when its turn comes, so that thousands do not come in step."""

BUDGET_PERIOD_S = 60.0

QUICK_TRIES, PAUSES_S = 3, (0.25, 0.5, 1.0)
"""After so many heals that failed in a row a session waits before each further one: its server cannot open sessions just
now, and the budget should last until it can."""


@dataclass(eq=False, slots=True)
class Flight:
    """A heal under way."""

    task: asyncio.Task[HealEnd]
    credential: Principal
    turn: SlotRequest


class Healer:
    """Heals sessions, each at most once per loss, and not too many at a time."""

    def __init__(self, tools: HealServices, holding: Holds) -> None:
        """``holding`` is where requests wait for a heal."""
        self._tools = tools
        self._holds = holding
        self._turns = Slots(tools.policy.max_concurrent_heals)
        self._flights: dict[Session, Flight] = {}
        self._random = random.Random()

    async def heal(
        self, session: Session, loss: Loss, trigger: Trigger, held: HeldRequest, *, is_urgent: bool = True
    ) -> tuple[Waited, HealEnd]:
        """Have the session healed, or wait for whoever is at it.

        Waits no longer than ``held`` may; the heal itself goes on. ``is_urgent``: a request waits for it, not only an
        idle stream.
        """
        while True:
            if session.is_ended:
                self._refuse(session, loss, "the session was ended")
                return Waited.BACK, HealEnd(Unhealed.NOT_RESTORED)
            if session.generation > loss.generation:
                return Waited.BACK, HEALED
            flight = self._flights.get(session)
            if flight is None:
                if self._is_spent(session):
                    if loss.is_certain:
                        tell_loss(session, loss, self._tools.emit)
                    self._refuse(session, loss, "heals of this session in a minute")
                    return Waited.BACK, HealEnd(Unhealed.NOT_RESTORED)
                flight = self._start(session, loss, trigger)
            if is_urgent:
                self._turns.promote(flight.turn)
            waited, end = await self._holds.for_result(held, flight.task)
            if end is None or self._counts_for(end, flight, trigger, session):
                return waited, end or HEALED

    def refuse_foreign(self, session_label: str, signature: str) -> None:
        """Another principal's request met the loss: it never heals."""
        self._tools.emit(HealEnded(session_label, HealOutcome.REFUSED, signature, "another principal", 0, 0.0))

    async def stop(self) -> None:
        """Abandon what is under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- single flight and budgets ------------------------------------------------------------------------------------

    def _start(self, session: Session, loss: Loss, trigger: Trigger) -> Flight:
        session.fire(Event.LOSS_SEEN)
        turn = SlotRequest()
        task = asyncio.create_task(self._fly(session, loss, trigger, turn))
        flight = Flight(task, trigger.credential, turn)
        self._flights[session] = flight
        task.add_done_callback(lambda _: self._flights.pop(session, None))
        return flight

    @staticmethod
    def _counts_for(end: HealEnd, flight: Flight, trigger: Trigger, session: Session) -> bool:
        """Whether the end of somebody's heal is the end for this request, too.

        Refused credentials are only those of the request that flew, and what came of one that the upstream has never
        accepted in the session is nobody else's failure.
        """
        is_unproven = end.why is Unhealed.NOT_RESTORED and not session.accepted.knows(flight.credential)
        if (end.why is Unhealed.UNAUTHORIZED or is_unproven) and not session.is_ended:
            return flight.credential == trigger.credential
        return True

    def _is_spent(self, session: Session) -> bool:
        return session.heals_within(BUDGET_PERIOD_S, self._tools.clock()) >= self._tools.policy.max_heals_per_minute

    def _refuse(self, session: Session, loss: Loss, reason: str) -> None:
        self._tools.emit(HealEnded(session.label, HealOutcome.REFUSED, loss.signature, reason, session.generation, 0.0))

    async def _fly(self, session: Session, loss: Loss, trigger: Trigger, turn: SlotRequest) -> HealEnd:
        started = self._tools.clock()
        if session.heals.failed >= QUICK_TRIES:
            await asyncio.sleep(PAUSES_S[min(session.heals.failed - QUICK_TRIES, len(PAUSES_S) - 1)])
        queued = await self._turns.take(turn)
        try:
            if queued:
                await asyncio.sleep(self._random.uniform(0, JITTER_S))
            return await self._restore(HealAttempt(self._tools, session, loss, trigger, started))
        finally:
            self._turns.give_back(turn)

    @staticmethod
    async def _restore(restore: HealAttempt) -> HealEnd:
        try:
            async with asyncio.timeout(FLIGHT_TIMEOUT_S):
                return await restore.run()
        except UpstreamFault as fault:
            return restore.unavailable(fault.fault)
        except TimeoutError:
            return restore.unavailable(Fault.STALLED)
        finally:
            restore.settle()
