"""The developer's terminal: what is said, the server's own output beside it, and the keys.

The rule of this file: nobody waits for a terminal. Lines go through a bounded queue, what a server floods it with is left out
beyond so many lines a second, and the terminal is given back as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mcp_sidecar.ops.console import local_time
from mcp_sidecar.ops.log_writer import LogWriter

MAX_LINES_PER_SECOND = 200
LOOK_EVERY_S = 0.5
MARGIN = "  │"
"""What stands before a line of the server, and a space."""
RED, GREEN, YELLOW, DIM, BOLD = "31", "32", "33", "2", "1"


@dataclass(slots=True)
class Flood:
    """Lets so many lines pass in a second and counts the others."""

    clock: Callable[[], float]
    since: float = float("-inf")
    passed: int = 0
    left_out: int = 0

    def lets_pass(self) -> tuple[bool, int]:
        """Whether the next line is shown, and how many before it were not and have not been told yet."""
        now = self.clock()
        untold = 0
        if now - self.since >= 1.0:
            untold, self.left_out = self.left_out, 0
            self.since, self.passed = now, 0
        self.passed += 1
        if self.passed > MAX_LINES_PER_SECOND:
            self.left_out += 1
            return False, 0
        return True, untold


class Screen:
    """Writes lines to standard output."""

    def __init__(self, clock: Callable[[], float], *, coloured: bool) -> None:
        """``clock`` gives monotonic seconds."""
        self._writer = LogWriter(sys.stdout.fileno(), lambda lines: self.say(f"{lines} lines were not shown"))
        self._coloured = coloured
        self._flood = Flood(clock)

    @classmethod
    def of_process(cls, clock: Callable[[], float]) -> Screen:
        """Coloured where the terminal can and the user has not said no (https://no-color.org)."""
        can = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(clock, coloured=can)

    def plain(self, text: str) -> None:
        """Text as it is, of one line or several."""
        self._writer.write(f"{text}\n")

    def say(self, text: str, colour: str = "") -> None:
        """What happened, with the time of day."""
        self.plain(f"{self.painted(local_time(), DIM)}  {self.painted(text, colour)}")

    def child(self, line: str, left_out: int = 0) -> None:
        """A line that the server has written, and how many before it nobody has looked at."""
        self._flood.left_out += left_out
        shown, untold = self._flood.lets_pass()
        if untold:
            self.plain(self.painted(f"{MARGIN} … {untold} lines left out", DIM))
        if shown:
            self.plain(f"{self.painted(MARGIN, DIM)} {line}")

    @staticmethod
    def columns() -> int | None:
        """How wide a line of the server may be; ``None`` where there is no terminal, or nobody knows how wide it is."""
        try:
            whole = os.get_terminal_size(sys.stdout.fileno()).columns
        except (OSError, ValueError):
            return None
        return max(whole - len(MARGIN) - 1, 1) if whole else None

    def painted(self, text: str, colour: str) -> str:
        """With the colour around it, where there are colours."""
        return f"\x1b[{colour}m{text}\x1b[0m" if colour and self._coloured else text

    def close(self, timeout_s: float) -> None:
        """Let what was said be written, for so many seconds at most."""
        self._writer.close(timeout_s)


@contextlib.contextmanager
def single_keys(on_key: Callable[[str], None], loop: asyncio.AbstractEventLoop) -> Iterator[bool]:
    """While the block runs each key is handed on as it is pressed; false where there is no terminal to press one at.

    Ctrl-C stays a signal, and the terminal echoes nothing.
    """
    try:
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and _has_terminal(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):
        is_terminal = False
    if not is_terminal:
        yield False
        return
    keys = _Keys(on_key, loop, sys.stdin.fileno())
    try:
        keys.take()
        yield True
    finally:
        keys.give_back()


class _Keys:
    """A terminal from which keys are read while it is ours.

    Behind Ctrl-Z it is the shell's, until `fg`: the kernel stops whoever reads from it or sets it up in the background.
    """

    def __init__(self, on_key: Callable[[str], None], loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        import termios  # noqa: PLC0415 - not on every platform

        self._on_key = on_key
        self._loop = loop
        self._descriptor = descriptor
        self._before = termios.tcgetattr(descriptor)
        self._looking: asyncio.TimerHandle | None = None
        loop.add_signal_handler(signal.SIGCONT, self.take)

    def take(self) -> None:
        """Set it up, as no shell has left it, and wait for keys; in the background look again later."""
        import termios  # noqa: PLC0415 - see above
        import tty  # noqa: PLC0415

        self._let_go()
        with contextlib.suppress(OSError, termios.error):  # where it has gone
            if not _has_terminal(self._descriptor):
                self._looking = self._loop.call_later(LOOK_EVERY_S, self.take)
                return
            tty.setcbreak(self._descriptor)
            modes = termios.tcgetattr(self._descriptor)
            modes[1] |= termios.OPOST
            termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
            self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        try:
            if not _has_terminal(self._descriptor):
                self.take()
                return
            keys = os.read(self._descriptor, 64)
        except OSError:
            keys = b""
        if not keys:
            self._let_go()
        for key in keys.decode(errors="ignore"):
            self._on_key(key)

    def _let_go(self) -> None:
        self._loop.remove_reader(self._descriptor)
        if self._looking is not None:
            self._looking.cancel()

    def give_back(self) -> None:
        """As it was."""
        import termios  # noqa: PLC0415 - see above

        self._loop.remove_signal_handler(signal.SIGCONT)
        self._let_go()
        with contextlib.suppress(OSError, termios.error):
            if _has_terminal(self._descriptor):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


def _has_terminal(descriptor: int) -> bool:
    """Whether we are in its foreground. Raises OSError where it is none, or has gone."""
    return os.tcgetpgrp(descriptor) == os.getpgrp()
