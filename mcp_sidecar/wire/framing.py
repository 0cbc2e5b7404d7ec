"""Where a message ends, told by its bytes: the one reader of a body's framing (RFC 9112 §6 and §7).

A connection may bring another message only if nothing came behind the last one but its plain end. Trailers do not count
as such: aiohttp 3.14 reads the last of them as the first header of the next message, which may be somebody else's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

END_OF_HEAD = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
END_OF_CHUNKS = b"\r\n" + LAST_CHUNK

MAX_SIZE_LINE_BYTES = 256
"""Of the line in front of a chunk, its extensions included."""

MAX_TRAILER_BYTES = 16 * 1024

_CRLF = b"\r\n"
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})([ \t]*;[\t -~\x80-\xff]*)?\r\n")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n")


class BadFraming(Exception):
    """What comes is not the body that was announced."""


def chunk(data: bytes) -> bytes:
    """A part of a body that comes in chunks. Without data it would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(slots=True)
class SizedBody:
    """A body of a length that is known before it comes."""

    missing: int
    is_plain: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether the end has come."""
        return not self.missing

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of ``data`` belongs to the body, and what came behind its end."""
        if len(data) <= self.missing:
            self.missing -= len(data)
            return data, b""
        end, self.missing = self.missing, 0
        return data[:end], data[end:]


class _Expected(Enum):
    SIZE = "the size of a chunk"
    DATA = "the data of a chunk"
    DATA_END = "the end of a chunk's line"
    TRAILER = "a trailer, or the last line"
    NOTHING = "nothing"


class ChunkedBody:
    """A body in chunks. ``is_plain`` turns false where it has extensions or trailers, which are read and left out."""

    __slots__ = ("_beginning", "_expected", "_missing", "_trailers", "is_plain")

    def __init__(self) -> None:
        self._expected = _Expected.SIZE
        self._missing = 0  # of a chunk's data
        self._beginning = b""  # of a line
        self._trailers = 0
        self.is_plain = True

    @property
    def is_whole(self) -> bool:
        """Whether the end has come."""
        return self._expected is _Expected.NOTHING

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of ``data`` belongs to the body, and what came behind its end. Raises ``BadFraming``."""
        if self._beginning:
            data, self._beginning = self._beginning + data, b""
        parts: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.is_whole:
            if self._expected is _Expected.DATA:
                part = data[at : at + self._missing]
                parts.append(part)
                at += len(part)
                self._missing -= len(part)
                if not self._missing:
                    self._expected = _Expected.DATA_END
                continue
            line_end = self._read_line(data, at)
            if not line_end:
                self._beginning = data[at:]
                at = end
            else:
                at = line_end
        return parts[0] if len(parts) == 1 else b"".join(parts), data[at:]

    def _read_line(self, data: bytes, at: int) -> int:
        """Where the line that begins at ``at`` ends; 0 where its end is still to come."""
        if self._expected is _Expected.SIZE:
            return self._read_size(data, at)
        if data.startswith(_CRLF, at):
            self._expected = _Expected.SIZE if self._expected is _Expected.DATA_END else _Expected.NOTHING
            return at + 2
        if self._expected is _Expected.TRAILER:
            return self._read_trailer(data, at)
        if data[at:] != b"\r":
            raise BadFraming("a chunk that is longer than its size")
        return 0

    def _read_size(self, data: bytes, at: int) -> int:
        line = _SIZE_LINE.match(data, at, at + MAX_SIZE_LINE_BYTES)
        if line is None:
            if len(data) - at >= MAX_SIZE_LINE_BYTES or b"\n" in data[at:]:
                raise BadFraming("no size of a chunk")
            return 0
        self._missing = int(line[1], 16)
        self.is_plain = self.is_plain and line[2] is None
        self._expected = _Expected.DATA if self._missing else _Expected.TRAILER
        return line.end()

    def _read_trailer(self, data: bytes, at: int) -> int:
        line = _TRAILER_LINE.match(data, at)
        size = (line.end() if line is not None else len(data)) - at
        if self._trailers + size > MAX_TRAILER_BYTES or (line is None and b"\n" in data[at:]):
            raise BadFraming("no trailers")
        if line is None:
            return 0
        self._trailers += size
        self.is_plain = False
        return line.end()


BodyFraming = SizedBody | ChunkedBody
