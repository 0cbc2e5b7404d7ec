"""What the benchmark reads: wrk's output, /proc, and messages off a connection."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from pathlib import Path
from typing import Final

import pytest

from bench import interpreter, nginx, work, wrk
from bench.contenders import listening_address
from bench.http1 import Message, Reader
from bench.procfs import CpuTime, parse_cores, parse_cpu_time, parse_parent, parse_status_kib

WRK: Final = """Running 4s test @ http://127.0.0.1:45671/mcp
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   243.17us  126.75us   5.26ms   92.65%
  262144 requests in 4.00s, 201.00MB read
Requests/sec:  65536.00
bench {"requests": 262144, "duration_us": 4000000, "connect": 0, "read": 1, "write": 0, "status": 2, "timeout": 0, "p50_us": 227, "p99_us": 603}
"""
STAT: Final = "4711 (a (b) c) S 4700 4711 4711 0 -1 4194304 1 2 3 4 250 125 7 8 20 0 1 0 100 200 300 4 5 6"
CORES: Final = """cpu  300 0 300 1400 0 0 200 0 0 0
cpu0 100 10 90 600 100 20 80 0 0 0
cpu1 200 0 200 700 0 0 100 0 50 0
intr 12345 0 0
"""


def test_the_line_of_the_script_is_read() -> None:
    """Requests, time, errors of all kinds together, and percentiles come from the script's own line."""
    load = wrk.parse(WRK)
    assert (load.requests, load.seconds, load.errors, load.p50_us, load.p99_us) == (262144, 4.0, 3, 227, 603)
    assert load.per_second == 65536


@pytest.mark.parametrize(
    "output", [pytest.param("", id="nothing"), pytest.param("unable to connect\n", id="no server")]
)
def test_output_without_that_line_is_an_error(output: str) -> None:
    """A round without a result is never taken for one with nothing in it."""
    with pytest.raises(ValueError, match="no result"):
        wrk.parse(output)


def test_cpu_time_is_found_behind_any_name() -> None:
    """A process may have blanks and parentheses in its name."""
    assert parse_cpu_time(STAT, 100) == CpuTime(2.5, 1.25)
    assert parse_cpu_time(STAT, 100).total_s == 3.75
    assert parse_parent(STAT) == 4700


def test_cpu_times_add_up_and_differ() -> None:
    """The processes of a proxy are summed, and a round is what came since its begin."""
    assert CpuTime(2.5, 1) + CpuTime(0.5, 1) - CpuTime(1, 1) == CpuTime(2, 1)


def test_a_core_runs_processes_serves_interrupts_or_does_nothing() -> None:
    """Waiting for a disk is doing nothing, guest time is not counted twice, and the sum of all cores is no core."""
    cores = parse_cores(CORES, 100)
    assert sorted(cores) == [0, 1]
    core = cores[0]
    assert (core.processes_s, core.interrupts_s, core.idle_s) == pytest.approx((2.0, 1.0, 7.0))
    start = type(core)(0, 0, 0)
    assert core.busy_share_since(start) == pytest.approx(0.3)
    assert core.process_share_since(start) == pytest.approx(0.2)
    assert core.busy_share_since(core) == 0


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        pytest.param("VmRSS", 2048, id="resident"),
        pytest.param("VmHWM", 4096, id="peak"),
        pytest.param("VmX", 0, id="unknown"),
    ],
)
def test_memory_is_read_by_name(name: str, kib: int) -> None:
    """An amount that the kernel does not tell counts nothing."""
    assert parse_status_kib("Name:\tx\nVmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\n", name) == kib


@pytest.mark.parametrize(
    ("log", "address"),
    [
        pytest.param('{"event": "listening", "address": "127.0.0.1:4"}\n', "127.0.0.1:4", id="there"),
        pytest.param('warning\n{"event": "other"}\n3\n{"event": "listening", "addr', "", id="half a line"),
        pytest.param("", "", id="nothing yet"),
    ],
)
def test_the_address_is_taken_from_the_log(log: str, address: str) -> None:
    """A sidecar is started on a free port and says which; a line that is still being written is not read."""
    assert listening_address(log) == address


class Recorder(Reader):
    """Keeps what comes."""

    def __init__(self, *, is_client: bool) -> None:
        super().__init__()
        self.is_client = is_client
        self.messages: list[Message] = []

    def message_came(self, message: Message) -> None:
        self.messages.append(message)


