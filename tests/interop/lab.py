"""Plays each scenario once per server, under all clients together, and keeps what each client got.

Drivers live for the whole run, a server and its sidecar for that server's scenarios; connections are new in each
scenario, so that one scenario's damage does not show in the next. With ``INTEROP_DIRECT=1`` there is no sidecar.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.interop.blackhole import Blackhole
from tests.interop.catalogue import CLIENTS, ROOT, ServerSpec
from tests.interop.drivers import Connection, Driver
from tests.interop.processes import NotReady, Server, Sidecar
from tests.interop.scenarios import SCENARIOS, Bench, Party

DIRECT = os.environ.get("INTEROP_DIRECT") == "1"
CALL_TIMEOUT_S = 8.0 if DIRECT else 20.0
CONNECTING_STEPS = 2
"""How many steps of a party come before the scenario begins."""
RECORDS = ROOT / ".cache" / "interop"


@dataclass(frozen=True, slots=True)
class Play:
    """What one client got out of one scenario."""

    faults: list[str]
    answers: list[str]
    kinds: list[str]
    seconds: list[float]
    background: str
    """The logs of the scenario, for a test that fails."""


class Lab:
    """The processes of a test run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drivers: dict[str, Driver] = {}
        self._plays: dict[tuple[str, str], dict[str, Play]] = {}
        self._bench: Bench | None = None
        self._sidecar: Sidecar | None = None

    def play(self, server: ServerSpec, scenario: str, client: str) -> Play:
        """Return what the client got; the scenario is played at the first question about it."""
        if (server.name, scenario) not in self._plays:
            self._plays[server.name, scenario] = self._played(server, scenario)
        return self._plays[server.name, scenario][client]

    def close(self) -> None:
        """Stop everything and write down the outcomes."""
        self._clear_bench()
        for driver in self._drivers.values():
            driver.stop()
        write_records(self._plays)

    def _played(self, server: ServerSpec, scenario: str) -> dict[str, Play]:
        try:
            bench = self._bench_of(server)
        except NotReady as error:
            self._clear_bench()
            nothing = Play([str(error)], [], [], [], background="nothing was played")
            return dict.fromkeys((spec.name for spec in CLIENTS), nothing)
        marks = len(self._log), len(bench.server.lines)
        parties = [
            Party(Connection(self._driver(spec.name), scenario, CALL_TIMEOUT_S), spec.has_session_on(server), scenario)
            for spec in CLIENTS
            if spec.missing is None
        ]
        bench.parties = parties
        trouble = self._act(bench, scenario)
        background = self._background(bench, *marks)
        return {party.connection.client: self._judged(party, trouble, background) for party in parties}

    def _act(self, bench: Bench, scenario: str) -> list[str]:
        """Play the scenario with the clients that could connect; return what went wrong with the play itself."""
        everybody = bench.parties
        bench.each(bench.connect)
        bench.parties = [party for party in everybody if not party.faults()]
        try:
            SCENARIOS[scenario](bench)
        except Exception as error:  # noqa: BLE001 - told by every client's test, with the logs
            return [f"the scenario itself failed: {type(error).__name__}: {error}"]
        finally:
            bench.count_runs()
            bench.each(lambda party: void(party.connection.close()))
        return [] if self._sidecar is None or self._sidecar.running else ["the sidecar has ended"]

    def _judged(self, party: Party, trouble: list[str], background: str) -> Play:
        answers = [f"{step.name}: {step.answer}" for step in party.steps]
        steps = party.steps[CONNECTING_STEPS:]
        stray = [line for line in party.connection.driver.lines if not line.startswith('{"')][-15:]
        return Play(
            faults=trouble + party.faults(),
            answers=answers,
            kinds=[step.answer.kind for step in steps],
            seconds=[round(step.answer.seconds, 3) for step in steps],
            background="\n".join([background, "--- the client's own output", *stray]),
        )

    def _background(self, bench: Bench, log_mark: int, output_mark: int) -> str:
        log, output = self._log[log_mark:][-60:], bench.server.lines[output_mark:][-40:]
        return "\n".join(["--- sidecar", *log, f"--- {bench.server.spec.name}", *output])

    @property
    def _log(self) -> list[str]:
        return self._sidecar.lines if self._sidecar else []

    def _driver(self, client: str) -> Driver:
        """Return the client's driver, a new one if the last one ended."""
        last = self._drivers.get(client)
        if last is not None and not last.running:
            last.stop()
        if last is None or not last.running:
            self._drivers[client] = Driver(next(spec for spec in CLIENTS if spec.name == client))
        return self._drivers[client]

    def _bench_of(self, spec: ServerSpec) -> Bench:
        if self._bench is None or self._bench.server.spec is not spec:
            self._clear_bench()
            self._open_bench(spec)
        assert self._bench is not None
        return self._bench

    def _open_bench(self, spec: ServerSpec) -> None:
        folder = self._folder / spec.name
        folder.mkdir(exist_ok=True)
        blackhole = Blackhole()
        outward = {} if spec.calls_out_by is None else {spec.calls_out_by: blackhole.url, "HOME": str(folder)}
        server = Server(spec, folder / "ledger", outward)
        self._bench = Bench(server, blackhole, server.url)
        server.start()
        if not DIRECT:
            self._sidecar = Sidecar(server.url)
            self._bench.url = self._sidecar.url

    def _clear_bench(self) -> None:
        if self._sidecar is not None:
            self._sidecar.stop()
        if self._bench is not None:
            self._bench.server.kill()
            self._bench.blackhole.close()
        self._bench = self._sidecar = None


def void(_: object) -> None:
    """Drop a value that nobody needs."""


def records_file(direct: bool) -> Path:
    """Return where the outcomes of direct runs, or of runs through the sidecar, are written down."""
    return RECORDS / ("direct.json" if direct else "through.json")


def write_records(plays: dict[tuple[str, str], dict[str, Play]]) -> None:
    """Add the outcomes of this run to those of earlier ones."""
    file = records_file(DIRECT)
    known = json.loads(file.read_text()) if file.exists() else {}
    for (server, scenario), by_client in plays.items():
        for client, play in by_client.items():
            outcome = {"faults": play.faults, "kinds": play.kinds, "seconds": play.seconds}
            known[f"{server}|{scenario}|{client}"] = outcome
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known, indent=1, sort_keys=True))
