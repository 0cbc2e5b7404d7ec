"""One ping in an upstream session, and what its answer shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from mcp_sidecar.healing.session import UpstreamSessionId
from mcp_sidecar.sessions.judge import see
from mcp_sidecar.sessions.own_requests import OwnRequests, in_time
from mcp_sidecar.upstream.answer import Answer, is_event_stream
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.events import event_batches
from mcp_sidecar.verdicts.classify import PEEK_BYTES, RequestFacts, SessionKnowledge, Verdict, judge_body
from mcp_sidecar.verdicts.refusals import AWAY, BROKEN, PingAnswer, PingVerdict, Refusal, judge_ping
from mcp_sidecar.verdicts.signatures import Signature
from mcp_sidecar.verdicts.words import Words, said_in
from mcp_sidecar.wire.headers import retry_after_s
from mcp_sidecar.wire.sse import Block, EventSplitter

PING_ID: Final = "mcp-sidecar-ping"

_pings = itertools.count(1)


async def ping(
    own: OwnRequests,
    upstream_id: UpstreamSessionId | None,
    signatures: tuple[Signature, ...],
    *,
    fresh: bool = False,
    heads: Callable[[Answer], object] | None = None,
) -> PingAnswer:
    """Ask with a ping, in a session unless ``own`` has none. ``signatures`` are the operator's own rows.

    ``fresh``: on a new connection. ``heads`` is shown what answers a ping that finds the session alive.
    """
    try:
        return await in_time(_ask(own, upstream_id, signatures, fresh=fresh, heads=heads))
    except UpstreamFault as fault:
        return BROKEN if fault.fault.may_have_arrived else AWAY


async def _ask(
    own: OwnRequests,
    upstream_id: UpstreamSessionId | None,
    signatures: tuple[Signature, ...],
    *,
    fresh: bool,
    heads: Callable[[Answer], object] | None,
) -> PingAnswer:
    ping_id = f"{PING_ID}-{next(_pings):06}"
    body = b'{"jsonrpc":"2.0","id":"%b","method":"ping"}' % ping_id.encode()
    in_session = own.session is not None
    async with await own.post(body, upstream_id, in_session=in_session, fresh=fresh) as answer:
        is_stream = 200 <= answer.status < 300 and is_event_stream(answer)
        seen = await see(answer, is_read=not is_stream)
        if is_stream:
            seen = replace(seen, body=await _first_said(answer))
            if not seen.body:
                return PingAnswer(PingVerdict.REFUSED, Refusal(Words(answer.status, "")))
    facts = RequestFacts("POST", "ping", SessionKnowledge.BOUND, rpc_ids=frozenset({ping_id}), session_id=upstream_id)
    judged = judge_body(facts, seen.head, seen.body, complete=seen.complete, extra=signatures)
    if not in_session and judged.bare_404:
        return BROKEN  # the route's, in front of a server that was not asked for a session
    found = judge_ping(
        answer.status,
        seen.body,
        ping_id=ping_id,
        without=(upstream_id or "",),
        challenged=seen.head.www_authenticate,
        retry_after_s=retry_after_s(answer.header("Retry-After")),
        is_known_loss=judged.verdict is Verdict.SESSION_LOST,
    )
    if heads is not None and found.verdict is PingVerdict.ALIVE:
        heads(answer)
    return found


async def _first_said(answer: Answer) -> bytes:
    """The data of the first event that answers something; questions and notifications of the server do not."""
    size = 0
    async for batch in event_batches(answer, EventSplitter(PEEK_BYTES)):
        for piece in batch:
            size += len(piece.raw)
            data = piece.event.data if isinstance(piece, Block) else None
            if data and not _is_of_the_server(data):
                return data.encode("utf-8", "replace")
        if size > PEEK_BYTES:
            break
    return b""


def _is_of_the_server(data: str) -> bool:
    """Whether it is a question or a notification, and not an answer that names a method somewhere."""
    if '"method"' not in data:
        return False
    document = said_in(data.encode("utf-8", "replace")).document
    return isinstance(document, dict) and "method" in document
