"""Where a message ends, told by its bytes and not by a parser.

A connection may bring another message only if nothing came behind the last one but its plain end. Trailers do not count
as such: aiohttp 3.14 reads the last of them as the first header of the next message, which may be somebody else's.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_sidecar.wire.http1 import END_OF_HEAD, LAST_CHUNK

END_OF_CHUNKS = b"\r\n" + LAST_CHUNK


@dataclass(slots=True)
class Extent:
    """What has come of one message. ``head_size`` is 0 while it is not known, as where the head came in two parts."""

    size: int = 0
    head_size: int = 0
    tail: bytes = b""

    def add(self, data: bytes) -> None:
        """The next part."""
        if not self.size:
            self.head_size = data.find(END_OF_HEAD) + len(END_OF_HEAD) if END_OF_HEAD in data else 0
        self.size += len(data)
        enough = len(data) >= len(END_OF_CHUNKS)
        self.tail = data[-len(END_OF_CHUNKS) :] if enough else (self.tail + data)[-len(END_OF_CHUNKS) :]

    @property
    def ends_with_chunks(self) -> bool:
        """Whether the last thing that came is the plain end of a body in chunks."""
        return self.tail == END_OF_CHUNKS

    def ends_after(self, body_size: int) -> bool:
        """Whether the last thing that came is the end of a body of so many bytes. False where it is not known."""
        return self.head_size > 0 and self.size == self.head_size + body_size
