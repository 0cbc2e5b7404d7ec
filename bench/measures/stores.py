"""What a store costs the sidecar: a plain call and the opening of a session, beside ``memory:`` in the same rounds.

What Redis itself uses is not counted: that is another machine's. The differences are of a few hundredths, and whoever shares
the machine changes what a call costs by half from one second to the next, but only ever adds to it: a figure is the least of
many slices of a second, of which every store has one before any has its next.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench import processes, procfs, work, wrk
from bench.contenders import Contender
from bench.environments import ROOT
from bench.lines import NoAnswer
from bench.plan import STORES, Plan
from bench.processes import NotStarted
from bench.results import Results, Row
from bench.rig import SESSIONS_OF_LOAD, Rig, Target
from bench.sampling import Watch
from bench.statistics import ratio

MEMORY: Final = "memory:"
CONNECTIONS: Final = 16
WARM_UP_CALLS: Final = 50
SLICE_S: Final = 1
OPENED: Final = 500
KEY: Final = base64.urlsafe_b64encode(secrets.token_bytes(64)).decode().rstrip("=")


@dataclass(slots=True)
class _Seen:
    target: Target
    calls: Path
    call_us: list[float] = field(default_factory=list)
    opening_us: list[float] = field(default_factory=list)


def measure(rig: Rig, plan: Plan, results: Results) -> None:
    """A row per store, for every sidecar."""
    for contender in rig.contenders:
        if contender.name.startswith("sidecar"):
            try:
                with _redis(rig) as redis:
                    results.rows.extend(_rows(rig, plan, contender, _stores(rig, redis)))
            except (NoAnswer, NotStarted) as trouble:
                rig.say(f"stores: {contender.name}: {trouble}")


def _stores(rig: Rig, redis: str | None) -> dict[str, Mapping[str, str]]:
    """Name to settings."""
    folder = rig.folder / "store"
    found: dict[str, Mapping[str, str]] = {
        MEMORY: {"MCP_SIDECAR_STORE": MEMORY},
        "sqlite:": {"MCP_SIDECAR_STORE": f"sqlite:{folder}/sessions.db"},
        "sealed:": {"MCP_SIDECAR_STORE": "sealed:", "MCP_SIDECAR_SESSIONS__KEY": KEY},
    }
    return found | ({"redis:": {"MCP_SIDECAR_STORE": redis}} if redis is not None else {})


@contextmanager
def _redis(rig: Rig) -> Iterator[str | None]:
    """Its address, on the core of the tools; none where there is no such program."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        rig.say("stores: redis-server not found; it is left out")
        yield None
        return
    port = processes.free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(rig.folder)]
    with processes.start(
        command,
        f"redis://127.0.0.1:{port}",
        rig.folder / "redis.log",
        cwd=ROOT,
        environ=os.environ,
        accepting=lambda: processes.accepts(port),
    ) as running:
        yield running.url


def _rows(rig: Rig, plan: Plan, contender: Contender, stores: Mapping[str, Mapping[str, str]]) -> list[Row]:
    with ExitStack() as stack:
        seen = {
            name: _ready(rig, stack.enter_context(rig.target(_with(contender, name, settings), rig.fast_url)))
            for name, settings in stores.items()
        }
        slices = round(plan.rounds * plan.load_s / SLICE_S)
        rig.say(f"stores: {slices} slices of each")
        for _ in range(slices):
            for one in seen.values():
                _call(rig, one)
                _open(rig, one)
    figures = {name: (min(one.call_us), min(one.opening_us)) for name, one in seen.items()}
    memory_call_us, memory_opening_us = figures[MEMORY]
    return [
        Row(
            STORES,
            name,
            contender.name,
            {
                "cpu_us": call_us,
                "opening_us": opening_us,
                "to_memory": ratio(call_us, memory_call_us),
                "opening_to_memory": ratio(opening_us, memory_opening_us),
            },
        )
        for name, (call_us, opening_us) in figures.items()
    ]


def _with(contender: Contender, store: str, settings: Mapping[str, str]) -> Contender:
    return replace(contender, name=f"{contender.name} {store}", environ={**contender.environ, **settings})


def _ready(rig: Rig, target: Target) -> _Seen:
    sessions = rig.sessions(target, SESSIONS_OF_LOAD)
    rig.call(target, sessions, count=WARM_UP_CALLS)
    calls = rig.folder / f"calls-{target.name.replace(' ', '-').rstrip(':')}"
    wrk.write_calls(calls, target.url.removeprefix("http://").removesuffix(work.ENDPOINT), sessions, "json")
    return _Seen(target, calls)


def _call(rig: Rig, one: _Seen) -> None:
    with Watch(one.target.pids(), rig.cores) as watch:
        load = wrk.run(one.target.url, one.calls, CONNECTIONS, SLICE_S)
    one.call_us.append(watch.used.cpu.total_s / max(1, load.requests) * 1e6)


def _open(rig: Rig, one: _Seen) -> None:
    before = procfs.cpu_time(one.target.pids())
    rig.sessions(one.target, OPENED)
    one.opening_us.append((procfs.cpu_time(one.target.pids()) - before).total_s / OPENED * 1e6)
