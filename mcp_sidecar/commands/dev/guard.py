"""Ends process groups once whoever started this is gone, however it went: `python -I guard.py`, told on its standard input.

`+123` takes a group into care, `-123` lets it go. At the end of the input, which is the end of the sidecar, SIGKILL included,
what is left gets SIGTERM and a second later SIGKILL; so do its descendants in groups of their own, where there is `/proc`. A
script by itself, with modules of the standard library that load fast.

`ohttp://…` opens a page in the developer's browser, which is a child of this process, and so none of those that a server has
left behind: it goes on.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 1.0
LOOK_EVERY_S = 0.02
PR_SET_CHILD_SUBREAPER = 36


Target = tuple[Callable[[int, int], None], int]


def _signal(target: Target, number: int) -> bool:
    """Whether there is such a process or group still."""
    send, pid = target
    try:
        send(pid, number)
    except OSError:
        return False
    return True


def main() -> None:
    """Wait for the end of the input, and clear up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _nothing)  # not ignored, which a browser would inherit
    groups: set[int] = set()
    for line in sys.stdin:
        sign, words = line[:1], line[1:].strip()
        if sign == "o":
            _open(words)
        elif words.isdigit() and int(words) > 1:
            (groups.add if sign == "+" else groups.discard)(int(words))
    _end([(os.killpg, group) for group in groups] + [(os.kill, stray) for stray in _strays(groups)])


def _nothing(*_: object) -> None:
    """The end of the input says when to end."""


def _open(url: str) -> None:
    """Open a page; a browser whose parent has left it is given to this process, until its end."""
    import subprocess  # noqa: PLC0415 - seldom needed, and slow to load

    adopt_orphans()
    command = [sys.executable, "-I", "-m", "webbrowser", url]  # of our own status page
    subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603


def adopt_orphans() -> None:
    """Have orphans of ours given to us rather than to the first process of the system, where the platform can."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError, TypeError):  # not on this platform
        return


def _end(those: list[Target]) -> None:
    left = [target for target in those if _signal(target, signal.SIGTERM)]
    until = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        left = [target for target in left if _signal(target, 0)]
    for target in left:
        _signal(target, signal.SIGKILL)


def _strays(groups: set[int]) -> set[int]:
    """Descendants of the groups' leaders that are in none of the groups."""
    rows = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, group, *_ = place.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # gone by now
            continue
        rows[int(place.parent.name)] = int(parent), int(group)
    family, found = set(groups), set(groups)
    while found:
        found = {pid for pid, (parent, _) in rows.items() if parent in found} - family
        family |= found
    return {pid for pid in family if pid in rows and rows[pid][1] not in groups}


if __name__ == "__main__":
    main()
