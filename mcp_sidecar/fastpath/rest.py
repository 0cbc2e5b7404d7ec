"""What was in vain so many times in a row is not tried for a while: where it cannot succeed it only costs."""

from __future__ import annotations


class Rest:
    """Counts tries, and not time: nothing here reads a clock."""

    __slots__ = ("_in_vain", "_left", "_length", "_limit")

    def __init__(self, limit: int, length: int) -> None:
        """After ``limit`` tries in vain in a row, ``length`` of them are left out."""
        self._limit = limit
        self._length = length
        self._in_vain = 0
        self._left = 0

    def is_on(self) -> bool:
        """Whether this try is one of those that are left out."""
        if self._left:
            self._left -= 1
            return True
        return False

    def note(self, *, in_vain: bool) -> None:
        """What came of a try."""
        self._in_vain = self._in_vain + 1 if in_vain else 0
        if self._in_vain >= self._limit:
            self._in_vain, self._left = 0, self._length
