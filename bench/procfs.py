"""What Linux tells about processes and cores. Parsing is apart from reading, so that it can be tested anywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of CPU that processes have used."""

    user_s: float = 0.0
    system_s: float = 0.0

    @property
    def total_s(self) -> float:
        """User and system together."""
        return self.user_s + self.system_s

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.system_s + other.system_s)

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s - other.user_s, self.system_s - other.system_s)


@dataclass(frozen=True, slots=True)
class CoreTime:
    """Seconds since boot in which a core ran processes, served interrupts (the network's, too), and did nothing."""

    processes_s: float
    interrupts_s: float
    idle_s: float

    @property
    def _whole_s(self) -> float:
        return self.processes_s + self.interrupts_s + self.idle_s

    def busy_share_since(self, earlier: CoreTime) -> float:
        """Return the share of the time in between in which the core worked."""
        whole = self._whole_s - earlier._whole_s
        return 1 - (self.idle_s - earlier.idle_s) / whole if whole > 0 else 0.0

    def process_share_since(self, earlier: CoreTime) -> float:
        """Return the share of the time in between in which the core ran processes."""
        whole = self._whole_s - earlier._whole_s
        return (self.processes_s - earlier.processes_s) / whole if whole > 0 else 0.0


def _after_name(stat: str) -> list[str]:
    # The name stands in parentheses and may itself hold blanks and parentheses.
    return stat.rpartition(")")[2].split()


def parse_cpu_time(stat: str, ticks_per_second: int = TICKS_PER_SECOND) -> CpuTime:
    """Read utime and stime, fields 14 and 15 of ``/proc/PID/stat``."""
    fields = _after_name(stat)
    return CpuTime(int(fields[11]) / ticks_per_second, int(fields[12]) / ticks_per_second)


def parse_parent(stat: str) -> int:
    """Read the parent's id, field 4 of ``/proc/PID/stat``."""
    return int(_after_name(stat)[1])


def parse_cores(stat: str, ticks_per_second: int = TICKS_PER_SECOND) -> dict[int, CoreTime]:
    """Read the lines ``cpuN`` of ``/proc/stat``; waiting for a disk counts as idle."""
    cores: dict[int, CoreTime] = {}
    for line in stat.splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name != "cpu":
            # Guest time, which follows, is in user already; what another machine took (steal) is nobody's work here.
            user, nice, system, idle, waiting, irq, softirq, steal = (
                int(field) / ticks_per_second for field in fields[:8]
            )
            cores[int(name[3:])] = CoreTime(user + nice + system + steal, irq + softirq, idle + waiting)
    return cores


def parse_status_kib(status: str, name: str) -> int:
    """Read an amount such as ``VmRSS`` or ``VmHWM`` of ``/proc/PID/status``, in KiB; 0 where it is missing."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def cores() -> dict[int, CoreTime]:
    """Return the times of all cores."""
    return parse_cores((PROC / "stat").read_text())


def tree(roots: Iterable[int]) -> list[int]:
    """Return the processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for pid, stat in _stats():
        children.setdefault(parse_parent(stat), []).append(pid)
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def _stats() -> Iterator[tuple[int, str]]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text()


def command_line(pid: int) -> list[str]:
    """Return how a process was started; empty once it has ended."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def cpu_time(pids: Iterable[int]) -> CpuTime:
    """Return what these processes have used so far; one that has ended counts nothing."""
    total = CpuTime()
    for pid in pids:
        with contextlib.suppress(OSError):
            total += parse_cpu_time((PROC / str(pid) / "stat").read_text())
    return total


def run_time_s(pids: Iterable[int]) -> float:
    """Return the same total in nanosecond steps, from the scheduler: for short or idle stretches, where ticks are coarse."""
    total_ns = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in (PROC / str(pid) / "task").iterdir():
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def memory_kib(pids: Iterable[int], name: str = "VmRSS") -> int:
    """Return the sum of this amount over the processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += parse_status_kib((PROC / str(pid) / "status").read_text(), name)
    return total


def forget_peak(pids: Iterable[int]) -> None:
    """Let ``VmHWM`` begin anew at what is resident now."""
    for pid in pids:
        (PROC / str(pid) / "clear_refs").write_text("5")
