"""Asks with a ping whether a session lives: once for all who wait, and not again for what is known.

The rule of this file: a ping bears the credentials of the request that is asked about, and the upstream id under which that
one was sent. What a credential meets that was never accepted in the session counts for that credential: servers that bind
their sessions tell a stranger that there is none. What an answer shows is decided in ``verdicts.refusals``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from mcp_sidecar.facts import AskOutcome, RefusalAsked, SeveralServers
from mcp_sidecar.healing.exchange import Ask
from mcp_sidecar.healing.findings import Findings
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.session import Session, State, UpstreamSessionId
from mcp_sidecar.sessions.heal import HealServices
from mcp_sidecar.sessions.own_requests import OwnRequests, Trigger
from mcp_sidecar.sessions.ping import ping
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.verdicts.refusals import BROKEN, PingAnswer, PingVerdict, Refusal
from mcp_sidecar.waiting.hold import HeldRequest, Holds, Waited
from mcp_sidecar.wire.headers import media_type

OTHER_CONNECTIONS: Final = 3
"""On so many is a session looked for that one server knows and another does not."""

_LOST: Final = PingAnswer(PingVerdict.REFUSED)
"""In no words: what is known to be lost, and cannot be asked about any more."""

_PENDING: Final = frozenset({PingVerdict.AWAY, PingVerdict.GATEWAY, PingVerdict.BUSY})

_OUTCOMES = {
    PingVerdict.REFUSED: AskOutcome.LOST,
    PingVerdict.ALIVE: AskOutcome.ALIVE,
    PingVerdict.ELSEWHERE: AskOutcome.ALIVE,
}


_THERE: Final = Ask()


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about: a refusal, or only whether the server is there.

    ``generation`` and ``upstream_id`` are those that the request was sent under, ``content_type`` is the refusal's.
    """

    generation: int
    upstream_id: UpstreamSessionId | None
    content_type: str = ""
    ask: Ask = _THERE

    @property
    def refusal(self) -> Refusal | None:
        """What was said, if anything was."""
        return self.ask.refusal


_FlightKey = tuple[Session, int, Principal | None]
"""The session, the generation, and the credential where it is none of the session's own."""


@dataclass(eq=False, slots=True)
class Flight:
    """A ping under way."""

    task: asyncio.Task[PingAnswer]
    credential: Principal


