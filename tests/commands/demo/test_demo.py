"""The demo as a user runs it: real processes, and what must hold when a part of it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("mcp", reason="the extra `demo` is not installed")

from mcp_sidecar.commands.demo import run

FORWARDER: Final = Path(__file__).with_name("plain_forwarder.py")
COMMAND: Final = (sys.executable, "-m", "mcp_sidecar", "demo")
DEMO_TIMEOUT_S: Final = 100
MARK: Final = "MCP_DEMO_TEST_MARK"


def plain_forwarder(upstream_url: str, *_: str) -> Sequence[str]:
    """A sidecar that heals nothing."""
    return (sys.executable, str(FORWARDER), upstream_url)


def broken_sidecar(*_: str) -> Sequence[str]:
    """A sidecar that ends with a complaint."""
    return (sys.executable, "-c", "raise SystemExit('no such option')")


def left_behind(mark: str) -> list[str]:
    """The process ids that carry the mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment:
            found.append(entry.name)
    return found


def test_it_shows_a_heal() -> None:
    """With the real sidecar the call after the restart succeeds, the status is 0, and no process is left."""
    mark = uuid.uuid4().hex
    hostile = {"MCP_SIDECAR_MODE": "observe", "MCP_SIDECAR_LISTEN": "nonsense", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        COMMAND,
        env=os.environ | hostile | {MARK: mark},
        timeout=DEMO_TIMEOUT_S,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "ERROR Session terminated" in done.stdout
    assert "the heal itself took" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" -m mcp_sidecar --upstream http://127.0.0.1:9000/mcp")
    assert "\x1b" not in done.stdout
    assert left_behind(mark) == []


def test_it_shows_a_restart_of_the_sidecar_too(capfd: pytest.CaptureFixture[str]) -> None:
    """Both are killed, and the client of the official SDK goes on in its session."""
    assert run(restarts_sidecar=True) == 0
    told = capfd.readouterr().out
    assert "server and sidecar killed and started again" in told
    assert "kept its session" in told


def test_without_a_heal_the_status_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """A sidecar that heals nothing is found out: the demo believes no one."""
    assert run(plain_forwarder) == 1
    assert "NOT healed" in capfd.readouterr().out


def test_a_sidecar_that_does_not_start_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """What the child wrote before it ended is shown, and the status is 1."""
    assert run(broken_sidecar) == 1
    assert "the sidecar did not come up" in (told := capfd.readouterr().err)
    assert "no such option" in told


@pytest.fixture
def heard_signals() -> Iterator[None]:
    """Children hear the signals even where these tests run in the background of a shell, which ignores SIGINT there."""
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGHUP)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for children in /proc")
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
def test_whoever_stops_it_leaves_nothing_behind(how: signal.Signals) -> None:
    """Ctrl-C, a kill and a closed terminal end the children, too."""
    mark = uuid.uuid4().hex
    with subprocess.Popen(COMMAND, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any(line.startswith("1/2") for line in demo.stdout)
        demo.send_signal(how)
        rest = demo.stdout.read()
        assert demo.wait(DEMO_TIMEOUT_S) == 130
    assert "Interrupted" in rest
    assert left_behind(mark) == []
