"""What a JSON text says at its top level, told from its bytes as they pass.

For bodies that are too large to hold or too deep to parse. The rule of this file: memory stays bounded and nothing
recurses, whatever comes, and the way the bytes are cut into chunks changes nothing.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from enum import IntEnum, auto
from itertools import accumulate
from typing import Any

JsonRpcId = str | int | float | None

META_PROTOCOL_VERSION = "io.modelcontextprotocol/protocolVersion"
MAX_KEPT_BYTES = 4096

_OUTER_ARRAY_DEPTH = 1
_FIRST_WINDOW_BYTES = 64
_LAST_WINDOW_BYTES = 64 * 1024

# Every loop is possessive: no pattern ever goes back, so that hostile text costs no more than other text.
_ANY_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_ALPHABET = rb"[-+.0-9eEtrufalsn,: \t\n\r]++"
_FLAT = rb"(?:%b|%b)*+" % (_ALPHABET, _ANY_STRING)
_SHALLOW = _FLAT
for _ in range(4):
    _SHALLOW = rb"(?:%b|%b|\[%b\]|\{%b\})*+" % (_ALPHABET, _ANY_STRING, _SHALLOW, _SHALLOW)
_NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?+[0-9]++)?+"

_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[-+.0-9eEtrufalsn]++")
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_STRING = re.compile(_ANY_STRING, re.DOTALL)
_NESTED = re.compile(rb"(?:[\[\]{}]++|%b|%b)*+" % (_ALPHABET, _ANY_STRING), re.DOTALL)
_NESTED_TOKEN = re.compile(rb"[\[\]{},]|%b" % _ANY_STRING, re.DOTALL)

# Whole members, with their commas, that say nothing to us: a short cut through thousands of them. It accepts nothing
# that the way through the states would not accept.
_DULL_MEMBERS = re.compile(
    rb'(?:"(?!(?:method|id|result|error|params|_meta|%b)")[^"\\\x00-\x1f]*+"[ \t\n\r]*+:[ \t\n\r]*+'
    rb"(?:%b|%b|true|false|null|\[%b\]|\{%b\})[ \t\n\r]*+,[ \t\n\r]*+)*+"
    % (re.escape(META_PROTOCOL_VERSION.encode()), _NUMBER, _ANY_STRING, _SHALLOW, _SHALLOW),
    re.DOTALL,
)

_TOLD_KEYS = frozenset({"method", "id", "result", "error"})

_BETWEEN_CHARACTERS = (b"", 0)
"""The state of a decoder that has nothing to remember, behind the place where a byte order mark could stand."""

_BEYOND_DOUBLE = 10**309

_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_LEVEL_CHANGE = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_Path = tuple[str, ...]
_ENTERED: frozenset[_Path] = frozenset({("params",), ("params", "_meta")})
_KEPT: frozenset[_Path] = frozenset({("method",), ("id",), ("params", "_meta", META_PROTOCOL_VERSION)})
_VERSION_PATH: _Path = ("params", "_meta", META_PROTOCOL_VERSION)


class NotJson(ValueError):
    """The bytes are not JSON text in UTF-8. The message is a fixed phrase and never quotes them."""


class _State(IntEnum):
    VALUE = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    AFTER_VALUE = auto()
    STRING = auto()
    SCALAR = auto()
    NESTED = auto()


def valid_id(value: object) -> JsonRpcId:
    """The value, if JSON-RPC 2.0 allows it as the id of a request, else None. ``true`` is not a number here."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite_number(literal: str) -> float | int:
    """A JSON number as a double. One beyond its range stays finite: Python would write infinity as no JSON."""
    number = float(literal)
    if math.isfinite(number):
        return number
    return _BEYOND_DOUBLE if number > 0 else -_BEYOND_DOUBLE


def _no_constant(_: str) -> Any:
    raise NotJson("not JSON")


DECODER = json.JSONDecoder(parse_float=finite_number, parse_constant=_no_constant)
"""JSON as the standard says it: Python's parser would also take NaN and infinities."""


