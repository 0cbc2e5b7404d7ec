"""Whether a JSON text can be at its end: for one that nothing but the end of its connection ends.

Only an object or an array shows its end by itself; of any other text nothing is claimed (RFC 8259 §2).
"""

from __future__ import annotations

import re

_OUTSIDE = re.compile(rb'["\[\]{}]')
_INSIDE = re.compile(rb'["\\]')
_OPENING = b"[{"


class JsonEnd:
    """Counts what is open. It checks nothing: whether the text is JSON at all is for its reader to say."""

    __slots__ = ("_depth", "_has_closed", "_in_string", "_is_escaped")

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._has_closed = False

    @property
    def has_ended(self) -> bool:
        """Whether an object or array was opened and is closed again."""
        return self._has_closed and self.may_end_here

    @property
    def may_end_here(self) -> bool:
        """Whether nothing is open."""
        return not self._depth and not self._in_string

    def feed(self, data: bytes) -> None:
        """The next part of the text."""
        at = 0
        while at < len(data):
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(data, at)
            if found is None:
                return
            at = found.end()
            self._note(found[0])

    def _note(self, mark: bytes) -> None:
        if mark == b'"':
            self._in_string = not self._in_string
        elif self._in_string:
            self._is_escaped = True
        else:
            self._depth += 1 if mark in _OPENING else -1
            self._has_closed = not self._depth
