"""A server that takes calls and does not begin to answer: a reloader that keeps the socket while its program cannot start.

Nothing is wrong with such a call as far as anybody can tell, and a tool may take its time; so nothing is decided here. It is
said, once until the server has answered somebody again.
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_sidecar.facts import Emit, UpstreamSilent

LOOKS = 4
"""In the time after which it is said."""


class FirstByteWatch:
    """Says that no answer begins, where nobody has had one since the call was sent."""

    def __init__(
        self, hint_s: float, silent_s: Callable[[], float], since_success_s: Callable[[], float | None], emit: Emit
    ) -> None:
        """``silent_s`` is how long the oldest call waits, ``since_success_s`` how long ago one succeeded."""
        self._hint_s = hint_s
        self._silent_s = silent_s
        self._since_success_s = since_success_s
        self._emit = emit
        self._is_said = False

    @property
    def interval_s(self) -> float:
        """How often to look."""
        return self._hint_s / LOOKS

    def look(self) -> None:
        """Say it if there is something to say."""
        silent_s, since_success_s = self._silent_s(), self._since_success_s()
        if silent_s < self._hint_s or (since_success_s is not None and since_success_s < silent_s):
            self._is_said = False
        elif not self._is_said:
            self._is_said = True
            self._emit(UpstreamSilent(silent_s))
