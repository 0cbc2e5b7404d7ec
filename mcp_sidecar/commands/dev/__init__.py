"""`mcp-sidecar dev`: run a server, watch its files, restart it on every save, and let its clients stay.

The sidecar runs in this process, before a server that is another one after each save. It needs the extra
``mcp-sidecar[reload]``; where that is missing, importing this package raises ``ImportError``.
"""

from __future__ import annotations

import asyncio
import errno
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcp_sidecar import __version__
from mcp_sidecar.app import Sidecar
from mcp_sidecar.commands.dev import files
from mcp_sidecar.commands.dev.calls import CallLog, Ended
from mcp_sidecar.commands.dev.child import Guard, Hurry
from mcp_sidecar.commands.dev.clients import snippets
from mcp_sidecar.commands.dev.interrupts import StopSignals
from mcp_sidecar.commands.dev.kept import KeptCalls
from mcp_sidecar.commands.dev.reloaders import reloader_in
from mcp_sidecar.commands.dev.screen import BOLD, DIM, RED, YELLOW, Screen, single_keys
from mcp_sidecar.commands.dev.supervisor import LONGEST_START_S, Plan, Supervisor
from mcp_sidecar.commands.dev.takeover import Sessions
from mcp_sidecar.config import SidecarConfig
from mcp_sidecar.ops import logs
from mcp_sidecar.ops.console import duration
from mcp_sidecar.settings import Loaded, Settings
from mcp_sidecar.wire.jsonrpc import Message

COULD_NOT_RUN, MISTAKE = 1, 2
NOWHERE = "http://127.0.0.1:1"
"""Where the upstream is said to be before there is one; nothing is ever sent there."""
DRAIN_S = 2.0
LAST_LINES_S = 1.0
SPARE_S = 5.0


def run(arguments: Namespace, load: Callable[[Mapping[str, Sequence[str]]], Loaded | None]) -> int:
    """Run it until it is stopped; the exit status. 1 if an address cannot be listened on, 2 for a mistake in what was given.

    ``load`` reads the settings, and tells what is wrong with them.
    """
    command = tuple(arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command)
    if not command:
        sys.stderr.write("dev: say what runs the server, such as: mcp-sidecar dev -- python server.py\n")
        return MISTAKE
    loaded = load(
        {
            "upstream": [arguments.upstream or f"{NOWHERE}/{arguments.path.lstrip('/')}"],
            "listen": arguments.listen,
            "admin": arguments.admin,
            "config": arguments.config,
            "store": ["memory:"],
            "log-level": arguments.log_level or ["error"],
        }
    )
    if loaded is None:
        return MISTAKE
    upstream = loaded.settings.upstream_config()
    plan = Plan(
        command=command,
        root=Path.cwd(),
        path=upstream.endpoint,
        fixed=upstream.origin if arguments.upstream else None,
        watch=tuple(arguments.watch),
        ignore=tuple(arguments.ignore),
        once=arguments.once,
    )
    try:
        files.watched(plan.root, plan.watch, plan.ignore)
    except OSError as error:
        sys.stderr.write(f"dev: --watch {error.filename}: {error.strerror}\n")
        return MISTAKE
    return _run_to_end(plan, replace(loaded, settings=patient(loaded.settings)).config)


def patient(settings: Settings) -> Settings:
    """Calls, and clients that connect, wait out every start, and end with its words; unless somebody says how long."""
    waits = dict.fromkeys(("hold_timeout", "connect_hold_timeout"), LONGEST_START_S + SPARE_S)
    missing = {key: value for key, value in waits.items() if key not in settings.healing.model_fields_set}
    return settings.model_copy(update={"healing": settings.healing.model_copy(update=missing)})


def _run_to_end(plan: Plan, config: SidecarConfig) -> int:
    logs.configure("console", config.log_level, colours=False)
    try:
        # The loop of the standard library: uvloop forks this whole process for each server, which takes 40 ms and more.
        with asyncio.Runner() as runner:
            return runner.run(_run(plan, config))
    finally:
        logs.close(LAST_LINES_S)


