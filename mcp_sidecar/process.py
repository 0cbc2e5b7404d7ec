"""The process around the sidecar: its loop, its signals, its open files, its exit status.

The law of this file: what the sidecar does stands elsewhere; here stands what a process manager, a terminal or a kernel
can do to it. SIGTERM and SIGINT drain, a second one cuts, SIGHUP reads files again and ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
from collections.abc import Callable
from dataclasses import dataclass

from mcp_sidecar import __version__
from mcp_sidecar.app import CannotStart, Sidecar
from mcp_sidecar.config import SidecarConfig
from mcp_sidecar.ops import logs

COULD_NOT_START = 1
M_MMAP_THRESHOLD, MAPPED_FROM_BYTES = -3, 128 * 1024
"""Of glibc's `mallopt`; the value is the one that it begins with, and stays so once it is set."""
COLLECT_AFTER = (20_000, 20, 20)
"""New objects before a collection, and collections before one of the next older generation."""
DESCRIPTORS_PER_STREAM = 2
"""An open stream is a connection of the client and one to the upstream."""
SPARE_DESCRIPTORS = 64
NEAR_THE_LIMIT = 0.8
LOOK_INTERVAL_S = 10.0
LAST_LINES_S = 1.0
"""How long the end waits for a log that is read slowly."""


def run(config: SidecarConfig) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. 1 if an address cannot be listened on."""
    _ignore_hangups()
    _collect_rarely()
    _return_memory()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(config))
    finally:
        logs.close(LAST_LINES_S)


def _ignore_hangups() -> None:
    """Let a SIGHUP that comes before the loop runs pass; it would end the process."""
    with contextlib.suppress(AttributeError, ValueError):  # where there is no such signal, or in another thread
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _collect_rarely() -> None:
    """Nearly everything here is freed at once; looking for more took a tenth of the time, under a restart a quarter."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _return_memory() -> None:
    """Have glibc give the memory of every large body back to the system, and what the start has left now (0.8 MiB).

    It raises its own threshold to the size of the first large one that is freed, and keeps all that are smaller: after 3,000
    bodies of 1 MiB, 100 at a time, 200 MiB in the place of 80.
    """
    with contextlib.suppress(
        OSError, AttributeError, TypeError
    ):  # another C library, or none that can be loaded by name
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        library.malloc_trim(0)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed, which is where it can be (docs/decisions/0006); else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(config: SidecarConfig) -> int:
    descriptors = DescriptorLimit(raise_descriptor_limit())
    try:
        sidecar = Sidecar(config)
    except CannotStart as error:
        logs.say(str(error))
        return COULD_NOT_START
    first, second = _stop_signals()
    try:
        await sidecar.start()
    except OSError as error:
        return await _give_up(sidecar, sidecar.cannot_listen(error))
    except CannotStart as error:
        return await _give_up(sidecar, str(error))
    _on_hangup(sidecar.read_files_again)
    _tell_start(sidecar, config)
    looking_up = asyncio.create_task(_look_for_upstream(sidecar))
    if config.has_chosen_max_sessions:
        descriptors.compare(config.sessions.max_sessions)
    looking = asyncio.create_task(_look_at(descriptors, sidecar))
    await first.wait()
    looking.cancel()
    looking_up.cancel()
    await _stop(sidecar, second)
    logs.log().info("stopped")
    return 0


async def _give_up(sidecar: Sidecar, reason: str) -> int:
    logs.say(reason)
    await sidecar.stop()
    return COULD_NOT_START


def _tell_start(sidecar: Sidecar, config: SidecarConfig) -> None:
    """Say what to do next: the URL that clients are given stands first."""
    upstream, mode, admin = config.upstream.url, config.policy.mode.value, sidecar.admin_address
    if not logs.is_console():
        logs.log().info(
            "listening",
            url=sidecar.client_url,
            upstream=upstream,
            address=sidecar.address,
            admin=admin,
            mode=mode,
            store=sidecar.store,
        )
        return
    logs.say(f"mcp-sidecar {__version__}, mode {mode}")
    logs.say(f"  for clients  {sidecar.client_url}")
    logs.say(f"  MCP server   {upstream}")
    logs.say(f"  sessions in  {sidecar.store}")
    logs.say(f"  status       {f'http://{admin}/' if admin else 'off'}")


async def _look_for_upstream(sidecar: Sidecar) -> None:
    """Tell a person whether the server is there; that it is not is a line of its own."""
    if logs.is_console() and await sidecar.services.upstream.can_connect():
        logs.log().info("upstream_answers")


# -- signals ----------------------------------------------------------------------------------------------------------


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first and by the second signal to stop; before anybody is told that the process listens."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second


def _on_hangup(reload: Callable[[], None]) -> None:
    with contextlib.suppress(AttributeError, NotImplementedError):  # where there is no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


async def _stop(sidecar: Sidecar, second: asyncio.Event) -> None:
    logs.log().info("draining")
    drain = asyncio.create_task(sidecar.drain())
    cut = asyncio.create_task(second.wait())
    await asyncio.wait({drain, cut}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, cut):
        task.cancel()
    await asyncio.gather(drain, cut, return_exceptions=True)
    await sidecar.stop()


# -- open files -------------------------------------------------------------------------------------------------------


def raise_descriptor_limit() -> int | None:
    """Take all the descriptors that this process may have; how many that are, ``None`` where there is no limit."""
    try:
        import resource
    except ImportError:  # not on every platform
        return None
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the hard limit is more than the system takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    return limit if limit != resource.RLIM_INFINITY else None


@dataclass(slots=True)
class DescriptorLimit:
    """How many streams the limit on open files allows; told once, and only to somebody who can do something about it.

    That is an operator who chose ``sessions.max_sessions``, or anybody whose streams are about to reach it.
    """

    limit: int | None
    is_told: bool = False

    @property
    def max_streams(self) -> int:
        """Meaningless where there is no limit."""
        return max(0, (self.limit or 0) - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_STREAM

    def compare(self, max_sessions: int) -> None:
        """Tell if not every session can have an open stream."""
        if self.limit is not None and self.max_streams < max_sessions:
            self._tell(needed=DESCRIPTORS_PER_STREAM * max_sessions + SPARE_DESCRIPTORS, max_sessions=max_sessions)

    def look(self, open_streams: int) -> None:
        """Tell if the streams that are open come near it."""
        if self.limit is not None and open_streams >= NEAR_THE_LIMIT * self.max_streams:
            self._tell(open_streams=open_streams)

    def _tell(self, **numbers: int) -> None:
        if not self.is_told:
            self.is_told = True
            logs.log().warning("descriptor_limit_low", limit=self.limit, streams=self.max_streams, **numbers)


async def _look_at(descriptors: DescriptorLimit, sidecar: Sidecar) -> None:
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        descriptors.look(sidecar.open_streams)
