"""Processes of the suite: started, watched line by line, killed by their own id, nothing else.

Every wait has a deadline and ends with the output that explains it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcp_sidecar.commands.dev.ports import free_port
from tests.interop.catalogue import ROOT, ServerSpec

START_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.02
SILENCED = re.compile(r"(?i:(http|https|all)_proxy$)|MCP_SIDECAR_")
"""Settings of the machine or of whoever runs the tests, which must not change what is tested."""


class NotReady(AssertionError):
    """A process did not come up, or a condition did not come true, in time."""


def until(claim: Callable[[], bool], timeout_s: float, explain: Callable[[], str]) -> None:
    """Wait for a claim about another process to come true."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > deadline:
            raise NotReady(explain())
        time.sleep(POLL_INTERVAL_S)


class Watched:
    """A running process with its output."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        *,
        stdin: int = subprocess.DEVNULL,
        on_line: Callable[[str], None] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not SILENCED.match(name)}
        self._lines: list[str] = []
        self._on_line = on_line
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
            cwd=cwd,
            env=inherited | environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip("\n"))
            if self._on_line is not None:
                self._on_line(line)

    def write(self, text: str) -> None:
        """Write to its input, if it still reads."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(text)
            self.process.stdin.flush()

    @property
    def lines(self) -> list[str]:
        """The output so far."""
        return list(self._lines)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def comes_up(self, claim: Callable[[], bool], explain: Callable[[], str]) -> None:
        """Wait until it is ready, which the claim tells; one that is not in time, or ends, is put away."""
        try:
            until(lambda: claim() or not self.running, START_TIMEOUT_S, explain)
        except NotReady:
            self.kill()
            raise
        if not self.running:
            self._bury()
            raise NotReady(explain())

    def kill(self) -> None:
        """End it as a crash would, and wait for that."""
        self.process.kill()
        self._bury()

    def _bury(self) -> None:
        """Wait for the end of the process and of its output, and let go of its pipes."""
        self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def stop(self, timeout_s: float = 5.0) -> int:
        """Ask it to end, insist after the timeout; return its exit status."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._bury()
        return self.process.returncode


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Server:
    """One server under test on one port, through all its lives."""

    def __init__(self, spec: ServerSpec, ledger: Path, environment: dict[str, str]) -> None:
        self.spec = spec
        self.ledger = ledger
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self._environment = {**spec.environment, **environment, "INTEROP_LEDGER": str(ledger), "PYTHONUNBUFFERED": "1"}
        if spec.port_variable:
            self._environment[spec.port_variable] = str(self.port)
        self._lives: list[Watched] = []

    @property
    def lines(self) -> list[str]:
        """The output of all its lives."""
        return [line for life in self._lives for line in life.lines]

    def start(self) -> None:
        """Start it and return at the moment it accepts a connection."""
        life = Watched(self.spec.command(self.port), self._environment)
        self._lives.append(life)

        def explain() -> str:
            return f"{self.spec.name} does not accept on {self.port}:\n" + "\n".join(life.lines[-30:])

        life.comes_up(lambda: _accepts(self.port), explain)

    def kill(self) -> None:
        """Kill it where it stands."""
        self._lives[-1].kill()

    def restart(self) -> None:
        """Kill it and start it again on its port."""
        self.kill()
        self.start()

    def runs_of(self, key: str) -> int:
        """Return how often a tool ran with this key."""
        return self.ledger_lines().count(key)

    def ledger_lines(self) -> list[str]:
        """Return the keys of all that ran, in order."""
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a sidecar is started with, so that it keeps its sessions somewhere; nothing for the default."""

    options: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


DEFAULT_STORE = StoreOptions()


class Sidecar:
    """The program under test, as a user starts it."""

    def __init__(self, upstream_url: str, *, port: int = 0, store: StoreOptions = DEFAULT_STORE) -> None:
        listen = f"127.0.0.1:{port}"
        options = {"--upstream": upstream_url, "--listen": listen, "--admin": "off", "--log-format": "json"}
        words = [word for option in (options | store.options).items() for word in option]
        environment = {"PYTHONUNBUFFERED": "1"} | store.environment
        self._life = Watched([sys.executable, "-m", "mcp_sidecar", *words], environment)
        self._life.comes_up(lambda: self._address() is not None, self._explain)
        self.url = f"http://{self._address()}/mcp"

    def _explain(self) -> str:
        return "the sidecar does not say where it listens:\n" + "\n".join(self.lines[-30:])

    def _address(self) -> str | None:
        for line in self._life.lines:
            event = _json_object(line)
            if event.get("event") == "listening":
                return str(event["address"])
        return None

    @property
    def lines(self) -> list[str]:
        """Its log so far."""
        return self._life.lines

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._life.running

    def kill(self) -> None:
        """Kill it where it stands."""
        self._life.kill()

    def stop(self) -> int:
        """Drain it; return its exit status."""
        return self._life.stop(15)


def _json_object(line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
