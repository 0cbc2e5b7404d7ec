"""A GET of an older revision: the client's listening stream.

In a session that this sidecar knows the client's stream is the sidecar's: once answered 200 it stays open while the
upstream is away, and is attached again when it is back, after a heal where the session was lost. There is never an
upstream GET without a client's (it would swallow messages), and never two for one client's: a client that listens anew
has left its former stream, and that one ends first.
"""

from __future__ import annotations

import asyncio
import random
from enum import Enum

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import ActionObserved, AnswerRewritten, ObservedAction, OutcomeUnknown
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.exchange import Unhealed
from mcp_sidecar.healing.labels import OTHER
from mcp_sidecar.healing.marked_ids import FIRST, Mark, Renumbering
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.position import Position, note_unanswered
from mcp_sidecar.healing.session import Session, UpstreamSessionId
from mcp_sidecar.healing.stream_watch import StreamWatch
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import Loss, tell_loss
from mcp_sidecar.sessions.judge import judged_get
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.client_stream import ClientStream
from mcp_sidecar.streams.relay import relay_rest, splitter_for
from mcp_sidecar.streams.subscription import Subscription
from mcp_sidecar.upstream.answer import Answer, is_event_stream
from mcp_sidecar.upstream.connection import UpstreamFault
from mcp_sidecar.verdicts.classify import NO_SIGNATURE, Judgement, SessionKnowledge, Verdict
from mcp_sidecar.verdicts.classify import Answer as JudgedAnswer
from mcp_sidecar.waiting.availability import SLOWEST_PACE_S
from mcp_sidecar.waiting.hold import HeldRequest, Waited
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.sse import Block, EventSplitter, Fragment

QUICK_END_S = 1.0
"""Streams that end sooner than this one after the other are attached again only after as long a pause."""

CONFLICT, CONFLICTS = 409, 20
"""How often a stream that was there before is tried again, at ``SLOWEST_PACE_S``: the server needs a moment to learn that
the former one is closed."""


class After(Enum):
    """What follows an attempt to attach."""

    ATTACHED = "attached"  # the stream is there, to be relayed
    OVER = "over"  # the client has its answer, or its stream has ended
    AGAIN = "again"
    AWAY = "away"  # no connection
    NO_ROUTE = "no route"


