"""Mode ``observe``: a request on the endpoint passes as through a plain proxy, and what mode ``heal`` would do is counted.

The rule of this file: whatever is judged beside the request, the client gets the upstream's bytes, a 502 where there are
none, and a break where there was one. Sessions are learned from what passes by, so that a loss is told from a stranger's id.
"""

from __future__ import annotations

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import ActionObserved, ObservedAction, SessionEnd
from mcp_sidecar.healing import exchange, replies
from mcp_sidecar.healing.exchange import Ask, Exchange, Give, Heal, Hold, Pass, Send
from mcp_sidecar.healing.marked_ids import FIRST
from mcp_sidecar.healing.policy import Mode
from mcp_sidecar.healing.replay import is_safe_in_doubt
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.judge import is_accepted, judge
from mcp_sidecar.sessions.recorder import Recorder
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.relay import Overhearing, relay_rest
from mcp_sidecar.upstream.answer import Answer, is_event_stream
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.classify import Judgement, SessionKnowledge, Verdict
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import Message

_OK = Judgement(Verdict.OK)


class Observe:
    """One request on the endpoint."""

    def __init__(self, services: Services, call: Call, responder: Responder) -> None:
        """The call's session may be known or not."""
        self._services = services
        self._call = call
        self._responder = responder

    async def post(self, message: Message, body: bytes, *, opaque: bool) -> None:
        """``opaque``: the body is encoded and was not read."""
        trip = self._exchange(message, opaque=opaque)
        recorder = Recorder(self._services.sessions.table, self._services.policy, self._call, message)
        try:
            answer = await self._send("POST", body)
        except UpstreamFault as fault:
            self._note(_would_do(trip.failed(fault.fault)))
            await self._responder.give(replies.BAD_GATEWAY)
            return
        async with answer:
            recorder.show_as_minted(answer)
            recorder.claim_new_id(answer)
            if 200 <= answer.status < 300:
                self._services.holds.availability.note_worked()
            judgement = await self._judged(answer, message.method)
            self._note_accepted(judgement, answer)
            self._note(_would_do(trip.judged(judgement, answer.status)), judgement)
            with self._services.streams.open.post(is_stream=is_event_stream(answer)):
                limit = self._services.limits.max_buffered_answer
                await self._pass(answer, Overhearing(answer, limit, recorder.learn))

    async def get(self) -> None:
        """The stream is the upstream's alone: it ends and breaks with the upstream's side, and with the drain."""
        try:
            answer = await self._send("GET", may_idle=True)
        except UpstreamFault:
            self._note(ObservedAction.REPLAY)
            await self._responder.give(replies.BAD_GATEWAY)
            return
        async with answer:
            if answer.status == 200 and is_event_stream(answer):
                await self._services.streams.listening.serve(self._listen(answer))
                return
            judgement = await self._judged(answer)
            if judgement.verdict in (Verdict.SESSION_LOST, Verdict.ASK):
                is_bound = self._call.knowledge is SessionKnowledge.BOUND
                self._note(ObservedAction.HEAL if is_bound else ObservedAction.REWRITE, judgement)
            await self._pass(answer)

    async def delete(self) -> None:
        """A success ends the session."""
        try:
            answer = await self._send("DELETE")
        except UpstreamFault:
            await self._responder.give(replies.BAD_GATEWAY)
            return
        async with answer:
            judgement = await self._judged(answer)
            if judgement.verdict is Verdict.SESSION_LOST:
                self._note(ObservedAction.REWRITE, judgement)
            self._note_accepted(judgement, answer)
            if self._call.session is not None and 200 <= answer.status < 300:
                self._services.sessions.table.end(self._call.session, SessionEnd.TERMINATED)
            await self._pass(answer)

    # -- beside it ----------------------------------------------------------------------------------------------------

    def _exchange(self, message: Message, *, opaque: bool) -> Exchange:
        policy, session = self._services.policy, self._call.session
        known = session.safe_tools if session is not None and policy.trust_annotations else frozenset[str]()
        trip = Exchange(
            message=message,
            session=self._call.knowledge,
            mode=Mode.HEAL,
            is_safe=lambda: is_safe_in_doubt(message, known),
            opaque=opaque,
            trust_503=policy.trust_503,
            endpoint_worked=self._services.holds.availability.has_worked,
        )
        trip.begin()
        return trip

    async def _judged(self, answer: Answer, rpc_method: str | None = None) -> Judgement:
        """What breaks off says nothing, and breaks once more when it is passed on."""
        try:
            facts = self._call.facts(rpc_method)
            return (await judge(answer, facts, self._services.policy.signatures)).judgement
        except UpstreamFault:
            return _OK

    def _note_accepted(self, judgement: Judgement, answer: Answer) -> None:
        if is_accepted(judgement, answer.status):
            self._call.accepted(FIRST, answer)  # the only one, since nothing is healed

    def _note(self, action: ObservedAction | None, judgement: Judgement = _OK) -> None:
        if action is not None:
            self._services.emit(ActionObserved(self._call.label, action, judgement.name))

    # -- what passes --------------------------------------------------------------------------------------------------

    async def _send(self, method: str, body: bytes | None = None, *, may_idle: bool = False) -> Answer:
        pairs: list[Pair] = self._call.upstream_headers(without={"accept-encoding"})
        pairs.append(("Accept-Encoding", "identity"))  # what is to be understood must not be compressed
        return await self._services.upstream.send(
            method, self._call.target, pairs, body, may_idle=may_idle, owner=self._call.owner
        )

    async def _listen(self, answer: Answer) -> None:
        session, opened = self._call.session, self._services.streams.open
        opened.get_streams += 1
        try:
            if session is not None:
                session.stream_opens()
            await self._pass(answer)
        finally:
            opened.get_streams -= 1
            if session is not None:
                session.stream_ends()

    async def _pass(self, answer: Answer, overhearing: Overhearing | None = None) -> None:
        await self._responder.start(answer.status, answer.reason, self._call.move.headers(answer.client_headers()))
        await relay_rest(answer, self._responder, overhearing)


def _would_do(step: exchange.Step) -> ObservedAction | None:
    """What mode ``heal`` would do about the first answer, or the lack of one."""
    match step:
        case Pass():
            return None
        case Ask() | Heal():
            return ObservedAction.HEAL
        case Hold() | Send():
            return ObservedAction.REPLAY
        case Give(reason=Reason.SESSION_LOST):
            return ObservedAction.REWRITE
        case Give():
            return ObservedAction.REFUSE