class Asker:
    """Asks in all sessions. ``is_several``: behind the one address stand servers that do not share their sessions."""

    def __init__(self, tools: HealServices, holds: Holds) -> None:
        """``holds`` is where requests wait for the answer."""
        self._tools = tools
        self._holds = holds
        self._flights: dict[_FlightKey, Flight] = {}
        self.is_several = False

    def is_open(self, session: Session, refusal: Refusal | None, credential: Principal) -> bool:
        """Whether nothing is known that speaks against taking strong words for what they say."""
        if self.is_several:
            return False
        if refusal is None:
            return True
        return self._findings(session).of(session.generation, refusal, credential, self._tools.clock()) is None

    def found_useless(self, session: Session, refusal: Refusal, credential: Principal) -> None:
        """A heal has changed nothing about this refusal."""
        self._findings(session).remember_useless(refusal, credential)

    async def ask(
        self, session: Session, question: Asked, trigger: Trigger, held: HeldRequest
    ) -> tuple[Waited, PingAnswer]:
        """Ask, or wait for whoever does, no longer than ``held`` may."""
        known = self._known(session, question, trigger)
        if known is not None:
            return Waited.BACK, known
        key = session, question.generation, None if _is_own(session, trigger) else trigger.credential
        while True:
            flight, is_ours = self._flights.get(key), False
            if flight is None:
                flight, is_ours = self._start(key, question, trigger), True
            waited, answer = await self._holds.for_result(held, flight.task)
            if answer is None:
                return waited, BROKEN
            if answer.verdict is PingVerdict.AUTH and flight.credential != trigger.credential:
                continue
            if is_ours and question.refusal is not None:
                self._found(session, question, question.refusal, answer)
            return waited, answer

    async def ask_server(self, trigger: Trigger, held: HeldRequest) -> tuple[Waited, PingAnswer]:
        """Ask in no session whether the server is there."""
        own = OwnRequests(self._tools.upstream, None, trigger)
        task = asyncio.create_task(self._ping(own, Asked(1, None)))
        try:
            waited, answer = await self._holds.for_result(held, task)
        finally:
            task.cancel()
        return waited, answer or BROKEN

    async def stop(self) -> None:
        """Abandon what is under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what is known ------------------------------------------------------------------------------------------------

    @staticmethod
    def _findings(session: Session) -> Findings:
        if session.talk.findings is None:
            session.talk.findings = Findings()
        return session.talk.findings

    def _known(self, session: Session, question: Asked, trigger: Trigger) -> PingAnswer | None:
        if question.refusal is None:
            return None
        findings = self._findings(session)
        known = findings.of(question.generation, question.refusal, trigger.credential, self._tools.clock())
        if known is not None and not (
            self.is_several and question.ask.elsewhere and known.verdict is PingVerdict.ALIVE
        ):
            return known  # that one of several servers knows it says little
        is_over = session.generation > question.generation
        is_settled = is_over or session.state is State.HEALING
        found = findings.loss_of(question.generation) if is_settled else None
        return _LOST if found is None and is_over and not self._can_be_asked(question) else found

    def _can_be_asked(self, question: Asked) -> bool:
        """Servers that count their sessions mint an id again: under it, another session would answer."""
        return question.upstream_id is not None and not self._tools.table.is_claimed(question.upstream_id)

    def _found(self, session: Session, question: Asked, refusal: Refusal, answer: PingAnswer) -> None:
        if answer.verdict in _PENDING:  # it will be asked again
            return
        if question.ask.is_remembered:
            self._findings(session).remember(question.generation, refusal, answer, self._tools.clock())
        outcome = _OUTCOMES.get(answer.verdict, AskOutcome.UNDECIDED)
        status = refusal.words.status
        self._tools.emit(RefusalAsked(session.label, outcome, status, question.content_type, refusal.code))
        if answer.verdict is PingVerdict.ELSEWHERE and not self.is_several:
            self.is_several = True
            self._tools.emit(SeveralServers(session.label))

    # -- asking -------------------------------------------------------------------------------------------------------

    def _start(self, key: _FlightKey, question: Asked, trigger: Trigger) -> Flight:
        flight = Flight(asyncio.create_task(self._fly(key[0], question, trigger)), trigger.credential)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._flights.pop(key, None))
        return flight

    async def _fly(self, session: Session, question: Asked, trigger: Trigger) -> PingAnswer:
        own = OwnRequests(self._tools.upstream, session, trigger)
        answer = await self._ping(own, question)
        if question.ask.elsewhere and self._is_perhaps_elsewhere(question, answer):
            answer = await self._look_elsewhere(own, question, answer)
        if _is_own(session, trigger):
            self._findings(session).note(question.generation, answer)
        return answer

    def _is_perhaps_elsewhere(self, question: Asked, answer: PingAnswer) -> bool:
        if answer.verdict is PingVerdict.REFUSED:
            is_same = question.refusal is not None and question.refusal.is_same_as(answer.refusal)
            return is_same and (self.is_several or question.ask.is_new)
        return answer.verdict is PingVerdict.ALIVE

    async def _look_elsewhere(self, own: OwnRequests, question: Asked, first: PingAnswer) -> PingAnswer:
        """One server says that the session lives; perhaps another one refuses it in the words in question, or the reverse."""
        for _ in range(OTHER_CONNECTIONS):
            other = await self._ping(own, question, fresh=True)
            pair = {first.verdict: first, other.verdict: other}
            if PingVerdict.ALIVE in pair and PingVerdict.REFUSED in pair:
                refused = pair[PingVerdict.REFUSED].refusal
                if question.refusal is not None and question.refusal.is_same_as(refused):
                    return PingAnswer(PingVerdict.ELSEWHERE, refused)
        return first

    async def _ping(self, own: OwnRequests, question: Asked, *, fresh: bool = False) -> PingAnswer:
        answer = await ping(own, question.upstream_id, self._tools.policy.signatures, fresh=fresh)
        return answer.beside(question.refusal)


def _is_own(session: Session, trigger: Trigger) -> bool:
    return session.accepted.knows(trigger.credential)


def media_type_of(answer: Answer) -> str:
    """The type of an answer's body, without parameters."""
    return media_type(answer.header("Content-Type"))
