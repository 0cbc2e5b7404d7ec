"""What passes untouched: every other path, and sessionless traffic (2026-07-28) on the MCP endpoint.

Other paths are never held. A sessionless request is sent again after a failed connect, since nothing was sent then, and
after a break before its answer if it only reads; a stream that breaks is cut, and the client sends a new request
with a new id (2026-07-28 changelog, Major 9).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from functools import partial
from http import HTTPStatus

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.downstream.upload import BrokenBody, Upload
from mcp_sidecar.endpoint.outcome import Detour
from mcp_sidecar.facts import ActionObserved, ObservedAction, ReplayCause, RequestReplayed
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.exchange import MAX_RESENDS_IN_DOUBT
from mcp_sidecar.healing.labels import rpc_label
from mcp_sidecar.healing.principal import Identity
from mcp_sidecar.healing.replay import is_safe_in_doubt
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.relay import Overhearing, relay_rest
from mcp_sidecar.upstream.answer import EVENT_STREAM, Answer, is_event_stream
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.events import event_batches
from mcp_sidecar.verdicts.classify import NO_SIGNATURE
from mcp_sidecar.waiting.hold import HeldRequest, Waited
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.headers import Pair, media_type
from mcp_sidecar.wire.jsonrpc import Kind, Message
from mcp_sidecar.wire.origins import Move
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.sse import Block, EventSplitter, parse_event, with_data

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""RFC 9110 §9.2.1; TRACE is nobody's."""


