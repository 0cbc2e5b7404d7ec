"""`mcp-sidecar dev` on real servers that are edited under real clients: nobody fails, and nobody connects anew.

``DEV_EDITS`` says how many edits there are in a row, a third of them broken; the usual few keep the suite short.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mcp_sidecar.commands.dev.ports import free_port
from tests.interop.catalogue import CLIENTS, GO_BUILDS, NODE_MODULES, RUST_BUILDS, VENVS, ClientSpec, ToolCall, missing
from tests.interop.drivers import Answer, Connection, Driver
from tests.interop.lab import DIRECT
from tests.interop.processes import Watched, until

pytestmark = [pytest.mark.interop, pytest.mark.skipif(DIRECT, reason="without the sidecar no client survives an edit")]

EDITS = int(os.environ.get("DEV_EDITS", "6"))
CALL_TIMEOUT_S = 60.0
UP_WITHIN_S = 120.0
CALL_EVERY_S = 0.2
ECHO = ToolCall("echo", {"text": "{key}"})
WITH_SESSIONS = [client for client in CLIENTS if not client.asks_discover]

FASTMCP = """\
import fastmcp
server = fastmcp.FastMCP("edited")
def run(text: str) -> str:
    return text
for name in {tools}:
    server.tool(name=name)(run)
server.run(transport="http", show_banner=False)
"""
PYTHON_SDK = """\
import os
from mcp.server.fastmcp import FastMCP
server = FastMCP("edited", port=int(os.environ["PORT"]))
def run(text: str) -> str:
    return text
for name in {tools}:
    server.tool(name=name)(run)
server.run("streamable-http")
"""
TYPESCRIPT = """\
import { randomUUID } from "node:crypto";
import express from "express";
import { z } from "zod";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
const transports = new Map();
async function opened() {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(),
    onsessioninitialized: (id) => transports.set(id, transport),
  });
  const server = new McpServer({ name: "edited", version: "1.0.0" });
  for (const name of {tools})
    server.registerTool(name, { inputSchema: { text: z.string() } }, ({ text }) => ({ content: [{ type: "text", text }] }));
  await server.connect(transport);
  return transport;
}
const app = express();
app.use(express.json());
app.all("/mcp", async (req, res) => {
  const id = req.headers["mcp-session-id"];
  const transport = id ? transports.get(id) : await opened();
  if (transport) return transport.handleRequest(req, res, req.body);
  res.status(404).json({ jsonrpc: "2.0", error: { code: -32001, message: "Session not found" }, id: null });
});
app.listen(Number(process.env.PORT), "127.0.0.1");
"""
COMPILED = "# {tools}\nexec {program} {port}\n"


@dataclass(frozen=True, slots=True)
class Edited:
    """A server as one file that is edited. ``text`` has places for its tools, where it can have others."""

    name: str
    file: str
    text: str
    command: tuple[str, ...]
    needs: Path
    installed_by: str
    broken: str
    told: str
    """What of the broken file's own words is told."""
    options: tuple[str, ...] = ()
    program: str = ""

    @property
    def missing(self) -> str | None:
        """Why it cannot be run here, or None."""
        return missing((self.needs,), self.installed_by)


def _python(name: str, environment: str, text: str) -> Edited:
    python = VENVS / environment / "bin" / "python"
    return Edited(
        name,
        "server.py",
        text,
        (str(python), "server.py"),
        VENVS / environment / ".pins",
        "python",
        broken="def broken(:\n",
        told="SyntaxError",
    )


def _compiled(name: str, program: Path, needs: Path, installed_by: str) -> Edited:
    """A program of the suite, behind what stands for its compiler."""
    return Edited(
        name,
        "server.sh",
        COMPILED,
        ("sh", "server.sh"),
        needs,
        installed_by,
        broken="echo 'error[E0308]: mismatched types' >&2; exit 101\n",
        told="mismatched types",
        options=("--watch", "server.sh"),
        program=str(program),
    )


