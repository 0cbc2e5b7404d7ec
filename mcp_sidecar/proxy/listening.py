"""A GET of an older revision: the client's listening stream.

In a session that this sidecar knows the client's stream is the sidecar's: once answered 200 it stays open while the
upstream is away, and is attached again when it is back, after a heal where the session was lost. There is never an
upstream GET without a client's (it would swallow messages), and never two for one client's.
"""

from __future__ import annotations

import asyncio
import random
from enum import Enum

from mcp_sidecar.healing import own_answers
from mcp_sidecar.healing.classify import (
    NO_SIGNATURE,
    PEEK_BYTES,
    Judgement,
    NeedBody,
    SessionKnowledge,
    Verdict,
    judge_body,
    judge_head,
)
from mcp_sidecar.healing.classify import Answer as JudgedAnswer
from mcp_sidecar.healing.exchange import Unhealed
from mcp_sidecar.healing.facts import ActionObserved, AnswerRewritten, ObservedAction, OutcomeUnknown
from mcp_sidecar.healing.generations import Mark
from mcp_sidecar.healing.labels import OTHER
from mcp_sidecar.healing.own_answers import OwnAnswer
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.session import Session
from mcp_sidecar.healing.streams import StreamWatch
from mcp_sidecar.proxy.availability import FAST_PACE_S, SLOWEST_PACE_S
from mcp_sidecar.proxy.call import Call
from mcp_sidecar.proxy.holding import Held, Waited
from mcp_sidecar.proxy.parts import Parts
from mcp_sidecar.proxy.reading import decoded_body, is_event_stream, judged_head
from mcp_sidecar.proxy.relaying import relay_rest, splitter_for
from mcp_sidecar.proxy.responding import Responder
from mcp_sidecar.proxy.restoring import Loss, tell_loss
from mcp_sidecar.proxy.upstream import Answer, UpstreamFault
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair

QUICK_END_S = 1.0
"""Streams that end sooner than this one after the other are attached again only after as long a pause."""


class After(Enum):
    """What follows an attempt to attach."""

    OVER = "over"  # the client has its answer, or its stream has ended
    AGAIN = "again"
    AWAY = "away"  # no connection
    NO_ROUTE = "no route"


