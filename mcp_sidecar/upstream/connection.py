"""One connection to the upstream: a request goes out, its answer comes in, and then perhaps the next one.

aiohttp's connector opens it and aiohttp's parser reads from it; what stands here is what lies between: whom an answer is
for, when silence has lasted too long, and whether the connection is fit for another request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import aiohttp
from aiohttp import StreamReader, hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser, RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD

from mcp_sidecar.config import Limits
from mcp_sidecar.wire import framing
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.framing import Extent

CHUNK_BYTES = 64 * 1024
MAX_HEADERS = 256

Body = bytes | AsyncIterator[bytes] | None
Received = tuple[RawResponseMessage, StreamReader]
"""The head of an answer and where its body arrives."""

_BODILESS = frozenset({204, 304})
_SWITCHING_PROTOCOLS = 101
_CHUNKED, _UNTOLD = -1, -2


class UpstreamFault(Exception):
    """The upstream gave no answer, or no whole one."""

    def __init__(self, fault: Fault) -> None:
        """``fault`` says whether the request can have arrived."""
        super().__init__(fault.value)
        self.fault = fault


class Lease(Protocol):
    """What the connector knows the connection by."""

    def close(self) -> None:
        """The connection is given up."""


class Watcher(Protocol):
    """Who looks at the bytes of an answer before any parser does."""

    def arrived(self, data: bytes) -> None:
        """A part of the answer."""

    def broke(self) -> None:
        """There will be no more. The connection is to be handed to the parser now, which tells the rest."""


class Connection(BaseProtocol):
    """A protocol that asks one thing at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        """The connector makes it and connects it."""
        super().__init__(loop)
        self.lease: Lease | None = None
        self._limits = limits
        self._parser: HttpResponseParser = self._new_parser(with_bodies=True)
        self._waiter: asyncio.Future[Received] | None = None
        self._content: StreamReader = EMPTY_PAYLOAD
        self._upload: asyncio.Task[None] | None = None
        self._is_asked = False
        self._is_spoilt = False
        self._reads_heads_only = False
        self._patience_s: float | None = None
        self._give_up_at: float | None = None  # loop time; while it is the upstream's turn
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None
        self._watcher: Watcher | None = None
        self._extent = Extent()  # of the answer, as far as the parser got it
        self._body_size = 0  # that its head tells

    # -- what the owner asks ------------------------------------------------------------------------------------------

    async def request(
        self, head: bytes, body: Body, *, is_head: bool, is_chunked: bool, patience_s: float | None
    ) -> Received:
        """Send a request and wait for the head of its answer, for as long as not ``patience_s`` pass in silence.

        ``body`` is sent as it comes, also while the answer is on its way. Raises ``UpstreamFault``. Whatever goes wrong,
        a cancellation included, leaves the connection closed.
        """
        self._begin(patience_s, is_head=is_head)
        self._waiter = self._loop.create_future()
        try:
            self._send(head, body, is_chunked=is_chunked)
        except BaseException:
            self.abort()
            self._waiter = None
            raise
        return await self.received()

    async def received(self) -> Received:
        """Wait for the head of the answer, as ``request`` does."""
        assert self._waiter is not None, "a request is under way"
        try:
            return await self._waiter
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = None

    def ask(self, request: bytes, patience_s: float, watcher: Watcher) -> None:
        """Send a whole request, whose answer goes to ``watcher`` as it comes."""
        assert self.transport is not None
        self._begin(patience_s, is_head=False)
        self._watcher = watcher
        self.transport.write(request)
        self._note_life()

    def parse(self, *arrived: bytes) -> None:
        """From now on the answer is parsed, what has ``arrived`` of it included: ``received`` tells its head."""
        self._watcher = None
        self._waiter = self._loop.create_future()
        for piece in filter(None, arrived):
            self.data_received(piece)

    def unwatch(self) -> None:
        """The watcher has all of the answer."""
        self._watcher = None

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        self._watcher = None
        if self._waiter is not None and not self._waiter.cancel():
            self._waiter.exception()  # told to nobody
        self.abort()

    def _begin(self, patience_s: float | None, *, is_head: bool) -> None:
        self._is_asked, self._patience_s, self._content = True, patience_s, EMPTY_PAYLOAD
        self._extent, self._body_size = Extent(), 0
        if is_head or self._reads_heads_only:
            self._reads_heads_only = is_head
            self._parser = self._new_parser(with_bodies=not is_head)

    def bear_silence(self, patience_s: float | None) -> None:
        """Let the rest of the answer be silent for so many seconds at a time, or for ever."""
        self._patience_s, self._give_up_at = patience_s, None
        if not self._content.is_eof():
            self._note_life()

    def finish(self) -> bool:
        """The answer is of no more interest: whether the connection can take the next request. Else it is to be closed."""
        is_whole = self._content.is_eof() and self._upload is None and not self._is_spoilt and self._ended_plainly()
        self._is_asked = False
        self._give_up_at = None
        return is_whole and self.is_connected()

    def _ended_plainly(self) -> bool:
        """Whether nothing has come behind the answer, not even trailers. True for one that was not parsed here."""
        extent = self._extent
        if not extent.size:
            return True
        return extent.ends_with_chunks if self._body_size == _CHUNKED else extent.ends_after(self._body_size)

    def is_connected(self) -> bool:
        """Whether neither side has closed it yet, as far as is known."""
        return self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        """Close it; at once where a request is still being sent."""
        if self._upload is not None:
            self.abort()
            return
        self._let_go()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close it without sending what is still to be sent."""
        self._let_go()
        if self.transport is not None:
            self.transport.abort()

    def break_off(self) -> None:
        """Close it under the eyes of whoever reads the answer."""
        if not self._content.is_eof():
            self._content.set_exception(UpstreamFault(Fault.BROKEN))
        self.abort()

    # -- what the connector asks --------------------------------------------------------------------------------------

    should_close = True
    """Nothing is given back to the connector for another use: ``pool`` does that."""

    @property
    def closed(self) -> asyncio.Future[None] | None:
        """Done when the connection is closed; ``None`` where it already is."""
        if self._closed is None and self.transport is not None:
            self._closed = self._loop.create_future()
        return self._closed

    # -- what the transport tells -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Read on; without data: what the parser has kept back."""
        if not self._is_asked:
            self._is_spoilt = True
            self.close()
            return
        if self._watcher is not None:
            self._watcher.arrived(data)
            return
        self._note_life()
        self._extent.add(data)
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except Exception:  # noqa: BLE001 - whatever aiohttp's parser stumbles over is the upstream's fault
            self._fail(Fault.GARBLED)
            return
        for message, content in messages:
            self._receive(message, content)
        if upgraded:
            self._is_spoilt = True

    def connection_lost(self, exc: BaseException | None) -> None:
        """The end of an answer that ends with its connection; a break for every other one that is under way."""
        if self._watcher is not None:
            self._watcher.broke()
        self._let_go()
        if not self._content.is_eof():
            broken = self._content.exception()
            if broken is None:
                self._end_content(exc)
            else:
                self._content.set_exception(broken)  # again: a reader that the end of a chunk woke meanwhile waits anew
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(UpstreamFault(Fault.BROKEN))
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
        if self.lease is not None:
            self.lease.close()
            self.lease = None
        super().connection_lost(exc)

    def pause_reading(self) -> None:
        """Whoever reads is slow; that is not the upstream's silence."""
        super().pause_reading()
        self._give_up_at = None

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on. aiohttp's reader asks for it at the end of every body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)
            if not self._reading_paused and not self._content.is_eof():
                self._note_life()

    # -- the answer ---------------------------------------------------------------------------------------------------

    def _receive(self, message: RawResponseMessage, content: StreamReader) -> None:
        code = message.code
        if code < 200 and code != _SWITCHING_PROTOCOLS:
            return
        waiter = self._waiter
        if waiter is None or waiter.done():  # more than was asked for
            self._is_spoilt = True
            return
        if message.should_close or code == _SWITCHING_PROTOCOLS:
            self._is_spoilt = True
        self._content = content
        self._body_size = 0 if code in _BODILESS or self._reads_heads_only else _body_size(message)
        content.on_eof(self._note_end)
        waiter.set_result((message, EMPTY_PAYLOAD if code in _BODILESS else content))

    def _note_end(self) -> None:
        """All of the answer has come. An upstream that has said everything need not hear the rest of the request."""
        self._give_up_at = None
        if self._upload is not None:
            self._is_spoilt = True
            self._upload.cancel()

    def _end_content(self, error: BaseException | None) -> None:
        try:
            if error is None:
                self._parser.feed_eof()
        except Exception:  # noqa: BLE001, S110 - the framing says that more should have come
            pass
        if not self._content.is_eof():
            self._content.set_exception(UpstreamFault(Fault.BROKEN))

    def _fail(self, fault: Fault) -> None:
        """Nothing more is to be expected here. A body that has begun is broken, whatever is wrong with it."""
        self._is_spoilt = True
        if self._watcher is not None:
            self._watcher.broke()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(UpstreamFault(fault))
        elif not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(UpstreamFault(Fault.BROKEN if fault is Fault.GARBLED else fault))
        self.abort()

    def _new_parser(self, *, with_bodies: bool) -> HttpResponseParser:
        bound = self._limits.max_header_bytes
        return HttpResponseParser(
            self,
            self._loop,
            CHUNK_BYTES,
            payload_exception=aiohttp.ClientPayloadError,
            response_with_body=with_bodies,
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=bound,
            max_field_size=bound,
            max_headers=MAX_HEADERS,
        )

    # -- silence ------------------------------------------------------------------------------------------------------

    def note_life(self) -> None:
        """A part of an answer has come that is watched."""
        self._note_life()

    def _note_life(self) -> None:
        """The upstream's time begins anew. The timer is left as it is, and looks when it fires."""
        if self._patience_s is not None:
            self._give_up_at = self._loop.time() + self._patience_s
            if self._timer is None:
                self._timer = self._loop.call_at(self._give_up_at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._give_up_at is None:
            return
        if self._loop.time() < self._give_up_at:
            self._timer = self._loop.call_at(self._give_up_at, self._look)
        else:
            self._fail(Fault.STALLED)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give_up_at = None
        if self._upload is not None:
            self._upload.cancel()

    # -- the request --------------------------------------------------------------------------------------------------

    def _send(self, head: bytes, body: Body, *, is_chunked: bool) -> None:
        assert self.transport is not None
        if body is None or (isinstance(body, bytes) and len(body) <= CHUNK_BYTES):
            self.transport.write(head + body if body else head)
            self._note_life()
            return
        self.transport.write(head)
        parts = _in_steps(body) if isinstance(body, bytes) else body
        self._upload = self._loop.create_task(self._write(parts, is_chunked=is_chunked))

    async def _write(self, parts: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        try:
            async for part in parts:
                if part:
                    await self._write_part(framing.chunk(part) if is_chunked else part)
            if is_chunked:
                await self._write_part(framing.LAST_CHUNK)
        except asyncio.CancelledError:
            self._is_spoilt = True
            raise
        except Exception:  # noqa: BLE001 - the client's body broke, or the connection: half a request is sent
            self._note_half_sent()
        else:
            if not self._content.is_eof() or self._waiter is not None:
                self._note_life()
        finally:
            self._upload = None

    def _note_half_sent(self) -> None:
        """An answer that has begun may be read to its end; one that has not is not waited for."""
        self._is_spoilt = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(UpstreamFault(Fault.BROKEN))

    async def _write_part(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)
        await self._drain_helper()


def _body_size(message: RawResponseMessage) -> int:
    if message.chunked:
        return _CHUNKED
    length = message.headers.get(hdrs.CONTENT_LENGTH, "")
    return int(length) if length.isdecimal() else _UNTOLD


async def _in_steps(body: bytes) -> AsyncIterator[bytes]:
    """A large body is written step by step, so that others have their turn."""
    for start in range(0, len(body), CHUNK_BYTES):
        if start:
            await asyncio.sleep(0)
        yield body[start : start + CHUNK_BYTES]
