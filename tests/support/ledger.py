"""What the fake upstream saw and what it ran. The rule: an execution is written down before anything of it can be seen.

``Arrival`` is one HTTP request, whatever became of it; ``Execution`` is one RPC method or tool that was really started.
At-most-once is proved by counting executions, never by counting arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.http1 import HttpRequest
from tests.support.pulse import Pulse
from tests.support.waiting import HANG_S


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One HTTP request. ``process`` is the upstream process that got it, 1 for the first; ``rpc_methods`` is empty
    where the body holds no JSON-RPC request or notification."""

    number: int
    process: int
    connection: int
    request: HttpRequest
    rpc_methods: tuple[str, ...]
    tools: tuple[str, ...]
    answer_status: int | None = None
    client_left: bool = False

    @property
    def http_method(self) -> str:
        return self.request.method

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def body(self) -> bytes:
        return self.request.body

    @property
    def session_id(self) -> str | None:
        return self.request.header("mcp-session-id")

    def header(self, name: str) -> str | None:
        return self.request.header(name)


@dataclass(slots=True, kw_only=True)
class Execution:
    """One RPC method that was started. ``name`` is the tool for ``tools/call``, else the method; ``answer_sent`` turns
    true only when every byte of its response was handed to the kernel."""

    number: int
    process: int
    name: str
    method: str
    arguments: Mapping[str, Any]
    rpc_id: str | int | None
    session_id: str | None
    finished: bool = False
    answer_sent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A JSON-RPC response of the client to a question of the server. ``expected`` says whether anybody had asked."""

    process: int
    session_id: str | None
    rpc_id: object
    message: Mapping[str, Any]
    expected: bool


@dataclass(slots=True)
class Ledger:
    """Survives restarts of the upstream it belongs to."""

    arrivals: list[Arrival] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    _executions: list[Execution] = field(default_factory=list)
    _pulse: Pulse = field(default_factory=Pulse)

    @property
    def initializes(self) -> list[Arrival]:
        """Every ``initialize`` that arrived, refused ones included."""
        return self.arrived(rpc_method="initialize")

    @property
    def ran(self) -> int:
        """How many executions there are."""
        return len(self._executions)

    def executions(self, name: str | None = None, *, process: int | None = None) -> list[Execution]:
        """What ran, in order; ``name`` is a tool or an RPC method."""
        return [e for e in self._executions if name in (None, e.name, e.method) and process in (None, e.process)]

    def arrived(
        self,
        *,
        http_method: str | None = None,
        rpc_method: str | None = None,
        tool: str | None = None,
        session_id: str | None = None,
        process: int | None = None,
    ) -> list[Arrival]:
        """The HTTP requests that match everything given."""
        return [
            a
            for a in self.arrivals
            if http_method in (None, a.http_method)
            and (rpc_method is None or rpc_method in a.rpc_methods)
            and (tool is None or tool in a.tools)
            and session_id in (None, a.session_id)
            and process in (None, a.process)
        ]

    def count(self, method: str | None = None, *, tool: str | None = None, process: int | None = None) -> int:
        """How many requests arrived; ``method`` is an HTTP method (upper case) or an RPC method."""
        if method is not None and method.isupper():
            return len(self.arrived(http_method=method, tool=tool, process=process))
        return len(self.arrived(rpc_method=method, tool=tool, process=process))

    async def wait_for(self, claim: Callable[[Ledger], bool], timeout_s: float = HANG_S) -> None:
        """Return once ``claim(ledger)`` holds, looking again at every change; ``TimeoutError`` else."""
        await self._pulse.until(lambda: claim(self), timeout_s)

    def add_arrival(self, arrival: Arrival) -> Arrival:
        self.arrivals.append(arrival)
        self._pulse.fire()
        return arrival

    def add_execution(self, execution: Execution) -> Execution:
        self._executions.append(execution)
        self._pulse.fire()
        return execution

    def add_reply(self, reply: Reply) -> None:
        self.replies.append(reply)
        self._pulse.fire()

    def changed(self) -> None:
        """A record that is already in the ledger was amended."""
        self._pulse.fire()