SERVERS = (
    _python("fastmcp-4.1.2", "fastmcp-4.1.2", FASTMCP),
    _python("mcp-1.30.0", "mcp-1.30.0", PYTHON_SDK),
    Edited(
        "typescript-sdk-1.32.2",
        "server.mjs",
        TYPESCRIPT,
        ("node", "server.mjs"),
        NODE_MODULES / ".pins",
        "node",
        broken="const broken = ;\n",
        told="SyntaxError",
    ),
    _compiled("rmcp-3.9.0", RUST_BUILDS / "rmcp_3", RUST_BUILDS.parent / ".pins", "rust"),
    _compiled("go-sdk-1.8.0", GO_BUILDS / "go_sdk", GO_BUILDS / "go_sdk.pins", "go"),
)
MARKS = {"rust": [pytest.mark.cargo], "go": [pytest.mark.go]}
CASES = [pytest.param(server, id=server.name, marks=MARKS.get(server.installed_by, [])) for server in SERVERS]
WITH_OTHER_TOOLS = [pytest.param(server, id=server.name) for server in SERVERS if not server.program]


class Development:
    """A running `dev`, and the file that it watches."""

    def __init__(self, server: Edited, folder: Path, port: int | None) -> None:
        """``port``: the server has one of its own, and is stopped before its successor starts."""
        self.server = server
        self._file = folder / server.file
        self._port = port
        self._at = str(port) if port is not None else "$PORT"
        if server.installed_by == "node":
            (folder / "node_modules").symlink_to(NODE_MODULES)
        self.has_tools("echo")
        fixed = () if port is None else ("--upstream", f"http://127.0.0.1:{port}/mcp")
        options = ("--listen", "0", "--admin", "off", *fixed, *server.options)
        self._life = Watched(
            [sys.executable, "-m", "mcp_sidecar", "dev", *options, "--", *server.command],
            {"INTEROP_LEDGER": str(folder / "ledger"), **self._ports()},
            cwd=folder,
        )
        self._life.comes_up(lambda: self.count(r"  \S.* up in ") > 0, self.told)
        self.url = next(line for line in self._life.lines if "for clients" in line).split()[-1]

    def _ports(self) -> dict[str, str]:
        return {} if self._port is None else {"PORT": str(self._port), "FASTMCP_PORT": str(self._port)}

    def told(self) -> str:
        """All that it has said."""
        return "\n".join(self._life.lines)

    def count(self, pattern: str) -> int:
        """How many of its lines say so."""
        return sum(re.search(pattern, line) is not None for line in self._life.lines)

    def has_tools(self, *names: str) -> None:
        """Save the server with these tools."""
        text = self.server.text.replace("{tools}", str(list(names)).replace("'", '"'))
        self._file.write_text(text.replace("{program}", self.server.program).replace("{port}", self._at))

    def saves(self, number: int, *, broken: bool) -> None:
        """Save once more, and wait until that is told."""
        pattern = "does not start" if broken else f"{self.server.file} changed → up in"
        before = self.count(pattern)
        self._file.write_text(self.server.broken) if broken else self.has_tools("echo", f"tool_{number}")
        until(lambda: self.count(pattern) > before, UP_WITHIN_S, self.told)

    def stop(self) -> None:
        """End it."""
        self._life.stop(15)


