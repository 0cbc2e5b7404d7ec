"""Give the client the upstream's answer: untouched where nothing forbids it, and never as if whole where it is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from mcp_sidecar.healing import own_answers
from mcp_sidecar.healing.announcing import Announcing, calls_in
from mcp_sidecar.healing.exchange import Exchange, Give, Step
from mcp_sidecar.healing.faults import Fault
from mcp_sidecar.healing.generations import Mark, Renumbering
from mcp_sidecar.healing.own_answers import OwnAnswer
from mcp_sidecar.healing.policy import Announce
from mcp_sidecar.healing.streams import AfterEnd, StreamWatch, unanswered_ids
from mcp_sidecar.proxy.call import Call
from mcp_sidecar.proxy.learning import Learning
from mcp_sidecar.proxy.parts import Parts
from mcp_sidecar.proxy.reading import KeptAnswer, WholeJson, is_event_stream, kept, may_be_kept
from mcp_sidecar.proxy.relaying import EventRelay, Overhearing, relay_rest
from mcp_sidecar.proxy.responding import Responder
from mcp_sidecar.proxy.upstream import Answer, UpstreamFault
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.messages import JsonRpcId, Kind, Message, dump

Failed = Callable[[Fault], Awaitable[Step]]
"""What follows when an answer breaks before the client has anything of it."""


class Delivery:
    """One exchange's way back to the client, over as many attempts as it takes."""

    def __init__(
        self, parts: Parts, call: Call, responder: Responder, exchange: Exchange, learning: Learning, failed: Failed
    ) -> None:
        """``learning`` is shown what passes, and knows the request that is answered."""
        self._parts = parts
        self._call = call
        self._responder = responder
        self._exchange = exchange
        self._learning = learning
        self._failed = failed
        self._watch: StreamWatch | None = None

    @property
    def still_unanswered(self) -> set[JsonRpcId] | None:
        """The requests whose answers the client does not have; ``None`` while nothing was passed, or nobody knows."""
        return self._watch.unanswered if self._watch is not None else None

    async def pass_observed(self, answer: Answer) -> None:
        """As a plain proxy would, but for what is learned on the way."""
        await self._responder.start(answer.status, answer.reason, answer.client_headers())
        limit = self._parts.limits.max_buffered_answer
        await relay_rest(answer, self._responder, Overhearing(answer, limit, self._learning.learn))

    async def pass_refusal(self, refusal: KeptAnswer) -> Step | None:
        """The 401 or 403 that a heal met is the answer to the request that wanted it."""
        if self._responder.is_committed:
            return self._exchange.stream_broke(AfterEnd.TELL)
        own = OwnAnswer(refusal.status, body=refusal.body, headers=tuple(refusal.headers))
        await self._responder.give(own)
        return None

    async def pass_on(
        self, answer: Answer, whole: WholeJson | None, mark: Mark, renumbering: Renumbering
    ) -> Step | None:
        """Pass the answer to the attempt that went under ``mark`` with the ids of ``renumbering``.

        ``whole`` is its body if it is JSON and was read. ``None`` where there is nothing left to do.
        """
        if self._watch is None:
            self._watch = StreamWatch(mark, unanswered=unanswered_ids(self._message), announcing=self._announcing)
        watch = self._watch
        watch.mark, watch.renumbering = mark, renumbering
        if whole is not None:
            return await self._pass_json(answer, whole, watch)
        if is_event_stream(answer) and 200 <= answer.status < 300:
            return await self._pass_events(answer, watch)
        is_under_new_id = bool(renumbering.ids) and 200 <= answer.status < 300
        if self._responder.is_committed or is_under_new_id:  # the client would not find its answer
            return self._exchange.stream_broke(AfterEnd.TELL)
        return await self._pass_rest(answer)

    @property
    def _announcing(self) -> Announcing | None:
        session = self._call.session
        if session is None or self._parts.policy.announce is not Announce.RESULT:
            return None
        return Announcing(session, calls_in(self._message.requests))

    @property
    def _message(self) -> Message:
        return self._learning.message

    # -- JSON ---------------------------------------------------------------------------------------------------------

    async def _pass_json(self, answer: Answer, whole: WholeJson, watch: StreamWatch) -> Step | None:
        mapped = watch.answer_whole(whole.message)
        self._learning.learn(whole.message, answer)
        body = whole.body if mapped is None else dump(mapped)
        if self._responder.is_committed:
            if not watch.answered:
                return self._exchange.stream_broke(AfterEnd.TELL)
            await self._responder.give(OwnAnswer(answer.status, own_answers.JSON, body))
            return None
        pairs = self._head(answer, whole, without={"content-length"} if mapped is not None else ())
        if mapped is not None:
            pairs.append(("Content-Length", str(len(body))))
        await self._responder.start(answer.status, answer.reason, pairs)
        await self._responder.write(body)
        return None

    # -- event streams ------------------------------------------------------------------------------------------------

    async def _pass_events(self, answer: Answer, watch: StreamWatch) -> Step | None:
        if not self._responder.is_committed:
            self._responder.is_event_stream = True
            await self._responder.start(answer.status, answer.reason, self._head(answer, without={"content-length"}))
        watch.last_event_id = None  # of an attempt before this one
        relay = EventRelay(self._parts, self._call, watch, self._responder, self._learning.learn)
        self._parts.open.post_streams += 1
        try:
            after = await relay.run(answer, may_resend=lambda: self._exchange.may_resend_stream)
        finally:
            self._parts.open.post_streams -= 1
        if after is AfterEnd.CUT:
            self._responder.cut()
        if after is AfterEnd.FINISH:
            self._note_polling(watch)
        return self._exchange.stream_broke(after)

    def _note_polling(self, watch: StreamWatch) -> None:
        """Should the session be lost before the client polls, it still learns that nobody will answer."""
        session = self._call.session
        if session is not None and watch.unanswered and watch.last_event_id is not None:
            session.note_polled(watch.mark.on_text(watch.last_event_id), watch.unanswered)

    # -- everything else ----------------------------------------------------------------------------------------------

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

    def _head(self, answer: Answer, whole: WholeJson | None = None, *, without: Iterable[str] = ()) -> list[Pair]:
        pairs = self._call.client_headers(answer, without=without)
        session_id = self._learning.new_session_id(answer, whole)
        if session_id is not None:
            pairs.append((headers.SESSION_ID, self._learning.shown_id(session_id)))
        return pairs