def array_members(body: bytes) -> list[bytes]:
    """The texts of the members of a JSON array, cut at its own commas without parsing them.

    ``body`` must have passed a ``TopLevelScan`` as an array; members that are no JSON stay what they are.
    """
    members: list[bytes] = []
    depth = 0
    start = 0
    for token in _NESTED_TOKEN.finditer(body):
        mark = token[0]
        if depth == _OUTER_ARRAY_DEPTH and mark in (b",", b"]"):
            members.append(body[start : token.start()].strip(b" \t\n\r"))
            start = token.end()
        if depth == 0:
            start = token.end()
        depth += _LEVEL_CHANGE.get(mark[0], 0)
    return [] if members == [b""] else members


class TopLevelScan:
    """An incremental scan of one JSON text for the members that decide what a proxy does with it.

    ``method`` and ``id`` are None where they are missing, of the wrong type, or longer than ``MAX_KEPT_BYTES``; the
    ``has_…`` facts say whether the key was there. Of a repeated key the last one counts, as in every JSON parser that
    the SDKs use. An array has none of these facts, only ``is_array``. ``meta_protocol_version`` is what a 2026-07-28
    request says in ``params._meta`` (the body is the source of truth there, headers only mirror it).

    Facts are told as soon as they have passed, and are whole once ``complete``. Values below the top level are checked
    for their alphabet and for the number of their brackets only.
    """

    def __init__(self) -> None:
        self.is_array = False
        self.is_object = False
        self.method: str | None = None
        self.id: JsonRpcId = None
        self.meta_protocol_version: str | None = None
        self.error_is_object = False
        self._top_keys: set[str] = set()
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._state = _State.VALUE
        self._path: _Path = ()  # keys that lead to the innermost entered object
        self._entered = 0
        self._key = ""
        self._kept: bytearray | None = None
        self._string_is_key = False
        self._string_is_nested = False
        self._escape_is_cut = False
        self._braces = 0
        self._brackets = 0
        self._window_bytes = _FIRST_WINDOW_BYTES
        self._steps: dict[_State, Callable[[bytes, int], int]] = {
            _State.VALUE: self._value,
            _State.FIRST_KEY: self._first_key,
            _State.KEY: self._next_key,
            _State.COLON: self._colon,
            _State.AFTER_VALUE: self._after_value,
            _State.STRING: self._string,
            _State.SCALAR: self._scalar,
            _State.NESTED: self._nested,
        }

    @property
    def has_method(self) -> bool:
        return "method" in self._top_keys

    @property
    def has_id(self) -> bool:
        return "id" in self._top_keys

    @property
    def has_result(self) -> bool:
        return "result" in self._top_keys

    @property
    def has_error(self) -> bool:
        return "error" in self._top_keys

    @property
    def complete(self) -> bool:
        """Whether the text has reached its end; a bare number at the top level has one only in ``finish``."""
        return self._state is _State.AFTER_VALUE and not self._entered

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes. Raises NotJson on what no continuation can make JSON; the scan is then of no more use."""
        text = self._decoded(chunk, final=False)
        at = 0
        while at < len(text):
            if self._state in _SPACE_BEFORE:
                at = _end_of(_SPACE, text, at)
                if at == len(text):
                    return
            at = self._steps[self._state](text, at)

    def finish(self) -> None:
        """Says that no more comes. Raises NotJson if the text is incomplete."""
        self._decoded(b"", final=True)
        if self._state is _State.SCALAR:
            self._end_scalar()
        if not self.complete:
            raise NotJson("incomplete")

    def _decoded(self, chunk: bytes, *, final: bool) -> bytes:
        if chunk.isascii() and self._decoder.getstate() == _BETWEEN_CHARACTERS:
            return chunk
        try:
            return self._decoder.decode(chunk, final).encode()
        except UnicodeDecodeError:
            raise NotJson("not UTF-8") from None

    # -- where a value, a key or a mark is expected ------------------------------------------------------------------

    def _value(self, text: bytes, at: int) -> int:
        path = self._begin_value()
        mark = text[at : at + 1]
        if mark == b'"':
            return self._begin_string(at, kept=path in _KEPT)
        if mark == b"{" and (not self._entered or path in _ENTERED):
            return self._enter_object(at, path)
        if mark in (b"{", b"["):
            self.error_is_object |= path == ("error",) and mark == b"{"
            self.is_array |= not self._entered
            return self._begin_nested(at, mark)
        self._kept = bytearray()
        self._state = _State.SCALAR
        return at

    def _begin_value(self) -> _Path:
        """The path of the value that begins here. What an earlier member of the same name said no longer counts."""
        if not self._entered:
            return ()
        path = (*self._path, self._key)
        if path == _VERSION_PATH[: len(path)]:
            self.meta_protocol_version = None
        if path == ("error",):
            self.error_is_object = False
        return path

    def _enter_object(self, at: int, path: _Path) -> int:
        self.is_object = True
        self._path = path
        self._entered += 1
        self._state = _State.FIRST_KEY
        return at + 1

    def _leave_object(self, at: int) -> int:
        self._path = self._path[:-1]
        self._entered -= 1
        self._state = _State.AFTER_VALUE
        return at + 1

    def _first_key(self, text: bytes, at: int) -> int:
        return self._leave_object(at) if text[at : at + 1] == b"}" else self._next_key(text, at)

    def _next_key(self, text: bytes, at: int) -> int:
        if text[at : at + 1] != b'"':
            raise NotJson("no key")
        end = _end_of(_DULL_MEMBERS, text, at)
        if end > at:
            self._state = _State.KEY
            return end
        self._string_is_key = True
        return self._begin_string(at, kept=True)

    def _colon(self, text: bytes, at: int) -> int:
        if text[at : at + 1] != b":":
            raise NotJson("no colon")
        self._state = _State.VALUE
        return at + 1

    def _after_value(self, text: bytes, at: int) -> int:
        mark = text[at : at + 1]
        if self._entered and mark == b",":
            self._state = _State.KEY
            return at + 1
        if self._entered and mark == b"}":
            return self._leave_object(at)
        raise NotJson("text after a value")

    # -- strings -----------------------------------------------------------------------------------------------------

    def _begin_string(self, at: int, *, kept: bool) -> int:
        self._kept = bytearray() if kept else None
        self._state = _State.STRING
        return at + 1

    def _string(self, text: bytes, at: int) -> int:
        if self._escape_is_cut:
            self._escape_is_cut = False
            self._keep(text, at, at + 1)
            return at + 1
        end = _end_of_string(text, at)
        self._keep(text, at, end)
        if end == len(text):
            return end
        if text[end : end + 1] == b'"':
            self._end_string()
        else:
            self._keep(text, end, end + 1)
            self._escape_is_cut = True
        return end + 1

    def _end_string(self) -> None:
        if self._string_is_nested:
            self._string_is_nested = False
            self._state = _State.NESTED
            return
        value = None if self._kept is None else _loaded(b'"%b"' % bytes(self._kept))
        if self._string_is_key:
            self._string_is_key = False
            self._name_member(value)
        else:
            self._end_value(value)

    def _name_member(self, key: Any) -> None:
        self._key = key if key is not None else ""
        if self._entered == 1 and self._key in _TOLD_KEYS:
            self._top_keys.add(self._key)
        self._state = _State.COLON

    # -- scalars and the end of a value ------------------------------------------------------------------------------

    def _scalar(self, text: bytes, at: int) -> int:
        match = _SCALAR.match(text, at)
        if match is None:
            self._end_scalar()
            return at
        self._keep(text, at, match.end())
        return match.end()

    def _end_scalar(self) -> None:
        self._end_value(None if self._kept is None else _loaded(bytes(self._kept)))

    def _end_value(self, value: Any) -> None:
        path = (*self._path, self._key) if self._entered else ()
        if path == ("method",):
            self.method = value if isinstance(value, str) else None
        elif path == ("id",):
            self.id = valid_id(value)
        elif path == _VERSION_PATH:
            self.meta_protocol_version = value if isinstance(value, str) else None
        self._state = _State.AFTER_VALUE

    def _keep(self, text: bytes, start: int, end: int) -> None:
        if self._kept is None:
            return
        if len(self._kept) + end - start > MAX_KEPT_BYTES:
            self._kept = None
        else:
            self._kept += text[start:end]

    # -- nested values, of which only the end matters ----------------------------------------------------------------

    def _begin_nested(self, at: int, mark: bytes) -> int:
        self._braces = mark.count(b"{")
        self._brackets = mark.count(b"[")
        self._window_bytes = _FIRST_WINDOW_BYTES
        self._state = _State.NESTED
        return at + 1

    def _nested(self, text: bytes, at: int) -> int:
        """Passes over as much of a nested value as fits into a window that grows while its end does not come.

        Growing keeps the work in proportion to the text both for one long value and for many short ones.
        """
        end = _end_of(_NESTED, text, at, at + self._window_bytes)
        if end == at:
            return self._nested_string(text, at)
        depth = self._braces + self._brackets
        marks = _brackets_of(text[at:end])
        if _comes_down_to_zero(depth, marks):
            end = _end_of_nested(text, at, end, depth)
            marks = _brackets_of(text[at:end])
        self._window_bytes = min(2 * self._window_bytes, _LAST_WINDOW_BYTES)
        self._count_brackets(marks)
        return end

    def _nested_string(self, text: bytes, at: int) -> int:
        if text[at : at + 1] != b'"':
            raise NotJson("no value")
        self._string_is_nested = True
        return self._begin_string(at, kept=False)

    def _count_brackets(self, marks: bytes) -> None:
        self._braces += marks.count(b"{") - marks.count(b"}")
        self._brackets += marks.count(b"[") - marks.count(b"]")
        if self._braces + self._brackets:
            return
        if self._braces:
            raise NotJson("broken nesting")
        self._end_value(None)


_SPACE_BEFORE = frozenset({_State.VALUE, _State.FIRST_KEY, _State.KEY, _State.COLON, _State.AFTER_VALUE})


def _brackets_of(nested: bytes) -> bytes:
    return _STRING.sub(b"", nested).translate(None, _NOT_BRACKETS)


def _comes_down_to_zero(depth: int, marks: bytes) -> bool:
    if marks.count(b"]") + marks.count(b"}") < depth:
        return False
    return min(accumulate(map(_LEVEL_CHANGE.__getitem__, marks), initial=depth)) <= 0


def _end_of_nested(text: bytes, at: int, limit: int, depth: int) -> int:
    """Where the depth comes down to zero; the caller knows that it does."""
    tokens = list(_NESTED_TOKEN.finditer(text, at, limit))
    levels = accumulate((_LEVEL_CHANGE.get(token[0][0], 0) for token in tokens), initial=depth)
    next(levels)
    return next(token.end() for token, level in zip(tokens, levels, strict=True) if level == 0)


def _end_of(pattern: re.Pattern[bytes], text: bytes, at: int, limit: int | None = None) -> int:
    match = pattern.match(text, at) if limit is None else pattern.match(text, at, limit)
    return match.end() if match else at


def _end_of_string(text: bytes, at: int) -> int:
    """Where the closing quote stands, or a backslash that ends the text, or the end: searching is faster than matching."""
    quote = text.find(b'"', at)
    end = quote if quote >= 0 else len(text)
    return end if text.find(b"\\", at, end) < 0 else _end_of(_INSIDE_STRING, text, at)


def _loaded(raw: bytes) -> Any:
    try:
        return DECODER.decode(raw.decode())
    except ValueError:
        raise NotJson("no value") from None
