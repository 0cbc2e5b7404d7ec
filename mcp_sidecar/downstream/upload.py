"""The body of one request, as its client sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

MAX_UNREAD_BYTES = 16 * 1024
"""So much of a body waits for whoever reads it; beyond it the client is not read from before that one waits again."""


class BrokenBody(Exception):
    """The client's framing of the body is wrong, or it ends, or falls silent, before the body does."""


class Source(Protocol):
    """The connection that a body comes on."""

    def write(self, data: bytes) -> None:
        """Send at once."""

    def pause_reading(self) -> None:
        """Take nothing from the client for now."""

    def resume_reading(self) -> None:
        """Go on."""


class Upload:
    """Nothing is read, and a client that asks whether to send is not told to, before somebody wants the body."""

    __slots__ = ("_failed", "_has_ended", "_parts", "_source", "_waiters", "awaits_continue", "is_broken", "size")

    def __init__(self, source: Source, *, awaits_continue: bool) -> None:
        """``awaits_continue``: the client wants to hear ``100 Continue`` first."""
        self._source = source
        self._parts: list[bytes] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._has_ended = False
        self._failed = False
        self.awaits_continue = awaits_continue
        self.is_broken = False
        """Whether somebody has met the break."""
        self.size = 0
        """How many bytes wait to be read."""

    # -- what whoever answers the request asks ------------------------------------------------------------------------

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is left of the body. Raises ``BrokenBody``."""
        if self.awaits_continue:
            self.awaits_continue = False
            self._source.write(CONTINUE)
        while part := await self._read():
            yield part

    def arrived(self) -> bytes | None:
        """All of the body, where it is here by now."""
        return self._take() if self._has_ended and not self._failed else None

    async def _read(self) -> bytes:
        while not self._parts:
            if self._failed:
                self.is_broken = True
                raise BrokenBody
            if self._has_ended:
                return b""
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._source.resume_reading()
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        return self._take()

    def _take(self) -> bytes:
        parts, self._parts, self.size = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- what the connection tells ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The next part."""
        if data:
            self._parts.append(data)
            self.size += len(data)
            if self.size > MAX_UNREAD_BYTES and not self._waiters:
                self._source.pause_reading()
            self._wake()

    def end(self) -> None:
        """That was the last part. From now on the client is read from whoever is slow: it may leave, or send more."""
        self._has_ended = True
        self._source.resume_reading()
        self._wake()

    def fail(self) -> None:
        """There will be no end."""
        self._failed = True
        self._parts.clear()
        self._source.resume_reading()
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