class Listening:
    """One GET of a client."""

    def __init__(self, parts: Parts, call: Call, responder: Responder) -> None:
        """``call.pairs`` still hold the client's ``Last-Event-ID``."""
        self._parts = parts
        self._call = call
        self._responder = responder
        self._last_seen = headers.value(call.pairs, headers.LAST_EVENT_ID)
        self._polled = set(call.session.polled_from(self._last_seen)) if call.session is not None else set()
        self._is_poll = bool(self._polled)
        self._pause_s = 0.0
        self._ended_quickly = False
        self._was_away = False
        self._is_looked_after = False
        self._is_counted = False

    async def run(self) -> None:
        """Listen until the client leaves or the stream is over."""
        self._parts.open.get_streams += 1
        try:
            ended_by_itself = await self._parts.get_streams.serve(self._listen(), self._session)
            if not ended_by_itself and not self._responder.is_committed:
                is_over = self._session is not None and self._session.is_ended
                await self._responder.give(own_answers.SESSION_NOT_FOUND if is_over else own_answers.UNAVAILABLE_PATH)
        finally:
            self._parts.open.get_streams -= 1
            self._parts.keeper.discard(self._responder)
            self._responder.may_comment = False
            if self._is_counted and self._session is not None:
                self._session.streams -= 1

    async def _listen(self) -> None:
        after = await self._attach()
        while after is not After.OVER:
            after = await self._come_back(after)

    @property
    def _session(self) -> Session | None:
        return self._call.session

    @property
    def _may_outlive(self) -> bool:
        """Whether the stream goes on when the upstream's side ends."""
        return self._parts.heals and self._session is not None and not self._session.is_ended

    # -- one attempt --------------------------------------------------------------------------------------------------

    async def _attach(self) -> After:
        session = self._session
        if session is not None and session.displaced and not self._parts.observes:
            loss = Loss(session.generation, "id-minted-anew", 0)
            return await (self._heal(loss) if self._parts.heals else self._rewrite(loss.status, loss.signature))
        generation = session.generation if session is not None else 1
        if self._polled and self._own_last_event_id(generation) is None and self._parts.heals:
            return await self._tell_outcome_unknown()
        try:
            answer = await self._parts.upstream.send("GET", self._call.target, self._headers(generation), may_idle=True)
        except UpstreamFault as fault:
            return await self._not_reached(may_have_arrived=fault.fault.may_have_arrived)
        async with answer:
            if session is not None and session.generation > generation and not self._parts.observes:
                return After.AGAIN  # healed meanwhile: what was opened may be another one's by now
            if answer.status == 200 and is_event_stream(answer):
                return await self._relay(answer, generation)
            return await self._refused(answer, generation)

    def _headers(self, generation: int) -> list[Pair]:
        """An event id of an earlier upstream session must never reach a newer one."""
        pairs = self._call.upstream_headers(without={"last-event-id", "accept-encoding"})
        last = self._own_last_event_id(generation)
        if last is not None:
            pairs.append((headers.LAST_EVENT_ID, last))
        return [*pairs, ("Accept-Encoding", "identity")]

    def _own_last_event_id(self, generation: int) -> str | None:
        """The client's last event id as the upstream minted it; ``None`` where it is of another generation."""
        if self._last_seen is None or self._session is None:
            return self._last_seen
        return Mark(self._session.tag, generation).off_text(self._last_seen)

    async def _tell_outcome_unknown(self) -> After:
        """What the client polls for died with its upstream session; a 404 or 405 would leave some clients waiting."""
        if not self._responder.is_committed:
            await self._responder.start_events()
        for request_id in self._polled:
            self._parts.emit(OutcomeUnknown(self._label, OTHER))
            await self._responder.give(own_answers.outcome_unknown(request_id))
        return After.OVER

    async def _not_reached(self, *, may_have_arrived: bool) -> After:
        if self._may_outlive:
            return await self._keep_open(After.NO_ROUTE if may_have_arrived else After.AWAY)
        if not self._responder.is_committed:
            if self._parts.observes:
                self._parts.emit(ActionObserved(self._label, ObservedAction.REPLAY, NO_SIGNATURE))
            gone = own_answers.BAD_GATEWAY if may_have_arrived or self._parts.observes else own_answers.UNAVAILABLE_PATH
            await self._responder.give(gone)
        return After.OVER

    async def _keep_open(self, why: After) -> After:
        """Answer 200 although the upstream is away, unless this session is known to have no such stream."""
        session = self._session
        assert session is not None
        self._was_away = True
        if not self._responder.is_committed:
            if session.refuses_get:
                await self._responder.give(own_answers.GET_NOT_SUPPORTED)
                return After.OVER
            self._count(session)
            await self._responder.start_events()
            self._look_after()
            await self._responder.comment()
        return why

    def _count(self, session: Session | None) -> None:
        if session is not None:
            session.streams += 1
            self._is_counted = True

    def _look_after(self) -> None:
        self._is_looked_after = True
        self._responder.may_comment = True
        self._parts.keeper.add(self._responder)

    # -- the upstream answers with something else than a stream -------------------------------------------------------

    async def _refused(self, answer: Answer, generation: int) -> After:
        judgement, original = await self._judge(answer)
        if answer.status == 405 and self._session is not None:
            self._session.refuses_get = True
        if judgement.verdict in (Verdict.SESSION_LOST, Verdict.AMBIGUOUS):
            return await self._lost(answer, judgement, original, generation)
        if judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body and self._may_outlive:
            return await self._keep_open(After.NO_ROUTE)
        return await self._pass(answer)

    async def _judge(self, answer: Answer) -> tuple[Judgement, JudgedAnswer]:
        facts, head = self._call.facts(None), judged_head(answer)
        judgement = judge_head(facts, head)
        original = JudgedAnswer(head, b"", complete=False)
        if isinstance(judgement, NeedBody):
            try:
                body = await decoded_body(answer, PEEK_BYTES)
            except UpstreamFault:
                body = b""
            original = JudgedAnswer(head, body, complete=answer.whole)
            extra = self._parts.policy.signatures
            judgement = judge_body(facts, head, body, complete=answer.whole, extra=extra)
        return judgement, original

    async def _lost(self, answer: Answer, judgement: Judgement, original: JudgedAnswer, generation: int) -> After:
        is_certain = judgement.verdict is Verdict.SESSION_LOST
        if self._parts.observes:
            bound = self._call.knowledge is SessionKnowledge.BOUND
            action = ObservedAction.HEAL if bound else ObservedAction.REWRITE
            self._parts.emit(ActionObserved(self._label, action, judgement.name))
            return await self._pass(answer)
        name = judgement.name
        if not self._may_outlive:
            return await (self._rewrite(answer.status, name) if is_certain else self._pass(answer))
        if not is_certain and self._last_seen is not None:
            self._last_seen = None  # perhaps only the resume was refused (rmcp up to 1.4: 500)
            return After.AGAIN
        loss = Loss(generation, name, answer.status, None if is_certain else original)
        return await self._heal(loss, answer)

    async def _heal(self, loss: Loss, answer: Answer | None = None) -> After:
        session = self._session
        assert session is not None
        held = Held(0, self._parts.policy.hold_timeout_s)
        waited, end = await self._parts.healer.heal(session, loss, self._call.trigger, held)
        if waited is not Waited.BACK:
            return await self._keep_open(After.NO_ROUTE)  # the upstream may well accept connects: no reason to hurry
        if end.why is Unhealed.UNREACHABLE:
            return await self._keep_open(After.AWAY)
        if end.why is None:
            return await self._begin_anew()
        if end.why in (Unhealed.NO_ROUTE, Unhealed.GATEWAY):
            return await self._keep_open(After.NO_ROUTE)
        if end.why is Unhealed.ALIVE and self._was_away:
            self._was_away = False  # back between that answer and the probe: the answer still was the ingress's
            return After.AGAIN
        if end.refusal is not None and not self._responder.is_committed:
            refusal = end.refusal
            await self._responder.give(OwnAnswer(refusal.status, body=refusal.body, headers=tuple(refusal.headers)))
            return After.OVER
        if end.why is Unhealed.NOT_RESTORED or answer is None:
            return await self._rewrite(loss.status, loss.signature)
        return await self._pass(answer)

    async def _begin_anew(self) -> After:
        """The session is healed: its listener is attached anew, and who polled for an answer learns that there is none."""
        if self._polled:
            return await self._tell_outcome_unknown()
        self._last_seen = None
        return After.AGAIN

    async def _rewrite(self, status: int, signature: str) -> After:
        """Give the 404 in place of an answer; ``status`` is 0 where the upstream was not even asked."""
        if self._call.is_foreign:
            self._parts.healer.refuse_foreign(self._label, signature)
        if self._session is not None and self._parts.policy.mode is Mode.REWRITE:
            tell_loss(self._session, Loss(self._session.generation, signature, status), self._parts.emit)
        if not self._responder.is_committed:
            if status:
                self._parts.emit(AnswerRewritten(self._label, status))
            await self._responder.give(own_answers.SESSION_NOT_FOUND)
        return After.OVER

    async def _pass(self, answer: Answer) -> After:
        """Pass the answer on; a stream that is already open can only end."""
        if not self._responder.is_committed:
            await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
            await relay_rest(answer, self._responder)
        return After.OVER

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def _relay(self, answer: Answer, generation: int) -> After:
        session, started = self._session, self._parts.clock()
        self._parts.holding.route.note_served()
        self._was_away = False
        if session is not None:
            session.refuses_get = False
        if not self._responder.is_committed:
            self._responder.is_event_stream = True
            self._count(session)
            await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
            if session is not None and self._parts.heals:
                self._look_after()
        watch = StreamWatch(Mark(session.tag, generation) if session is not None else Mark("", 1))
        watch.unanswered = self._polled
        owner = session if not self._parts.observes else None
        with self._parts.attachments.holding(owner, answer):
            broke = await self._relay_events(answer, watch)
        if watch.last_event_id is not None:
            self._last_seen = watch.mark.on_text(watch.last_event_id)
        if self._is_poll and not self._polled:
            return After.OVER
        if self._may_outlive and self._is_looked_after and not watch.in_fragment:
            self._note_end(self._parts.clock() - started, watch.retry_ms)
            return After.AGAIN
        if watch.in_fragment or (broke and (session is None or self._parts.policy.mode is Mode.OBSERVE)):
            self._responder.cut()
        return After.OVER

    async def _relay_events(self, answer: Answer, watch: StreamWatch) -> bool:
        """Relay until the upstream's side ends; true if it broke."""
        splitter = splitter_for(watch, self._parts.limits)
        try:
            async for chunk in answer.chunks():
                for piece in splitter.feed(chunk):
                    data, _ = watch.relay(piece)
                    self._responder.may_comment = self._is_looked_after and not watch.in_fragment
                    await self._responder.write(data)
        except UpstreamFault:
            return True
        return False

    def _note_end(self, lived_s: float, retry_ms: int | None) -> None:
        """Once a stream may end at once, as at a restart; a server that does it again is not asked in a loop."""
        asked_s = (retry_ms or 0) / 1000
        is_quick = lived_s < QUICK_END_S
        self._pause_s = asked_s or (QUICK_END_S if is_quick and self._ended_quickly else 0.0)
        self._ended_quickly = is_quick

    # -- coming back --------------------------------------------------------------------------------------------------

    async def _come_back(self, after: After) -> After:
        if after is After.AWAY:
            await self._parts.holding.for_stream(self._parts.availability)
            await asyncio.sleep(random.uniform(0, FAST_PACE_S))
        elif after is After.NO_ROUTE:
            await asyncio.sleep(random.uniform(SLOWEST_PACE_S / 2, SLOWEST_PACE_S))
        elif self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            await asyncio.sleep(pause_s)
        if self._session is not None and self._session.is_ended:
            return After.OVER
        return await self._attach()

    @property
    def _label(self) -> str:
        return self._call.label(self._parts)
