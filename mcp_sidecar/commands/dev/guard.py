"""Ends process groups once whoever started this is gone, however it went: `python -I guard.py`, told on its standard input.

`+123` takes a group into care, `-123` lets it go. At the end of the input, which is the end of the sidecar, SIGKILL included,
what is left gets SIGTERM and a second later SIGKILL. A script by itself, with modules of the standard library that load fast.
"""

import os
import signal
import sys
import time

PATIENCE_S = 1.0
LOOK_EVERY_S = 0.02


def _signal(group: int, number: int) -> bool:
    """Whether there is such a group still."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


def main() -> None:
    """Wait for the end of the input, and clear up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        sign, digits = line[:1], line[1:].strip()
        if digits.isdigit() and int(digits) > 1:
            (groups.add if sign == "+" else groups.discard)(int(digits))
    left = [group for group in groups if _signal(group, signal.SIGTERM)]
    until = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        left = [group for group in left if _signal(group, 0)]
    for group in left:
        _signal(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
