"""A POST of an older revision: carry out the steps that ``healing.exchange`` decides.

This is the one loop; everything that a step needs done is a method below it, in the order in which a request meets it.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Final, assert_never

from mcp_sidecar import spans
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.endpoint.early_stream import EarlyStream
from mcp_sidecar.endpoint.outcome import Detour
from mcp_sidecar.endpoint.reply import Reply
from mcp_sidecar.facts import (
    AnswerRewritten,
    DroppedKind,
    MessageDropped,
    OutcomeUnknown,
    RequestReplayed,
    SessionEnd,
)
from mcp_sidecar.healing import outbound, replies
from mcp_sidecar.healing.exchange import Ask, Awaited, Exchange, Give, Heal, Hold, Pass, Send, Step
from mcp_sidecar.healing.labels import rpc_label
from mcp_sidecar.healing.marked_ids import FIRST, UNMARKED, Mark, Renumbering
from mcp_sidecar.healing.policy import Mode, Policy
from mcp_sidecar.healing.replay import is_safe_in_doubt
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.session import UpstreamSessionId
from mcp_sidecar.sessions.asker import Asked, Asker, media_type_of
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import Loss, tell_loss
from mcp_sidecar.sessions.in_flight import InFlight
from mcp_sidecar.sessions.judge import is_accepted, judge
from mcp_sidecar.sessions.recorder import Recorder
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.upstream.answer import Answer, KeptAnswer, WholeJson, is_json, may_be_kept
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.classify import Verdict, is_plain_success
from mcp_sidecar.verdicts.refusals import Refusal, refusal_of
from mcp_sidecar.waiting.hold import HeldRequest, Waited
from mcp_sidecar.waiting.pauses import Pauses
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message

_SERVED = (Pass, Send)
_NO_IDS: Final = frozenset[JsonRpcId]()


class Post:
    """One exchange, from the client's POST to its answer."""

    def __init__(
        self,
        services: Services,
        call: Call,
        message: Message,
        body: bytes,
        responder: Responder,
        early: EarlyStream,
        *,
        opaque: bool,
        begun: InFlight | None = None,
    ) -> None:
        """``opaque``: the body is encoded and was not read. ``begun``: it is sent already."""
        self._services = services
        self._call = call
        self._message = message
        self._body = body
        self._responder = responder
        self._begun = begun
        self._exchange = self._begin_exchange(opaque)
        self._recorder = Recorder(
            services.sessions.table, services.policy, call, message, services.upstream.affinity_cookies
        )
        self._reply = Reply(services, call, responder, self._exchange, self._recorder)
        self._early = early
        self._held = self._place()
        self._answer: Answer | None = None
        self._json: WholeJson | None = None
        self._refusal: KeptAnswer | None = None
        self._generation = 1
        self._upstream_id: UpstreamSessionId | None = None
        self._pauses: Pauses | None = None
        self._renumbering = Renumbering()
        self._was_healed = False

    @property
    def detour(self) -> Detour:
        """What the answer has cost so far."""
        if self._was_healed:
            return Detour.HEAL
        return Detour.HOLD if self._held.waited_s else Detour.NONE

    async def run(self) -> None:
        """Take the exchange to its end."""
        self._take_part()
        self._reply.progress.forget(self._message)
        try:
            step: Step | None = self._exchange.begin()
            while step is not None:
                match step:
                    case Send():
                        step = await spans.during(step, self._send(step))
                    case Ask():
                        step = await spans.during(step, self._ask(step))
                    case Heal():
                        step = await spans.during(step, self._heal(step))
                    case Hold():
                        step = await spans.during(step, self._hold(step))
                    case Pass():
                        step = await self._pass(step)
                    case Give():
                        await self._give(step)
                        step = None
                    case _:
                        assert_never(step)
        finally:
            self._end()

    def _take_part(self) -> None:
        """From now on, until the end, it is one of the session's own."""
        session = self._call.session
        if session is not None:
            session.post_begins(self._message)
            session.answered(self._message)

    # -- setting out --------------------------------------------------------------------------------------------------

    def _begin_exchange(self, opaque: bool) -> Exchange:
        policy = self._services.policy
        return Exchange(
            message=self._message,
            session=self._call.knowledge,
            mode=policy.mode,
            is_safe=partial(_is_safe, self._message, self._call, policy, self._begun),
            opaque=opaque,
            trust_503=policy.trust_503,
            endpoint_worked=self._services.holds.availability.has_worked,
            may_believe=partial(_may_believe, self._call, self._services.sessions.asker),
        )

    def _place(self) -> HeldRequest:
        policy, call = self._services.policy, self._call
        timeout_s = policy.connect_hold_timeout_s if self._recorder.is_initialize else policy.hold_timeout_s
        ids = [request.id for request in self._message.requests] if call.client_id is not None else []
        keys = frozenset(map(call.held_name, ids))
        return HeldRequest(len(self._body), timeout_s, keys, call.named_session)

    def _end(self) -> None:
        self._drop_answer()
        self._early.close()
        self._reply.progress.forget(self._message)
        self._services.holds.leave(self._held)
        session = self._call.session
        if session is not None:
            session.post_ends()
            session.progress.over(self._renumbering.ids.values())

    def _drop_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = self._json = None

    # -- Send ---------------------------------------------------------------------------------------------------------

    async def _send(self, step: Send) -> Step:
        if self._begun is not None:
            return await self._take_up(self._begun)
        self._drop_answer()
        self._reply.drop_withheld()
        session = self._call.named_session
        self._generation = self._recorder.generation = session.generation if session is not None else 1
        if session is not None:
            if session.is_ended or (session.generation > FIRST and self._exchange.is_unread):
                return self._exchange.ended()
            if session.displaced and not self._call.may_heal:
                return self._exchange.ended()
            if session.displaced:
                self._tell_loss("id-minted-anew", 0)
                return self._exchange.displaced()
            self._upstream_id = session.upstream_id
        outgoing = self._outgoing(renumber=step.renumber)
        if outgoing is None:
            return Give(replies.ACCEPTED, drops=True)
        if step.cause is not None:
            self._services.emit(RequestReplayed(self._label, step.cause, rpc_label(self._message)))
        try:
            try:
                self._answer = await self._services.upstream.send(
                    "POST", self._call.target, self._headers(), outgoing, owner=self._call.owner
                )
            finally:
                self._services.holds.went_on(self._held)
            self._recorder.claim_new_id(self._answer)
            self._follow(self._answer)
            return await self._judge(self._answer)
        except UpstreamFault as fault:
            return self._exchange.failed(fault.fault)

    async def _take_up(self, begun: InFlight) -> Step:
        """The request is on its way already, under the generation of then."""
        self._begun = None
        self._generation = self._recorder.generation = begun.generation
        if self._call.session is not None and self._call.session.generation == begun.generation:
            self._upstream_id = self._call.session.upstream_id
        begun.is_taken = True
        try:
            self._answer = await self._services.upstream.take_up(begun.connection, self._call.owner)
            self._follow(self._answer)
            return await self._judge(self._answer)
        except UpstreamFault as fault:
            return self._exchange.failed(fault.fault)

    def _follow(self, answer: Answer) -> None:
        """The upstream may have gone on under another id by itself; then that one's is what the answer says."""
        session = self._call.session
        if session is not None and self._services.sessions.refresher.follows(
            session, self._generation, answer, self._call.trigger
        ):
            self._generation = self._recorder.generation = session.generation

    def _outgoing(self, *, renumber: bool) -> bytes | None:
        """The body to send under the present generation; ``None`` where nothing of it may go there."""
        session = self._call.named_session
        if renumber:
            outgoing, self._renumbering = outbound.renumbered(self._message, _new_id)
            self._recorder.renumbering = self._renumbering
            self._reply.progress.renumber(self._renumbering)
            return outgoing
        if session is None or self._message.kind is Kind.REQUEST:  # the ids of strangers must not be mixed up
            return self._body
        return outbound.body_of(self._message, self._body, self._mark, session.progress.new_ids)

    def _headers(self) -> list[Pair]:
        """Identity is asked for: what is to be understood must not be compressed."""
        if self._recorder.is_initialize:
            pairs = [pair for pair in self._call.pairs if pair[0].lower() != "accept-encoding"]
        else:
            pairs = self._call.upstream_headers(without={"accept-encoding"})
        return [*pairs, ("Accept-Encoding", "identity")]

    async def _judge(self, answer: Answer) -> Step:
        if 200 <= answer.status < 300:
            self._services.holds.availability.note_worked()
            self._json = await self._whole_json(answer)
        body = self._json.body if self._json is not None else None
        signatures = self._services.policy.signatures
        is_plain = 200 <= answer.status < 300 and (body is None or is_plain_success(body))
        ids = _NO_IDS if is_plain else _ids_upstream(self._message, self._renumbering)
        facts = self._call.facts(self._message.method, ids)
        judgement = (await judge(answer, facts, signatures, body=body)).judgement
        if is_accepted(judgement, answer.status) and self._call.accepted(self._generation, answer):
            self._exchange.session = self._call.knowledge
            self._take_part()
        step = self._exchange.judged(judgement, answer.status)
        if judgement.verdict is Verdict.SESSION_LOST:
            self._tell_loss(judgement.name, answer.status)
        self._note_served(step)
        if self._call.is_foreign and isinstance(step, Give) and judgement.signature is not None:
            self._services.sessions.healer.refuse_foreign(self._label, judgement.signature.name)
        return step

    def _note_served(self, step: Step) -> None:
        """Whoever waits for a route may go on, unless it is still to be settled whether there is one."""
        if isinstance(step, _SERVED) or (isinstance(step, Give) and step.reason is Reason.SESSION_LOST):
            self._services.holds.route.note_served()

    def _tell_loss(self, signature: str, status: int) -> None:
        """Mode ``rewrite`` heals nothing, and counts what it could."""
        if self._call.session is not None and self._services.policy.mode is Mode.REWRITE:
            tell_loss(self._call.session, Loss(self._generation, signature, status), self._services.emit)

    async def _whole_json(self, answer: Answer) -> WholeJson | None:
        """A JSON answer up to ``max_buffered_answer``, so that a cut one can be told; ``None`` if it is larger.

        One that has to be an event, or to be written anew, may be as large as a request.
        """
        if not is_json(answer):
            return None
        limits = self._services.limits
        must_be_whole = self._responder.is_committed or self._renumbering.ids
        limit = limits.max_request_body if must_be_whole else limits.max_buffered_answer
        if not may_be_kept(answer, limit):
            return None
        body = await answer.peek(limit + 1)
        if answer.is_lacking and self._message.requests:
            raise UpstreamFault(Fault.BROKEN)
        return WholeJson(body) if answer.whole and len(body) <= limit else None

    # -- Ask, Heal and Hold -------------------------------------------------------------------------------------------

    async def _ask(self, step: Ask) -> Step:
        session, asker = self._call.named_session, self._services.sessions.asker
        self._let_go()
        if session is None:
            asking = asker.ask_server(self._call.trigger, self._held)
        elif session.is_ended or session.displaced:
            return self._exchange.ended() if session.is_ended else self._exchange.displaced()
        else:
            generation, upstream_id = self._generation, self._upstream_id
            if step.refusal is None:
                generation, upstream_id = session.generation, session.upstream_id
            content_type = media_type_of(self._answer) if self._answer is not None else ""
            question = Asked(generation, upstream_id, content_type, step)
            asking = asker.ask(session, question, self._call.trigger, self._held)
        waited, found = await self._early.during(asking)
        if waited is not Waited.BACK:
            return self._released(waited)
        if session is not None and step.refusal is None:
            self._generation = generation
        next_step = self._exchange.asked(found)
        self._note_served(next_step)
        return next_step

    def _let_go(self) -> None:
        """It may take a while, and others can use the connection."""
        if self._answer is not None and self._answer.whole:
            self._answer.close()

    async def _heal(self, step: Heal) -> Step:
        session = self._call.named_session
        assert session is not None, "only a bound session is healed"
        loss = Loss(self._generation, step.signature, self._answer.status if self._answer else 0, step.is_certain)
        self._let_go()
        heal = self._services.sessions.healer.heal(session, loss, self._call.trigger, self._held)
        waited, end = await self._early.during(heal)
        if waited is not Waited.BACK:
            return self._released(waited)
        if end.why is None:
            self._was_healed = True
            return self._exchange.healed()
        self._refusal = end.refusal
        return self._exchange.unhealed(end.why)

    async def _hold(self, step: Hold) -> Step:
        if step.is_in_question:
            self._let_go()
        else:
            self._drop_answer()
        holds = self._services.holds
        match step.awaited:
            case Awaited.CONNECT:
                wait = holds.for_connect(self._held)
            case Awaited.ROUTE:
                wait = holds.for_route(self._held)
            case Awaited.TURN:
                self._pauses = self._pauses or Pauses()
                wait = holds.for_turn(self._held, self._pauses.next_s(step.pause_s))
            case _:
                assert_never(step.awaited)
        waited = await self._early.during(wait)
        return self._exchange.back() if waited is Waited.BACK else self._released(waited)

    def _released(self, waited: Waited) -> Step:
        if waited is Waited.ENDED:
            return self._exchange.ended()
        return self._exchange.cancelled() if waited is Waited.CANCELLED else self._expired()

    def _expired(self) -> Step:
        step, why = self._exchange.expired(), self._services.holds.failure
        if why is None or not isinstance(step, Give) or step.reason is Reason.OUTCOME_UNKNOWN:
            return step
        return replace(step, answer=replies.failed_to_start(step.answer, why))

    # -- Give ---------------------------------------------------------------------------------------------------------

    async def _give(self, step: Give) -> None:
        self._tell(step)
        answer = step.answer
        if self._responder.is_committed and step.reason is not None:
            answer = replies.in_session(self._reply.still_unanswered, step.reason)
            self._end_if_lost(step.reason)
        await self._responder.give(answer)

    def _end_if_lost(self, reason: Reason) -> None:
        """The 404 that a stream cannot carry comes with the next request."""
        if reason is Reason.SESSION_LOST and self._call.session is not None:
            self._services.sessions.table.end(self._call.session, SessionEnd.GIVEN_UP)

    def _tell(self, step: Give) -> None:
        emit, label = self._services.emit, self._label
        if step.rewrites is not None:
            emit(AnswerRewritten(label, step.rewrites))
        if step.drops:
            kind = DroppedKind.RESPONSE if self._message.responses else DroppedKind.NOTIFICATION
            emit(MessageDropped(label, kind, step.reason.code if step.reason is not None else "session_lost"))
        elif step.reason is Reason.OUTCOME_UNKNOWN:
            emit(OutcomeUnknown(label, rpc_label(self._message)))

    # -- Pass ---------------------------------------------------------------------------------------------------------

    async def _pass(self, step: Pass) -> Step | None:
        session = self._call.named_session
        if step.useless is not None and session is not None:
            self._services.sessions.asker.found_useless(session, step.useless, self._call.identity.credential)
        if self._refusal is not None:
            return await self._reply.pass_refusal(self._refusal)
        answer = self._answer
        assert answer is not None, "there is an answer to pass"
        if step.to_sender and self._reply.has_withheld:
            return await self._reply.pass_withheld()
        asks_about = None
        if self._json is None and self._message.kind is Kind.REQUEST and self._exchange.may_ask:
            asks_about = partial(_asked_about, self._message, self._renumbering, self._upstream_id)
        after = await self._reply.pass_on(
            answer, self._json, self._mark, self._renumbering, to_sender=step.to_sender, asks_about=asks_about
        )
        if after is None and session is not None and 200 <= answer.status < 300:
            self._services.sessions.list_check.answered(session, self._generation, self._call.trigger)
        return after

    @property
    def _mark(self) -> Mark:
        session = self._call.named_session
        return session.mark_of(self._generation) if session is not None else UNMARKED

    @property
    def _label(self) -> str:
        return self._call.label


