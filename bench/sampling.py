"""One round under watch: CPU of the proxy from the operating system, and whether the round says anything about it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from bench import procfs
from bench.machine import Cores
from bench.procfs import CpuTime

OTHER_IS_LIMIT: Final = "the other core is the limit"
DISTURBED: Final = "others used the proxy's core"
FULL_SHARE: Final = 0.95
"""A core that works so much of the time is at its end."""
FOREIGN_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Used:
    """What a round used. Interrupts keep a core busy, and are nobody's."""

    seconds: float
    cpu: CpuTime
    run_time_s: float
    other_core_share: float
    proxy_core_share: float
    processes_share: float
    """Of the proxy's core."""

    def flags(self) -> tuple[str, ...]:
        """Return the reasons for which this round says little."""
        found = []
        own_share = self.run_time_s / self.seconds if self.seconds else 0.0
        if self.other_core_share >= FULL_SHARE and self.proxy_core_share < FULL_SHARE:
            found.append(OTHER_IS_LIMIT)
        if self.processes_share - own_share > FOREIGN_SHARE:
            found.append(DISTURBED)
        return tuple(found)


class Watch:
    """Use it as a context manager around a round; ``used`` is there afterwards."""

    used: Used

    def __init__(self, pids: Sequence[int], cores: Cores) -> None:
        self._pids = list(pids)
        self._cores = cores

    def __enter__(self) -> Self:
        self._cores_before = procfs.cores()
        self._cpu_before = procfs.cpu_time(self._pids)
        self._run_before_s = procfs.run_time_s(self._pids)
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        run_time_s = procfs.run_time_s(self._pids) - self._run_before_s
        cpu = procfs.cpu_time(self._pids) - self._cpu_before
        after = procfs.cores()
        tools, proxy = self._cores.tools, self._cores.proxy
        self.used = Used(
            seconds,
            cpu,
            run_time_s,
            after[tools].busy_share_since(self._cores_before[tools]),
            after[proxy].busy_share_since(self._cores_before[proxy]),
            after[proxy].process_share_since(self._cores_before[proxy]),
        )


def told(flags: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Say in how many rounds each flag was up."""
    rounds = list(flags)
    counted = Counter(flag for found in rounds for flag in found)
    return tuple(f"{flag} ({number} of {len(rounds)} rounds)" for flag, number in sorted(counted.items()))
