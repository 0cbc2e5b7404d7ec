"""As much of HTTP/1.1 as generator and upstream need, on asyncio's protocols: a message reader for both sides.

Bodies are given on as they come, so that 20 MiB cost no memory here that would be taken for somebody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

KEPT_BYTES: Final = 65536
"""So much of a body is kept; the rest is only counted."""
NO_BODY: Final = frozenset({204, 304})


class _State(Enum):
    HEAD = auto()
    COUNTED = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    UNTIL_CLOSE = auto()


class Message:
    """One request or response: its first line, its headers by lower-case name, and what is kept of its body."""

    __slots__ = ("body", "first_line", "headers", "size")

    def __init__(self, first_line: bytes, headers: dict[bytes, bytes]) -> None:
        self.first_line = first_line
        self.headers = headers
        self.body = bytearray()
        self.size = 0

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.first_line.split(None, 2)[1])

    @property
    def method(self) -> bytes:
        """Of a request."""
        return self.first_line.partition(b" ")[0]


class Reader(asyncio.Protocol):
    """Reads messages off a connection; subclasses say what follows."""

    is_client = False

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._state = _State.HEAD
        self._left = 0
        self._message: Message | None = None
        self._steps: dict[_State, Callable[[], bool]] = {
            _State.HEAD: self._read_head,
            _State.COUNTED: self._read_counted,
            _State.CHUNK_SIZE: self._read_chunk_size,
            _State.CHUNK: self._read_counted,
            _State.CHUNK_END: self._read_chunk_end,
            _State.UNTIL_CLOSE: self._read_all,
        }

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def head_came(self, message: Message) -> None:
        """The headers are complete."""

    def body_came(self, message: Message, piece: memoryview) -> None:
        """A piece of the body, to be looked at before this returns."""

    def message_came(self, message: Message) -> None:
        """The message is complete."""

    def closed(self, message: Message | None) -> None:
        """The connection is gone; ``message`` is the one that was not complete."""

    # -- of the transport ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]  # uvloop's own class

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = None
        message, self._message = self._message, None
        if message is not None and self._state is _State.UNTIL_CLOSE:
            self.message_came(message)
            message = None
        self.closed(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and self._steps[self._state]():
            pass

    # -- steps: each returns whether to go on with what is in the buffer ----------------------------------------------

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first_line, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        pairs = (line.partition(b":") for line in lines)
        message = Message(first_line, {name.strip().lower(): value.strip() for name, _, value in pairs})
        if self.is_client and 100 <= message.status < 200:
            return True
        self._message = message
        self.head_came(message)
        self._begin_body(message)
        return True

    def _begin_body(self, message: Message) -> None:
        if message.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._state = _State.CHUNK_SIZE
        elif b"content-length" in message.headers:
            self._left = int(message.headers[b"content-length"])
            self._state = _State.COUNTED
        elif self.is_client and message.status not in NO_BODY:
            self._state = _State.UNTIL_CLOSE
        else:
            self._left = 0
            self._state = _State.COUNTED
        if self._state is _State.COUNTED and self._left == 0:
            self._finish()

    def _take(self, size: int) -> None:
        message = self._message
        assert message is not None
        with memoryview(self._buffer) as whole, whole[:size] as piece:
            message.size += size
            if len(message.body) < KEPT_BYTES:
                message.body += piece[: KEPT_BYTES - len(message.body)]
            self.body_came(message, piece)
        del self._buffer[:size]

    def _read_counted(self) -> bool:
        size = min(self._left, len(self._buffer))
        self._take(size)
        self._left -= size
        if self._left == 0:
            if self._state is _State.CHUNK:
                self._state = _State.CHUNK_END
            else:
                self._finish()
        return True

    def _read_chunk_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        self._left = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
        if self._left:
            del self._buffer[: end + 2]
            self._state = _State.CHUNK
            return True
        if len(self._buffer) < end + 4:
            return False
        del self._buffer[: end + 4]
        self._finish()
        return True

    def _read_chunk_end(self) -> bool:
        if len(self._buffer) < 2:
            return False
        del self._buffer[:2]
        self._state = _State.CHUNK_SIZE
        return True

    def _read_all(self) -> bool:
        self._take(len(self._buffer))
        return False

    def _finish(self) -> None:
        message, self._message = self._message, None
        self._state = _State.HEAD
        assert message is not None
        self.message_came(message)
