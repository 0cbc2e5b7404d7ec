"""Server-sent events as a proxy needs them: framed to the byte, understood only where a decision needs it.

The rule of this file: what goes in comes out, byte by byte, in pieces that end where an event ends. A client's parser
would drop events with an id and no data, which are the priming events of 2025-11-25; a proxy must not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
KEEP_ALIVE = b": keep-alive\n\n"

_NEWLINE = re.compile(rb"\r\n?|\n")
_BETWEEN = re.compile(rb"(?:[\r\n]++|:[^\r\n]*+[\r\n])*+")
"""Blank lines, and comments with their newlines, of which a line feed may be the next blank line as well."""
_WHOLE_EVENT = re.compile(rb"[^:\r\n][^\r\n]*+(?>\r\n?|\n)(?:[^\r\n]++(?>\r\n?|\n))*+(?>\r\n?|\n)")
_SINGLE_FIELDS = {
    b"event": re.compile(rb".*", re.DOTALL),
    b"id": re.compile(rb"[^\0]*"),
    b"retry": re.compile(rb"[0-9]{1,15}"),
}
_LONG_BYTES = 4096
_LONG_LINE_BYTES = 256
"""From here on a search is faster than a look at every byte, unless lines are short."""


class Event(NamedTuple):
    """The fields of one event; None where a field is missing. ``retry`` is in milliseconds."""

    event: str | None = None
    data: str | None = None
    id: str | None = None
    retry: int | None = None


NO_FIELDS = Event()


class Block(NamedTuple):
    """One whole event with its blank line; or comments, blank lines or a byte order mark between events."""

    raw: bytes

    @property
    def event(self) -> Event:
        """Its fields. What stands between events is told by its first byte, and a million blank lines are one look."""
        return NO_FIELDS if self.raw[:1] in (b"\n", b"\r", b":") else parse_event(self.raw)


class Fragment(NamedTuple):
    """A piece of an event over the limit."""

    raw: bytes
    last: bool


# -- framing -------------------------------------------------------------------------------------------------------


def _newlines(text: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Where each newline begins and ends: as ``_NEWLINE`` finds them, but many times faster where lines are long."""
    feed, carriage = text.find(b"\n", at), text.find(b"\r", at)
    while feed >= 0 or carriage >= 0:
        if carriage < 0 or 0 <= feed < carriage:
            yield feed, feed + 1
            feed = text.find(b"\n", feed + 1)
            continue
        end = carriage + 1
        if feed == end:
            end += 1
            feed = text.find(b"\n", end)
        yield carriage, end
        carriage = text.find(b"\r", end)


def _lines_of(text: bytes) -> list[bytes]:
    """The lines without their newlines."""
    if len(text) < _LONG_BYTES or text.count(b"\n") + text.count(b"\r") > len(text) // _LONG_LINE_BYTES:
        return text.splitlines()  # of bytes: at CR, LF and CRLF, as here
    lines, start = [], 0
    for line_end, next_start in _newlines(text, 0):
        lines.append(text[start:line_end])
        start = next_start
    return [*lines, text[start:]]


_NO_PIECES: list[Block | Fragment] = []  # of all that have nothing to return; nothing is added to it


class _Line(Enum):
    EMPTY = auto()
    COMMENT = auto()
    FIELD = auto()


