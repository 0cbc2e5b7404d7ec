"""Something made in a process of its own, so that no library that was loaded for it stays (docs/decisions/0016)."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO, NoReturn, TypeVar

Made = TypeVar("Made")

PR_SET_PDEATHSIG = 1


def made_aside(make: Callable[[], Made]) -> Made:
    """What ``make`` returns, which can be pickled, or what it raises.

    Where there are no forks, or one comes to nothing, it is made here; also beside other threads: no fork takes one along.
    """
    if len(sys._current_frames()) > 1:  # noqa: SLF001 - documented; one of each thread
        return make()
    try:
        reading, writing = os.pipe()
    except OSError:
        return make()
    with os.fdopen(reading, "rb") as pipe:
        with os.fdopen(writing, "wb") as answer:
            child = _fork()
            if child == 0:
                pipe.close()
                _answer_and_end(make, answer)
        answered = pipe.read()
    if child is not None:
        with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored nobody hears how it ended
            os.waitpid(child, 0)
    try:
        made: Made = pickle.loads(answered)  # noqa: S301 - our own
    except (EOFError, pickle.UnpicklingError):  # it has not come to its end
        return make()
    return made


def _fork() -> int | None:
    try:
        return os.fork()
    except (AttributeError, OSError):  # not on this platform, or one process too many
        return None


def _answer_and_end(make: Callable[[], object], answer: BinaryIO) -> NoReturn:
    """End without a word if it fails: it will be tried again, and then be told."""
    try:
        _end_with_parent()
        pickle.dump(make(), answer)
        answer.flush()
    finally:
        os._exit(0)


def _end_with_parent() -> None:
    """Whoever ends that one means this one, too, which may read from what nobody writes."""
    import ctypes  # noqa: PLC0415 - not where it would stay

    with contextlib.suppress(OSError, AttributeError, TypeError):  # not on this platform
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