class Listener:
    """One GET of a client. A ``ListenerPort`` of its session, unless the client comes for the answer to a request.

    While nothing comes there are no more coroutines of it than ``run`` and ``_relay``, and no context managers: there
    may be thousands of streams, and that is most of what one takes.
    """

    __slots__ = (
        "_answer",
        "_call",
        "_conflicts_left",
        "_ended_quickly",
        "_generation",
        "_is_counted",
        "_is_looked_after",
        "_pause_s",
        "_position",
        "_responder",
        "_services",
        "_stream",
        "_upstream",
        "_was_away",
        "_watch",
    )

    def __init__(self, services: Services, call: Call, responder: Responder) -> None:
        """``call.pairs`` still hold the client's ``Last-Event-ID``."""
        self._services = services
        self._call = call
        self._responder = responder
        self._position = Position(call.session, headers.value(call.pairs, headers.LAST_EVENT_ID))
        self._upstream = Subscription(services, call, self._position)
        self._stream = ClientStream(responder)
        self._watch: StreamWatch | None = None
        self._answer: Answer | None = None
        self._generation = 1
        self._pause_s = 0.0
        self._conflicts_left = 0
        self._ended_quickly = False
        self._was_away = False
        self._is_looked_after = False
        self._is_counted = False

    async def run(self) -> None:
        """Listen until the client leaves or the stream is over."""
        self._services.open.get_streams += 1
        self._services.table.begin_use(self._session)
        self._services.get_streams.enter(self._session)
        is_ended = False
        try:
            await self._take_place()
            after = await self._attach()
            while after is not After.OVER:
                after = await (self._relay() if after is After.ATTACHED else self._come_back(after))
        except asyncio.CancelledError:
            is_ended = self._services.get_streams.ends_this()
            if not is_ended:
                raise
        finally:
            self._leave()
        if is_ended and not self._responder.is_committed:
            await self._answer_ended()

    def _leave(self) -> None:
        self._upstream.close()
        self._stream.end()
        if self._session is not None:
            self._services.get_streams.leaves(self._session, self)
            note_unanswered(self._session, self._watch, self._position.polled)
            if self._is_counted:
                self._session.streams -= 1
        self._services.get_streams.leave()
        self._services.keepalive.discard(self._responder)
        self._services.table.end_use(self._session)
        self._services.open.get_streams -= 1

    async def _answer_ended(self) -> None:
        """The stream was ended from outside before it had begun: by a DELETE, by a newer one, or by the drain."""
        session = self._session
        if session is not None and session.is_ended:
            await self._responder.give(replies.SESSION_NOT_FOUND)
        elif session is not None and self._services.get_streams.listener_of(session) is not None:
            await self._responder.start_events()
        else:
            await self._responder.give(replies.UNAVAILABLE_PATH)

    @property
    def _session(self) -> Session | None:
        return self._call.session

    @property
    def _may_outlive(self) -> bool:
        """Whether the stream goes on when the upstream's side ends."""
        return self._services.heals and self._session is not None and not self._session.is_ended

    # -- as the session's listener ------------------------------------------------------------------------------------

    async def _take_place(self) -> None:
        """Become the session's listener. A former one ends, unless the client may be after something else here."""
        if not self._may_outlive or self._session is None or self._position.is_poll:
            return
        former = self._services.get_streams.listener_of(self._session)
        resumed = self._position.last_seen if self._position.own_id(self._session.generation) is not None else None
        if former is not None and resumed is not None and not former.is_behind(resumed):
            return
        if await self._services.get_streams.takes_over(self._session, self):
            self._conflicts_left = CONFLICTS

    def is_behind(self, event_id: str) -> bool:
        """See ``ListenerPort``."""
        return self._position.is_at(event_id, self._watch)

    async def tell(self, events: bytes) -> bool:
        """See ``ListenerPort``."""
        return await self._stream.tell(events)

    async def open_ahead(self, upstream_id: UpstreamSessionId, generation: int) -> None:
        """See ``ListenerPort``."""
        await self._upstream.open_ahead(upstream_id, generation)

    def heal_ended(self) -> None:
        """See ``ListenerPort``."""
        self._upstream.heal_ended()

    # -- one attempt --------------------------------------------------------------------------------------------------

    async def _attach(self, *, comes_back: bool = False) -> After:
        session = self._session
        if session is not None and session.displaced and not self._services.observes:
            self._upstream.let_go()  # it would be a window into another one's session
            loss = Loss(session.generation, "id-minted-anew", 0)
            return await (self._heal(loss) if self._services.heals else self._rewrite(loss.status, loss.signature))
        generation = session.generation if session is not None else 1
        if self._services.heals and self._position.is_stranded(generation):
            return await self._tell_outcome_unknown()
        try:
            answer = await self._upstream.get(generation, comes_back=comes_back)
        except UpstreamFault as fault:
            return await self._not_reached(may_have_arrived=fault.fault.may_have_arrived)
        if answer is None:
            return After.AGAIN
        is_stale = session is not None and session.generation > generation and not self._services.observes
        if answer.status == 200 and is_event_stream(answer) and not is_stale:
            self._answer, self._generation = answer, generation
            return After.ATTACHED
        async with answer:
            # healed meanwhile: what was opened may be another one's by now
            return After.AGAIN if is_stale else await self._refused(answer, generation)

    async def _tell_outcome_unknown(self) -> After:
        """What the client polls for died with its upstream session; a 404 or 405 would leave some clients waiting."""
        if not self._responder.is_committed:
            await self._responder.start_events()
        for request_id in self._position.polled:
            self._services.emit(OutcomeUnknown(self._label, OTHER))
            await self._responder.give(replies.outcome_unknown(request_id))
        return After.OVER

    async def _not_reached(self, *, may_have_arrived: bool) -> After:
        if self._may_outlive:
            return await self._keep_open(After.NO_ROUTE if may_have_arrived else After.AWAY)
        if not self._responder.is_committed:
            if self._services.observes:
                self._services.emit(ActionObserved(self._label, ObservedAction.REPLAY, NO_SIGNATURE))
            gone = replies.BAD_GATEWAY if may_have_arrived or self._services.observes else replies.UNAVAILABLE_PATH
            await self._responder.give(gone)
        return After.OVER

    async def _keep_open(self, why: After) -> After:
        """Answer 200 although the upstream is away, unless this session is known to have no such stream."""
        session = self._session
        assert session is not None
        self._was_away = True
        if not self._responder.is_committed:
            if session.refuses_get and not self._position.is_poll:
                await self._responder.give(replies.GET_NOT_SUPPORTED)
                return After.OVER
            self._count(session)
            await self._responder.start_events()
            self._look_after()
            await self._stream.comment()
        return why

    def _count(self, session: Session | None) -> None:
        if session is not None:
            session.streams += 1
            self._is_counted = True

    def _look_after(self) -> None:
        self._is_looked_after = True
        self._stream.may_comment = self._responder.may_comment = True
        self._services.keepalive.add(self._responder)

    # -- the upstream answers with something else than a stream -------------------------------------------------------

    async def _refused(self, answer: Answer, generation: int) -> After:
        judgement, original = await judged_get(answer, self._call.facts(None), self._services.policy.signatures)
        if answer.status == 405 and self._session is not None and self._position.last_seen is None:
            self._session.refuses_get = True
        if judgement.verdict in (Verdict.SESSION_LOST, Verdict.AMBIGUOUS):
            return await self._lost(answer, judgement, original, generation)
        if judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body and self._may_outlive:
            return await self._keep_open(After.NO_ROUTE)
        if judgement.verdict is not Verdict.AUTH_FAILURE and self._may_outlive:
            return await self._refused_in_session(answer)
        return await self._pass(answer)

    async def _refused_in_session(self, answer: Answer) -> After:
        """The session is alive, and the client's stream may be had in another way."""
        if self._position.is_poll:
            return await self._tell_outcome_unknown()
        if answer.status == CONFLICT and self._conflicts_left:
            self._conflicts_left -= 1
            return After.NO_ROUTE
        if self._responder.is_committed and self._position.last_seen is not None:
            self._position.forget()  # it cannot be resumed here
            return After.AGAIN
        return await self._pass(answer)

    async def _lost(self, answer: Answer, judgement: Judgement, original: JudgedAnswer, generation: int) -> After:
        is_certain = judgement.verdict is Verdict.SESSION_LOST
        if self._services.observes:
            bound = self._call.knowledge is SessionKnowledge.BOUND
            action = ObservedAction.HEAL if bound else ObservedAction.REWRITE
            self._services.emit(ActionObserved(self._label, action, judgement.name))
            return await self._pass(answer)
        name = judgement.name
        if not self._may_outlive:
            return await (self._rewrite(answer.status, name) if is_certain else self._pass(answer))
        if not is_certain and self._position.last_seen is not None:
            self._position.forget()  # perhaps only the resume was refused (rmcp up to 1.4: 500)
            return After.AGAIN
        loss = Loss(generation, name, answer.status, None if is_certain else original)
        return await self._heal(loss, answer)

    async def _heal(self, loss: Loss, answer: Answer | None = None) -> After:
        session = self._session
        assert session is not None
        held = HeldRequest(0, self._services.policy.hold_timeout_s, is_stream=True)
        waited, end = await self._services.healer.heal(session, loss, self._call.trigger, held, is_urgent=False)
        if waited is not Waited.BACK:
            return await self._keep_open(After.NO_ROUTE)  # the upstream may well accept connects: no reason to hurry
        if end.why is Unhealed.UNREACHABLE:
            return await self._keep_open(After.AWAY)
        if end.why is None:
            return After.AGAIN
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

    async def _rewrite(self, status: int, signature: str) -> After:
        """Give the 404 in place of an answer; ``status`` is 0 where the upstream was not even asked."""
        if self._call.is_foreign:
            self._services.healer.refuse_foreign(self._label, signature)
        if self._session is not None and self._services.policy.mode is Mode.REWRITE:
            tell_loss(self._session, Loss(self._session.generation, signature, status), self._services.emit)
        if not self._responder.is_committed:
            if status:
                self._services.emit(AnswerRewritten(self._label, status))
            await self._responder.give(replies.SESSION_NOT_FOUND)
        return After.OVER

    async def _pass(self, answer: Answer) -> After:
        """Pass the answer on; a stream that is already open can only end."""
        if not self._responder.is_committed:
            await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
            await relay_rest(answer, self._responder)
        return After.OVER

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def _relay(self) -> After:
        """Relay until the upstream's side ends."""
        answer, self._answer = self._answer, None
        assert answer is not None
        started, broke = self._services.clock(), False
        try:
            await self._begin(answer)
            watch, splitter = self._watch_events()
            self._upstream.attach(answer, self._generation)
            try:
                while not answer.whole:
                    await answer.arrival()
                    for piece in splitter.feed(answer.take()):
                        await self._relay_piece(piece, watch)
            except UpstreamFault:
                broke = True
            finally:
                self._upstream.detach(answer)
        finally:
            answer.close()
        return self._after_end(watch, broke=broke, lived_s=self._services.clock() - started)

    async def _relay_piece(self, piece: Block | Fragment, watch: StreamWatch) -> None:
        data, message = watch.relay(piece)
        if message is not None and self._session is not None:
            self._session.client_state.heard(message, watch.mark)
        await self._stream.relay(data, in_event=watch.in_fragment)

    def _watch_events(self) -> tuple[StreamWatch, EventSplitter]:
        session = self._session
        if session is not None:
            self._services.list_check.listens(session, self._generation, self._call.trigger)
        self._watch = watch = _watch(session, self._generation)
        watch.unanswered = self._position.polled
        return watch, splitter_for(self._services.limits)

    def _after_end(self, watch: StreamWatch, *, broke: bool, lived_s: float) -> After:
        session = self._session
        self._position.advance(watch)
        if self._position.is_answered:
            return After.OVER
        if self._may_outlive and self._is_looked_after and not watch.in_fragment:
            if session is not None and session.generation == self._generation:
                self._note_end(lived_s, watch.retry_ms)
            return After.AGAIN
        if watch.in_fragment or (broke and (session is None or self._services.policy.mode is Mode.OBSERVE)):
            self._responder.cut()
        return After.OVER

    async def _begin(self, answer: Answer) -> None:
        """The upstream's stream is there."""
        session = self._session
        self._services.holds.route.note_served()
        self._was_away = False
        self._conflicts_left = CONFLICTS
        if session is not None:
            session.refuses_get = False
        if not self._responder.is_committed:
            self._responder.is_event_stream = True
            self._count(session)
            await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
            if session is not None and self._services.heals:
                self._look_after()
                self._services.notifier.tell_waiting(session)
        answer.forget_head()
        self._call.pack()

    def _note_end(self, lived_s: float, retry_ms: int | None) -> None:
        """Once a stream may end at once, as at a restart; a server that does it again is not asked in a loop."""
        asked_s = (retry_ms or 0) / 1000
        is_quick = lived_s < QUICK_END_S
        self._pause_s = asked_s or (QUICK_END_S if is_quick and self._ended_quickly else 0.0)
        self._ended_quickly = is_quick

    # -- coming back --------------------------------------------------------------------------------------------------

    async def _come_back(self, after: After) -> After:
        if not self._upstream.is_expected:
            async with self._upstream.unless_moved():
                await self._wait_for_turn(after)
        if self._session is not None and self._session.is_ended:
            return After.OVER
        return await self._attach(comes_back=True)

    async def _wait_for_turn(self, after: After) -> None:
        if after is After.AWAY:
            await self._services.holds.for_stream(self._services.availability)
        elif after is After.NO_ROUTE:
            await asyncio.sleep(random.uniform(SLOWEST_PACE_S / 2, SLOWEST_PACE_S))
        elif self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            await asyncio.sleep(pause_s)
        if self._responder.is_committed:
            await self._services.get_streams.returning.spread()

    @property
    def _label(self) -> str:
        return self._call.label(self._services)


def _watch(session: Session | None, generation: int) -> StreamWatch:
    """A call that was sent again reports its progress under a token of ours, and some servers do so here."""
    if session is None:
        return StreamWatch(Mark("", FIRST))
    renumbering = Renumbering(tokens=session.progress.renewed)
    return StreamWatch(Mark(session.tag, generation), renumbering, progress=session.progress)
