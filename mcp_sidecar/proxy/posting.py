"""A POST of an older revision: carry out the steps that ``healing.exchange`` decides.

This is the one loop; everything that a step needs done is a method below it, in the order in which a request meets it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from mcp_sidecar.healing import own_answers
from mcp_sidecar.healing.annotations import updated as updated_tools
from mcp_sidecar.healing.classify import PEEK_BYTES, NeedBody, Verdict, judge_body, judge_head
from mcp_sidecar.healing.classify import Answer as JudgedAnswer
from mcp_sidecar.healing.exchange import Awaited, Exchange, Give, Heal, Hold, Pass, Send, Step
from mcp_sidecar.healing.facts import (
    ActionObserved,
    AnswerRewritten,
    DroppedKind,
    MessageDropped,
    OutcomeUnknown,
    RequestReplayed,
)
from mcp_sidecar.healing.faults import Fault
from mcp_sidecar.healing.generations import FIRST, Mark, Renumbering
from mcp_sidecar.healing.labels import rpc_label
from mcp_sidecar.healing.own_answers import OwnAnswer, Reason
from mcp_sidecar.healing.recorded import Handshake
from mcp_sidecar.healing.replay import is_safe_in_doubt
from mcp_sidecar.healing.session import ClientSessionId, UpstreamSessionId
from mcp_sidecar.healing.streams import AfterEnd, StreamWatch, unanswered_ids
from mcp_sidecar.proxy import outbound, rejections
from mcp_sidecar.proxy.bodies import UNREADABLE, Body, HeldBody, PassingBody
from mcp_sidecar.proxy.call import Call
from mcp_sidecar.proxy.holding import Held, Waited
from mcp_sidecar.proxy.parts import Parts
from mcp_sidecar.proxy.reading import KeptAnswer, decoded_body, is_event_stream, is_json, judged_head, kept, may_be_kept
from mcp_sidecar.proxy.relaying import EventRelay, Overhearing, relay_rest
from mcp_sidecar.proxy.responding import Responder
from mcp_sidecar.proxy.restoring import Loss
from mcp_sidecar.proxy.upstream import Answer, UpstreamFault
from mcp_sidecar.proxy.upstream import Body as UpstreamBody
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.messages import Kind, Message, NotJson, dump, is_initialize_result, parse

_PASSED = frozenset({Verdict.OK, Verdict.AUTH_FAILURE, Verdict.OTHER})
"""What an answer may mean and yet be the client's own: it passes while the request is still on its way."""


