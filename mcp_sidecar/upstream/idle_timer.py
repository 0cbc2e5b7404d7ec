"""How long the upstream may be silent while it is its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class IdleTimer:
    """One timer for a connection. It is left as it is while bytes come, and looks when it fires."""

    __slots__ = ("_deadline", "_handle", "_loop", "_on_silence", "_patience_s", "is_endless")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_silence: Callable[[], None]) -> None:
        """``on_silence`` is called once for each turn of the upstream that ends in silence."""
        self._loop = loop
        self._on_silence = on_silence
        self._patience_s: float | None = None
        self.is_endless = True
        """Whether silence never is too long."""
        self._deadline: float | None = None  # loop time; while it is the upstream's turn
        self._handle: asyncio.TimerHandle | None = None

    def set_patience(self, patience_s: float | None) -> None:
        """From now on so many seconds of silence, or any number; it is not the upstream's turn yet."""
        self._patience_s, self._deadline = patience_s, None
        self.is_endless = patience_s is None

    def start(self) -> None:
        """It is the upstream's turn, and its time begins anew."""
        if self._patience_s is not None:
            self._deadline = self._loop.time() + self._patience_s
            if self._handle is None:
                self._handle = self._loop.call_at(self._deadline, self._look)

    @property
    def silent_s(self) -> float:
        """How long the upstream has been silent in its turn; 0 where it is not its turn, or may be silent for ever."""
        if self._deadline is None or self._patience_s is None:
            return 0.0
        return self._loop.time() - (self._deadline - self._patience_s)

    def rest(self) -> None:
        """It is not the upstream's turn."""
        self._deadline = None

    def stop(self) -> None:
        """For good."""
        self._deadline = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        self._handle = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._handle = self._loop.call_at(self._deadline, self._look)
        else:
            self._deadline = None
            self._on_silence()
