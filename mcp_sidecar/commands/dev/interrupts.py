"""SIGINT, SIGTERM and SIGHUP, one at a time, to the very end of the process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Final

STOP_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class StopSignals:
    """What a signal does: nothing yet, a call in the loop's next turn, and in the end the end of the process.

    The handler stays the same. While one is exchanged, CPython tells of a signal that it finds nobody for; and whatever takes
    longer than a look at a flag runs inside itself when signals come fast.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """The handlers are as they were."""
        self._loop = loop
        self._numbers = [
            number for name in STOP_SIGNALS if (number := getattr(signal, name, None)) and _is_ours(number)
        ]
        self._call: Callable[[int], None] | None = None
        self._is_over = False

    def call(self, call: Callable[[int], None]) -> None:
        """Hand the number of the next one to this, once: whoever wants another one says so again."""
        self._call = call
        self._take()

    def end_at_once(self) -> None:
        """From now on each ends the process without a word: nothing is left that it would cut short."""
        self._is_over = True
        self._take()

    def _take(self) -> None:
        for number in self._numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object, end: Callable[[int], object] = os._exit) -> None:
        """``end`` is bound here, for the module ``os`` may be gone by then."""
        call, self._call = self._call, None
        if self._is_over:
            end(128 + number)
        elif call is not None:
            self._loop.call_soon_threadsafe(call, number)


def _is_ours(number: signal.Signals) -> bool:
    """Whoever starts it with `nohup` wants it to outlive a terminal. That a shell ignores the others says no such thing."""
    return number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN
