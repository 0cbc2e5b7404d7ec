"""The loop whose time stands still, where threads take part."""

from __future__ import annotations

import asyncio
import threading
import warnings

from tests.support.unhurried import UnhurriedLoop

A_WHILE_S = 0.05


def test_its_end_waits_for_threads() -> None:
    """However little time has passed in the loop itself: asyncio gives them five minutes of it (Python 3.12)."""
    gate = threading.Event()

    async def leave_a_thread_behind() -> None:
        asyncio.get_running_loop().run_in_executor(None, gate.wait).cancel()
        threading.Timer(A_WHILE_S, gate.set).start()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner(loop_factory=UnhurriedLoop) as runner:
            runner.run(leave_a_thread_behind())
