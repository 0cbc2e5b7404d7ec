"""What the process does where stdin, stdout or stderr are closed, full, or have lost their reader: nothing else than before.

Without this a socket would get the number of a closed stream (libuv aborts the process when it closes one of the first
three), and Python would end with status 120 because of a line that it could not write.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def repair() -> None:
    """Put the null device where one of the three is closed. To be called before anything else is opened."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or _null()
    sys.stderr = sys.stderr or _null()


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - a device, open until the end


def flush() -> None:
    """Write out what Python still holds; what cannot be written is let go of, and the exit status stays as it is."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                _discard(stream)


def _discard(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()
