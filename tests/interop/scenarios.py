"""What is done to a server under its clients, and what each client must get out of it.

All clients of a server live through a scenario together, each with a connection of its own; a scenario only acts and
notes. ``Party.faults`` judges.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.interop.blackhole import Blackhole
from tests.interop.catalogue import ToolCall
from tests.interop.drivers import Answer, Connection
from tests.interop.processes import Server, until

OUTAGE_S = 3.0
CALL_START_TIMEOUT_S = 15.0
RESTARTS_IN_A_ROW = 3
CONCURRENT_CALLS = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One call and what it must come to: ``ok`` a result, ``definite`` a result or an error."""

    name: str
    answer: Answer
    must_be: str
    expected_text: str | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong with the answer, or None."""
        if not (self.answer.ok if self.must_be == "ok" else self.answer.definite):
            return f"{self.name} must be {self.must_be}, got {self.answer}"
        if self.expected_text is not None and self.answer.text != self.expected_text:
            return f"{self.name} must say {self.expected_text!r}, got {self.answer}"
        return None


@dataclass(slots=True)
class Party:
    """One client's part in a scenario."""

    connection: Connection
    has_session: bool
    scenario: str
    steps: list[Step] = field(default_factory=list)
    runs_by_key: dict[str, int] = field(default_factory=dict)
    """How often an unsafe tool ran, by the key of the call."""
    _keys: int = 0

    def key(self) -> str:
        """Return a key that no other call has."""
        self._keys += 1
        return f"{self.scenario}/{self.connection.client}/{self._keys}"

    def note(self, name: str, answer: Answer, must_be: str = "ok", expected_text: str | None = None) -> None:
        """Add a step."""
        self.steps.append(Step(name, answer, must_be, expected_text))

    def call(self, name: str, call: ToolCall, *, unsafe: bool = False) -> None:
        """Call a tool, which must give its result."""
        self.note(name, self.connection.call(call, self.key_of(unsafe=unsafe)))

    def call_all(self, name: str, calls: list[ToolCall], unsafe: ToolCall | None) -> None:
        """Call tools all at once, which must all give their results."""
        keyed = [(call, self.key_of(unsafe=call is unsafe)) for call in calls]
        for number, answer in enumerate(self.connection.call_all(keyed), 1):
            self.note(f"{name} {number}", answer)

    def key_of(self, *, unsafe: bool) -> str:
        """Return the key of the next call; the runs of an unsafe one are counted."""
        key = self.key()
        if unsafe:
            self.runs_by_key[key] = 0
        return key

    def faults(self) -> list[str]:
        """Return all that this client has to complain about."""
        found = [step.fault for step in self.steps if step.fault]
        found += [f"{key} ran {runs} times" for key, runs in self.runs_by_key.items() if runs > 1]
        found += [f"{key} did not run" for key, runs in self.runs_by_key.items() if runs == 0 and not found]
        return found + self._changed_ids()

    def _changed_ids(self) -> list[str]:
        ids = {answer.session_id for answer in self._answers} | {id_ for a in self._answers for id_ in a.seen_ids}
        return [f"the client saw {len(ids)} session IDs"] if len(ids) > 1 else []

    @property
    def _answers(self) -> list[Answer]:
        return [step.answer for step in self.steps]


@dataclass(slots=True)
class Bench:
    """A server, the endpoint that its clients use, and the clients of the scenario that is being played."""

    server: Server
    blackhole: Blackhole
    url: str
    parties: list[Party] = field(default_factory=list)

    def each(self, act: Callable[[Party], None]) -> None:
        """Let every connected client act, all at the same time."""
        with ThreadPoolExecutor(max_workers=max(1, len(self.parties))) as pool:
            list(pool.map(act, self.parties))

    def connect(self, party: Party) -> None:
        """Connect one client and see that it works."""
        party.note("connect", opened := party.connection.open(self.url))
        if opened.ok:
            party.call("call before", self.server.spec.tools.safe)

    def next_calls(self, party: Party) -> None:
        """Make three calls, the second one unsafe where there is such a tool."""
        tools = self.server.spec.tools
        party.call("call 1", tools.safe)
        party.call("call 2", tools.unsafe or tools.safe, unsafe=tools.unsafe is not None)
        party.call("call 3", tools.safe)

    def count_runs(self) -> None:
        """Read off the ledger what ran."""
        for party in self.parties:
            party.runs_by_key = {key: self.server.runs_of(key) for key in party.runs_by_key}


