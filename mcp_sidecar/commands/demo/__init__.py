"""``mcp-sidecar demo``: the same restart twice, without the sidecar and with it, side by side.

The rule of this package: nothing is acted. Server, sidecar and client are real, the kill is a SIGKILL, and the
exit status is 0 only if the client's call after it really succeeded. It needs the extra ``mcp-sidecar[demo]``; where that
is missing, importing this package raises ``ImportError``.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

from mcp_sidecar.commands.demo.report import Style, introduction, own_server, progress, result
from mcp_sidecar.commands.demo.story import Story, tell
from mcp_sidecar.commands.processes import ChildFailed, SidecarCommand, sidecar_command

WHOLE_DEMO_TIMEOUT_S: Final = 300.0
EXIT_INTERRUPTED: Final = 130
ENDING_SIGNALS: Final = ("SIGTERM", "SIGHUP")


def run(sidecar: SidecarCommand = sidecar_command, *, restarts_sidecar: bool = False) -> int:
    """Show a heal on standard output and return the exit status. ``restarts_sidecar``: it is killed together with the server.

    0: the call after the restart succeeded through the sidecar. 1: it did not, or a part of the demo did not start, or
    the whole took longer than 90 seconds. 130: interrupted. All child processes have ended on return.
    """
    style = Style.of(sys.stdout)
    _show(introduction(style, restarts_sidecar=restarts_sidecar))
    try:
        story = asyncio.run(_bounded(sidecar, style, restarts_sidecar=restarts_sidecar))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _show("Interrupted. Everything that was started has been stopped.")
        return EXIT_INTERRUPTED
    except TimeoutError:
        return _failed(f"the demo did not end within {WHOLE_DEMO_TIMEOUT_S:g} s")
    except ChildFailed as failure:
        return _failed(str(failure))
    _show(result(story, style))
    if not story.healed:
        return 1
    _show(own_server(style))
    return 0


async def _bounded(sidecar: SidecarCommand, style: Style, *, restarts_sidecar: bool) -> Story:
    """Let the signals that would leave children behind end the demo the way Ctrl-C does."""
    main_task = asyncio.current_task()
    for name in ENDING_SIGNALS:
        if main_task is not None and hasattr(signal, name) and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), main_task.cancel)
    async with asyncio.timeout(WHOLE_DEMO_TIMEOUT_S):
        return await tell(sidecar, lambda step: _show(progress(step, style)), restarts_sidecar=restarts_sidecar)


def _show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _failed(reason: str) -> int:
    sys.stderr.write(f"mcp-sidecar demo: {reason}\n")
    return 1