class Posting:
    """One exchange, from the client's POST to its answer."""

    def __init__(
        self, parts: Parts, call: Call, message: Message, body: Body, responder: Responder, *, opaque: bool
    ) -> None:
        """``opaque``: the body is encoded and was not read."""
        self._parts = parts
        self._call = call
        self._message = message
        self._body = body
        self._responder = responder
        self._is_initialize = message.kind is Kind.REQUEST and message.method == "initialize"
        self._exchange = self._begin_exchange(opaque)
        self._held = self._place()
        self._answer: Answer | None = None
        self._json: bytes | None = None
        self._original: JudgedAnswer | None = None
        self._refusal: KeptAnswer | None = None
        self._generation = 1
        self._renumbering = Renumbering()
        self._watch: StreamWatch | None = None
        self._shown_id: str | None = None

    async def run(self) -> None:
        """Take the exchange to its end."""
        try:
            step: Step | None = self._exchange.begin()
            while step is not None:
                match step:
                    case Send():
                        step = await self._send(step)
                    case Heal():
                        step = await self._heal(step)
                    case Hold():
                        step = await self._hold(step.awaited)
                    case Pass():
                        step = await self._pass()
                    case Give():
                        await self._give(step)
                        step = None
                    case _:
                        assert_never(step)
        finally:
            self._end()

    # -- setting out --------------------------------------------------------------------------------------------------

    def _begin_exchange(self, opaque: bool) -> Exchange:
        policy = self._parts.policy
        return Exchange(
            message=self._message,
            session=self._call.knowledge,
            mode=policy.mode,
            is_safe=self._is_safe,
            whole=isinstance(self._body, HeldBody),
            opaque=opaque,
            trust_503=policy.trust_503,
            endpoint_worked=self._parts.endpoint_worked,
        )

    def _is_safe(self) -> bool:
        session = self._call.session
        trusts = session is not None and self._parts.policy.trust_annotations
        return is_safe_in_doubt(self._message, session.safe_tools if session is not None and trusts else frozenset())

    def _place(self) -> Held:
        policy, session = self._parts.policy, self._call.session
        timeout_s = policy.connect_hold_timeout_s if self._is_initialize else policy.hold_timeout_s
        is_cancellable = session is not None and self._message.kind is Kind.REQUEST
        key = (session, self._message.id) if is_cancellable and session is not None else None
        return Held(self._body.size, timeout_s, key)

    def _end(self) -> None:
        self._drop_answer()
        self._parts.holding.leave(self._held)
        session = self._call.session
        if session is not None:
            for old in self._renumbering.ids.values():
                self._parts.renumbered.pop((session, old), None)

    def _drop_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    # -- Send ---------------------------------------------------------------------------------------------------------

    async def _send(self, step: Send) -> Step:
        self._drop_answer()
        session = self._call.session
        if session is not None and session.generation > FIRST:
            refusal = await self._keep_answers()
            if refusal is not None:
                return refusal
        self._generation = session.generation if session is not None else 1
        if session is not None and session.displaced and not self._parts.observes:
            return self._exchange.displaced()
        outgoing = self._outgoing(renumber=step.renumber)
        if outgoing is None:
            return Give(own_answers.ACCEPTED, drops=True)
        if step.cause is not None:
            self._parts.emit(RequestReplayed(self._label, step.cause, rpc_label(self._message)))
        try:
            self._answer = await self._parts.upstream.send("POST", self._call.target, self._headers(), outgoing)
            self._claim_new_id(self._answer)
            return await self._judge(self._answer)
        except UpstreamFault as fault:
            return await self._failed(fault.fault)

    async def _keep_answers(self) -> Give | None:
        """Have the whole of what may answer a question: only then is it known which generation it belongs to."""
        if not isinstance(self._body, PassingBody) or self._body.has_begun or not self._body.may_hold_answers:
            return None
        try:
            self._body = HeldBody(await self._body.whole())
            self._message = self._exchange.message = parse(self._body.data)
        except UNREADABLE as error:
            return Give(rejections.of(error))
        return None

    def _outgoing(self, *, renumber: bool) -> UpstreamBody:
        """The body to send under the present generation; ``None`` where nothing of it may go there."""
        if not isinstance(self._body, HeldBody):
            return self._body.parts()
        session = self._call.session
        if renumber:
            outgoing, self._renumbering = outbound.renumbered(self._message, self._parts.new_id)
            if session is not None:
                self._parts.renumbered.update({(session, old): new for new, old in self._renumbering.ids.items()})
            return outgoing
        if session is None or self._message.kind is Kind.REQUEST:  # the ids of strangers must not be mixed up
            return self._body.data
        return outbound.body_of(self._message, self._body.data, self._mark, self._parts.renumbered, session)

    def _headers(self) -> list[Pair]:
        """Identity is asked for: what is to be understood must not be compressed."""
        if self._is_initialize:
            pairs = [pair for pair in self._call.pairs if pair[0].lower() != "accept-encoding"]
        else:
            pairs = self._call.upstream_headers(without={"accept-encoding"})
        if isinstance(self._body, PassingBody) and self._body.announced is not None:
            pairs = [*pairs, ("Content-Length", str(self._body.announced))]
        return [*pairs, ("Accept-Encoding", "identity")]

    async def _failed(self, fault: Fault) -> Step:
        is_over = not self._parts.heals or (isinstance(self._body, PassingBody) and self._body.has_begun)
        return (is_over and await self._read_to_end()) or self._exchange.failed(fault)

    async def _read_to_end(self) -> Give | None:
        """What a large message says at its end, perhaps its id, must be known before it gets an answer of ours.

        An answer itself where the client's body is at fault.
        """
        if isinstance(self._body, PassingBody):
            try:
                self._message = self._exchange.message = await self._body.read_to_end()
            except UNREADABLE as error:
                return Give(rejections.of(error))
        return None

    async def _expired(self) -> Step:
        return await self._read_to_end() or self._exchange.expired()

    async def _judge(self, answer: Answer) -> Step:
        if isinstance(self._body, PassingBody):
            self._message = self._exchange.message = self._body.message  # by now more of it is known
        facts, head = self._call.facts(self._message.method), judged_head(answer)
        if 200 <= answer.status < 300:
            self._parts.endpoint_worked = True
            self._json = await self._whole_json(answer)
        judgement = judge_head(facts, head)
        if isinstance(judgement, NeedBody):
            body = self._json if self._json is not None else await self._peek(answer)
            self._original = JudgedAnswer(head, body, complete=answer.whole)
            judgement = judge_body(facts, head, body, complete=answer.whole, extra=self._parts.policy.signatures)
        if not self._parts.observes and (judgement.verdict not in _PASSED or judgement.bare_404):
            refusal = await self._read_to_end()
            if refusal is not None:
                return refusal
        step = self._exchange.judged(judgement, answer.status)
        if not (isinstance(step, Hold) and step.awaited is Awaited.ROUTE):
            self._parts.holding.route.note_served()
        if self._call.is_foreign and isinstance(step, Give) and judgement.signature is not None:
            self._parts.healer.refuse_foreign(self._label, judgement.signature.name)
        return step

    async def _peek(self, answer: Answer) -> bytes:
        try:
            return await decoded_body(answer, PEEK_BYTES)
        except UpstreamFault:
            if 200 <= answer.status < 300 and not self._parts.observes:
                raise
            return b""  # an error whose body broke off: its status still counts

    async def _whole_json(self, answer: Answer) -> bytes | None:
        """A JSON answer up to ``max_buffered_answer``, so that a cut one can be told; ``None`` if it is larger."""
        if not is_json(answer) or self._parts.observes:
            return None
        limit = self._parts.limits.max_buffered_answer
        if not may_be_kept(answer, limit):
            return None
        body = await answer.peek(limit + 1)
        return body if answer.whole and len(body) <= limit else None

    # -- Heal and Hold ------------------------------------------------------------------------------------------------

    async def _heal(self, step: Heal) -> Step:
        session = self._call.session
        assert session is not None, "only a bound session is healed"
        original = self._original if step.confirm else None
        loss = Loss(self._generation, step.signature, self._answer.status if self._answer else 0, original)
        waited, end = await self._parts.healer.heal(session, loss, self._call.trigger, self._held)
        if waited is not Waited.BACK:
            return self._exchange.cancelled() if waited is Waited.CANCELLED else await self._expired()
        if end.why is None:
            return self._exchange.healed()
        self._refusal = end.refusal
        return self._exchange.unhealed(end.why)

    async def _hold(self, awaited: Awaited) -> Step:
        self._drop_answer()
        if awaited is Awaited.CONNECT:
            waited = await self._parts.holding.for_connect(self._held, self._parts.availability)
        else:
            waited = await self._parts.holding.for_route(self._held)
        if waited is Waited.BACK:
            return self._exchange.back()
        return self._exchange.cancelled() if waited is Waited.CANCELLED else await self._expired()

    # -- Give ---------------------------------------------------------------------------------------------------------

    async def _give(self, step: Give) -> None:
        self._tell(step)
        answer = step.answer
        if self._responder.is_committed and step.reason is not None:
            answer = own_answers.in_session(self._still_unanswered(), step.reason)
        await self._responder.give(answer)

    def _still_unanswered(self) -> Message:
        """The message without those requests of a batch whose answers the client has."""
        waiting = self._watch.unanswered if self._watch is not None else None
        if waiting is None or not self._message.members:
            return self._message
        members = [m for m in self._message.members if m.kind is not Kind.REQUEST or m.id in waiting]
        return replace(self._message, members=tuple(members))

    def _tell(self, step: Give) -> None:
        self._tell_observed()
        if self._parts.observes:
            return
        emit, label = self._parts.emit, self._label
        if step.rewrites is not None:
            emit(AnswerRewritten(label, step.rewrites))
        if step.drops:
            kind = DroppedKind.RESPONSE if self._message.responses else DroppedKind.NOTIFICATION
            emit(MessageDropped(label, kind, step.reason.code if step.reason is not None else "session_lost"))
        elif step.reason is Reason.OUTCOME_UNKNOWN:
            emit(OutcomeUnknown(label, rpc_label(self._message)))

    def _tell_observed(self) -> None:
        for action in self._exchange.observed:
            self._parts.emit(ActionObserved(self._label, action, "observed"))
        self._exchange.observed.clear()

    # -- Pass ---------------------------------------------------------------------------------------------------------

    async def _pass(self) -> Step | None:
        self._tell_observed()
        if self._refusal is not None:
            return await self._pass_refusal(self._refusal)
        answer = self._answer
        assert answer is not None, "there is an answer to pass"
        if self._parts.observes:
            await self._pass_observed(answer)
            return None
        if self._json is not None and not self._looks_into_json:
            await self._responder.start(answer.status, answer.reason, self._head(answer))
            await self._responder.write(self._json)
            return None
        if self._watch is None:
            self._watch = StreamWatch(self._mark, unanswered=unanswered_ids(self._message))
        self._watch.mark, self._watch.renumbering = self._mark, self._renumbering
        if self._json is not None:
            return await self._pass_json(answer, self._json)
        if is_event_stream(answer) and 200 <= answer.status < 300:
            return await self._pass_events(answer)
        is_under_new_id = bool(self._renumbering.ids) and 200 <= answer.status < 300
        if self._responder.is_committed or is_under_new_id:  # the client would not find its answer
            return self._exchange.stream_broke(AfterEnd.TELL)
        return await self._pass_rest(answer)

    @property
    def _looks_into_json(self) -> bool:
        """Whether there is anything to write anew, to learn, or to wait for in a JSON answer."""
        is_as_sent = self._generation == FIRST and not self._renumbering.ids and not self._renumbering.tokens
        is_learned = self._is_initialize or self._message.method == "tools/list"
        return is_learned or not is_as_sent or self._responder.is_committed

    async def _pass_observed(self, answer: Answer) -> None:
        """As a plain proxy would, but for what is learned on the way."""
        await self._responder.start(answer.status, answer.reason, answer.client_headers())
        limit = self._parts.limits.max_buffered_answer
        await relay_rest(answer, self._responder, Overhearing(answer, limit, self._learn))

    async def _pass_rest(self, answer: Answer) -> Step | None:
        """An answer that is nobody's business; one that is small enough is passed on only if it is whole."""
        limit = self._parts.limits.max_buffered_answer
        if may_be_kept(answer, limit):
            if answer.status >= 400:
                await self._pass_error(answer, limit)
                return None
            try:
                await answer.peek(limit + 1)
            except UpstreamFault as fault:
                if self._waits_for_status_only and 200 <= answer.status < 300:
                    return Give(own_answers.ACCEPTED)
                return await self._failed(fault.fault)
        await self._responder.start(answer.status, answer.reason, self._head(answer))
        await relay_rest(answer, self._responder)
        return None

    async def _pass_error(self, answer: Answer, limit: int) -> None:
        """An error is the upstream's word, whatever became of its body: what came of that is passed on."""
        error = await kept(answer, limit + 1)
        if answer.whole or len(error.body) > limit:
            await self._responder.start(answer.status, answer.reason, self._head(answer))
            await relay_rest(answer, self._responder)
            return
        pairs = [*self._head(answer, without={"content-length"}), ("Content-Length", str(len(error.body)))]
        await self._responder.start(answer.status, answer.reason, pairs)
        await self._responder.write(error.body)

    @property
    def _waits_for_status_only(self) -> bool:
        return self._message.kind is not Kind.OTHER and not self._message.is_opaque and not self._message.requests

    async def _pass_refusal(self, refusal: KeptAnswer) -> Step | None:
        if self._responder.is_committed:
            return self._exchange.stream_broke(AfterEnd.TELL)
        own = OwnAnswer(refusal.status, body=refusal.body, headers=tuple(refusal.headers))
        await self._responder.give(own)
        return None

    async def _pass_json(self, answer: Answer, body: bytes) -> Step | None:
        assert self._watch is not None
        message = _parsed(body)
        mapped = self._watch.answer_whole(message) if message is not None else None
        if message is not None:
            self._learn(message, answer)
        if mapped is not None:
            body = dump(mapped)
        if self._responder.is_committed:
            if not self._watch.answered:
                return self._exchange.stream_broke(AfterEnd.TELL)
            await self._responder.give(OwnAnswer(answer.status, own_answers.JSON, body))
            return None
        without = {"content-length"} if mapped is not None else set[str]()
        pairs = self._head(answer, without=without)
        if mapped is not None:
            pairs.append(("Content-Length", str(len(body))))
        await self._responder.start(answer.status, answer.reason, pairs)
        await self._responder.write(body)
        return None

    async def _pass_events(self, answer: Answer) -> Step | None:
        assert self._watch is not None
        if not self._responder.is_committed:
            self._responder.is_event_stream = True
            await self._responder.start(answer.status, answer.reason, self._head(answer, without={"content-length"}))
        self._watch.last_event_id = None  # of an attempt before this one
        relay = EventRelay(self._parts, self._call, self._watch, self._responder, self._learn)
        self._parts.open.post_streams += 1
        try:
            after = await relay.run(answer, may_resend=lambda: self._exchange.may_resend_stream)
        finally:
            self._parts.open.post_streams -= 1
        if after is AfterEnd.CUT:
            self._responder.cut()
        self._note_polling(after)
        return self._exchange.stream_broke(after)

    def _note_polling(self, after: AfterEnd) -> None:
        """Should the session be lost before the client polls, it still learns that nobody will answer."""
        watch, session = self._watch, self._call.session
        if watch is None or session is None or after is not AfterEnd.FINISH:
            return
        if watch.unanswered and watch.last_event_id is not None:
            session.note_polled(watch.mark.on_text(watch.last_event_id), watch.unanswered)

    def _head(self, answer: Answer, *, without: set[str] | None = None) -> list[Pair]:
        pairs = self._call.client_headers(answer, without=without or ())
        session_id = answer.header(headers.SESSION_ID)
        if self._opens_session(answer) and session_id is not None:
            self._shown_id = session_id
            pairs.append((headers.SESSION_ID, session_id))
        return pairs

    # -- what is learned from what passes -----------------------------------------------------------------------------

    def _opens_session(self, answer: Answer) -> bool:
        """Whether the answer may carry a new session id: only one to ``initialize``, and no error."""
        if not self._is_initialize or not 200 <= answer.status < 300:
            return False
        session_id = answer.header(headers.SESSION_ID)
        if session_id is None or not headers.is_valid_session_id(session_id):
            return False
        message = _parsed(self._json) if self._json is not None else None
        return self._json is None or (message is not None and is_initialize_result(message))

    def _claim_new_id(self, answer: Answer) -> None:
        """From the head of the answer on the id is in use upstream, whatever the body will say."""
        if self._opens_session(answer):
            self._parts.store.claim_upstream_id(UpstreamSessionId(answer.header(headers.SESSION_ID) or ""), None)

    def _learn(self, message: Message, answer: Answer) -> None:
        if self._is_initialize:
            self._learn_session(message, answer)
        elif self._message.method == "tools/list" and self._call.session is not None and message.result is not None:
            session = self._call.session
            if self._generation == session.generation:
                is_first_page = self._message.cursor is None
                session.safe_tools = updated_tools(session.safe_tools, message.result, is_first_page=is_first_page)

    def _learn_session(self, message: Message, answer: Answer) -> None:
        """Record a handshake before the client can see its answer, so that its next request finds the session."""
        # A stream that was begun anew goes on under the id that its head has shown; the upstream knows that one, too.
        session_id = self._shown_id or answer.header(headers.SESSION_ID)
        if session_id is None or not is_initialize_result(message) or not self._opens_session(answer):
            return
        handshake = Handshake.of(self._message.params, message.result or {})
        if not handshake.is_too_large:
            self._parts.store.open(ClientSessionId(session_id), self._call.principal, handshake)

    @property
    def _mark(self) -> Mark:
        session = self._call.session
        return Mark(session.tag, self._generation) if session is not None else Mark("", 1)

    @property
    def _label(self) -> str:
        return self._call.label(self._parts)


def _parsed(body: bytes) -> Message | None:
    try:
        return parse(body)
    except NotJson:
        return None