class Passthrough:
    """One request that is passed on as it is."""

    def __init__(
        self,
        services: Services,
        responder: Responder,
        *,
        method: str,
        target: str,
        pairs: list[Pair],
        move: Move,
        without: frozenset[str] = frozenset(),
        owner: Hashable | None = None,
    ) -> None:
        """``move`` takes URLs on the upstream's origin to where the client reaches the sidecar.

        ``without`` are headers (lower case) that the client must not see; ``owner`` is the connection it came on.
        """
        self._services = services
        self._responder = responder
        self._method = method
        self._target = target
        self._pairs = pairs
        self._move = move
        self._without = without
        self._owner = owner
        self.detour = Detour.NONE

    async def other_path(self, upload: Upload | None) -> None:
        """A path that is not the MCP endpoint: streamed both ways, 503 at once while the upstream is away.

        Raises ``BrokenBody`` where it was the client that broke off.
        """
        may_idle = self._method == "GET" and EVENT_STREAM in (headers.value(self._pairs, "accept") or "").lower()
        try:
            answer = await self._send(upload, may_idle=may_idle)
        except UpstreamFault as fault:
            if upload is not None and upload.is_broken:
                raise BrokenBody from None
            is_down = not fault.fault.may_have_arrived and not self._services.policy.observes
            await self._responder.give(replies.UNAVAILABLE_PATH if is_down else replies.BAD_GATEWAY)
            return
        async with answer:
            if self._method == "GET":
                answer.let_idle(media_type(answer.header("Content-Type")) == EVENT_STREAM)
            await self._relay(answer)

    async def _send(self, upload: Upload | None, *, may_idle: bool) -> Answer:
        """Once more where the connection had been closed before it was used again, and the request can only have read."""
        send = partial(self._services.upstream.send, self._method, self._target, self._pairs, owner=self._owner)
        try:
            return await send(_streamed(upload) if upload is not None else None, may_idle=may_idle)
        except UpstreamFault as fault:
            if not fault.was_stale or self._method not in SAFE_METHODS or upload is not None:
                raise
        return await send(may_idle=may_idle, fresh=True)

    async def preflight(self) -> None:
        """A browser asks whether a page may send a request to the endpoint: this waits as that request would.

        It only reads, so that it may be sent again whatever has become of it.
        """
        holds = self._services.holds
        held = HeldRequest(0, self._services.policy.hold_timeout_s)
        try:
            while True:
                try:
                    answer = await self._send(None, may_idle=False)
                except UpstreamFault as fault:
                    if fault.fault.may_have_arrived and held.waited_s:
                        await self._responder.give(replies.BAD_GATEWAY)
                        return
                    if await holds.for_connect(held) is not Waited.BACK:
                        await self._responder.give(replies.UNAVAILABLE_PATH)
                        return
                    continue
                finally:
                    holds.went_on(held)
                async with answer:
                    await self._relay(answer)
                return
        finally:
            holds.leave(held)

    async def sessionless(self, message: Message, body: bytes, asks: Callable[[], Identity]) -> None:
        """A request of 2026-07-28. ``asks`` tells who asks, where that counts."""
        held = HeldRequest(len(body), self._services.policy.hold_timeout_s)
        try:
            await self._sessionless(message, body, asks, held)
        finally:
            self._services.holds.leave(held)

    async def _sessionless(
        self, message: Message, body: bytes, asks: Callable[[], Identity], held: HeldRequest
    ) -> None:
        resends_left = MAX_RESENDS_IN_DOUBT
        while True:
            try:
                try:
                    answer = await self._services.upstream.send(
                        "POST", self._target, self._pairs, body, owner=self._owner
                    )
                finally:
                    self._services.holds.went_on(held)
            except UpstreamFault as fault:
                cause = ReplayCause.NOT_SENT
                if fault.fault.may_have_arrived and resends_left and self._only_reads(message, asks):
                    resends_left -= 1
                    cause = ReplayCause.AMBIGUOUS_SAFE
                elif not await self._may_try_again(fault, message, held):
                    return
                self.detour = Detour.HOLD if held.waited_s else Detour.NONE
                self._services.emit(RequestReplayed("", cause, rpc_label(message)))
                continue
            async with answer:
                if 200 <= answer.status < 300:
                    self._services.holds.availability.note_worked()
                await self._relay(answer, self._overhearing(message, asks, answer))
            return

    def _only_reads(self, message: Message, asks: Callable[[], Identity]) -> bool:
        """Whether it may run twice: by its method, or by what a server has said of the tool to this principal."""
        policy = self._services.policy
        is_call = message.method == "tools/call" and policy.trust_annotations
        known = self._services.sessions.sessionless.of(asks().principal) if is_call else frozenset[str]()
        return policy.heals and is_safe_in_doubt(message, known)

    def _overhearing(self, message: Message, asks: Callable[[], Identity], answer: Answer) -> Overhearing | None:
        """Who listens for the response: clients leave behind it, and have been answered then; of tools it teaches."""
        teaches = message.method == "tools/list" and self._services.policy.heals and answer.status == HTTPStatus.OK
        if not teaches and not is_event_stream(answer):
            return None
        responder, sessionless = self._responder, self._services.sessions.sessionless
        principal = asks().principal if teaches else None

        def hear(said: Message, _: Answer) -> None:
            if said.kind is not Kind.RESPONSE or said.id != message.id:
                return
            responder.notes.is_answered = True
            if principal is not None and said.result is not None:
                sessionless.learnt(principal, said.result, is_first_page=message.cursor is None)

        return Overhearing(answer, self._services.limits.max_buffered_answer, hear)

    async def _may_try_again(self, fault: UpstreamFault, message: Message, held: HeldRequest) -> bool:
        own = self._own_answer(fault, message)
        if own is None:
            waited = await self._services.holds.for_connect(held)
            if waited is Waited.BACK:
                return True
            own, why = replies.unavailable(message.id), self._services.holds.failure
            own = replies.failed_to_start(own, why) if why is not None else own
        await self._responder.give(own)
        return False

    def _own_answer(self, fault: UpstreamFault, message: Message) -> OwnAnswer | None:
        """The answer to give at once, or ``None`` where the request may wait."""
        if self._services.policy.observes:
            action = ObservedAction.REFUSE if fault.fault.may_have_arrived else ObservedAction.REPLAY
            self._services.emit(ActionObserved("", action, NO_SIGNATURE))
            return replies.BAD_GATEWAY
        if not fault.fault.may_have_arrived:
            return None if self._services.policy.heals else replies.unavailable(message.id)
        return replies.broken_gateway(message.id)

    # -- the answer ---------------------------------------------------------------------------------------------------

    async def _relay(self, answer: Answer, overhearing: Overhearing | None = None) -> None:
        await self._responder.start(
            answer.status, answer.reason, self._move.headers(answer.client_headers(self._without))
        )
        if self._method == "HEAD":
            return
        if self._method == "GET" and answer.status == HTTPStatus.OK and is_event_stream(answer):
            await self._services.streams.listening.serve(self._relay_old_transport(answer))
            return
        with self._services.streams.open.post(is_stream=self._method == "POST" and is_event_stream(answer)):
            await relay_rest(answer, self._responder, overhearing)

    async def _relay_old_transport(self, answer: Answer) -> None:
        """An event stream of 2024-11-05 names the URL to POST to; clients must not be led past the sidecar."""
        splitter = EventSplitter(self._services.limits.max_buffered_answer)
        self._services.streams.open.get_streams += 1
        try:
            async for batch in event_batches(answer, splitter):
                moved = [self._moved(piece.raw) if isinstance(piece, Block) else piece.raw for piece in batch]
                await self._responder.write(b"".join(moved))
            await self._responder.write(splitter.pending)
        except UpstreamFault:
            self._responder.cut()
        finally:
            self._services.streams.open.get_streams -= 1

    def _moved(self, raw: bytes) -> bytes:
        if b"endpoint" not in raw:
            return raw
        event = parse_event(raw)
        if event.event != "endpoint" or event.data is None:
            return raw
        moved = self._move.url(event.data)
        return raw if moved == event.data else with_data(raw, moved)


async def _streamed(upload: Upload) -> AsyncIterator[bytes]:
    """The body as it comes. The head goes with the first part, which must not wait for the client."""
    yield b""
    async for chunk in upload.chunks():
        yield chunk
