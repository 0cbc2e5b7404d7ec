"""Ctrl-C at every moment of `mcp-sidecar dev`: before it runs, while it ends, and behind that. No traceback, nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.commands.dev.running import IGNORES_SIGTERM, Folder, developing, gone, is_running
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

INTERRUPTED = """\
import os, signal, sys
event, part = sys.argv.pop(1), sys.argv.pop(1)
def hook(name, arguments):
    global event
    if name == event and part in str(arguments[0]):
        event = ""
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
signal.signal(signal.SIGINT, signal.default_int_handler)
from mcp_sidecar.__main__ import main
sys.exit(main())"""
"""The command line, which gets a SIGINT at the first event of the interpreter (PEP 578) whose first argument has that part.

A shell has it ignored in what runs in the background, as the tests may.
"""


def running_in(folder: Path) -> list[int]:
    """The processes whose current folder it is: all that `dev` starts there."""
    return [each.pid for each in psutil.process_iter() if _folder_of(each) == str(folder) and is_running(each.pid)]


def _folder_of(process: psutil.Process) -> str:
    try:
        return str(process.cwd())
    except psutil.Error:
        return ""


def own(lines: list[str], part: str) -> list[str]:
    """Those with that part which `dev` says itself: its server has words of its own for a client that leaves."""
    return [line for line in lines if part in line and not line.startswith("  │")]


@pytest.mark.parametrize(
    ("event", "part"),
    [
        *(("import", name) for name in ("mcp_sidecar.cli", "argparse", "mcp_sidecar.settings", "pydantic_core")),
        *(("import", name) for name in ("mcp_sidecar.commands.dev", "watchfiles", "aiohttp")),
        *(("socket.bind", ""), ("subprocess.Popen", "")),
    ],
)
async def test_an_interrupt_while_it_starts(folder: Folder, event: str, part: str) -> None:
    """Whatever is being loaded, bound or started by then: no word, and the status that a shell expects."""
    words = ("dev", "--listen", "0", "--admin", "off", "--", sys.executable, "server.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTERRUPTED, event, part, *words),
        cwd=folder.path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(HANG_S):
        said, _ = await process.communicate()
    assert (said.decode(), process.returncode) == ("", 130)
    await gone(*running_in(folder.path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_second_signal_waits_for_nobody(folder: Folder, number: signal.Signals) -> None:
    """A server that takes its time to end is told of, and killed at the second signal; the status says which that was."""
    folder.does(IGNORES_SIGTERM)
    async with developing(folder.path) as dev:
        await dev.line("up in")
        pids = running_in(folder.path)
        dev.process.send_signal(signal.SIGINT)
        await dev.line("Ctrl-C again")
        assert len(pids) > 1
        dev.process.send_signal(number)
        assert await dev.exit_status() == 128 + number
        assert not own(dev.lines, "Traceback")
        await gone(*pids)


async def test_an_impatient_user_sees_no_traceback(folder: Folder) -> None:
    """However often, to the very end of the process: the second signal counts, and none behind it changes anything."""
    async with developing(folder.path) as dev:
        await dev.line("up in")
        pids, shown = running_in(folder.path), len(dev.lines)
        dev.process.send_signal(signal.SIGINT)
        while dev.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dev.process.pid, signal.SIGINT)
            await asyncio.sleep(0)
        assert await dev.exit_status() in {130, -signal.SIGINT}  # the same to a shell
        assert not own(dev.lines[shown:], "")
        await gone(*pids)


async def test_behind_nohup_it_outlives_its_terminal(folder: Folder) -> None:
    """A hangup that is ignored when it starts stays so, and a save starts the next server."""
    async with developing(folder.path, shell=("nohup",)) as dev:  # noqa: S604 - the words before the command
        await dev.line("up in")
        dev.process.send_signal(signal.SIGHUP)
        folder.has_tools("echo", "later")
        await dev.line("→ up in")
