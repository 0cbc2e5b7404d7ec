"""Read what the upstream answered: a bounded, decoded beginning of it, or one JSON-RPC answer out of it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import StreamReader, hdrs
from aiohttp.http import RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD

from mcp_sidecar.aiohttp_internals import NO_ANSWER, lighten_reader
from mcp_sidecar.upstream.connection import Connection, UpstreamFault
from mcp_sidecar.upstream.pool import Pool
from mcp_sidecar.waiting.budget import Claim
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Fields, Pair, media_type
from mcp_sidecar.wire.jsonrpc import UNREAD, Message, NotJson, parse

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

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        message: RawResponseMessage,
        content: StreamReader,
        idle_timeout_s: float,
        claim: Claim,
    ) -> None:
        """``content`` is a body that has not been touched; ``claim`` counts what of it is in memory."""
        self._claim = claim
        self._idle_timeout_s = idle_timeout_s
        self._pool = pool
        self._connection: Connection | None = connection
        self._message = message
        self._content = content
        self.status: int = message.code
        self.reason: str = message.reason or ""
        self.peeked = b""
        self.whole = content is EMPTY_PAYLOAD
        self._fault: Fault | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return self._message.headers.get(name)

    @property
    def names_a_url(self) -> bool:
        """Whether a header says where something is, perhaps on the upstream's origin."""
        return hdrs.LOCATION in self._message.headers or hdrs.CONTENT_LOCATION in self._message.headers

    @property
    def content_length(self) -> int | None:
        """The length that the upstream announced, in bytes."""
        announced = self.header(hdrs.CONTENT_LENGTH)
        return int(announced) if announced is not None and announced.isdecimal() else None

    @property
    def headers(self) -> list[Pair]:
        """All headers, as they came."""
        return Fields(self._message.raw_headers).pairs

    def client_headers(self, without: Iterable[str] = ()) -> list[Pair]:
        """The headers to pass on."""
        return Fields(self._message.raw_headers).for_client(frozenset(without))

    @property
    def has_arrived(self) -> bool:
        """Whether all of it is here, to be read without a wait."""
        return self._content.is_eof()

    async def peek(self, limit: int) -> bytes:
        """Read up to ``limit`` bytes ahead; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        parts = [self.peeked] if self.peeked else []
        size = len(self.peeked)
        try:
            while size < limit and not self.whole:
                chunk = await self._read()
                parts.append(chunk)
                size += len(chunk)
                self.whole = not chunk or self._content.at_eof()
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
            self.whole = not chunk or self._content.at_eof()
            if chunk:
                yield chunk

    async def _read(self) -> bytes:
        if self._fault is not None:
            raise UpstreamFault(self._fault)
        content = self._content
        # What arrived before a break is part of the answer, perhaps all that a client waits for; aiohttp's reader
        # raises the break first and would never hand it out.
        if content._buffer:
            return content._read_nowait(-1)
        try:
            return await content.readany()
        except UpstreamFault as fault:
            self._fault = self._fault or fault.fault
        except (OSError, RuntimeError):  # closed meanwhile
            self._fault = self._fault or Fault.BROKEN
        raise UpstreamFault(self._fault)

    async def hold_beside(self, size: int) -> None:
        """So many bytes are held of what was read and not peeked, such as the beginning of an event."""
        await self._claim.resize(size)

    async def _hold(self, size: int) -> None:
        """What is all that there is waits for nothing, since nothing more is read."""
        if self.whole:
            self._claim.count(size)
        else:
            await self._claim.grow(size)

    def forget_head(self) -> None:
        """Nobody will ask for the headers again, and the body will come slowly."""
        self._message = NO_ANSWER
        lighten_reader(self._content)

    def arrival(self) -> Awaitable[None]:
        """Done when there is something to ``take``: for one who waits long, and for whom a coroutine each is too much."""
        content = self._content
        arrived = content._loop.create_future()
        if self.peeked or content._buffer or content._eof or content._exception or not content._protocol.connected:
            arrived.set_result(None)
        else:
            content._waiter = arrived
        return arrived

    def take(self) -> bytes:
        """What has come of the body and was not taken yet; ``whole`` tells whether that was all. Raises ``UpstreamFault``."""
        peeked, self.peeked = self.peeked, b""
        content = self._content
        if peeked or self.whole:
            return peeked
        if self._fault is not None:
            raise UpstreamFault(self._fault)
        if not content._buffer and not content._eof:
            error = content.exception()
            self._fault = error.fault if isinstance(error, UpstreamFault) else Fault.BROKEN
            raise UpstreamFault(self._fault)
        chunk = content._read_nowait(-1)
        self.whole = content.at_eof()
        return chunk

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
        self._claim.release()
        if connection is not None:
            if not self._content.at_eof():
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
