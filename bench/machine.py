"""Which core does what, and what the machine is: the proxy has one core, generator and upstream another."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the proxy under test, and the one of everything else. With one core only they are the same."""

    proxy: int
    tools: int

    @property
    def are_shared(self) -> bool:
        """Whether CPU time is all that can be compared."""
        return self.proxy == self.tools


def pick_cores() -> Cores:
    """Take the first two cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(proxy=allowed[0], tools=allowed[1] if len(allowed) > 1 else allowed[0])


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Start processes on that core: they inherit where their parent may run."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_descriptor_limit() -> int:
    """Take as many file descriptors as this user may, for this process and what it starts; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def description() -> dict[str, str | int]:
    """Return what a reader needs to judge absolute figures by."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "kernel": platform.release(),
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