async def _run(plan: Plan, config: SidecarConfig) -> int:
    loop = asyncio.get_running_loop()
    clock, signals = loop.time, StopSignals(loop)
    screen = Screen.of_process(clock)
    hurry = Hurry()
    try:
        kept = KeptCalls(clock)

        def ended(message: Message, call: Ended, answer: dict[str, Any] | None) -> None:
            _tell_call(screen, call)
            kept.keep(message, call, answer)

        watch = CallLog(clock, ended, screen.say)
        sidecar = Sidecar(config, watch=watch, calls=kept)
        sessions = Sessions(sidecar.services)
        watch.note = sessions.note
        sessions.leave()
        try:
            await sidecar.start()
        except OSError as error:
            screen.say(sidecar.cannot_listen(error), RED)
            if error.errno == errno.EADDRINUSE:
                screen.plain("          --listen 0 takes a free port, and --admin off needs none")
            return COULD_NOT_RUN
        kept.url = sidecar.client_url
        try:
            async with Guard(hurry) as guard:
                supervisor = Supervisor(plan, sessions, sidecar.services.upstream, config.upstream, guard, screen)
                signals.call(_stopping(supervisor, hurry, signals))
                status = await _supervise(supervisor, sidecar, plan, guard, screen)
        finally:
            await _stop(sidecar, hurry)
        return 128 + hurry.number if hurry.number else status
    finally:
        signals.end_at_once()
        screen.close(LAST_LINES_S)


def _stopping(supervisor: Supervisor, hurry: Hurry, signals: StopSignals) -> Callable[[int], None]:
    """What the first one does, which is to end everything in its order, and then the second one: at once."""

    def stop(number: int) -> None:
        if supervisor.is_ending:
            hurry.begin(number)
        else:
            supervisor.stop()
            signals.call(stop)

    return stop


async def _supervise(supervisor: Supervisor, sidecar: Sidecar, plan: Plan, guard: Guard, screen: Screen) -> int:
    status_page = f"http://{sidecar.admin_address}/" if sidecar.admin_address else ""
    keys: dict[str, Callable[[], None]] = {
        "r": supervisor.restart,
        "c": lambda: screen.plain(snippets(sidecar.client_url, plan.root.name or "dev")),
        "o": lambda: _open(status_page, guard, screen),
        "q": supervisor.stop,
    }

    def on_key(key: str) -> None:
        keys.get(key, _nothing)()

    with single_keys(on_key, asyncio.get_running_loop()) as are_keys:
        _tell_start(screen, sidecar, plan, status_page, are_keys=are_keys)
        return await supervisor.run()


async def _stop(sidecar: Sidecar, hurry: Hurry) -> None:
    drain, cut = asyncio.create_task(sidecar.drain()), asyncio.create_task(hurry.begun.wait())
    await asyncio.wait({drain, cut}, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, cut):
        task.cancel()
    await asyncio.gather(drain, cut, return_exceptions=True)
    await sidecar.stop()


def _tell_start(screen: Screen, sidecar: Sidecar, plan: Plan, status_page: str, *, are_keys: bool) -> None:
    screen.plain(screen.painted(f"Developing behind mcp-sidecar {__version__}", BOLD))
    screen.plain(f"  for clients  {screen.painted(sidecar.client_url, BOLD)}")
    screen.plain(f"  runs         {shlex.join(plan.command)}")
    screen.plain(f"  watches      {plan.root}")
    screen.plain(f"  status       {status_page or 'off'}")
    if are_keys:
        screen.plain(screen.painted("  keys         r restart · c how clients connect · o status page · q quit", DIM))
    reloader = reloader_in(plan.command)
    if reloader is not None:
        screen.say(f"{reloader} restarts the server by itself: leave it out, dev does so", YELLOW)
        screen.plain("          as it is, a save that does not start takes the last good server, too, and calls hang")


def _tell_call(screen: Screen, ended: Ended) -> None:
    outcome = screen.painted(ended.problem, RED) if ended.problem else "ok"
    screen.say(f"{ended.what}  {screen.painted(duration(ended.seconds), DIM)}  {outcome}")


def _open(url: str, guard: Guard, screen: Screen) -> None:
    if not url:
        screen.say("there is no status page: --admin is off")
        return
    screen.say(url)
    guard.open(url)


def _nothing() -> None:
    """Any other key."""
