"""An event loop whose time stands still while there is anything to do: no timer of the sidecar runs out because the machine is
slow, and no test waits for one.

The rule: time passes only where nobody in this process can go on without it, and then at once to the next timer. So it is only
for tests whose clients, sidecar and upstream share the loop; where another process takes part, time has to be real.
"""

from __future__ import annotations

import asyncio
import fcntl
import selectors
import sys
from collections.abc import Callable
from typing import Any, Final

PACKAGES: Final = (
    *("downstream", "endpoint", "fastpath", "faults", "ops"),
    *("sessions", "streams", "support", "upstream", "waiting"),
)
"""The packages of tests in which no other process takes part."""

QUIET_S: Final = 0.003
"""How long, in real time, nothing may have come before time passes: what the kernel is still carrying from one end of a
connection to the other is something to do."""


HELD_BACK_S: Final = 1.5
"""The same while a connection holds bytes back because its peer's window is full: that is looked at again after 0.2 s, then 0.4,
and a busy machine takes its time. Whoever does not read for longer does not want to."""

_SIOCOUTQNSD: Final = 0x894B  # Linux's tcp(7): bytes that are written and were never sent


class _Selector(selectors.DefaultSelector):
    """Lets time pass instead of waiting. ``busy_threads`` counts what goes on beside the loop."""

    now_s = 0.0
    busy_threads = 0

    def __init__(self) -> None:
        super().__init__()
        self._stuck: set[int] = set()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(min(timeout, QUIET_S))
        if ready or timeout <= 0 or self.busy_threads:
            return ready
        held = {key.fd for key in self.get_map().values() if _holds_back(key.fd)}
        if held - self._stuck and (ready := super().select(HELD_BACK_S)):
            return ready
        self._stuck = held
        self.now_s += timeout
        return []


def _holds_back(fd: int) -> bool:
    """Has the connection bytes that were never sent? No where the system does not tell."""
    if sys.platform != "linux":
        return False
    try:
        return fcntl.ioctl(fd, _SIOCOUTQNSD, bytes(4)) != bytes(4)
    except OSError:  # no TCP socket
        return False


class UnhurriedLoop(asyncio.SelectorEventLoop):
    """See above; ``time`` begins at 0."""

    def __init__(self) -> None:
        self._own_selector = _Selector()
        super().__init__(self._own_selector)

    def time(self) -> float:
        return self._own_selector.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        self._own_selector.busy_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_ended)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Threads are waited for without a limit: the one that waits for them is none of ours to be counted (Python 3.12)."""
        await super().shutdown_default_executor()

    def _thread_ended(self, _: object) -> None:
        self._own_selector.busy_threads -= 1


def now() -> float:
    """The time of the running loop, in seconds; what to give as a clock."""
    return asyncio.get_running_loop().time()
