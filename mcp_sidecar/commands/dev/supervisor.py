"""Runs the developer's server, starts it anew on every save, and lets the new one take the old one's place.

::

    a save ─▶ start a new server ─▶ it answers `initialize` ─▶ take over ─▶ the old one drains and is ended
                                 ─▶ it ends, or is silent   ─▶ told; the last good one goes on

A server whose port cannot be chosen is stopped first, and calls wait meanwhile. A newer save ends a start that is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mcp_sidecar.commands.dev import child, files, ports
from mcp_sidecar.commands.dev.child import Guard, Server
from mcp_sidecar.commands.dev.lists import Items, counted, difference
from mcp_sidecar.commands.dev.readiness import (
    DISCOVER_EVERY_S,
    DISCOVER_SELDOM_S,
    Candidate,
    Up,
    leave,
    look_at_lists,
    wait_until_up,
)
from mcp_sidecar.commands.dev.screen import DIM, GREEN, RED, YELLOW, Screen
from mcp_sidecar.commands.dev.takeover import Sessions
from mcp_sidecar.config import UpstreamConfig
from mcp_sidecar.ops.console import duration
from mcp_sidecar.upstream.pool import Pool
from mcp_sidecar.upstream.upstream import Upstream

SILENT_AFTER_S = 30.0
DRAIN_S, DRAIN_FIXED_S = 10.0, 5.0
"""How long calls on the old server may go on; where the new one waits for its port, not for long."""
LONGEST_START_S = DRAIN_FIXED_S + child.STOP_PATIENCE_S + SILENT_AFTER_S
"""How long a call may have to wait until a server answers, or is told to be none."""
LISTS_PATIENCE_S = 0.025
"""How long the line that says that a server is up waits for what changed in its lists; later that is a line of its own."""
ENDS_SOON_S, SLOW_TO_END = 2.0, "the server takes its time to end; Ctrl-C again ends it at once"
TOLD_LINES = 8
CALM = {"PYTHONUNBUFFERED": "1", "FASTMCP_SHOW_SERVER_BANNER": "false", "FASTMCP_CHECK_FOR_UPDATES": "off"}
"""Lines that come as they are written, and not twenty of them for a banner at every save; what the developer sets counts."""
GIVEN_UP = 3
"""How often a start is given up for changes of the same files before the server itself may be writing them."""
_SPEAKS_OF_ERRORS = re.compile(r"error|exception|fail|cannot|not found|denied|already in use", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the developer asked for. ``fixed`` is the origin of a server that chooses its port itself."""

    command: tuple[str, ...]
    root: Path
    path: str
    fixed: str | None = None
    watch: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    once: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """Why to start anew. ``is_late``: it had to wait for a start that was under way."""

    cause: str
    files: str = ""
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """A server that was up has ended by itself."""

    server: Server
    status: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The developer has had enough."""

    status: int = 0


class Supervisor:
    """One run of `dev`. What happens comes as events, one after the other."""

    def __init__(
        self,
        plan: Plan,
        sessions: Sessions,
        upstream: Upstream,
        config: UpstreamConfig,
        guard: Guard,
        screen: Screen,
    ) -> None:
        """``config`` is the upstream's but for its origin."""
        self._plan = plan
        self._sessions = sessions
        self._upstream = upstream
        self._config = config
        self._guard = guard
        self._screen = screen
        self._fixed = plan.fixed
        self._current: Server | None = None
        self._lists: Mapping[str, Items] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._given_up: Counter[str] = Counter()
        self._waiting: Changed | None = None
        self._events: asyncio.Queue[Changed | Exited | Stop] = asyncio.Queue()
        self._background: set[asyncio.Task[None]] = set()
        self.is_ending = False

    # -- what others tell -------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Somebody wants the server started anew."""
        self._events.put_nowait(Changed("restart"))

    def stop(self, status: int = 0) -> None:
        """End everything."""
        self.is_ending = True
        self._events.put_nowait(Stop(status))

    async def run(self) -> int:
        """Run until somebody stops it; the exit status. Nothing that was started is left."""
        watching = asyncio.create_task(self._watch())
        try:
            self._begin(Changed(""))
            while True:
                event = await self._events.get()
                match event:
                    case Changed():
                        self._begin(event)
                    case Exited():
                        self._exited(event)
                    case Stop(status):
                        return status
        finally:
            telling = asyncio.get_running_loop().call_later(ENDS_SOON_S, self._screen.say, SLOW_TO_END, DIM)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._end_all()
            telling.cancel()

    # -- files ------------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        root = self._plan.root
        paths, wanted = files.watched(root, self._plan.watch, self._plan.ignore)
        for polls in (False, True):
            try:
                async for changed in files.changes(paths, wanted, polls=polls):
                    names = files.told(changed, root)
                    self._events.put_nowait(Changed(f"{names} changed", names))
            except (OSError, RuntimeError, ExceptionGroup) as error:  # watchfiles raises the latter two where it polls
                reason = getattr(error, "strerror", None) or error
                self._screen.say(f"files: {reason}: looking at them again and again instead", YELLOW)
        self._screen.say("files cannot be watched here: press r to restart", YELLOW)

    # -- starting ---------------------------------------------------------------------------------------------------------

    def _begin(self, event: Changed) -> None:
        if self._has_to_wait(event):
            self._waiting = event
            return
        former, self._starting = self._starting, None
        self._starting = asyncio.create_task(self._replace_behind(former, event.cause))
        self._starting.add_done_callback(self._begin_what_waits)

    def _has_to_wait(self, event: Changed) -> bool:
        """Whether the start under way goes on: changes of the same files have ended several in a row, and would end each."""
        if self._starting is None or self._starting.done():
            if not event.is_late:
                self._given_up.clear()
            return False
        if not event.files:
            return False
        self._given_up[event.files] += 1
        if self._given_up[event.files] == GIVEN_UP + 1:
            words = f"{event.files} changes while the server starts, again and again; if the server writes it itself:"
            self._screen.say(f"{words} --ignore {event.files}", YELLOW)
        return self._given_up[event.files] > GIVEN_UP

    def _begin_what_waits(self, started: asyncio.Task[None]) -> None:
        event, self._waiting = self._waiting, None
        if event is not None and not started.cancelled():
            self._events.put_nowait(replace(event, is_late=True))

    async def _replace_behind(self, former: asyncio.Task[None] | None, cause: str) -> None:
        """One start at a time: the one before is given up, and has ended what it had started, before the next begins."""
        if former is not None:
            former.cancel()
            await asyncio.gather(former, return_exceptions=True)
        await self._replace(cause)

    async def _replace(self, cause: str) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        if self._fixed is not None:
            await self._stop_current()
            if await ports.is_in_use(self._fixed):
                words = f"{self._fixed} is in use by what dev has not started: until that ends, calls go there"
                self._screen.say(words, YELLOW)
        if self._current is None:
            self._sessions.hope()
        port = ports.free_port() if self._fixed is None else None
        try:
            server = await child.start(self._command(port), self._environment(port), self._guard, self._screen.child)
        except OSError as error:
            self._not_started(cause, f"{self._plan.command[0]}: {error.strerror}", 127)
            return
        try:
            up = await self._wait(server, port)
            if up is None:
                await self._not_up(cause, server)
                return
            self._note_place(up, port)
            await self._take_over(cause, server, up, began)
        except BaseException:
            if self._current is not server:
                await server.end()
            raise

    def _command(self, port: int | None) -> list[str]:
        command = list(self._plan.command)
        return command if port is None else ports.filled_in(command, port)

    def _environment(self, port: int | None) -> dict[str, str]:
        given = {} if port is None else dict.fromkeys(ports.VARIABLES, str(port))
        columns = self._screen.columns()
        fits = {} if columns is None else {"COLUMNS": str(columns)}
        return {**CALM, **fits, **os.environ, **given}

    async def _wait(self, server: Server, port: int | None) -> Up | None:
        """Until it is up; ``None`` where it has ended before."""
        waiting = asyncio.create_task(wait_until_up(self._candidates(server, port), self._plan.path))
        try:
            done, _ = await asyncio.wait(
                {waiting, server.exited}, timeout=SILENT_AFTER_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                self._silent(server, port)
                done, _ = await asyncio.wait({waiting, server.exited}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting in done else None
        finally:
            waiting.cancel()

    def _candidates(self, server: Server, port: int | None) -> Callable[[], list[Candidate]]:
        """Where it may be: at its port, and now and then wherever the process listens in fact."""
        fixed = self._fixed
        if port is None:
            return lambda: [Candidate(str(fixed), is_certain=True)]
        clock = asyncio.get_running_loop().time
        every_s = DISCOVER_EVERY_S if self._lists is None else DISCOVER_SELDOM_S
        expected, looked_at = Candidate(f"http://{ports.LOOPBACK}:{port}", is_certain=True), clock()

        def candidates() -> list[Candidate]:
            nonlocal looked_at
            if clock() - looked_at < every_s:
                return [expected]
            looked_at = clock()
            found = [(f"http://{host}:{number}", number == port) for host, number in ports.listening(server.pid)]
            return [expected, *(Candidate(origin, is_own) for origin, is_own in found if origin != expected.origin)]

        return candidates

    # -- what came of it --------------------------------------------------------------------------------------------------

    def _note_place(self, up: Up, port: int | None) -> None:
        if port is not None and not up.origin.endswith(f":{port}"):
            self._fixed = up.origin
            self._screen.say(f"the server listens on {up.origin} and not on the port in $PORT", YELLOW)
            self._screen.plain(
                "          calls wait while it restarts; with a port from $PORT, or {port} in the command,"
            )
            self._screen.plain("          the new server would start beside the old one")

    async def _take_over(self, cause: str, server: Server, up: Up, began: float) -> None:
        former, self._current = self._current, server
        pool = self._sessions.take_over(replace(self._config, origin=up.origin))
        try:
            healed = await self._sessions.heal()
            await self._tell_up(cause, up, asyncio.get_running_loop().time() - began, healed)
        finally:  # a save may end this at any moment
            self._do(leave(up, self._plan.path))
            server.exited.add_done_callback(lambda done: self._events.put_nowait(Exited(server, done.result())))
            if former is not None:
                self._do(self._let_go(former, pool, DRAIN_S))

    async def _tell_up(self, cause: str, up: Up, seconds: float, healed: int) -> None:
        """The lists are asked for behind the heals: some servers load half of themselves before they say them."""
        began = f"{cause} → up" if cause else f"{up.name or 'server'} up"
        sessions = f"{healed} session{'s' if healed > 1 else ''} healed" if healed else ""
        words = [f"{began} in {duration(seconds)}", sessions]
        patience_s = None if self._lists is None else LISTS_PATIENCE_S
        looking = asyncio.create_task(look_at_lists(up, self._plan.path))
        try:
            await asyncio.wait({looking}, timeout=patience_s)
            if not looking.done():
                self._say_up(*words)
                words = []
            self._say_up(*words, self._note_lists(await looking))
        finally:
            looking.cancel()
        if up.is_elsewhere:
            self._screen.say(f"it answers {up.said.status} at {self._plan.path}: give the path with --path", YELLOW)
        elif up.said.status >= 400:
            self._screen.say(f"it answers {up.said.status} to an initialize without credentials", DIM)

    def _say_up(self, *words: str) -> None:
        if any(words):
            self._screen.say(" · ".join(filter(None, words)), GREEN)

    def _note_lists(self, lists: Mapping[str, Items]) -> str:
        """What there is now, or is different; in words."""
        before = self._lists
        self._lists = {**(before or {}), **lists}
        return counted(lists) if before is None else difference(before, lists)

    async def _let_go(self, server: Server, pool: Pool | None, drain_s: float) -> None:
        """Let the calls on a former server end, then the server: at SIGTERM many end with all that is under way."""
        if pool is not None:
            await self._upstream.retire(pool, drain_s)
        await server.end()

    async def _stop_current(self) -> None:
        """The port is needed: calls wait from now on, and those under way have a moment to end, whoever saves again."""
        former, self._current = self._current, None
        if former is not None:
            self._stopping = self._do(self._let_go(former, self._sessions.leave(), DRAIN_FIXED_S))
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def _not_up(self, cause: str, server: Server) -> None:
        status = server.exited.result()
        last_words = "\n".join(list(server.last_lines)[-TOLD_LINES:])
        if not last_words and status == 0:
            last_words = "it ended at once, without a word"
        self._not_started(cause, last_words, status)
        left = [child.shown(orphan) for orphan in server.orphans]
        await server.end()
        left += child.kill_orphans(self._known())
        if left:
            self._screen.say(f"it has put itself into the background and was ended there: {', '.join(left)}", YELLOW)
            self._screen.plain("          run it in the foreground")

    def _not_started(self, cause: str, last_words: str, status: int) -> None:
        self._screen.say(
            f"{cause or 'the server'} → does not start (exit status {status}): {cause_in(last_words)}", RED
        )
        if self._current is not None:
            self._screen.say("the last good server goes on answering", DIM)
        else:
            self._sessions.fail(f"The MCP server does not start (exit status {status}):\n{last_words}")
        if self._plan.once:
            self.stop(status)

    def _silent(self, server: Server, port: int | None) -> None:
        where = f"on port {port}" if port is not None else f"at {self._fixed}"
        found = ", ".join(f"{host}:{number}" for host, number in ports.listening(server.pid))
        listens = f"it listens on {found}" if found else "it listens nowhere"
        words = f"no answer to initialize {where} for {SILENT_AFTER_S:g} s; {listens}"
        self._screen.say(f"{words} (still waiting)", RED)
        if self._current is None:
            self._sessions.fail(f"The MCP server does not start: {words}")

    def _exited(self, event: Exited) -> None:
        if event.server is not self._current:
            return
        self._current = None
        self._do(self._clear_up(event.server))
        last_words = "\n".join(list(event.server.last_lines)[-TOLD_LINES:])
        self._sessions.fail(f"The MCP server has ended (exit status {event.status}):\n{last_words}")
        if self._plan.once:
            self.stop(event.status)
        elif self._starting is None or self._starting.done():
            self._screen.say(f"the server has ended (exit status {event.status}); a save or r starts it again", RED)

    # -- the end ----------------------------------------------------------------------------------------------------------

    async def _clear_up(self, server: Server) -> None:
        await server.end()
        child.kill_orphans(self._known())

    def _known(self) -> set[int]:
        """The processes that are ours on purpose."""
        return {self._guard.pid, *(server.pid for server in child.RUNNING)}

    def _do(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _end_all(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(server.end() for server in list(child.RUNNING)))
        with contextlib.suppress(OSError):
            child.kill_orphans(self._known())


def cause_in(last_words: str) -> str:
    """The one line of a server's last words that says why: the last that speaks of an error, else the last."""
    lines = [line.strip() for line in last_words.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if _SPEAKS_OF_ERRORS.search(line)), lines[-1] if lines else "")
