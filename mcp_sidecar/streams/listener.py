"""A GET of an older revision, the client's listening stream: carry out the steps that ``healing.attachment`` decides.

There is never an upstream GET without a client's (it would swallow messages), and never two for one client's: a client that
listens anew has left its former stream, and that one ends first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar, assert_never

from mcp_sidecar import spans
from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import AnswerRewritten, ListeningEnded, OutcomeUnknown
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.attachment import (
    Attachment,
    End,
    Ended,
    Get,
    GoOn,
    Last,
    Refused,
    Relay,
    Step,
    Tell,
    Until,
    Wait,
)
from mcp_sidecar.healing.exchange import Ask, Give, Heal, Pass
from mcp_sidecar.healing.labels import OTHER
from mcp_sidecar.healing.marked_ids import UNMARKED
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.position import Position, note_unanswered
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.session import Session, UpstreamSessionId
from mcp_sidecar.healing.stream_watch import Ending, StreamWatch
from mcp_sidecar.sessions.asker import Asked, media_type_of
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import Loss, tell_loss
from mcp_sidecar.sessions.judge import judge
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.client_stream import ClientStream
from mcp_sidecar.streams.live_stream import LiveStream
from mcp_sidecar.streams.relay import relay_rest, splitter_for
from mcp_sidecar.streams.subscription import Subscription
from mcp_sidecar.upstream.answer import Answer, KeptAnswer, is_event_stream
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.refusals import PingAnswer
from mcp_sidecar.waiting.availability import SLOWEST_PACE_S
from mcp_sidecar.waiting.hold import HeldRequest, Waited
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.reply import OwnAnswer

P = TypeVar("P")


class Listener:
    """One GET of a client. A ``ListenerPort`` of its session, unless the client comes for the answer to a request.

    While its stream is parked no task works on it; whatever is to be done then is done by a new one, which calls ``go_on``.
    """

    __slots__ = (
        "_answer",
        "_attachment",
        "_call",
        "_generation",
        "_is_counted",
        "_is_ended",
        "_is_over",
        "_keepalive",
        "_live",
        "_position",
        "_refusal",
        "_responder",
        "_services",
        "_signature",
        "_stream",
        "_task",
        "_upstream",
        "_upstream_id",
    )

    def __init__(self, services: Services, keepalive: Keepalive, call: Call, responder: Responder) -> None:
        """``call.pairs`` still hold the client's ``Last-Event-ID``; ``keepalive`` comments on what is silent."""
        self._services = services
        self._keepalive = keepalive
        self._call = call
        self._responder = responder
        self._position = Position(call.session, headers.value(call.pairs, headers.LAST_EVENT_ID))
        self._attachment = Attachment(services.policy.mode, call.session, self._position)
        self._upstream = Subscription(services.upstream, services.streams, call, self._position)
        self._stream = ClientStream(responder)
        self._live: LiveStream | None = None
        self._task: asyncio.Task[object] | None = None  # works on it
        self._answer: Answer | None = None
        self._refusal: KeptAnswer | None = None
        self._signature = "id-minted-anew"
        self._upstream_id: UpstreamSessionId | None = None
        self._generation = 1
        self._is_counted = False
        self._is_ended = False  # from outside
        self._is_over = False

    async def run(self) -> None:
        """Listen until the client leaves, the stream is over, or nothing is to be done."""
        self._services.streams.open.get_streams += 1
        self._services.sessions.table.begin_use(self._session)
        self._services.streams.listening.enter(self, self._session)
        await self._work(self._begin())

    @property
    def is_parked(self) -> bool:
        """Whether ``run`` or ``go_on`` has returned although the stream is open."""
        return self._live is not None and self._live.is_parked and not self._is_over

    def within(self, work: Callable[[P], None], argument: P) -> None:
        """Do what a callback brings as the request would do it."""
        if self._live is not None:
            self._live.within(work, argument)

    async def go_on(self) -> None:
        """Do what is to be done since it was parked, until it is parked again or over."""
        if not self._is_over:
            await self._work(self._relay_on())

    def left(self) -> None:
        """The client has left while it was parked, or before it could go on."""
        if not self._is_over:
            self._leave()

    def end(self) -> None:
        """See ``Served``."""
        if self._is_ended:
            return
        self._is_ended = True
        if self._task is not None:
            self._task.cancel()
            return
        self._cut_in_drain()
        self._leave()
        if self._live is not None:
            self._live.resume()

    async def _work(self, first: Awaitable[Step | None]) -> None:
        """Carry out one step after the other; there is none after ``None`` as long as it is parked."""
        self._task = asyncio.current_task()
        try:
            step = await first
            while isinstance(step, Get | Ask | Relay | Wait | Heal):
                step = await self._carry_out(step)
            if step is not None:
                await self._finish(step)
        except asyncio.CancelledError:
            if not self._is_ended or self._task is None:
                raise
            self._task.uncancel()
            self._cut_in_drain()
        finally:
            self._task = None
            if not self.is_parked:
                self._leave()
        if self._is_ended and not self._responder.is_committed:
            await self._answer_ended()

    async def _begin(self) -> Step:
        return self._attachment.begin(replaces_one=await self._take_place())

    def _carry_out(self, step: GoOn) -> Awaitable[Step | None]:
        """What does it, not yet begun."""
        match step:
            case Get():
                return self._get(step)
            case Relay():
                return self._relay(step)
            case Wait():
                return spans.during(step, self._wait(step))
            case Ask():
                return spans.during(step, self._ask(step))
            case Heal():
                return spans.during(step, self._heal(step))
            case _:
                assert_never(step)

    async def _finish(self, step: Last) -> None:
        match step:
            case Pass():
                await self._pass()
            case Give():
                await self._give(step)
            case Tell():
                await self._tell_outcome_unknown()
            case End():
                if step.refused_with is not None:
                    self._services.emit(ListeningEnded(self._label, step.refused_with))
                if step.cut:
                    self._responder.cut()
            case _:
                assert_never(step)

    def _cut_in_drain(self) -> None:
        if self._services.streams.listening.cuts and self._responder.is_committed:
            self._responder.cut()

    def _leave(self) -> None:
        self._is_over = True
        self._upstream.close()
        self._drop_answer()
        self._stream.end()
        if self._session is not None:
            self._services.streams.listening.leaves(self._session, self)
            note_unanswered(self._session, self._watch, self._position.polled)
            if self._is_counted:
                self._session.stream_ends()
        self._services.streams.listening.leave(self)
        self._keepalive.discard(self._responder)
        self._services.sessions.table.end_use(self._session)
        self._services.streams.open.get_streams -= 1

    def _drop_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    async def _answer_ended(self) -> None:
        """The stream was ended from outside before it had begun: by a DELETE, by a newer one, or by the drain."""
        session = self._session
        if session is not None and session.is_ended:
            await self._responder.give(replies.SESSION_NOT_FOUND)
        elif session is not None and self._services.streams.listening.listener_of(session) is not None:
            await self._responder.start_events()
        else:
            await self._responder.give(replies.UNAVAILABLE_PATH)

    @property
    def _session(self) -> Session | None:
        return self._call.session

    @property
    def _watch(self) -> StreamWatch | None:
        return self._live.watch if self._live is not None else None

    # -- as the session's listener ------------------------------------------------------------------------------------

    async def _take_place(self) -> bool:
        """Become the session's listener, unless the client may be after something else here. True if it replaces one."""
        if not self._attachment.may_outlive or self._session is None or self._position.is_poll:
            return False
        former = self._services.streams.listening.listener_of(self._session)
        resumed = self._position.last_seen if self._position.own_id(self._session.generation) is not None else None
        if former is not None and resumed is not None and not former.is_behind(resumed):
            return False
        return await self._services.streams.listening.takes_over(self._session, self)

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

    # -- Get ----------------------------------------------------------------------------------------------------------

    async def _get(self, step: Get) -> Step:
        self._drop_answer()
        generation = self._generation = self._attachment.generation
        self._upstream_id = self._session.upstream_id if self._session is not None else None
        try:
            self._answer = answer = await self._upstream.get(generation, comes_back=step.comes_back)
        except UpstreamFault as fault:
            return self._attachment.failed(fault.fault)
        if answer is not None and self._session is not None:
            trigger = self._call.trigger
            if self._services.sessions.refresher.follows(self._session, generation, answer, trigger):
                generation = self._generation = self._attachment.generation
        if answer is None or self._attachment.generation > generation:
            return self._attachment.moved()
        if answer.status == 200 and is_event_stream(answer):
            return self._attachment.attached()
        return await self._judge(answer)

    async def _judge(self, answer: Answer) -> Step:
        try:
            judged = await judge(answer, self._call.facts(None), self._services.policy.signatures)
        except UpstreamFault as fault:
            return self._attachment.failed(fault.fault)
        self._signature = judged.judgement.name
        refused = Refused.of(judged.judgement, answer.status, judged.seen.body)
        return self._attachment.refused(refused, self._services.clock())

    # -- Ask, Heal and Wait -------------------------------------------------------------------------------------------

    async def _ask(self, step: Ask) -> Step:
        async with self._upstream.unless_moved():
            found = await self._found(step)
            if found is None:
                return self._attachment.expired()
            if self._attachment.generation == self._generation:
                return self._attachment.asked(found, self._services.clock())
        return self._attachment.moved()

    async def _found(self, step: Ask) -> PingAnswer | None:
        session, answer, sessions = self._session, self._answer, self._services.sessions
        assert session is not None, "only a bound session is asked about"
        assert answer is not None, "only an answer is asked about"
        if step.refusal is None:
            return await sessions.refresher.ping(session, self._call.trigger)
        held = HeldRequest(0, self._services.policy.hold_timeout_s, is_stream=True)
        question = Asked(self._generation, self._upstream_id, media_type_of(answer), step)
        waited, found = await sessions.asker.ask(session, question, self._call.trigger, held)
        return found if waited is Waited.BACK else None

    async def _heal(self, step: Heal) -> Step:
        session, answer = self._session, self._answer
        assert session is not None, "only a bound session is healed"
        if answer is None:  # nothing was asked: the id is another session's, and so is what a heal has opened for it
            self._upstream.let_go()
            self._generation = session.generation
        status, is_expiry = self._attachment.lost_with, self._attachment.is_expiry
        loss = Loss(self._generation, step.signature, status, step.is_certain, is_expiry)
        held = HeldRequest(0, self._services.policy.hold_timeout_s, is_stream=True)
        waited, end = await self._services.sessions.healer.heal(
            session, loss, self._call.trigger, held, is_urgent=False
        )
        if waited is not Waited.BACK:
            return self._attachment.expired()
        if end.why is None:
            return self._attachment.healed(self._services.clock())
        self._refusal = end.refusal
        return self._attachment.unhealed(end.why)

    async def _wait(self, step: Wait) -> Step:
        self._drop_answer()
        if step.keeps_open and not self._responder.is_committed:
            self._count()
            await self._responder.start_events()
            self._look_after()
            self._stream.comment()
        if not self._upstream.is_expected:
            async with self._upstream.unless_moved():
                await self._wait_for_turn(step)
        return self._attachment.waited()

    async def _wait_for_turn(self, step: Wait) -> None:
        match step.until:
            case Until.CONNECT:
                await self._services.holds.for_stream()
            case Until.ROUTE:
                await asyncio.sleep(random.uniform(SLOWEST_PACE_S / 2, SLOWEST_PACE_S))
            case Until.TURN:
                if step.pause_s:
                    await asyncio.sleep(step.pause_s)
            case _:
                assert_never(step.until)
        if self._responder.is_committed:
            await self._services.streams.listening.returning.spread()

    def _count(self) -> None:
        if self._session is not None:
            self._session.stream_opens()
            self._is_counted = True

    def _look_after(self) -> None:
        self._stream.may_comment = self._responder.may_comment = True
        self._keepalive.add(self._responder)

    # -- Pass, Give and Tell -------------------------------------------------------------------------------------

    async def _pass(self) -> None:
        """What the upstream answered last: to the GET, or to the heal."""
        if self._refusal is not None:
            refusal = self._refusal
            await self._responder.give(OwnAnswer(refusal.status, body=refusal.body, headers=tuple(refusal.headers)))
            return
        answer = self._answer
        assert answer is not None, "there is an answer to pass"
        await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
        await relay_rest(answer, self._responder)

    async def _give(self, step: Give) -> None:
        if step.reason is Reason.SESSION_LOST:
            self._tell_lost(step.rewrites or 0)
        if step.rewrites is not None:
            self._services.emit(AnswerRewritten(self._label, step.rewrites))
        await self._responder.give(step.answer)

    def _tell_lost(self, status: int) -> None:
        """Mode ``rewrite`` heals nothing, and counts what it could; another principal never heals."""
        if self._call.is_foreign:
            self._services.sessions.healer.refuse_foreign(self._label, self._signature)
        if self._session is not None and self._services.policy.mode is Mode.REWRITE:
            tell_loss(self._session, Loss(self._session.generation, self._signature, status), self._services.emit)

    async def _tell_outcome_unknown(self) -> None:
        """What the client polls for died with its upstream session; a 404 or 405 would leave some clients waiting."""
        if not self._responder.is_committed:
            await self._responder.start_events()
        for request_id in self._position.polled:
            self._services.emit(OutcomeUnknown(self._label, OTHER))
            await self._responder.give(replies.outcome_unknown(request_id))

    # -- Relay --------------------------------------------------------------------------------------------------------

    async def _relay(self, step: Relay) -> Step | None:
        """Relay until the upstream's side ends, or until it is parked."""
        answer = self._answer
        assert answer is not None, "there is a stream to relay"
        if step.behind_break is not None and self._session is not None:
            self._services.sessions.refresher.asked(self._session, step.behind_break, self._call.trigger)
        began_at = self._services.clock()
        await self._open(answer)
        watch, splitter = self._new_watch(), splitter_for(self._services.limits)
        self._live = LiveStream(answer, self._stream, self._session, watch, splitter, began_at)
        self._upstream.attach(answer, self._generation)
        return await self._relay_on()

    async def _relay_on(self) -> Step | None:
        """What has come by now. ``None`` where it is parked."""
        live = self._live
        assert live is not None, "a stream is there"
        ending = await live.relay()
        if ending is None:
            return None
        self._upstream.detach()
        self._drop_answer()
        lived_s = self._services.clock() - live.began_at
        return self._attachment.over(live.watch, Ended(self._generation, lived_s, ending is Ending.BROKEN))

    def _new_watch(self) -> StreamWatch:
        session = self._session
        if session is not None:
            self._services.sessions.list_check.listens(session, self._generation, self._call.trigger)
        mark = UNMARKED if session is None else session.mark_of(self._generation)
        progress = None if session is None else session.progress
        # A call that was sent again goes under an id and a token of ours, and some servers answer and report here.
        return StreamWatch(mark, unanswered=self._position.polled, progress=progress)

    async def _open(self, answer: Answer) -> None:
        """The upstream's stream is there."""
        session = self._session
        self._services.holds.route.note_served()
        if not self._responder.is_committed:
            self._responder.is_event_stream = True
            self._count()
            await self._responder.start(answer.status, answer.reason, self._call.client_headers(answer))
            if session is not None and self._services.policy.heals:
                self._look_after()
                self._services.sessions.notifier.tell_waiting(session)
        answer.forget_head()
        self._call.pack()

    @property
    def _label(self) -> str:
        return self._call.label
