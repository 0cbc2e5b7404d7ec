"""The body of one answer between the connection that brings it and the one task that reads it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from mcp_sidecar.wire.faults import Fault

CHUNK_BYTES = 64 * 1024
HIGH_BYTES = 2 * CHUNK_BYTES
"""So much may wait to be read before no more is taken from the socket."""


class UpstreamFault(Exception):
    """The upstream gave no answer, or no whole one."""

    def __init__(self, fault: Fault, *, was_stale: bool = False, detail: str = "") -> None:
        """``fault`` says whether the request can have arrived, ``detail`` in words why there is no connection.

        ``was_stale``: it went on a connection that had served before, and not a byte came back.
        """
        super().__init__(fault.value)
        self.fault = fault
        self.was_stale = was_stale
        self.detail = detail


class Source(Protocol):
    """Where the body comes from."""

    def pause_reading(self) -> None:
        """Whoever reads is slow."""

    def resume_reading(self) -> None:
        """Go on."""


class Taker(Protocol):
    """Who takes each part of a body as it comes, in place of a reader."""

    def arrived(self, data: bytes) -> bool:
        """A part; false where it is left for a reader."""

    def over(self) -> None:
        """Nothing more will come."""


class Content:
    """What has come of a body and was not taken yet. ``has_ended``: all of it has come; ``fault``: the rest never will."""

    __slots__ = ("_chunks", "_is_full", "_size", "_source", "_taker", "_waiter", "fault", "has_ended")

    def __init__(self, source: Source | None = None) -> None:
        """Without a source there is no body: it has ended."""
        self._source = source
        self._chunks: list[bytes] | None = None
        self._size = 0
        self._is_full = False
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Taker | None = None
        self.has_ended = source is None
        self.fault: Fault | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.has_ended or self.fault is not None

    @property
    def has_some(self) -> bool:
        """Whether there is something to take."""
        return bool(self._chunks)

    @property
    def is_read(self) -> bool:
        """Whether all of it has come and was taken."""
        return self.has_ended and not self._chunks

    # -- what the connection tells ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """A part has come."""
        if self._taker is not None and self._taker.arrived(data):
            return
        if self._chunks is None:
            self._chunks = []
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_BYTES and not self._is_full and self._source is not None:
            self._is_full = True
            self._source.pause_reading()
        self._wake()

    def end(self) -> None:
        """That was all of it."""
        if self.fault is None:
            self.has_ended = True
            self._wake()

    def fail(self, fault: Fault) -> None:
        """There will be no more, and it is not whole. What has come can still be taken."""
        if not self.is_over:
            self.fault = fault
            self._wake()

    def _wake(self) -> None:
        if self._taker is not None:
            self._taker.over()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- what the reader asks -----------------------------------------------------------------------------------------

    def divert(self, taker: Taker | None) -> None:
        """Give what comes to ``taker`` from now on, or have it read again. Nothing is left to be taken, and more may come."""
        self._taker = taker

    def arrival(self) -> asyncio.Future[None]:
        """Done when there is something to take, or nothing to be waited for. One at a time."""
        arrived = asyncio.get_running_loop().create_future()
        if self._chunks or self.is_over:
            arrived.set_result(None)
        else:
            self._waiter = arrived
        return arrived

    def take(self) -> bytes:
        """Whatever is there. Raises ``UpstreamFault`` where there is nothing and will be nothing."""
        chunks, self._chunks, self._size = self._chunks, None, 0
        if not chunks:
            if self.fault is not None:
                raise UpstreamFault(self.fault)
            return b""
        taken = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._is_full and self._source is not None:
            self._is_full = False
            self._source.resume_reading()
        return taken


NO_CONTENT = Content()
