"""What every measure needs: upstreams and generator on their core, contenders on the other."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench import contenders, machine, nginx, processes, procfs, work
from bench.contenders import Contender, Kind, Place
from bench.environments import ROOT, TOOLS
from bench.lines import Asked
from bench.processes import Running

SESSIONS_OF_LOAD = 16


@dataclass(frozen=True, slots=True)
class Target:
    """A contender as it stands there; nothing stands there for `direct`."""

    contender: Contender
    url: str
    running: Running | None

    @property
    def name(self) -> str:
        """The contender's name."""
        return self.contender.name

    def pids(self) -> list[int]:
        """Return its processes of this moment."""
        return self.running.pids() if self.running is not None else []


class Rig:
    """Generator, upstreams, and a folder for logs and configurations."""

    def __init__(self, folder: Path, chosen: Sequence[Contender], say: Callable[[str], None]) -> None:
        self.folder = folder
        self.cores = machine.pick_cores()
        self.contenders = tuple(chosen)
        self.descriptors = machine.raise_descriptor_limit()
        self.say = say
        self._numbers = itertools.count(1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            # For the whole time, so that wrk and whatever else is started here has that core, too.
            stack.enter_context(machine.on_core(self.cores.tools))
            self.generator = stack.enter_context(self._tool("generator"))
            self.upstream = stack.enter_context(self._tool("upstream"))
            self.scripted_url = self._url(self.upstream.ask("up")["port"])
            self.fast_url = self._start_fast_upstream(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _tool(self, module: str) -> Asked:
        python = TOOLS.program("python")
        program = str(python) if python.exists() else sys.executable
        return Asked([program, "-m", f"bench.{module}"], ROOT, self.folder / f"{module}.log")

    def _url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}{work.ENDPOINT}"

    def _start_fast_upstream(self, stack: ExitStack) -> str:
        folder = self.folder / "upstream"
        folder.mkdir()
        port = processes.free_port()
        config = folder / "nginx.conf"
        config.write_text(nginx.upstream(str(folder), port, self.scripted_url, self.descriptors))
        stack.enter_context(
            processes.start(
                contenders.nginx_command(config),
                self._url(port),
                folder / "log",
                cwd=ROOT,
                environ=os.environ,
                accepting=lambda: processes.accepts(port),
            )
        )
        return self._url(port)

    # -- contenders ---------------------------------------------------------------------------------------------------

    @contextmanager
    def target(self, contender: Contender, upstream_url: str) -> Iterator[Target]:
        """Have a fresh one for the time of the block.

        An MCP proxy is given the scripted upstream in any case: it passes the headers that the fast one goes by on with
        its own requests, and it does not need a fast one.
        """
        if contender.kind is Kind.NONE:
            yield Target(contender, upstream_url, None)
            return
        name = "".join(letter if letter.isalnum() else "-" for letter in contender.name)
        place = Place(self.folder / f"{name}-{next(self._numbers)}", self.cores, self.descriptors)
        behind_url = self.scripted_url if contender.kind is Kind.MCP_PROXY else upstream_url
        with contender.begin(place, behind_url) as running:
            yield Target(contender, running.url, running)

    @contextmanager
    def targets(self, upstream_url: str, *kinds: Kind) -> Iterator[list[Target]]:
        """Have fresh ones of all contenders of these kinds; one that does not start is told and left out."""
        with ExitStack() as stack:
            found = []
            for contender in self.contenders:
                if contender.kind in kinds:
                    try:
                        found.append(stack.enter_context(self.target(contender, upstream_url)))
                    except processes.NotStarted as trouble:
                        self.say(f"{contender.name} did not start: {trouble}")
            yield found

    def sessions(self, target: Target, count: int) -> list[str]:
        """Initialize sessions through a target, as many as it stands."""
        wanted = min(count, target.contender.max_sessions)
        answer = self.generator.ask("sessions", url=target.url, count=wanted, timeout_s=600)
        found: list[str] = answer["sessions"]
        return found

    def call(self, target: Target, sessions: Sequence[str], kind: str = work.JSON, count: int = 1) -> list[float]:
        """Call one after the other; return the durations in microseconds. Raises ``NoAnswer`` if one brings no result."""
        answer = self.generator.ask("calls", url=target.url, sessions=list(sessions), kind=kind, count=count)
        durations: list[float] = answer["durations_us"]
        return durations

    def rate(
        self, target: Target, sessions: Sequence[str], kind: str, per_second: float, seconds: float
    ) -> dict[str, Any]:
        """Call at a rate; return what the generator saw. Raises ``NoAnswer`` if it is not done in time."""
        what = {"sessions": list(sessions), "kind": kind, "rate": per_second, "seconds": seconds}
        return self.generator.ask("rate", url=target.url, timeout_s=seconds + 90, **what)

    def ask_upstream(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask the scripted upstream."""
        return self.upstream.ask(do, **arguments)

    def memory_kib(self, target: Target) -> int:
        """Return what the target has resident."""
        return procfs.memory_kib(target.pids())