class EventSplitter:
    """Cuts a stream into events as soon as their bytes are there.

    An event of up to ``limit_bytes`` is one ``Block``, a longer one a row of ``Fragment``, however its bytes arrive.
    Memory is bounded by ``limit_bytes`` and one chunk. The pieces and ``pending`` joined are the bytes fed. A blank
    line that ends in a carriage return at the end of a chunk releases its event; a line feed that follows is a piece of
    its own at once, because some clients wait for it before they dispatch.
    """

    __slots__ = ("_after_cr", "_head", "_held", "_in_event", "_is_mid_fragment", "_limit_bytes", "_line", "_pieces")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[Block | Fragment] = _NO_PIECES
        self._held: bytes | bytearray = b""
        self._line = _Line.EMPTY
        self._in_event = False
        self._after_cr = False
        self._is_mid_fragment = False
        self._head: bytes | None = b""  # the first bytes of the stream, until they are known to be a BOM or not

    @property
    def pending(self) -> bytes:
        """The bytes held back: the beginning of an event or comment whose end has not come."""
        return (self._head or b"") + bytes(self._held)

    @property
    def held_bytes(self) -> int:
        """How many bytes are held back, but for those of a mark at the beginning."""
        return len(self._held)

    def feed(self, chunk: bytes) -> list[Block | Fragment]:
        """Takes the next bytes, returns what can be passed on."""
        pieces: list[Block | Fragment] = []
        self._pieces = pieces
        if self._head is not None:
            chunk = self._without_bom(chunk)
        if chunk:
            self._split(chunk)
        self._pieces = _NO_PIECES
        return pieces

    def lets_pass(self, event: bytes) -> bool:
        """Whether one whole event, which ends in a line feed, need not be fed: it comes between two, and is not too long."""
        is_within = self._in_event or self._held or self._is_mid_fragment or self._line is not _Line.EMPTY
        if is_within or self._head is not None or len(event) > self._limit_bytes:
            return False
        self._after_cr = False
        return True

    def _without_bom(self, chunk: bytes) -> bytes:
        head = (self._head or b"") + chunk
        if len(head) < len(BOM) and BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        if not head.startswith(BOM):
            return head
        self._pieces.append(Block(BOM))
        return head[len(BOM) :]

    def _split(self, chunk: bytes) -> None:
        released = 0  # up to here the chunk has been passed on
        line_start = 1 if self._after_cr and chunk.startswith(b"\n") else 0
        while True:
            if not (self._in_event or self._held or self._is_mid_fragment):
                released, line_start = self._release_whole(chunk, released, line_start)
            after_piece = self._look_at_lines(chunk, released, line_start)
            if after_piece is None:
                break
            released = line_start = after_piece
        self._after_cr = chunk.endswith(b"\r")

    def _release_whole(self, chunk: bytes, released: int, at: int) -> tuple[int, int]:
        """What is there from its first byte to its last, at the price of a search; and where a line begins behind it."""
        while True:
            between = _BETWEEN.match(chunk, at)
            start = between.end() if between is not None else at
            event = _WHOLE_EVENT.match(chunk, start)
            if event is None:
                return released, start
            self._release_between(chunk, released, start)
            end = event.end()
            measured_end = end - chunk.endswith(b"\r\n", start, end)
            at = released = self._release(chunk, start, measured_end, end)

    def _look_at_lines(self, chunk: bytes, released: int, line_start: int) -> int | None:
        """Line by line to the end of what has begun, and where that is; ``None`` if it is not in this chunk."""
        for line_end, next_start in _newlines(chunk, line_start):
            released = self._look_at_line(chunk, released, line_start, line_end)
            ends = self._ends_piece()
            self._line = _Line.EMPTY
            if ends:
                return self._release(chunk, released, line_end + 1, next_start)
            line_start = next_start
        released = self._look_at_line(chunk, released, line_start, len(chunk))
        self._hold(chunk, released, line_start)
        return None

    def _look_at_line(self, chunk: bytes, released: int, start: int, end: int) -> int:
        """Tells what line begins here, if one does. What stands between two events goes before an event begins."""
        if self._line is not _Line.EMPTY or start == end:
            return released
        self._line = _Line.COMMENT if chunk[start] == ord(":") else _Line.FIELD
        if self._in_event or self._line is _Line.COMMENT:
            return released
        self._in_event = True
        return self._release_between(chunk, released, start)

    def _ends_piece(self) -> bool:
        if self._in_event:
            return self._line is _Line.EMPTY
        return bool(self._held) or self._is_mid_fragment

    def _release_between(self, chunk: bytes, start: int, end: int) -> int:
        if start < end:
            self._pieces.append(Block(chunk[start:end]))
        return end

    def _release(self, chunk: bytes, start: int, measured_end: int, end: int) -> int:
        """One whole event, or the rest of one. The second byte of a CRLF is not measured: it may come a chunk later."""
        is_long = len(self._held) + measured_end - start > self._limit_bytes
        raw = self._taken() + chunk[start:end]
        if self._is_mid_fragment or is_long:
            self._release_fragment(raw, last=True)
        else:
            self._pieces.append(Block(raw))
        self._in_event = False
        return end

    def _hold(self, chunk: bytes, released: int, line_start: int) -> None:
        """Keeps what is left of a chunk, if it belongs to something unfinished."""
        if not self._in_event:
            is_done = self._line is _Line.EMPTY
            released = self._release_between(chunk, released, len(chunk) if is_done else line_start)
        if released < len(chunk):
            self._held = self._held or bytearray()
            self._held += chunk[released:]
        if self._held and (self._is_mid_fragment or len(self._held) > self._limit_bytes):
            self._release_fragment(self._taken(), last=False)

    def _release_fragment(self, raw: bytes, *, last: bool) -> None:
        self._is_mid_fragment = not last
        self._pieces.append(Fragment(raw, last))

    def _taken(self) -> bytes:
        raw, self._held = bytes(self._held), b""
        return raw


