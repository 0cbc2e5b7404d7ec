"""Requests of our own in a client's name: with the credentials of the request that gave rise to them, and none kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.session import Session, UpstreamSessionId
from mcp_sidecar.upstream.answer import Answer, decoded_body, is_event_stream
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.events import event_batches
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.cookies import Cookies, with_cookies
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, NotJson, parse
from mcp_sidecar.wire.revisions import PROTOCOL_VERSION_HEADER, sends_version_header
from mcp_sidecar.wire.sse import Block, EventSplitter

T = TypeVar("T")

STEP_TIMEOUT_S = 5.0
"""How long the new server may take for one step of a restore; a heal that hangs holds up everybody in its session."""

DISCARD_TIMEOUT_S = 2.0
"""How long the end of a session that nobody wants is waited for."""

_NOT_FOR_OWN_REQUESTS = frozenset(
    {"mcp-session-id", "mcp-protocol-version", "last-event-id", "accept", "accept-encoding", "content-type"}
    | {"content-encoding", "content-digest", "digest", "idempotency-key"}
    | {"if-match", "if-none-match", "if-modified-since", "range"}
)
_MIRRORED = ("mcp-method", "mcp-name", "mcp-param-")
"""Headers that repeat what the client's own message says (SEP-2243); on another message they would be a mismatch."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """The client request on whose behalf we ask; its credentials are used for that and for nothing else."""

    target: str
    headers: list[Pair] = field(repr=False)
    credential: Principal = field(repr=False)
    owner: Hashable | None = field(default=None, repr=False)

    def own_headers(self) -> list[Pair]:
        """Headers for a request of ours: the client's own and its credentials, without what is about its message."""
        return [
            *(pair for pair in self.headers if not _is_about_the_message(pair[0])),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("Accept-Encoding", "identity"),
        ]


class OwnRequests:
    """Sends requests of ours to the upstream sessions behind one client's session."""

    def __init__(self, upstream: Upstream, session: Session | None, trigger: Trigger) -> None:
        """All of them bear the headers of ``trigger``.

        ``version`` is the revision that they speak in a session, ``cookies`` lead to the server that holds it.
        """
        self.session = session
        self.version = session.handshake.protocol_version if session is not None else None
        self.cookies: Cookies = session.cookies if session is not None else ()
        self._upstream = upstream
        self._target = trigger.target
        self._headers = trigger.own_headers()
        self._owner = trigger.owner

    async def post(
        self, body: bytes, upstream_id: UpstreamSessionId | None, *, in_session: bool = False, fresh: bool = False
    ) -> Answer:
        """Send a message; ``in_session`` also where the upstream minted no id. Raises ``UpstreamFault``.

        ``fresh``: on a new connection.
        """
        in_session = in_session or upstream_id is not None
        return await self._send("POST", body, upstream_id, in_session=in_session, fresh=fresh)

    async def discard(self, upstream_id: UpstreamSessionId | None) -> None:
        """Leave no orphan behind: an upstream session that is not used is ended."""
        if upstream_id is None:
            return
        with contextlib.suppress(UpstreamFault, TimeoutError):
            async with asyncio.timeout(DISCARD_TIMEOUT_S):
                answer = await self._send("DELETE", None, upstream_id, in_session=True)
                answer.close()

    async def _send(
        self,
        method: str,
        body: bytes | None,
        upstream_id: UpstreamSessionId | None,
        *,
        in_session: bool,
        fresh: bool = False,
    ) -> Answer:
        pairs = [*self._headers]
        if upstream_id is not None:
            pairs.append((headers.SESSION_ID, upstream_id))
        if in_session and self.version is not None and sends_version_header(self.version):
            pairs.append((PROTOCOL_VERSION_HEADER, self.version))
        if in_session:
            pairs = with_cookies(pairs, self.cookies)
        return await self._upstream.send(method, self._target, pairs, body, owner=self._owner, fresh=fresh)


@lru_cache(maxsize=256)
def _is_about_the_message(name: str) -> bool:
    lower = name.lower()
    return lower in _NOT_FOR_OWN_REQUESTS or lower.startswith(_MIRRORED)


async def read_rpc_answer(answer: Answer, request_id: JsonRpcId, limit: int) -> Message | None:
    """The JSON-RPC answer to ``request_id``, from a JSON body or an event stream whose first events may be empty.

    ``None`` where there is none within ``limit`` bytes. Raises ``UpstreamFault``.
    """
    if is_event_stream(answer):
        return await _read_from_events(answer, request_id, limit)
    return _response_in(await decoded_body(answer, limit), request_id)


async def _read_from_events(answer: Answer, request_id: JsonRpcId, limit: int) -> Message | None:
    splitter = EventSplitter(limit)
    size = 0
    async for batch in event_batches(answer, splitter):
        for piece in batch:
            size += len(piece.raw)
            data = piece.event.data if isinstance(piece, Block) else None
            message = _response_in(data.encode("utf-8", "replace"), request_id) if data else None
            if message is not None:
                return message
        if size > limit:
            return None
    return None


def _response_in(body: bytes, request_id: JsonRpcId) -> Message | None:
    try:
        message = parse(body)
    except NotJson:
        return None
    for candidate in message.members or (message,):
        if candidate.kind is Kind.RESPONSE and candidate.id == request_id:
            return candidate
    return None


async def in_time(step: Awaitable[T]) -> T:
    """One step may take as long as this. Raises ``UpstreamFault``."""
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await step
    except TimeoutError:
        raise UpstreamFault(Fault.STALLED) from None
