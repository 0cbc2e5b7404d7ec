"""A request whose session only a store may know: ask it, and wait while it is away.

The rule of this file: as long as nobody can say whether there is a session, nothing is sent in its name, and the client gets
no 404 of ours, which it would take for the end of it.
"""

from __future__ import annotations

from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import DroppedKind, MessageDropped
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.sessions.call import Call, load_session
from mcp_sidecar.sessions.look_ups import Missing
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.waiting.hold import HeldRequest, Waited
from mcp_sidecar.wire.jsonrpc import Message
from mcp_sidecar.wire.reply import OwnAnswer


class SessionLookUp:
    """One request whose session is not in memory."""

    def __init__(self, services: Services, call: Call) -> None:
        """To be used where ``may_be_loaded``."""
        self._services = services
        self._call = call
        self.given: OwnAnswer | None = None

    async def _load(self) -> bool:
        """Ask once; false where it could not be asked. ``given`` is the answer to an id that counts for nothing."""
        missing = await load_session(self._services.sessions, self._call)
        self.given = replies.SESSION_NOT_FOUND if missing is Missing.REJECTED else None
        return missing is not Missing.STORE_AWAY

    async def for_post(self, message: Message, size: int, *, opaque: bool) -> OwnAnswer | None:
        """Wait as for an upstream that is away; what to answer if the store does not come back."""
        waited = await self._settled(message, size)
        if waited is Waited.BACK:
            return self.given
        reason = Reason.CANCELLED if waited is Waited.CANCELLED else Reason.SESSION_STORE_UNAVAILABLE
        answer = replies.opaque(reason) if opaque else replies.in_session(message, reason)
        if answer is replies.ACCEPTED:
            kind = DroppedKind.RESPONSE if message.responses else DroppedKind.NOTIFICATION
            self._services.emit(MessageDropped(self._call.label, kind, reason.code))
        return answer

    async def _settled(self, message: Message, size: int) -> Waited:
        policy, call, table = self._services.policy, self._call, self._services.sessions.table
        keys = frozenset(call.held_name(request.id) for request in message.requests)
        held = HeldRequest(size, policy.hold_timeout_s if policy.heals else 0.0, keys)
        while not await self._load():
            waited, _ = await self._services.holds.for_result(held, table.store_back())
            if waited is not Waited.BACK:
                return waited
        return Waited.BACK

    async def for_delete(self) -> bool:
        """Nobody waits to end something; whether the store could say whose session it is."""
        return await self._load()

    def note_ended(self) -> None:
        """The upstream has ended a session of this id that the store may know."""
        assert self._call.client_id is not None, "it names one"
        self._services.sessions.table.end_unseen(self._call.client_id, self._call.principal)

    async def for_get(self, responder: Responder, keepalive: Keepalive) -> bool:
        """Where the store is away, keep a stream open until it is back, and end it: the client comes again. False then."""
        if await self._load():
            return True
        await self._services.streams.listening.serve(self._keep_open(responder, keepalive))
        return False

    async def _keep_open(self, responder: Responder, keepalive: Keepalive) -> None:
        await responder.start_events()
        responder.may_comment = True
        keepalive.add(responder)
        try:
            await self._services.holds.without_bound(self._services.sessions.table.store_back())
        finally:
            keepalive.discard(responder)
