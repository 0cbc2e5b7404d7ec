"""Perfectly ordinary HTTP/1.1 messages, read from their bytes.

The rule of this file: it reads less than a parser. What it takes, every parser reads in the same way; about everything
else it says nothing. Hence no folded lines, no odd blanks, no bytes beyond ASCII, no name twice, and one way of framing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mcp_sidecar.wire.framing import END_OF_HEAD
from mcp_sidecar.wire.headers import Pair, signs_in_connection

MAX_FIELDS = 64
MAX_CHUNKS = 64

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_FIELD = re.compile(r"([^:\r]++): ?+([^\r]++)\r\n")
_ONLY_FIELDS = re.compile(rf"(?:{_NAME}++: ?+[!-~]++(?: ++[!-~]++)*+\r\n)++")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,8}")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 200 ([!-~]++(?: ++[!-~]++)*+)\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,7})\r\n")
_BEGUN_SIZE = re.compile(rb"(?:[0-9a-fA-F]{1,7}+\r?+)?+")
_ONE_EVENT = re.compile(rb"(?:event: message(\r?\n))?data: ([^\r\n]++)(\r?\n)\3")

_STAYS_OPEN = frozenset({None, "keep-alive", "Keep-Alive"})
_ODD = frozenset({"upgrade", "content-encoding", "trailer", "sec-websocket-key1"})  # the last: to some parsers
_ODD_IN_ANSWER = _ODD | {"www-authenticate"}
_ODD_IN_REQUEST = _ODD | {"transfer-encoding", "expect"}


@dataclass(slots=True)
class Request:
    """A POST with a length. ``values`` are its headers by lower-case name; ``size`` is what it takes with its body."""

    target: str
    pairs: list[Pair]
    values: dict[str, str]
    body_at: int
    size: int


@dataclass(slots=True)
class Answer:
    """The head of a 200. ``length`` is ``None`` where the body comes in chunks."""

    reason: str
    pairs: list[Pair]
    values: dict[str, str]
    body_at: int
    length: int | None


def read_request(data: bytes, targets: Mapping[bytes, str]) -> Request | None:
    """The request that begins here, if its target is a known one, by the request line, and its head is whole."""
    start = data.find(b"\n") + 1
    target = targets.get(data[:start])
    if target is None:
        return None
    end = data.find(END_OF_HEAD, start)
    found = _fields(data[start : end + 2]) if end > 0 else None
    if found is None:
        return None
    pairs, values = found
    length = _length(values)
    if length is None or "host" not in values:
        return None
    if values.get("connection") not in _STAYS_OPEN or not _ODD_IN_REQUEST.isdisjoint(values):
        return None
    if signs_in_connection(values.get("authorization", "")):
        return None
    return Request(target, pairs, values, end + 4, end + 4 + length)


def read_answer(data: bytes) -> Answer | None:
    """The answer that begins here, if it is a 200 with a whole head and a body whose end it tells."""
    line = _STATUS_LINE.match(data)
    end = data.find(END_OF_HEAD)
    found = _fields(data[line.end() : end + 2]) if line is not None and end > 0 else None
    if line is None or found is None:
        return None
    pairs, values = found
    if values.get("connection") not in _STAYS_OPEN or not _ODD_IN_ANSWER.isdisjoint(values):
        return None
    length, coding = _length(values), values.get("transfer-encoding")
    is_chunked = coding == "chunked" and "content-length" not in values
    is_framed = is_chunked if coding is not None else length is not None
    return Answer(line[1].decode(), pairs, values, end + 4, length) if is_framed else None


def whole_chunks(data: bytes, at: int) -> bytes | None:
    """The body that comes in chunks from ``at`` on, if all of it is here and nothing else."""
    parts, at, has_ended = _chunks(data, at)
    return b"".join(parts) if has_ended and at == len(data) else None


def chunks_so_far(data: bytes, at: int) -> bytes | None:
    """What the whole chunks from ``at`` on bring of a body whose end is still to come; ``None`` where that is odd."""
    parts, at, has_ended = _chunks(data, at)
    size = _CHUNK_SIZE.match(data, at)
    if size is None:
        may_go_on = _BEGUN_SIZE.fullmatch(data, at) is not None
    else:
        may_go_on = data[size.end() + int(size[1], 16) :] in (b"", b"\r")
    return b"".join(parts) if may_go_on and not has_ended else None


def _chunks(data: bytes, at: int) -> tuple[list[bytes], int, bool]:
    """The whole chunks from ``at`` on, where they end, and whether the last one is among them."""
    parts: list[bytes] = []
    while len(parts) < MAX_CHUNKS:
        size = _CHUNK_SIZE.match(data, at)
        if size is None:
            break
        length = int(size[1], 16)
        end = size.end() + length + 2
        if data[end - 2 : end] != b"\r\n":
            break
        if not length and size[1] != b"0":
            break
        at = end
        if not length:
            return parts, at, True
        parts.append(data[size.end() : at - 2])
    return parts, at, False


def one_event(body: bytes) -> bytes | None:
    """The data of a body that is one plain event of one line, without an id, and nothing else."""
    found = _ONE_EVENT.fullmatch(body)
    return found[2] if found is not None and found[1] in (None, found[3]) else None


def _fields(block: bytes) -> tuple[list[Pair], dict[str, str]] | None:
    if not block.isascii():
        return None
    text = block.decode()
    if _ONLY_FIELDS.fullmatch(text) is None:
        return None
    pairs = _FIELD.findall(text)
    values = {name.lower(): value for name, value in pairs}
    return (pairs, values) if len(values) == len(pairs) <= MAX_FIELDS else None


def _length(values: dict[str, str]) -> int | None:
    told = values.get("content-length")
    return length_of(told) if told is not None else None


def length_of(told: str) -> int | None:
    """What a ``Content-Length`` says, in bytes, if it says it plainly."""
    return int(told) if _LENGTH.fullmatch(told) is not None else None
