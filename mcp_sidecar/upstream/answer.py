"""Read what the upstream answered: a bounded, decoded beginning of it, or one JSON-RPC answer out of it."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass

from aiohttp import hdrs

from mcp_sidecar.upstream.upstream import Answer, UpstreamFault
from mcp_sidecar.verdicts.classify import AnswerHead
from mcp_sidecar.wire.headers import Pair, media_type
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, NotJson, parse
from mcp_sidecar.wire.sse import Block, EventSplitter, parse_event

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

ERROR_BODY_TIMEOUT_S = 2.0
"""How long the body of an error is waited for altogether, however it drips: its status alone says most."""

NO_MESSAGE = Message(Kind.OTHER)

_ANY_DEFLATE = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer that was read to its end, or to the bound, so that it can be passed on more than once."""

    status: int
    reason: str
    headers: list[Pair]
    body: bytes


class WholeJson:
    """A JSON answer that was read whole."""

    __slots__ = ("_message", "body")

    def __init__(self, body: bytes) -> None:
        """``body`` is all of it; nobody has looked into it yet."""
        self.body = body
        self._message: Message | None = None

    @property
    def message(self) -> Message:
        """What it says, looked at once; of kind OTHER where it is no JSON."""
        if self._message is None:
            try:
                self._message = parse(self.body)
            except NotJson:
                self._message = NO_MESSAGE
        return self._message


def judged_head(answer: Answer) -> AnswerHead:
    """What the classifier wants to know of an answer's head."""
    challenge = answer.header(hdrs.WWW_AUTHENTICATE)
    return AnswerHead(answer.status, answer.header(hdrs.CONTENT_TYPE), challenge is not None)


def is_event_stream(answer: Answer) -> bool:
    """Whether an answer is a stream of events that can be read."""
    return media_type(answer.header(hdrs.CONTENT_TYPE)) == EVENT_STREAM and not is_encoded(answer)


def is_json(answer: Answer) -> bool:
    """Whether an answer is JSON that can be read."""
    return media_type(answer.header(hdrs.CONTENT_TYPE)) == JSON and not is_encoded(answer)


def may_hold_message(answer: Answer) -> bool:
    """Whether an answer is of a type that can hold a JSON-RPC message, encoded or not."""
    return media_type(answer.header("Content-Type")) in (EVENT_STREAM, JSON)


def is_encoded(answer: Answer) -> bool:
    """Whether the body is compressed; it is then passed on unread."""
    encoding = answer.header(hdrs.CONTENT_ENCODING)
    return encoding is not None and encoding.strip().lower() not in ("", "identity")


def may_be_kept(answer: Answer, limit: int) -> bool:
    """Whether an answer can be read to its end before any of it is passed on: no stream, and not known as larger."""
    length = answer.content_length
    return (length is None or length <= limit) and media_type(answer.header(hdrs.CONTENT_TYPE)) != EVENT_STREAM


async def beginning(answer: Answer, limit: int) -> bytes:
    """Up to ``limit`` bytes of a body; of an error's no more than came in time. Raises ``UpstreamFault``."""
    if answer.status < 400 or answer.has_arrived:
        return await answer.peek(limit)
    try:
        async with asyncio.timeout(ERROR_BODY_TIMEOUT_S):
            return await answer.peek(limit)
    except TimeoutError:
        return answer.peeked


async def decoded_body(answer: Answer, limit: int) -> bytes:
    """The beginning of a body, decoded for a look at it; the answer itself stays as it came.

    Reads and returns at most about ``limit`` bytes. Raises ``UpstreamFault``.
    """
    raw = await beginning(answer, limit)
    if not is_encoded(answer):
        return raw
    return decoded(raw, answer.header("Content-Encoding") or "", limit)


def decoded(raw: bytes, encoding: str, limit: int) -> bytes:
    """Undo one content encoding, bounded; what cannot be undone is empty, and therefore proves nothing."""
    window = _ANY_DEFLATE.get(encoding.strip().lower())
    if window is None:
        return b""
    try:
        return zlib.decompressobj(window).decompress(raw, limit)
    except zlib.error:
        return b""


async def kept(answer: Answer, limit: int) -> KeptAnswer:
    """Read an answer up to ``limit`` bytes, or to where it breaks or gets stuck, and keep that."""
    try:
        body = await beginning(answer, limit)
    except UpstreamFault:
        body = answer.peeked
    pairs = answer.client_headers(without={"mcp-session-id", "content-length"})
    return KeptAnswer(answer.status, answer.reason, pairs, body)


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
    async for chunk in answer.chunks():
        size += len(chunk)
        for piece in splitter.feed(chunk):
            event = parse_event(piece.raw) if isinstance(piece, Block) else None
            message = _response_in((event.data or "").encode("utf-8", "replace"), request_id) if event else None
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
