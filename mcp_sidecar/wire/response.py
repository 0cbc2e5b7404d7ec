"""One HTTP/1.1 response, read from its bytes: where its head ends, where its body ends, and what came behind it.

The rule of this file: it is the only one on the server's side that says where a message ends, and what two readers could
read differently (bare line feeds, folded lines, two lengths, a coding that is not ``chunked``) it does not read at all.
RFC 9112 §2.2, §5, §6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from mcp_sidecar.wire.headers import FIELD_NAME, FIELD_VALUE, MAX_FIELDS, Fields, read_fields

MAX_CHUNK_LINE_BYTES = 4096
"""The size of a chunk with its extensions, which nobody reads."""

_END_OF_HEAD = b"\r\n\r\n"
_LINE_END = b"\r\n"
_VERSION = b"HTTP/1."
_STATUS_LINE = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: ({FIELD_VALUE}))?+")
_TRAILER = re.compile(rf"{FIELD_NAME}:{FIELD_VALUE}\r\n".encode("latin-1"))
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,15}+)[ \t]*+(?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?+\r\n")
_BEGUN_CHUNK_LINE = re.compile(rb"[0-9a-fA-F]{1,15}+(?:[ \t]*+(?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?+\r?+)?+")
_IDLE_TIME = re.compile(r"(?:^|,)[ \t]*timeout[ \t]*=[ \t]*\"?([0-9]{1,9})\b", re.IGNORECASE)

_WITHOUT_BODY = frozenset({204, 304})


class NotHttp(Exception):
    """These bytes are no response, or one that could be read in two ways: why is a fixed phrase."""


NO_STATUS_LINE = "it does not begin as HTTP/1.1 does"
BAD_LINE = "a line of its head is no header field"
TOO_MANY_FIELDS = f"it has more than {MAX_FIELDS} header fields"
TOO_LARGE = "its head is larger than limits.max_header_bytes"
TWO_FRAMINGS = "it has both Content-Length and Transfer-Encoding"
BAD_LENGTH = "its Content-Length is not one number"
BAD_CODING = "its Transfer-Encoding is not just chunked"
BAD_CHUNK = "a chunk of its body is not framed as such"
ANOTHER_PROTOCOL = "it switches to another protocol (101)"


@dataclass(slots=True)
class ResponseHead:
    """``length`` is that of the body in bytes, ``None`` where it comes in chunks or ends with the connection.

    ``persists``: the server will take another request behind it. ``idle_time_s``: how long it waits for one, where it
    says so (``Keep-Alive: timeout``).
    """

    status: int
    reason: str
    fields: Fields
    length: int | None
    is_chunked: bool
    persists: bool
    idle_time_s: float | None

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection tells where a body ends, if there is one."""
        return self.length is None and not self.is_chunked

    @property
    def announces_body(self) -> bool:
        """Whether the headers promise bytes; not each response that does so may have them."""
        return self.is_chunked or bool(self.length)


def read_head(data: bytes) -> ResponseHead:
    """The head that these bytes are, the blank line included. Raises ``NotHttp``."""
    text = data.decode("utf-8", "surrogateescape")
    first, _, lines = text[:-2].partition("\r\n")
    line, fields = _STATUS_LINE.fullmatch(first), read_fields(lines)
    if line is None:
        raise NotHttp(NO_STATUS_LINE)
    if fields is None:
        raise NotHttp(BAD_LINE)
    names = fields.names
    if len(names) > MAX_FIELDS:
        raise NotHttp(TOO_MANY_FIELDS)
    is_chunked = "transfer-encoding" in names
    length = _length(fields) if "content-length" in names else None
    if is_chunked and length is not None:
        raise NotHttp(TWO_FRAMINGS)
    if is_chunked and not _is_chunked_only(fields):
        raise NotHttp(BAD_CODING)
    options = fields.options("connection") if "connection" in names else ()
    persists = "close" not in options if line[1] == "1" else "keep-alive" in options and not is_chunked
    idle_time_s = _idle_time_s(fields) if "keep-alive" in names else None
    return ResponseHead(int(line[2]), line[3] or "", fields, length, is_chunked, persists, idle_time_s)


def _length(fields: Fields) -> int:
    told = fields.values("content-length")
    if len(told) > 1 or _LENGTH.fullmatch(told[0]) is None:
        raise NotHttp(BAD_LENGTH)
    return int(told[0])


def _is_chunked_only(fields: Fields) -> bool:
    told = fields.values("transfer-encoding")
    return len(told) == 1 and told[0].isascii() and told[0].lower() == "chunked"


def _idle_time_s(fields: Fields) -> float | None:
    found = _IDLE_TIME.search(",".join(fields.values("keep-alive")))
    return float(found[1]) if found is not None else None


class BodyReader(Protocol):
    """Finds the end of one body."""

    has_ended: bool
    is_plain: bool
    """Nothing stood in it or behind it that was not the body's own."""
    is_broken: bool
    """It cannot be read on."""

    def feed(self, data: bytes) -> bytes:
        """Take what has come, and give what of it is content, before a fault, too."""

    def may_end_here(self) -> bool:
        """Whether the end of the connection is the end of the body."""


class SizedBody:
    """A body of a known length."""

    __slots__ = ("_left", "has_ended", "is_broken", "is_plain")

    def __init__(self, length: int) -> None:
        """``length`` in bytes, perhaps none."""
        self._left = length
        self.has_ended = not length
        self.is_plain = True
        self.is_broken = False

    def feed(self, data: bytes) -> bytes:
        """See ``BodyReader``."""
        if len(data) > self._left:
            self.is_plain = False
            data = data[: self._left]
        self._left -= len(data)
        self.has_ended = not self._left
        return data

    def may_end_here(self) -> bool:
        """See ``BodyReader``."""
        return False


class BodyToTheEnd:
    """A body that ends with its connection (RFC 9112 §6.3, 8)."""

    __slots__ = ("has_ended", "is_broken", "is_plain")

    def __init__(self) -> None:
        """It has begun."""
        self.has_ended = False
        self.is_plain = True
        self.is_broken = False

    def feed(self, data: bytes) -> bytes:
        """See ``BodyReader``."""
        return data

    def may_end_here(self) -> bool:
        """See ``BodyReader``."""
        return True


class ChunkedBody:
    """A body in chunks (RFC 9112 §7.1). Extensions are passed over, trailers dropped."""

    __slots__ = (
        "_begun",
        "_behind_chunk",
        "_in_trailers",
        "_left",
        "_trailer_bytes_left",
        "has_ended",
        "is_broken",
        "is_plain",
    )

    def __init__(self, max_trailer_bytes: int) -> None:
        """``max_trailer_bytes`` bounds what may come behind the last chunk."""
        self._begun = b""  # a line that is not whole
        self._left = 0  # of the chunk that has begun
        self._behind_chunk = False
        self._in_trailers = False
        self._trailer_bytes_left = max_trailer_bytes
        self.has_ended = False
        self.is_plain = True
        self.is_broken = False

    def feed(self, data: bytes) -> bytes:
        """See ``BodyReader``."""
        if not (self._begun or self._left or self._behind_chunk or self._in_trailers):
            line = _CHUNK_LINE.match(data)
            if line is not None and line.end() <= MAX_CHUNK_LINE_BYTES:
                start, end = line.end(), line.end() + int(line[1], 16)
                if start < end == len(data) - 2 and data.endswith(_LINE_END):
                    return data[start:end]  # one chunk, as where events come one by one
        if self._begun:
            data, self._begun = self._begun + data, b""
        parts: list[bytes] = []
        at = 0
        try:
            while at < len(data) and not self.has_ended:
                if self._left:
                    part = data[at : at + self._left]
                    parts.append(part)
                    at += len(part)
                    self._left -= len(part)
                    self._behind_chunk = not self._left
                else:
                    at = self._read_line(data, at)
        except NotHttp:
            self.is_broken = True
        self.is_plain = self.is_plain and at == len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_line(self, data: bytes, at: int) -> int:
        """Where the line that begins at ``at`` ends; the end of the data where it is not whole yet."""
        end = data.find(b"\n", at) + 1
        if not end:
            self._begun = data[at:]
            if not self._may_become_line(self._begun):
                raise NotHttp(BAD_CHUNK)
            return len(data)
        if self._behind_chunk:
            if data[at:end] != _LINE_END:
                raise NotHttp(BAD_CHUNK)
            self._behind_chunk = False
        elif self._in_trailers:
            self._read_trailer(data[at:end])
        else:
            line = _CHUNK_LINE.fullmatch(data, at, end)
            if line is None or end - at > MAX_CHUNK_LINE_BYTES:
                raise NotHttp(BAD_CHUNK)
            self._left = int(line[1], 16)
            self._in_trailers = not self._left
        return end

    def _read_trailer(self, line: bytes) -> None:
        self._trailer_bytes_left -= len(line)
        if line == _LINE_END:
            self.has_ended = True
        elif self._trailer_bytes_left < 0 or _TRAILER.fullmatch(line) is None:
            raise NotHttp(BAD_CHUNK)
        else:
            self.is_plain = False

    def _may_become_line(self, begun: bytes) -> bool:
        if self._behind_chunk:
            return _LINE_END.startswith(begun)
        if self._in_trailers:
            return len(begun) <= self._trailer_bytes_left
        return len(begun) <= MAX_CHUNK_LINE_BYTES and _BEGUN_CHUNK_LINE.fullmatch(begun) is not None

    def may_end_here(self) -> bool:
        """See ``BodyReader``."""
        return False


