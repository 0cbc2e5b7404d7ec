"""Read what the upstream answered: a bounded, decoded beginning of it, or one JSON-RPC answer out of it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

from mcp_sidecar.upstream.connection import Connection
from mcp_sidecar.upstream.content import Content, Taker, UpstreamFault
from mcp_sidecar.upstream.pool import Pool
from mcp_sidecar.waiting.budget import Claim
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import NO_FIELDS, Pair, media_type
from mcp_sidecar.wire.json_end import JsonEnd
from mcp_sidecar.wire.jsonrpc import UNREAD, Message, NotJson, parse
from mcp_sidecar.wire.origins import NAMES_A_URL
from mcp_sidecar.wire.response import ResponseHead

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

ERROR_BODY_TIMEOUT_S = 2.0
"""How long the body of an error is waited for altogether, however it drips: its status alone says most."""

_ANY_DEFLATE = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class Answer:
    """The head of the upstream's answer and, on demand, its body.

    An asynchronous context manager: leaving it without having read everything closes the connection, so that the
    upstream learns at once that nobody listens any more.
    """

    __slots__ = (
        "_claim",
        "_connection",
        "_content",
        "_fault",
        "_head",
        "_idle_timeout_s",
        "_json_end",
        "_pool",
        "peeked",
        "reason",
        "status",
        "whole",
    )

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        head: ResponseHead,
        content: Content,
        idle_timeout_s: float,
        claim: Claim,
    ) -> None:
        """``content`` is a body of which nothing was taken; ``claim`` counts what of it is in memory."""
        self._claim = claim
        self._idle_timeout_s = idle_timeout_s
        self._pool = pool
        self._connection: Connection | None = connection
        self._content = content
        self._head = head
        self.status = head.status
        self.reason = head.reason
        self.peeked = b""
        self.whole = content.is_read
        self._fault: Fault | None = None
        self._json_end = JsonEnd() if head.ends_with_connection and is_json(self) else None

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return self._head.fields.value(name.lower())

    @property
    def names_a_url(self) -> bool:
        """Whether a header says where something is, perhaps on the upstream's origin."""
        return not NAMES_A_URL.isdisjoint(self._head.fields.names)

    @property
    def content_length(self) -> int | None:
        """The length that the upstream announced, in bytes."""
        announced = self.header("content-length")
        return int(announced) if announced is not None else None

    @property
    def headers(self) -> list[Pair]:
        """All headers, as they came."""
        return self._head.fields.pairs

    def client_headers(self, without: Iterable[str] = ()) -> list[Pair]:
        """The headers to pass on."""
        return self._head.fields.for_client(frozenset(without))

    @property
    def is_lacking(self) -> bool:
        """Whether it was to be JSON, and all that came is the end of its connection, which nobody told from a cut."""
        return self.whole and self._json_end is not None and self.status == HTTPStatus.OK and not self.peeked

    @property
    def has_arrived(self) -> bool:
        """Whether all of it is here, to be read without a wait."""
        return self._content.has_ended

    async def peek(self, limit: int) -> bytes:
        """Read up to ``limit`` bytes ahead; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        parts = [self.peeked] if self.peeked else []
        size = len(self.peeked)
        try:
            while size < limit and not self.whole:
                chunk = await self._read()
                parts.append(chunk)
                size += len(chunk)
                await self._hold(len(chunk))
        finally:
            self.peeked = parts[0] if len(parts) == 1 else b"".join(parts)  # what came before a break, too
        return self.peeked

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start, what was peeked first. Raises ``UpstreamFault`` where it breaks."""
        peeked, self.peeked = self.peeked, b""
        if peeked:
            yield peeked
        while not self.whole:
            chunk = await self._read()
            if chunk:
                yield chunk

    async def _read(self) -> bytes:
        if self._fault is None:
            await self._content.arrival()
        return self._taken()

    def _taken(self) -> bytes:
        """What is there; what came before a break is part of the answer, and perhaps all that a client waits for."""
        if self._fault is not None:
            raise UpstreamFault(self._fault)
        if self._json_end is not None:
            return self._taken_json(self._content, self._json_end)
        chunk = self._content.take()
        self.whole = self._content.is_read
        return chunk

    def _taken_json(self, content: Content, text: JsonEnd) -> bytes:
        """A text that only the end of its connection ends: whether that cuts it, the text itself knows best."""
        if content.fault is Fault.BROKEN and text.has_ended and not content.has_some:
            self.whole = True
            return b""
        chunk = content.take()
        text.feed(chunk)
        self.whole = content.is_read and text.may_end_here
        if content.is_read and not self.whole:
            self._fault = Fault.BROKEN
            if not chunk:
                raise UpstreamFault(self._fault)
        return chunk

    async def hold_beside(self, size: int) -> None:
        """So many bytes are held of what was read and not peeked, such as the beginning of an event."""
        await self._claim.resize(size)

    def holds_beside(self, size: int) -> bool:
        """The same where that need not be waited for; false where it must."""
        return size == self._claim.size or self._claim.resize_now(size)

    async def _hold(self, size: int) -> None:
        """What is all that there is waits for nothing, since nothing more is read."""
        if self.whole:
            self._claim.count(size)
        else:
            await self._claim.grow(size)

    def forget_head(self) -> None:
        """Nobody will ask for the headers again."""
        self._head.fields, self._head.reason, self.reason = NO_FIELDS, "", ""

    def arrival(self) -> Awaitable[None]:
        """Done when there is something to ``take``: for one who waits long, and for whom a coroutine each is too much."""
        if self.peeked or self._fault is not None:
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            arrived.set_result(None)
            return arrived
        return self._content.arrival()

    def divert(self, taker: Taker | None) -> bool:
        """Give what comes of the body to ``taker`` from now on; false where something is to be taken, or it is over.

        ``None`` has it read again.
        """
        content = self._content
        if taker is not None and (self.peeked or self._fault is not None or content.has_some or content.is_over):
            return False
        content.divert(taker)
        return True

    def take(self) -> bytes:
        """What has come of the body and was not taken yet; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        peeked, self.peeked = self.peeked, b""
        return peeked if peeked or self.whole else self._taken()

    def let_idle(self, may_idle: bool) -> None:
        """Say whether the rest may be silent for ever, now that the head tells what it is."""
        if self._connection is not None:
            self._connection.bear_silence(None if may_idle else self._idle_timeout_s)

    def break_off(self) -> None:
        """Whatever has not been read is lost, now and for whoever is reading: as if the upstream had broken off."""
        self._fault = Fault.BROKEN
        if self._connection is not None:
            self._connection.break_off()

    def close(self) -> None:
        """Let go of the connection: kept if everything was read, closed otherwise."""
        connection, self._connection = self._connection, None
        self._content.divert(None)
        self._claim.release()
        if connection is not None:
            if not self._content.is_read:
                connection.abort()
            self._pool.give_back(connection)

    async def __aenter__(self) -> Self:
        """Enter."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


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
        """What it says, looked at once; unread where it is no JSON."""
        if self._message is None:
            try:
                self._message = parse(self.body)
            except NotJson:
                self._message = UNREAD
        return self._message


def is_event_stream(answer: Answer) -> bool:
    """Whether an answer is a stream of events that can be read."""
    return media_type(answer.header("content-type")) == EVENT_STREAM and not is_encoded(answer)


def is_json(answer: Answer) -> bool:
    """Whether an answer is JSON that can be read."""
    return media_type(answer.header("content-type")) == JSON and not is_encoded(answer)


def may_hold_message(answer: Answer) -> bool:
    """Whether an answer is of a type that can hold a JSON-RPC message, encoded or not."""
    return media_type(answer.header("content-type")) in (EVENT_STREAM, JSON)


def is_encoded(answer: Answer) -> bool:
    """Whether the body is compressed; it is then passed on unread."""
    encoding = answer.header("content-encoding")
    return encoding is not None and encoding.strip().lower() not in ("", "identity")


def may_be_kept(answer: Answer, limit: int) -> bool:
    """Whether an answer can be read to its end before any of it is passed on: no stream, and not known as larger."""
    length = answer.content_length
    return (length is None or length <= limit) and media_type(answer.header("content-type")) != EVENT_STREAM


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
    return decoded(raw, answer.header("content-encoding") or "", limit)


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
