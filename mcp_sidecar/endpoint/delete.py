"""A DELETE of an older revision: carry out the step that ``healing.termination`` decides."""

from __future__ import annotations

import contextlib
from typing import assert_never

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import AnswerRewritten, SessionEnd
from mcp_sidecar.healing import replies, termination
from mcp_sidecar.healing.exchange import Give
from mcp_sidecar.healing.session import Session
from mcp_sidecar.healing.termination import EndSession, PassAnswer, Step
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.judge import is_accepted, judge
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.relay import relay_rest
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.classify import SessionKnowledge


class Delete:
    """One DELETE of a client."""

    def __init__(self, services: Services, call: Call, responder: Responder) -> None:
        """The call's session may be known or not."""
        self._services = services
        self._call = call
        self._responder = responder

    async def run(self) -> None:
        """Send it once; whatever shows that the session is gone ends the id."""
        session = self._call.named_session
        if session is not None and session.displaced:
            await self._carry_out(termination.displaced(self._knowledge))
            return
        generation = session.generation if session is not None else 0
        try:
            async with await self._send() as answer:
                await self._answered(answer, generation)
        except UpstreamFault:
            await self._carry_out(termination.failed(self._knowledge))
        session = self._call.session
        if session is not None and session.is_ended and session.generation > generation:
            await self._end_successor(session)

    async def _carry_out(self, step: Step, answer: Answer | None = None) -> None:
        match step:
            case PassAnswer():
                assert answer is not None, "there is an answer to pass"
                if step.ends:
                    await self._end_session()
                await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
                await relay_rest(answer, self._responder)
            case EndSession():
                await self._end_session()
                await self._responder.give(replies.ENDED)
            case Give():
                if step.rewrites is not None:
                    self._services.emit(AnswerRewritten(self._call.label, step.rewrites))
                await self._responder.give(step.answer)
            case _:
                assert_never(step)

    async def _send(self) -> Answer:
        return await self._services.upstream.send(
            "DELETE", self._call.target, self._call.upstream_headers(), owner=self._call.owner
        )

    async def _end_successor(self, session: Session) -> None:
        """A heal was quicker than the upstream's answer: what the client ended by now is another upstream session."""
        if session.upstream_id is not None and not session.displaced:
            with contextlib.suppress(UpstreamFault):
                (await self._send()).close()

    @property
    def _knowledge(self) -> SessionKnowledge:
        """Whoever only claims a session ends nothing by what the upstream does not say."""
        return SessionKnowledge.CLAIMED if self._call.claimed is not None else self._call.knowledge

    async def _answered(self, answer: Answer, generation: int) -> None:
        """Raises ``UpstreamFault`` where the answer breaks off before anything of it is passed on."""
        judged = await judge(answer, self._call.facts(None), self._services.policy.signatures)
        if is_accepted(judged.judgement, answer.status):
            self._call.accepted(generation, answer)
        await self._carry_out(termination.judged(judged.judgement, answer.status, self._knowledge), answer)

    async def _end_session(self) -> None:
        """And whatever waits in it, or for something of it."""
        session = self._call.session
        if session is not None:
            self._services.sessions.table.end(session, SessionEnd.TERMINATED)
            self._services.streams.listening.end_of(session)
            self._services.holds.end_of(session)
            await self._services.sessions.table.settle_end(session)
