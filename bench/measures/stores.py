"""What a store costs the sidecar: a plain call, the opening of a session, and what an idle stream takes, beside ``memory:``.

What Redis itself uses is not counted: that is another machine's.

The differences are of a few hundredths, and whoever shares the machine changes what a call costs by half from one second to
the next. So all stores are called at the same time, on the one core: what disturbs one disturbs all, and a turn's ratios hold
whatever the turn's speed was. Openings, which come one after the other, are told by the least of many turns.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench import processes, procfs, work, wrk
from bench.contenders import Contender
from bench.environments import ROOT
from bench.lines import NoAnswer
from bench.measures.streams import opened
from bench.plan import STORES, Plan, possible_streams
from bench.processes import NotStarted
from bench.results import Results, Row, of_rounds
from bench.rig import SESSIONS_OF_LOAD, Rig, Target
from bench.statistics import ratio

MEMORY: Final = "memory:"
CONNECTIONS: Final = 4
TURNS_OF_A_ROUND: Final = 2
WARM_UP_CALLS: Final = 50
TURN_S: Final = 3
OPENED: Final = 250
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
        if contender.heals:
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
        for number in range(plan.rounds):
            rig.say(f"stores: round {number + 1} of {plan.rounds}")
            for _ in range(TURNS_OF_A_ROUND):
                _call(seen.values())
                for one in seen.values():
                    _open(rig, one)
    memory = seen[MEMORY]
    return [
        of_rounds(
            STORES,
            name,
            contender.name,
            [
                {"cpu_us": own, "to_memory": ratio(own, its)}
                for own, its in zip(one.call_us, memory.call_us, strict=True)
            ],
            opening_us=min(one.opening_us),
            opening_to_memory=ratio(min(one.opening_us), min(memory.opening_us)),
            stream_kib=_stream_kib(rig, plan, _with(contender, name, stores[name])),
        )
        for name, one in seen.items()
    ]


def _stream_kib(rig: Rig, plan: Plan, contender: Contender) -> float | None:
    """Memory of an idle stream, of a fresh process."""
    if not plan.streams_of_each_store:
        return None
    with rig.target(contender, rig.scripted_url) as target:
        try:
            (row,) = opened(rig, target, possible_streams((plan.streams_of_each_store,), rig.descriptors))
        finally:
            rig.generator.ask("close_streams")
    return row.figures["kib_each"]


def _with(contender: Contender, store: str, settings: Mapping[str, str]) -> Contender:
    return replace(contender, name=f"{contender.name} {store}", environ={**contender.environ, **settings})


def _ready(rig: Rig, target: Target) -> _Seen:
    sessions = rig.sessions(target, SESSIONS_OF_LOAD)
    rig.call(target, sessions, count=WARM_UP_CALLS)
    calls = rig.folder / f"calls-{target.name.replace(' ', '-').rstrip(':')}"
    wrk.write_calls(calls, target.url.removeprefix("http://").removesuffix(work.ENDPOINT), sessions, work.JSON)
    return _Seen(target, calls)


def _call(stores: Collection[_Seen]) -> None:
    before = [procfs.cpu_time(one.target.pids()) for one in stores]
    with ThreadPoolExecutor(len(stores)) as at_once:
        loads = list(at_once.map(lambda one: wrk.run(one.target.url, one.calls, CONNECTIONS, TURN_S), stores))
    for one, load, then in zip(stores, loads, before, strict=True):
        one.call_us.append((procfs.cpu_time(one.target.pids()) - then).total_s / max(1, load.requests) * 1e6)


def _open(rig: Rig, one: _Seen) -> None:
    before = procfs.cpu_time(one.target.pids())
    rig.sessions(one.target, OPENED)
    one.opening_us.append((procfs.cpu_time(one.target.pids()) - before).total_s / OPENED * 1e6)
