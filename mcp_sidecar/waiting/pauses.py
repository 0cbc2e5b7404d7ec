"""How long to leave a server alone between two questions: short at first, then longer, and never in step with others."""

from __future__ import annotations

import random
from typing import Final

FIRST_PAUSE_S: Final = 0.050
GROWTH: Final = 1.6
LONGEST_PAUSE_S: Final = 1.0


class Pauses:
    """The pauses of one who asks again and again."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._next_s = FIRST_PAUSE_S

    def next_s(self, told_s: float | None = None) -> float:
        """The next one in seconds; ``told_s`` is what the server itself has named, which is never undercut."""
        pause_s, self._next_s = self._next_s, min(self._next_s * GROWTH, LONGEST_PAUSE_S)
        if told_s is not None:
            return told_s + random.uniform(0, max(pause_s, told_s / 2))
        return pause_s * random.uniform(0.75, 1.25)