def _new_id() -> str:
    return f"mcp-sidecar-{secrets.token_hex(8)}"


def _may_believe(call: Call, asker: Asker, refusal: Refusal | None) -> bool:
    session = call.named_session
    return session is not None and asker.is_open(session, refusal, call.identity.credential)


def _ids_upstream(message: Message, renumbering: Renumbering) -> frozenset[JsonRpcId]:
    """The ids under which the requests went."""
    ids = renumbering.ids or [request.id for request in message.requests]
    return frozenset(each for each in ids if each is not None)


def _asked_about(
    message: Message, renumbering: Renumbering, upstream_id: UpstreamSessionId | None, data: bytes
) -> Refusal | None:
    """Whether an event's data are a refusal that has to be asked about."""
    without = (message.method or "", upstream_id or "")
    refusal = refusal_of(HTTPStatus.OK, data, ids=_ids_upstream(message, renumbering), without=without)
    return refusal if refusal.is_asked_about else None


def _is_safe(message: Message, call: Call, policy: Policy, begun: InFlight | None) -> bool:
    """No method of ``Post``: the exchange keeps it, and a circle would keep the body until a collector finds it."""
    session = call.named_session
    if session is None or not policy.trust_annotations:
        return is_safe_in_doubt(message, frozenset())
    known = begun.safe_tools if begun is not None and not begun.is_taken else session.safe_tools
    return is_safe_in_doubt(message, known)
