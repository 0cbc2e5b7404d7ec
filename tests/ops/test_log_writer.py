"""Lines on their way to a descriptor, with real pipes and devices."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mcp_sidecar.ops.log_writer import LogWriter

LINE = "x" * 1000 + "\n"
BOUND = 200_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; closed afterwards, whoever closed one before."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


class Recovered:
    """Takes what a writer tells of the lines that it dropped."""

    def __init__(self) -> None:
        self.lines = 0
        self.told = threading.Event()

    def __call__(self, lines: int) -> None:
        self.lines += lines
        self.told.set()


def written_to(descriptor: int) -> bytes:
    """Everything up to the end of a pipe."""
    found = b""
    while chunk := os.read(descriptor, 65536):
        found += chunk
    return found


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    """What was logged before the end is written by the end."""
    reader, writer = pipe
    log = LogWriter(writer, Recovered())
    for number in range(50):
        log.write(f"{number}\n")
    assert log.close(10)
    os.close(writer)
    assert written_to(reader).decode().split() == [str(number) for number in range(50)]
    assert log.dropped == 0


@pytest.mark.parametrize("is_blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_pipe_that_nobody_reads_costs_lines_only(pipe: tuple[int, int], is_blocking: bool) -> None:
    """Writing returns although the pipe is full; what has no room is counted, and told once somebody reads again."""
    reader, writer = pipe
    os.set_blocking(writer, is_blocking)
    recovered = Recovered()
    log = LogWriter(writer, recovered, max_queued_bytes=BOUND)
    given = 1000
    for _ in range(given):
        log.write(LINE)
    assert 0 < log.dropped < given
    assert not recovered.told.is_set()
    dropped = log.dropped
    os.close(writer)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(written_to(reader)))
    reading.start()
    assert recovered.told.wait(10)
    log.write("afterwards\n")
    assert log.close(10)
    reading.join(10)
    assert recovered.lines == dropped
    assert found[0].decode() == LINE * (given - dropped) + "afterwards\n"


def test_the_end_does_not_wait_for_a_reader_for_ever(pipe: tuple[int, int]) -> None:
    """Lines that nobody takes are lost when the time is over."""
    log = LogWriter(pipe[1], Recovered(), max_queued_bytes=BOUND)
    for _ in range(1000):
        log.write(LINE)
    assert not log.close(0.01)
    os.close(pipe[0])  # lets the thread go


def test_a_reader_that_left_costs_lines_only(pipe: tuple[int, int]) -> None:
    """A broken pipe raises nothing; every line is counted."""
    reader, writer = pipe
    os.close(reader)
    log = LogWriter(writer, Recovered())
    for _ in range(10):
        log.write(LINE)
    assert log.close(10)
    assert log.dropped == 10


def test_a_full_disk_costs_lines_only() -> None:
    """The same for a device that has no room."""
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device
        log = LogWriter(full.fileno(), Recovered())
        log.write(LINE)
        assert log.close(10)
        assert log.dropped == 1


def test_what_is_no_unicode_is_written_all_the_same(pipe: tuple[int, int]) -> None:
    """A lone surrogate, which a path may hold, ends no writer."""
    log = LogWriter(pipe[1], Recovered())
    log.write("a\udcffb\n")
    assert log.close(10)
    assert os.read(pipe[0], 100) == b"a\\udcffb\n"