class ResponseReader:
    """Reads one response, interim ones (1xx) before it included.

    ``head`` is set as soon as it is known. ``why_broken``: what came is no response, or could be read in two ways.
    """

    __slots__ = ("_begun", "_body", "_head_bytes_left", "_is_plain", "_to_head", "head", "why_broken")

    def __init__(self, *, to_head: bool, max_head_bytes: int) -> None:
        """``to_head``: it answers HEAD and has no body."""
        self.head: ResponseHead | None = None
        self.why_broken = ""
        self._to_head = to_head
        self._head_bytes_left = max_head_bytes
        self._begun = b""
        self._body: BodyReader = SizedBody(0)
        self._is_plain = True

    @property
    def is_broken(self) -> bool:
        """Whether it cannot be read on."""
        return bool(self.why_broken)

    @property
    def has_ended(self) -> bool:
        """Whether all of it is here."""
        return self.head is not None and self._body.has_ended

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection tells that it is whole."""
        return self._body.may_end_here()

    @property
    def may_be_followed(self) -> bool:
        """Whether another response may come on its connection, as far as this one tells; it has ended."""
        head = self.head
        return head is not None and head.persists and self._is_plain and self._body.is_plain and self._body.has_ended

    def feed(self, data: bytes) -> bytes:
        """Take what has come, and give what of it is content, before a fault, too."""
        if self.head is None and not self.why_broken:
            try:
                data = self._read_heads(self._begun + data if self._begun else data)
            except NotHttp as error:
                self.why_broken = str(error)
        if not data or self.why_broken:
            return b""
        if self._body.has_ended:
            self._is_plain = False
            return b""
        content = self._body.feed(data)
        if self._body.is_broken:
            self.why_broken = BAD_CHUNK
        return content

    def _read_heads(self, data: bytes) -> bytes:
        """What stands behind the head."""
        while self.head is None:
            end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
            if end < len(_END_OF_HEAD):
                self._keep(data)
                return b""
            self._head_bytes_left -= end
            if self._head_bytes_left < 0:
                raise NotHttp(TOO_LARGE)
            head = read_head(data[:end])
            data = data[end:]
            if head.status >= 200:
                self._begun, self.head = b"", head
                self._body = self._body_of(head)
            elif head.status == 101:  # nobody asked for one
                raise NotHttp(ANOTHER_PROTOCOL)
            elif head.announces_body:
                self._is_plain = False
        return data

    def _keep(self, begun: bytes) -> None:
        if not (begun.startswith(_VERSION) or _VERSION.startswith(begun)):
            raise NotHttp(NO_STATUS_LINE)
        if len(begun) > self._head_bytes_left:
            raise NotHttp(TOO_LARGE)
        if _BARE.search(begun) is not None:
            raise NotHttp(BAD_LINE)
        self._begun = begun

    def _body_of(self, head: ResponseHead) -> BodyReader:
        if self._to_head or head.status in _WITHOUT_BODY:
            self._is_plain = self._is_plain and not head.announces_body
            return SizedBody(0)
        if head.is_chunked:
            return ChunkedBody(self._head_bytes_left)
        return SizedBody(head.length) if head.length is not None else BodyToTheEnd()