@pytest.mark.parametrize(
    "size", [pytest.param(1, id="byte by byte"), pytest.param(7, id="7 bytes"), pytest.param(999, id="at once")]
)
def test_answers_are_read_however_they_are_cut(size: int) -> None:
    """Counted, chunked and empty bodies on one connection, an interim answer before one of them."""
    raw = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nMcp-Session-Id: abc\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    )
    reader = Recorder(is_client=True)
    for place in range(0, len(raw), size):
        reader.data_received(raw[place : place + size])
    assert [(message.status, bytes(message.body)) for message in reader.messages] == [
        (200, b"hello"),
        (200, b"abcde"),
        (202, b""),
    ]
    assert reader.messages[1].headers[b"mcp-session-id"] == b"abc"


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    """A message whose end is the connection's is complete then, and only then."""
    reader = Recorder(is_client=True)
    reader.data_received(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    await asyncio.sleep(0)
    assert reader.messages == []
    reader.connection_lost(None)
    assert [bytes(message.body) for message in reader.messages] == [b"all of it"]


def test_large_bodies_are_counted_and_not_kept() -> None:
    """20 MiB through the generator do not grow it by 20 MiB."""
    reader = Recorder(is_client=False)
    reader.data_received(b"POST /mcp HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(100):
        reader.data_received(b"x" * 10_000)
    assert [(message.size, len(message.body) <= 65536) for message in reader.messages] == [(1_000_000, True)]


def test_calls_look_like_those_of_clients() -> None:
    """About 300 bytes with the headers of a session, and an answer of about 600."""
    message = read(work.call_request("127.0.0.1:1", ["the-session"], work.JSON, 17))
    assert message.method == b"POST"
    assert message.headers[b"mcp-session-id"] == b"the-session"
    assert 250 <= message.size <= 370
    assert 550 <= len(work.answer(17)) <= 700


def read(request: bytes) -> Message:
    reader = Recorder(is_client=False)
    reader.data_received(request)
    return reader.messages[0]


@pytest.mark.parametrize("kind", work.ASKED)
def test_a_request_has_as_many_bytes_as_its_id_says(kind: str) -> None:
    """An upstream that cannot read bodies answers with the length: that is the id of every kind of request."""
    messages = [read(work.call_request("127.0.0.1:1", ["a", "b"], kind, number)) for number in range(2 * work.IDS)]
    bodies = [json.loads(message.body) for message in messages]
    assert [message.size for message in messages] == [body["id"] for body in bodies]
    assert {body["method"] for body in bodies} == {work.ASKED[kind].method}
    used = [(message.headers[b"mcp-session-id"], body["id"]) for message, body in zip(messages, bodies, strict=True)]
    assert len(set(used)) == len(used)


def test_headers_change_only_where_the_kind_says_so() -> None:
    """Otherwise two requests of a session differ in nothing but body and length; an ingress's differ in every request."""

    def differing(kind: str) -> set[bytes]:
        first, other = (
            read(work.call_request("127.0.0.1:1", ["a"], kind, number, f"{number:012x}")).headers for number in (0, 1)
        )
        return {name for name in first | other if first.get(name) != other.get(name)}

    assert differing(work.JSON) == {b"content-length"}
    assert differing(work.CHANGING) == {b"content-length", b"x-request-id", b"traceparent"}


def test_wrk_is_told_where_a_request_is_unique(tmp_path: Path) -> None:
    """The length that stands before a record holds with the mark and with the digits in its place."""
    wrk.write_calls(tmp_path / "calls", "127.0.0.1:1", ["a"], work.CHANGING)
    content = (tmp_path / "calls").read_bytes()
    first = content[8 : 8 + int(content[:8])]
    assert first == work.call_request("127.0.0.1:1", ["a"], work.CHANGING, 0)
    assert first.count(work.UNIQUE.encode()) == 3
    assert len(work.UNIQUE) == len(f"{2**48 - 1:012x}")


@pytest.mark.parametrize(
    ("variables", "pgo", "lto"),
    [
        pytest.param(
            {"CONFIG_ARGS": "'--prefix=/a b' '--enable-optimizations' '--with-lto=thin'", "PGO_PROF_USE_FLAG": "-f"},
            "yes",
            "yes",
            id="both",
        ),
        pytest.param({"CONFIG_ARGS": "'--enable-optimizations'", "PGO_PROF_USE_FLAG": "-f"}, "yes", "no", id="one"),
        pytest.param({"CONFIG_ARGS": "", "PGO_PROF_USE_FLAG": "-fprofile-use"}, "no", "no", id="as it comes"),
        pytest.param({"CONFIG_ARGS": "'--with-lto=no'", "PGO_PROF_USE_FLAG": ""}, "not known", "no", id="refused"),
        pytest.param(
            {"CONFIG_ARGS": "'--enable-shared'", "PGO_PROF_USE_FLAG": ""}, "not known", "not known", id="cleaned"
        ),
        pytest.param({}, "not known", "not known", id="not CPython"),
    ],
)
def test_what_a_build_says_of_itself(variables: dict[str, object], pgo: str, lto: str) -> None:
    """A missing option means no, unless the flags of the build have been taken out: Debian optimises without options."""
    assert interpreter.built(variables) == {"PGO": pgo, "LTO": lto}


def test_a_python_is_asked_how_it_was_built(tmp_path: Path) -> None:
    """By a process of its own; what is no Python is told."""
    assert interpreter.description(sys.executable)["python"] == platform.python_version()
    with pytest.raises(interpreter.NotMade, match="no-python"):
        interpreter.description(tmp_path / "no-python")


@pytest.mark.parametrize(
    "configured", [pytest.param(nginx.proxy, id="proxy"), pytest.param(nginx.upstream, id="upstream")]
)
def test_nginx_is_configured_into_one_folder(configured: object) -> None:
    """Braces pair, nothing is left to fill in, and all that it writes goes where the run's files are."""
    assert callable(configured)
    text = configured("/folder", 8000, "http://127.0.0.1:9000/mcp", 1024)
    assert text.count("{") - text.count("}") == 0
    assert "listen 127.0.0.1:8000 " in text
    assert "server 127.0.0.1:9000;" in text
    assert all("/folder/" in line for line in text.splitlines() if "_temp_path" in line or "error_log" in line)
