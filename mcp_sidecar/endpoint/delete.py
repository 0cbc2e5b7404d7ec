"""A DELETE of an older revision: sent once, never heals, never waits (transports, "Session Management" 5)."""

from __future__ import annotations

import contextlib

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import ActionObserved, AnswerRewritten, ObservedAction, SessionEnd
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.judge import judged_head
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.relay import relay_rest
from mcp_sidecar.upstream.answer import Answer, decoded_body
from mcp_sidecar.upstream.connection import UpstreamFault
from mcp_sidecar.verdicts.classify import (
    PEEK_BYTES,
    UNANSWERED,
    Judgement,
    NeedBody,
    SessionKnowledge,
    Verdict,
    judge_body,
    judge_head,
)


class Delete:
    """One DELETE of a client."""

    def __init__(self, services: Services, call: Call, responder: Responder) -> None:
        """The call's session may be known or not."""
        self._services = services
        self._call = call
        self._responder = responder

    async def run(self) -> None:
        """Send it once; whatever shows that the session is gone ends the id."""
        session = self._call.session
        if session is not None and session.displaced:
            await self._end()  # the id now is another session's: it must not be ended upstream
            return
        generation = session.generation if session is not None else 0
        try:
            answer = await self._send()
        except UpstreamFault:
            await self._not_answered()
        else:
            async with answer:
                await self._answered(answer, await self._judge(answer))
        if session is not None and session.is_ended and session.generation > generation:
            await self._end_successor(session)

    async def _send(self) -> Answer:
        return await self._services.upstream.send(
            "DELETE", self._call.target, self._call.upstream_headers(), owner=self._call.owner
        )

    async def _end_successor(self, session: Session) -> None:
        """A heal was quicker than the upstream's answer: what the client ended by now is another upstream session."""
        if session.upstream_id is not None and not session.displaced:
            with contextlib.suppress(UpstreamFault):
                (await self._send()).close()

    async def _judge(self, answer: Answer) -> Judgement:
        facts, head = self._call.facts(None), judged_head(answer)
        judgement = judge_head(facts, head)
        if not isinstance(judgement, NeedBody):
            return judgement
        try:
            body = await decoded_body(answer, PEEK_BYTES)
        except UpstreamFault:
            return UNANSWERED
        return judge_body(facts, head, body, complete=answer.whole, extra=self._services.policy.signatures)

    async def _answered(self, answer: Answer, judgement: Judgement) -> None:
        is_bound = self._call.knowledge is SessionKnowledge.BOUND
        is_gone = (
            judgement.verdict is Verdict.SESSION_LOST
            or (judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body)
            or judgement.bare_404  # a session is known, so the endpoint has worked before
        )
        if self._services.observes:
            await self._observed(answer, judgement)
        elif is_bound and is_gone:
            await self._end()
        elif judgement.verdict is Verdict.SESSION_LOST:
            self._services.emit(AnswerRewritten(self._call.label(self._services), answer.status))
            await self._responder.give(replies.SESSION_NOT_FOUND)
        else:
            if self._forget_on_success(answer):
                self._end_what_waits()
            await self._pass(answer)

    async def _not_answered(self) -> None:
        if self._services.observes:
            await self._responder.give(replies.BAD_GATEWAY)
        elif self._call.client_id is not None:
            await self._end()
        else:
            await self._responder.give(replies.UNAVAILABLE_PATH)

    async def _observed(self, answer: Answer, judgement: Judgement) -> None:
        if judgement.verdict is Verdict.SESSION_LOST:
            label = self._call.label(self._services)
            self._services.emit(ActionObserved(label, ObservedAction.REWRITE, judgement.name))
        self._forget_on_success(answer)
        await self._pass(answer)

    def _forget_on_success(self, answer: Answer) -> bool:
        """Whether the session is over."""
        if self._call.session is None or not 200 <= answer.status < 300:
            return False
        self._services.table.end(self._call.session, SessionEnd.TERMINATED)
        return True

    async def _end(self) -> None:
        if self._call.session is not None:
            self._services.table.end(self._call.session, SessionEnd.TERMINATED)
            self._end_what_waits()
        await self._responder.give(replies.ENDED)

    def _end_what_waits(self) -> None:
        if self._call.session is not None:
            self._services.get_streams.end_of(self._call.session)
            self._services.holds.end_of(self._call.session)

    async def _pass(self, answer: Answer) -> None:
        await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
        await relay_rest(answer, self._responder)
