"""Give the client the upstream's answer: untouched where nothing forbids it, and never as if whole where it is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.endpoint.initialize import Opening
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.announcement import Announcement, ListPromise, calls_in
from mcp_sidecar.healing.exchange import Exchange, Give, Step
from mcp_sidecar.healing.marked_ids import FIRST, Mark, Renumbering
from mcp_sidecar.healing.policy import Announce
from mcp_sidecar.healing.position import note_unanswered
from mcp_sidecar.healing.progress import Progress
from mcp_sidecar.healing.replies import readdressed
from mcp_sidecar.healing.stream_watch import AfterEnd, StreamRefusal, StreamWatch, unanswered_ids
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.recorder import Recorder
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.relay import EventRelay, relay_rest
from mcp_sidecar.upstream.answer import (
    Answer,
    KeptAnswer,
    WholeJson,
    decoded_body,
    is_event_stream,
    is_json,
    kept,
    may_be_kept,
)
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.classify import PEEK_BYTES
from mcp_sidecar.verdicts.refusals import Refusal
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import Kind, Message, NotJson, dump, parse
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.sse import with_data


class Reply:
    """One exchange's way back to the client, over as many attempts as it takes."""

    def __init__(
        self,
        services: Services,
        call: Call,
        responder: Responder,
        exchange: Exchange,
        learning: Recorder,
    ) -> None:
        """``learning`` is shown what passes, and knows the request that is answered."""
        self._services = services
        self._call = call
        self._responder = responder
        self._exchange = exchange
        self._recorder = learning
        self._watch: StreamWatch | None = None
        self.progress = call.session.progress if call.session is not None else Progress()

    @property
    def still_unanswered(self) -> Message:
        """The message without those requests of a batch whose answers the client has."""
        message, waiting = self._message, self._watch.unanswered if self._watch is not None else None
        if waiting is None or not message.members:
            return message
        members = [m for m in message.members if m.kind is not Kind.REQUEST or m.id in waiting]
        return replace(message, members=tuple(members))

    async def pass_refusal(self, refusal: KeptAnswer) -> Step | None:
        """The 401 or 403 that a heal met is the answer to the request that wanted it."""
        if self._responder.is_committed:
            await self._responder.give(replies.instead_of(self.still_unanswered, refusal.status, refusal.reason))
            return None
        pairs = self._call.move.headers(refusal.headers)
        own = OwnAnswer(refusal.status, body=refusal.body, headers=tuple(pairs))
        await self._responder.give(own)
        return None

    @property
    def has_withheld(self) -> bool:
        """Whether a refusal was kept back from the client's stream, to be asked about."""
        return self._watch is not None and self._watch.refusal is not None

    def drop_withheld(self) -> None:
        """It was no answer: the request goes again."""
        if self._watch is not None:
            self._watch.refused = None

    async def pass_withheld(self) -> Step | None:
        """It was the answer after all, and is the request's whomever it names; what is none is not taken for one."""
        watch = self._watch
        assert watch is not None, "there was a stream"
        assert watch.refused is not None, "something is in question"
        piece, watch.refused = watch.refused.withheld, None
        assert piece is not None, "something is withheld"
        said = readdressed(piece.event.data or "", self._message)
        raw, _ = watch.relay(piece)
        await self._responder.write(raw if said is None else with_data(piece.raw, said))
        return None if said is not None or watch.answered else self._exchange.stream_broke(AfterEnd.TELL)

    async def pass_on(
        self,
        answer: Answer,
        whole: WholeJson | None,
        mark: Mark,
        renumbering: Renumbering,
        *,
        to_sender: bool = False,
        asks_about: Callable[[bytes], Refusal | None] | None = None,
    ) -> Step | None:
        """Pass the answer to the attempt that went under ``mark`` with the ids of ``renumbering``.

        ``whole`` is its body if it is JSON and was read; ``to_sender``: an error in it is the request's, whomever it names;
        ``asks_about`` says of an event's data whether they are to be asked about. ``None`` where nothing is left to do.
        """
        if whole is not None and not to_sender and not self._concerns_us(whole, mark, renumbering):
            self._give_up_waiting()
            await self._responder.start(answer.status, answer.reason, self._head(answer))
            await self._responder.write(whole.body)
            return None
        if self._watch is None:
            waiting = unanswered_ids(self._message)
            self._watch = StreamWatch(mark, unanswered=waiting, announcement=self._announcement, progress=self.progress)
        watch = self._watch
        watch.mark, watch.renumbered = mark, renumbering
        watch.refused = StreamRefusal(asks_about) if asks_about is not None else None
        if whole is not None:
            return await self._pass_json(answer, whole, watch, to_sender=to_sender)
        if to_sender and answer.status >= 400 and is_json(answer) and not self._responder.is_committed:
            return await self._pass_to_sender(answer)
        if is_event_stream(answer) and 200 <= answer.status < 300:
            return await self._pass_events(answer, watch)
        self._give_up_waiting()
        if self._responder.is_committed:
            return await self._pass_as_event(answer)
        if renumbering.ids and 200 <= answer.status < 300:  # the client would not find its answer
            return self._exchange.stream_broke(AfterEnd.TELL)
        return await self._pass_rest(answer)

    def _concerns_us(self, whole: WholeJson, mark: Mark, renumbering: Renumbering) -> bool:
        """Whether there is anything to write anew, to learn, or to wait for in a JSON answer."""
        is_as_sent = mark.generation == FIRST and not renumbering.ids and not renumbering.tokens
        is_one = not self._message.members and whole.body.startswith(b"{")
        return not is_as_sent or not is_one or self._recorder.is_taught or self._responder.is_committed

    @property
    def _announcement(self) -> Announcement | ListPromise | None:
        if self._recorder.is_initialize and self._services.policy.promises_lists:
            return ListPromise()
        session = self._call.session
        if session is None or self._services.policy.announce is not Announce.RESULT:
            return None
        return Announcement(session, calls_in(self._message.requests))

    @property
    def _message(self) -> Message:
        return self._recorder.message

    # -- JSON ---------------------------------------------------------------------------------------------------------

    async def _pass_json(self, answer: Answer, whole: WholeJson, watch: StreamWatch, *, to_sender: bool) -> Step | None:
        mapped = watch.answer_whole(whole.message)
        self._recorder.learn(whole.message, answer)
        await self._recorder.settle(is_shown=self._responder.is_committed)
        if watch.misaddressed:
            return self._exchange.stream_broke(AfterEnd.TELL)
        if to_sender and mapped is None and watch.unanswered:
            said = readdressed(whole.body.decode("utf-8", "replace"), self._message)
            if said is not None:
                watch.unanswered.clear()
                mapped = json.loads(said)
        body = whole.body if mapped is None else dump(mapped)
        if self._responder.is_committed:
            if not watch.answered:
                return self._exchange.stream_broke(AfterEnd.TELL)
            await self._tell_waiting()
            await self._responder.give(OwnAnswer(answer.status, replies.JSON, body))
            return None
        self._give_up_waiting()
        pairs = self._head(answer, whole, without={"content-length"} if mapped is not None else ())
        if mapped is not None:
            pairs.append(("Content-Length", str(len(body))))
        await self._responder.start(answer.status, answer.reason, pairs)
        await self._responder.write(body)
        return None

    # -- event streams ------------------------------------------------------------------------------------------------

    async def _pass_events(self, answer: Answer, watch: StreamWatch) -> Step | None:
        has_begun, opening = self._responder.is_committed, None
        if (
            self._recorder.is_initialize and not has_begun
        ):  # a client that opens a session gets them once it is recorded
            opening = Opening(self._responder, self._recorder, lambda: self._start_events(answer))
        elif not has_begun:
            await self._start_events(answer)
        has_begun |= await self._tell_waiting()
        watch.last_event_id = watch.former_event_id = None  # of an attempt before this one
        learn = self._recorder.learn
        relay = EventRelay(self._services, self._call, watch, opening or self._responder, learn, has_begun=has_begun)
        try:
            with self._services.streams.open.post(is_stream=True):
                after = await relay.run(answer, self._exchange)
        except (ConnectionError, asyncio.CancelledError):  # the client left, and perhaps without the last event
            note_unanswered(self._call.session, watch, unanswered_ids(self._message))
            raise
        if opening is not None and after not in (AfterEnd.TELL, AfterEnd.RESEND):
            await opening.let_go()
        if after is AfterEnd.CUT:
            self._responder.cut()
        # It may poll, or have left unnoticed; should the session be lost first, it still learns that nobody will answer.
        note_unanswered(self._call.session, watch, watch.unanswered)
        if watch.refused is not None and watch.refused.refusal is not None:
            refused, has_begun = watch.refused.refusal, watch.refused.has_begun
            return self._exchange.stream_refused(refused, has_begun=has_begun, committed=watch.committed)
        return self._exchange.stream_broke(after)

    async def _start_events(self, answer: Answer) -> None:
        self._responder.is_event_stream = True
        await self._responder.start(answer.status, answer.reason, self._head(answer, without={"content-length"}))

    async def _tell_waiting(self) -> bool:
        """What the client was to be told, and could not be so far, goes ahead of what it waits for. True if there was any."""
        session = self._call.session
        if session is None or not session.hints:
            return False
        await self._responder.write(self._services.sessions.notifier.take_waiting(session))
        return True

    def _give_up_waiting(self) -> None:
        """An answer that is no stream carries nothing else; one that nobody waits for is not meant."""
        session = self._call.session
        if session is not None and session.hints and self._message.requests:
            self._services.sessions.notifier.give_up_waiting(session)

    # -- on a stream that is open already -----------------------------------------------------------------------------

    async def _pass_as_event(self, answer: Answer) -> Step | None:
        """The stream was opened before there was an answer, or for an attempt before this one."""
        if answer.status >= 400:
            said = await self._error_said(answer)
            given = replies.instead_of(self.still_unanswered, answer.status, answer.reason, said)
            await self._responder.give(given)
            return None
        return self._exchange.stream_broke(AfterEnd.TELL)

    async def _pass_to_sender(self, answer: Answer) -> Step | None:
        """An error answer whose JSON-RPC error names nobody, or somebody else."""
        error = await kept(answer, PEEK_BYTES)
        said = readdressed(error.body.decode("utf-8", "replace"), self._message) if answer.whole else None
        if said is None:
            return await self._pass_rest(answer)
        body = said.encode()
        pairs = [*self._head(answer, without={"content-length"}), ("Content-Length", str(len(body)))]
        self._give_up_waiting()
        await self._responder.start(answer.status, answer.reason, pairs)
        await self._responder.write(body)
        return None

    async def _error_said(self, answer: Answer) -> dict[str, Any] | None:
        """The JSON-RPC error in an error answer; what refuses credentials is nobody's to hand on."""
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return None
        try:
            return parse(await decoded_body(answer, PEEK_BYTES)).error
        except (UpstreamFault, NotJson):
            return None

    # -- everything else ----------------------------------------------------------------------------------------------

    async def _pass_rest(self, answer: Answer) -> Step | None:
        """An answer that is nobody's business; one that is small enough is passed on only if it is whole."""
        limit = self._services.limits.max_buffered_answer
        if may_be_kept(answer, limit):
            if answer.status >= 400:
                await self._pass_error(answer, limit)
                return None
            try:
                await answer.peek(limit + 1)
            except UpstreamFault as fault:
                if self._waits_for_status_only and 200 <= answer.status < 300:
                    return Give(replies.ACCEPTED)
                return self._exchange.failed(fault.fault)
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
        return self._message.kind is not Kind.OTHER and not self._message.requests

    def _head(self, answer: Answer, whole: WholeJson | None = None, *, without: Iterable[str] = ()) -> list[Pair]:
        pairs = self._call.client_headers(answer, without=without)
        session_id = self._recorder.new_session_id(answer, whole)
        if session_id is not None:
            pairs.append((headers.SESSION_ID, self._recorder.shown_id(session_id)))
        return pairs