def restart(bench: Bench) -> None:
    """The server is restarted between two calls: the next calls succeed, in a new session of the server."""
    bench.server.restart()

    def act(party: Party) -> None:
        count = bench.server.spec.tools.count
        if count is not None and party.has_session:
            party.note("count", party.connection.call(count, party.key()), expected_text="1")
        bench.next_calls(party)

    bench.each(act)


def restarts_in_a_row(bench: Bench) -> None:
    """The server is restarted again and again: each time the next call succeeds."""
    for _ in range(RESTARTS_IN_A_ROW):
        bench.server.restart()
        bench.each(lambda party: party.call("call after restart", bench.server.spec.tools.safe))


def burst(bench: Bench) -> None:
    """Several calls at once find the session lost: all succeed."""
    bench.server.restart()
    tools = bench.server.spec.tools
    calls = [tools.safe] * (CONCURRENT_CALLS - 1) + [tools.unsafe or tools.safe]
    bench.each(lambda party: party.call_all("call", calls, tools.unsafe))


def outage(bench: Bench) -> None:
    """Calls are issued while the server is down for three seconds: they succeed when it is back."""
    tools = bench.server.spec.tools
    bench.server.kill()
    back = threading.Timer(OUTAGE_S, bench.server.start)
    back.start()
    calls = [tools.safe, tools.unsafe or tools.safe]
    bench.each(lambda party: party.call_all("call while down", calls, tools.unsafe))
    back.join()
    bench.each(lambda party: party.call("call after", tools.safe))


def kill_during_calls(bench: Bench) -> None:
    """The server dies under calls: each gets a definite answer, reads their result, and no unsafe call runs twice."""
    tools = bench.server.spec.tools
    slow_calls = [call for call in (tools.slow_unsafe, tools.slow_safe) if call is not None]
    begun_before = _begun(bench)
    ready = threading.Barrier(len(bench.parties) + 1)
    bench.blackhole.hold()

    def act(party: Party) -> None:
        keys = [party.key_of(unsafe=call is tools.slow_unsafe) for call in slow_calls]
        begun = [party.connection.begin(call, key) for call, key in zip(slow_calls, keys, strict=True)]
        ready.wait(CALL_START_TIMEOUT_S)
        for call, future in zip(slow_calls, begun, strict=True):
            reads = call is tools.slow_safe and tools.slow_safe_succeeds and party.has_session
            party.note(f"{call.tool} under way", party.connection.end(future), "ok" if reads else "definite")
        bench.next_calls(party)

    def strike() -> None:
        ready.wait(CALL_START_TIMEOUT_S)
        expected = len(slow_calls) * len(bench.parties)
        try:
            until(lambda: _begun(bench) - begun_before >= expected, CALL_START_TIMEOUT_S, lambda: "calls never began")
        finally:
            bench.blackhole.release()
            bench.server.restart()

    with ThreadPoolExecutor(max_workers=1) as pool:
        struck = pool.submit(strike)
        bench.each(act)
        struck.result()


def _begun(bench: Bench) -> int:
    """Return how many slow calls the server has begun, by whatever shows it."""
    spec = bench.server.spec
    if spec.post_line is not None:
        return sum(spec.post_line in line for line in bench.server.lines)
    return bench.blackhole.accepted if spec.calls_out_by else len(bench.server.ledger_lines())


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "restart": restart,
    "restarts-in-a-row": restarts_in_a_row,
    "burst": burst,
    "outage": outage,
    "kill-during-calls": kill_during_calls,
}