class Caller:
    """One client that calls five times a second until it is told to stop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.answers: list[Answer] = []
        self._over = threading.Event()

    def work(self) -> None:
        """Call on."""
        while not self._over.wait(CALL_EVERY_S):
            self.answers.append(self.connection.call(ECHO, f"{len(self.answers)}"))

    def stop(self) -> None:
        """Let the call that is under way be the last one."""
        self._over.set()


@contextmanager
def developed(server: Edited, folder: Path, port: int | None = None) -> Iterator[Development]:
    """Run `dev` on the server."""
    if server.missing:
        pytest.skip(server.missing)
    development = Development(server, folder, port)
    try:
        yield development
    except BaseException as error:
        error.add_note(development.told()[-6000:])
        raise
    finally:
        development.stop()


@contextmanager
def connected(url: str, clients: list[ClientSpec], *, follows: bool = False) -> Iterator[list[Connection]]:
    """Connect every client; skip where one is not installed."""
    reason = next((client.missing for client in clients if client.missing), None)
    if reason:
        pytest.skip(reason)
    drivers = [Driver(client) for client in clients]
    connections = [Connection(driver, "dev", CALL_TIMEOUT_S) for driver in drivers]
    try:
        for connection in connections:
            opened = connection.open(url, follows=follows)
            assert opened.ok, str(opened)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for driver in drivers:
            driver.stop()


def called_while(connections: list[Connection], edit: Callable[[], None]) -> list[Caller]:
    """Edit while every client calls."""
    callers = [Caller(connection) for connection in connections]
    with ThreadPoolExecutor(max_workers=len(callers)) as pool:
        working = [pool.submit(caller.work) for caller in callers]
        try:
            edit()
        finally:
            for caller in callers:
                caller.stop()
        for work in working:
            work.result()
    return callers


def kept_its_session(caller: Caller) -> bool:
    """Whether its client has one session id, and has seen no other."""
    last = caller.answers[-1]
    return last.session_id is not None and set(last.seen_ids) == {last.session_id}


@pytest.mark.parametrize("server", CASES)
def test_edits_fail_no_call(server: Edited, tmp_path: Path) -> None:
    """With a port of its own for each process a broken save and a good one alike cost no client a call or its session."""
    with developed(server, tmp_path) as dev, connected(dev.url, WITH_SESSIONS) as connections:

        def edit() -> None:
            for number in range(EDITS):
                dev.saves(number, broken=number % 3 == 1)

        for caller in called_while(connections, edit):
            assert caller.answers and [str(answer) for answer in caller.answers if not answer.ok] == []
            assert kept_its_session(caller)


@pytest.mark.parametrize("server", CASES)
def test_edits_of_a_server_with_one_port(server: Edited, tmp_path: Path) -> None:
    """Calls wait for the new server, or end with the broken one's own words; no client connects anew."""
    with developed(server, tmp_path, free_port()) as dev, connected(dev.url, WITH_SESSIONS) as connections:

        def edit() -> None:
            for number in range(EDITS):
                dev.saves(number, broken=number % 3 == 1)
                if number % 3 == 1:
                    for connection in connections:
                        answer = connection.call(ECHO, "of a broken server")
                        assert answer.kind == "error" and server.told in answer.text, str(answer)
            dev.saves(EDITS, broken=False)

        for caller in called_while(connections, edit):
            wrong = [str(answer) for answer in caller.answers if not answer.ok and server.told not in answer.text]
            assert wrong == [] and any(answer.ok for answer in caller.answers)
            assert caller.connection.call(ECHO, "in the end").ok and kept_its_session(caller)


@pytest.mark.parametrize("server", WITH_OTHER_TOOLS)
def test_a_new_tool_is_in_every_clients_list(server: Edited, tmp_path: Path) -> None:
    """The SDKs' own handlers list anew, whether the server promises to tell of changes (TypeScript, FastMCP) or not (Python)."""
    with developed(server, tmp_path) as dev, connected(dev.url, WITH_SESSIONS, follows=True) as connections:
        dev.saves(1, broken=False)
        for connection in connections:
            until(partial(has_listed, connection, "tool_1"), UP_WITHIN_S, dev.told)
        assert dev.count(r"up in .* · 1 tool") == dev.count(r"tools: \+tool_1\(text\)") == 1


def has_listed(connection: Connection, tool: str) -> bool:
    """Whether its client has a tool in the list that its handler was given."""
    return tool in connection.do("listed").text.split()
