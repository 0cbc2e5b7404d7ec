"""Metrics as numbers, and how Prometheus is shown them: in its text format, or as OpenMetrics.

The rule of this file: it knows no metric of ours. A counter is one addition, since every request counts in some; all that
costs time is done when somebody reads.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Literal

Labels = tuple[str, ...]
"""Names of labels, or their values in the same order."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ASKS_FOR_OPEN_METRICS = re.compile(
    r"(?:^|,)\s*application/openmetrics-text\s*(?=[;,]|$)(?![^,]*;\s*version=(?!1\.0\.0|0\.0\.1))"
    r"(?![^,]*;\s*q=0(?:\.0*)?\s*(?:[;,]|$))",
    re.IGNORECASE,
)
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def nothing() -> Mapping[Labels, float]:
    """What is read where nobody has said yet from where."""
    return {}


def always(level: float) -> Callable[[], Mapping[Labels, float]]:
    """A level that does not change, of a metric without labels."""
    return lambda: {(): level}


@dataclass(slots=True)
class Counter:
    """Events so far, by the values of ``labels``."""

    name: str
    documentation: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)
    kind: Literal["counter"] = "counter"

    def add(self, *labels: str) -> None:
        """One more."""
        self.values[labels] = self.values.get(labels, 0) + 1

    def samples(self) -> Iterator[str]:
        """The lines that show it."""
        return (_line(f"{self.name}_total", self.labels, values, number) for values, number in self.values.items())


@dataclass(slots=True)
class Gauge:
    """Levels by the values of ``labels``. They are ``read`` when they are shown; so may be what somebody else counts."""

    name: str
    documentation: str
    read: Callable[[], Mapping[Labels, float]] = nothing
    labels: Labels = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def samples(self) -> Iterator[str]:
        """The lines that show it."""
        name = self.name if self.kind == "gauge" else f"{self.name}_total"
        return (_line(name, self.labels, values, level) for values, level in self.read().items())


@dataclass(slots=True)
class Histogram:
    """Seconds by the values of ``labels``: how many within each of ``bounds`` and how many beyond, and their sum."""

    name: str
    documentation: str
    bounds: tuple[float, ...]
    labels: Labels = ()
    counts: dict[Labels, list[int]] = field(default_factory=dict)
    sums: dict[Labels, float] = field(default_factory=dict)
    kind: Literal["histogram"] = "histogram"

    def __post_init__(self) -> None:
        """Without labels it is there from the start."""
        if not self.labels:
            self._begin(())

    def _begin(self, labels: Labels) -> list[int]:
        self.sums[labels] = 0.0
        counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
        return counts

    def observe(self, seconds: float, *labels: str) -> None:
        """One more."""
        counts = self.counts.get(labels) or self._begin(labels)
        counts[bisect_left(self.bounds, seconds)] += 1
        self.sums[labels] += seconds

    def samples(self) -> Iterator[str]:
        """The lines that show it."""
        names, bounds = (*self.labels, "le"), tuple(map(_number, (*self.bounds, inf)))
        for values, counts in self.counts.items():
            for bound, number in zip(bounds, accumulate(counts), strict=True):
                yield _line(f"{self.name}_bucket", names, (*values, bound), number)
            yield _line(f"{self.name}_count", self.labels, values, sum(counts))
            yield _line(f"{self.name}_sum", self.labels, values, self.sums[values])


Metric = Counter | Gauge | Histogram


def render(metrics: Iterable[Metric], accept: str | None) -> tuple[bytes, str]:
    """All metrics, and their content type: OpenMetrics where ``accept`` names it, else Prometheus' text."""
    is_open = _ASKS_FOR_OPEN_METRICS.search(accept or "") is not None
    lines: list[str] = []
    for metric in metrics:
        # In the text a counter is called as its samples are, in OpenMetrics without their suffix.
        name = metric.name if is_open or metric.kind != "counter" else f"{metric.name}_total"
        lines += [f"# HELP {name} {metric.documentation}\n", f"# TYPE {name} {metric.kind}\n", *metric.samples()]
    if is_open:
        lines.append("# EOF\n")
    return "".join(lines).encode(), OPEN_METRICS if is_open else TEXT


def _line(name: str, labels: Labels, values: Labels, number: float) -> str:
    pairs = sorted(zip(labels, values, strict=True))
    shown = ",".join(f'{label}="{value.translate(_ESCAPED)}"' for label, value in pairs)
    return f"{name}{{{shown}}} {_number(number)}\n" if shown else f"{name} {_number(number)}\n"


def _number(number: float) -> str:
    return repr(float(number)) if number != inf else "+Inf"


# -- what every process shows -----------------------------------------------------------------------------------------


def of_process() -> Iterator[Metric]:
    """What this process takes, by the names that dashboards know, where the system tells it; and which Python it is."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # where there is no /proc
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(encoding="ascii"), re.MULTILINE)
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        seconds = (int(stat[11]) + int(stat[12])) / ticks
        began = (float(boot[1]) if boot is not None else 0.0) + int(stat[19]) / ticks
        yield Gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", always(int(stat[20])))
        yield Gauge("process_resident_memory_bytes", "Resident memory size in bytes.", always(int(stat[21]) * page))
        yield Gauge("process_start_time_seconds", "Start time of the process since unix epoch.", always(began))
        yield Gauge("process_cpu_seconds", "User and system CPU time in seconds.", always(seconds), kind="counter")
        limits = Path("/proc/self/limits").read_text(encoding="ascii")
        most = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
        is_open = sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # less the folder itself
        yield Gauge(
            "process_max_fds", "Maximum number of open file descriptors.", always(int(most[1]) if most else inf)
        )
        yield Gauge("process_open_fds", "Number of open file descriptors.", always(is_open))
    version = sys.version.partition(" ")[0]
    values = ("CPython" if sys.implementation.name == "cpython" else sys.implementation.name, *version.split(".", 2))
    labels = ("implementation", "major", "minor", "patchlevel", "version")
    yield Gauge("python_info", "Python platform information.", lambda: {(*values, version): 1}, labels)
