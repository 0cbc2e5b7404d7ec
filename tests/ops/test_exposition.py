"""Metrics as Prometheus reads them: its own parsers, the strict one of OpenMetrics among them, find what was counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from mcp_sidecar.ops.exposition import OPEN_METRICS, TEXT, Counter, Gauge, Histogram, Metric, always, of_process, render

OPEN = "application/openmetrics-text"
PROMETHEUS = f"{OPEN};version=1.0.0;escaping=allow-utf-8;q=0.6,{OPEN};version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"

Read = Callable[[str], Any]
read_text = cast("Read", parser.text_string_to_metric_families)
read_open_metrics = cast("Read", open_parser.text_string_to_metric_families)

ODD = 'a "b" \\ c\nd é'


def some_of_each() -> list[Metric]:
    """One metric of each kind, with labels and without."""
    calls, plain = Counter("x_calls", "Calls.", ("method", "status")), Counter("x_plain", "Plain.")
    calls.add("GET", "200")
    calls.add("GET", "200")
    calls.add(ODD, "")
    plain.add()
    seconds, waits = Histogram("x_seconds", "Seconds.", (0.1, 1.0), ("method",)), Histogram("x_waits", "Waits.", (0.5,))
    for taken in (0.1, 0.2, 5.0):
        seconds.observe(taken, "GET")
    levels = Gauge("x_level", "Levels.", lambda: {("a",): -1.5, ("b",): 3e12}, ("of",))
    elsewhere = Gauge("x_elsewhere", "Counted elsewhere.", always(7), kind="counter")
    return [calls, plain, seconds, waits, levels, elsewhere, Gauge("x_none", "None yet.", labels=("of",))]


EXPECTED = {
    ("x_calls_total", (("method", "GET"), ("status", "200"))): 2,
    ("x_calls_total", (("method", ODD), ("status", ""))): 1,
    ("x_plain_total", ()): 1,
    ("x_seconds_bucket", (("method", "GET"), ("le", "0.1"))): 1,
    ("x_seconds_bucket", (("method", "GET"), ("le", "1.0"))): 2,
    ("x_seconds_bucket", (("method", "GET"), ("le", "+Inf"))): 3,
    ("x_seconds_count", (("method", "GET"),)): 3,
    ("x_seconds_sum", (("method", "GET"),)): 5.3,
    ("x_waits_bucket", (("le", "0.5"),)): 0,
    ("x_waits_bucket", (("le", "+Inf"),)): 0,
    ("x_waits_count", ()): 0,
    ("x_waits_sum", ()): 0,
    ("x_level", (("of", "a"),)): -1.5,
    ("x_level", (("of", "b"),)): 3e12,
    ("x_elsewhere_total", ()): 7,
}
KINDS = {
    "x_calls": "counter",
    "x_plain": "counter",
    "x_seconds": "histogram",
    "x_waits": "histogram",
    "x_level": "gauge",
    "x_elsewhere": "counter",
    "x_none": "gauge",
}


@pytest.mark.parametrize(
    ("accept", "read"), [(None, read_text), (PROMETHEUS, read_open_metrics)], ids=["text", "openmetrics"]
)
def test_what_is_shown_is_what_was_counted(accept: str | None, read: Read) -> None:
    """Names, kinds, labels and numbers, whatever stands in a label."""
    families = list(read(render(some_of_each(), accept)[0].decode()))
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    assert found == pytest.approx({(name, frozenset(labels)): number for (name, labels), number in EXPECTED.items()})
    assert {family.name: family.type for family in families} == KINDS


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (PROMETHEUS, True),
        (OPEN, True),
        (f"text/plain, {OPEN.upper()}", True),
        (f"{OPEN}; version=0.0.1", True),
        (f"{OPEN};version=2.0.0", False),
        (f"{OPEN};version=abc,text/plain", False),
        (f"{OPEN};q=0,text/plain", False),
        (f"{OPEN};q=0.1,text/plain", True),
        (f"{OPEN}x", False),
    ],
)
def test_open_metrics_is_for_whoever_names_it(accept: str | None, is_open: bool) -> None:
    """In a version that is known, and not with the weight 0."""
    body, kind = render([], accept)
    assert (kind, body) == ((OPEN_METRICS, b"# EOF\n") if is_open else (TEXT, b""))


def test_what_the_process_takes() -> None:
    """By the names that dashboards know; a count of open files is right, and so is the Python."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc")
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    families = list(read_open_metrics(render(of_process(), OPEN)[0].decode()))
    found = {sample.name: sample for family in families for sample in family.samples}
    assert found["process_resident_memory_bytes"].value > 1 << 20
    assert found["process_virtual_memory_bytes"].value > found["process_resident_memory_bytes"].value
    assert found["process_cpu_seconds_total"].value > 0
    assert found["process_start_time_seconds"].value > 1.6e9
    assert found["process_max_fds"].value >= found["process_open_fds"].value > 2
    assert abs(found["process_open_fds"].value - before) <= 2
    labels = found["python_info"].labels
    assert (labels["major"], labels["minor"]) == tuple(map(str, sys.version_info[:2]))
