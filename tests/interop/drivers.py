"""Client drivers from the outside: commands to a driver process, futures of what became of them."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tests.interop.catalogue import ClientSpec, ToolCall
from tests.interop.processes import START_TIMEOUT_S, Watched

CONNECT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
GRACE_S = 3.0
"""How much longer than its own bound a driver gets before it counts as stuck, once it has started."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client made of one command.

    ``kind`` is ``result``, ``tool_error`` (a result that says so), ``error`` (raised to the caller), ``timeout`` (no answer
    within the bound) or ``dead`` (the client's transport has ended by itself).
    """

    kind: str
    text: str
    seconds: float
    session_id: str | None = None
    seen_ids: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the call gave its result."""
        return self.kind == "result"

    @property
    def definite(self) -> bool:
        """Whether the caller knows where it stands: a result or an error, and a client that lives."""
        return self.kind in {"result", "tool_error", "error"}

    def __str__(self) -> str:
        return f"{self.kind} after {self.seconds:.2f} s: {self.text[:160]}"


class Driver:
    """One driver process; it holds any number of connections."""

    def __init__(self, spec: ClientSpec) -> None:
        self.spec = spec
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Answer]] = {}
        self._lock = threading.Lock()
        self._has_answered = False
        self._life = Watched(spec.command, {"PYTHONUNBUFFERED": "1"}, stdin=subprocess.PIPE, on_line=self._take)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._life.running

    @property
    def lines(self) -> list[str]:
        """All that it printed, answers included."""
        return self._life.lines

    @property
    def grace_s(self) -> float:
        """How much longer than its own bound, which begins when it reads a command, an answer of it may take."""
        return GRACE_S if self._has_answered else START_TIMEOUT_S

    def _take(self, line: str) -> None:
        if not line.startswith('{"'):
            return
        said: dict[str, Any] = json.loads(line)
        with self._lock:
            future = self._waiting.pop(int(said.pop("id")), None)
        self._has_answered = True
        if future is not None and future.set_running_or_notify_cancel():
            said["seen_ids"] = tuple(said["seen_ids"])
            future.set_result(Answer(**said))

    def command(self, op: str, name: str, timeout_s: float, **details: Any) -> Future[Answer]:
        """Send a command; the future ends with the driver's answer."""
        number, future = next(self._numbers), Future[Answer]()
        with self._lock:
            self._waiting[number] = future
        words = {"id": number, "op": op, "name": name, "timeout": timeout_s, **details}
        self._life.write(json.dumps(words) + "\n")
        return future

    def stop(self) -> None:
        """End the process."""
        self._life.stop(1)


class Connection:
    """One client on one endpoint."""

    def __init__(self, driver: Driver, name: str, call_timeout_s: float) -> None:
        self.driver = driver
        self.client = driver.spec.name
        self.name = name
        self._call_timeout_s = call_timeout_s

    def open(self, url: str, *, follows: bool = False) -> Answer:
        """Connect, and list the tools as every application does. ``follows``: with the SDK's handler for lists that change."""
        opening = self.driver.command("connect", self.name, CONNECT_TIMEOUT_S, url=url, follows=follows)
        connected = self._wait(opening, CONNECT_TIMEOUT_S)
        if not connected.ok:
            return connected
        return self._wait(self.driver.command("tools", self.name, CONNECT_TIMEOUT_S), CONNECT_TIMEOUT_S)

    def begin(self, call: ToolCall, key: str) -> Future[Answer]:
        """Call a tool without waiting for its answer."""
        arguments = call.with_key(key)
        return self.driver.command("call", self.name, self._call_timeout_s, tool=call.tool, arguments=arguments)

    def end(self, future: Future[Answer]) -> Answer:
        """Wait for the answer of a call that was begun."""
        return self._wait(future, self._call_timeout_s)

    def call(self, call: ToolCall, key: str) -> Answer:
        """Call a tool."""
        return self.end(self.begin(call, key))

    def call_all(self, calls: Sequence[tuple[ToolCall, str]]) -> list[Answer]:
        """Call tools all at once."""
        begun = [self.begin(call, key) for call, key in calls]
        return [self.end(future) for future in begun]

    def do(self, op: str, **details: Any) -> Answer:
        """Have the client do something else: ``subscribe`` to a uri, set a ``level``, ``answer`` an open question."""
        return self._wait(self.driver.command(op, self.name, self._call_timeout_s, **details), self._call_timeout_s)

    def heard(self) -> list[dict[str, Any]]:
        """Return every message that came from the server so far."""
        messages: list[dict[str, Any]] = json.loads(self.do("heard").text)
        return messages

    def close(self) -> Answer:
        """Terminate the session and drop the connection."""
        return self._wait(self.driver.command("close", self.name, CLOSE_TIMEOUT_S), CLOSE_TIMEOUT_S)

    def _wait(self, future: Future[Answer], timeout_s: float) -> Answer:
        longest_s = timeout_s + self.driver.grace_s
        try:
            return future.result(longest_s)
        except TimeoutError:
            return Answer("timeout", "the driver itself is stuck", longest_s)