# -- reading and changing one event --------------------------------------------------------------------------------


def parse_event(raw: bytes) -> Event:
    """The fields of one event as a client reads them (HTML standard, §9.2.6). Never raises.

    What is not UTF-8 is replaced, as clients do; an id that holds NUL and a ``retry`` that is no number are ignored.
    """
    found: dict[bytes, bytes] = {}
    data: list[bytes] = []
    text = raw.removeprefix(BOM)
    for line in _lines_of(text):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name in _SINGLE_FIELDS and _SINGLE_FIELDS[name].fullmatch(value):
            found[name] = value
    text_of = {name: value.decode(errors="replace") for name, value in found.items()}
    return Event(
        text_of.get(b"event"),
        b"\n".join(data).decode(errors="replace") if data else None,
        text_of.get(b"id"),
        int(text_of[b"retry"]) if b"retry" in text_of else None,
    )


def with_data(raw: bytes, data: str) -> bytes:
    """The event with other data; all its other bytes, order and newlines stay."""
    return _with_field(raw, b"data", _NEWLINE.split(_bytes(data)))


def with_id(raw: bytes, id: str) -> bytes:
    """The event with another id. Raises ValueError if the id cannot be one (it holds a newline or NUL)."""
    return _with_field(raw, b"id", [_one_line(id)])


def encode_event(data: str | bytes, *, event: str | None = "message", id: str | None = None) -> bytes:
    """A whole event. Raises ValueError if ``event`` or ``id`` holds a newline or NUL."""
    payload = data if isinstance(data, bytes) else _bytes(data)
    lines = [] if event is None else [b"event: " + _one_line(event)]
    lines += [] if id is None else [b"id: " + _one_line(id)]
    lines += [b"data: " + line for line in _NEWLINE.split(payload)]
    return b"\n".join([*lines, b"", b""])


def _with_field(raw: bytes, name: bytes, values: list[bytes]) -> bytes:
    """Puts the values where the field stood first, else behind the last line that says anything."""
    mark = BOM if raw.startswith(BOM) else b""
    lines = _lines(raw.removeprefix(BOM))
    style = next((newline for _, newline in lines if newline), b"\n")
    new = style.join(name + b": " + value for value in values)
    text = [line + newline for line, newline in lines]
    places = [index for index, (line, _) in enumerate(lines) if _field(line)[0] == name]
    if places:
        text[places[0]] = new + lines[places[0]][1]
        for place in places[1:]:
            text[place] = b""
        return mark + b"".join(text)
    place = max((index + 1 for index, (line, _) in enumerate(lines) if line), default=0)
    is_cut = bool(place) and not lines[place - 1][1]
    text.insert(place, style + new if is_cut else new + style)
    return mark + b"".join(text)


def _lines(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The lines with their newlines; the last one has none if text follows the last newline."""
    lines = []
    at = 0
    for newline in _NEWLINE.finditer(raw):
        lines.append((raw[at : newline.start()], newline[0]))
        at = newline.end()
    return [*lines, (raw[at:], b"")] if at < len(raw) else lines


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


def _bytes(value: str) -> bytes:
    return value.encode(errors="replace")


def _one_line(value: str) -> bytes:
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError("a newline or NUL in one field")
    return _bytes(value)
