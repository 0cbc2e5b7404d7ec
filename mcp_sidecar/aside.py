"""Something made in a process of its own, so that no library that was loaded for it stays (docs/decisions/0016)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import BinaryIO, NoReturn, TypeVar

Made = TypeVar("Made")


def made_aside(make: Callable[[], Made]) -> Made:
    """What ``make`` returns, which can be pickled, or what it raises.

    Only for a process without other threads. Where there are no forks, or one comes to nothing, it is made here.
    """
    try:
        reading, writing = os.pipe()
    except OSError:
        return make()
    with os.fdopen(reading, "rb") as pipe:
        with os.fdopen(writing, "wb") as answer:
            child = _fork()
            if child == 0:
                _answer_and_end(make, answer)
        answered = pipe.read()
    if child is None or os.waitpid(child, 0)[1]:
        return make()
    made: Made = pickle.loads(answered)  # noqa: S301 - our own
    return made


def _fork() -> int | None:
    try:
        return os.fork()
    except (AttributeError, OSError):  # not on this platform, or one process too many
        return None


def _answer_and_end(make: Callable[[], object], answer: BinaryIO) -> NoReturn:
    """End without a word if it fails: it will be tried again, and then be told."""
    status = 1
    try:
        pickle.dump(make(), answer)
        answer.flush()
        status = 0
    finally:
        os._exit(status)
