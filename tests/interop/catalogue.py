"""The servers and clients under test, as tables: a row is what it takes to start one and what it can be asked.

A row whose environment is not installed is skipped with its reason; nothing here starts anything.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SUITE = Path(__file__).resolve().parent
ROOT = SUITE.parent.parent
VENVS = ROOT / ".venvs"
NODE_MODULES = SUITE / "node" / "node_modules"
RUST_BUILDS = SUITE / "rust" / "target" / "debug"
GO_BUILDS = SUITE / "go" / "target"

SLOW_SECONDS = 2.5
"""How long a slow read takes: long enough to be killed in by any client, short enough to be run twice."""
ENDLESS_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool and its arguments, in which ``{key}`` stands for the key of the call."""

    tool: str
    arguments: dict[str, Any]

    def with_key(self, key: str) -> dict[str, Any]:
        """Return the arguments of one call."""
        return {
            name: value.replace("{key}", key) if isinstance(value, str) else value
            for name, value in self.arguments.items()
        }


@dataclass(frozen=True, slots=True)
class HealServices:
    """What a server can be asked; None where it has no such tool."""

    safe: ToolCall
    unsafe: ToolCall | None
    slow_unsafe: ToolCall | None
    slow_safe: ToolCall
    count: ToolCall | None = None
    """Counts the calls of its session, from 1."""
    slow_safe_succeeds: bool = True
    """Whether the slow read can give a result at all; an error of the tool is a definite answer, too."""


LEDGER_TOOLS = HealServices(
    safe=ToolCall("echo", {"text": "{key}"}),
    unsafe=ToolCall("add_to_ledger", {"key": "{key}"}),
    slow_unsafe=ToolCall("slow", {"seconds": ENDLESS_SECONDS, "key": "{key}"}),
    slow_safe=ToolCall("slow_read", {"seconds": SLOW_SECONDS, "key": "{key}"}),
    count=ToolCall("count", {}),
)
EVERYTHING_TOOLS = HealServices(
    safe=ToolCall("echo", {"message": "{key}"}),
    unsafe=None,
    slow_unsafe=None,
    slow_safe=ToolCall("trigger-long-running-operation", {"duration": SLOW_SECONDS, "steps": 2}),
)
BIOMCP_TOOLS = HealServices(
    safe=ToolCall("biomcp", {"command": "biomcp version"}),
    unsafe=None,
    slow_unsafe=None,
    slow_safe=ToolCall("biomcp", {"command": "biomcp get gene BRAF"}),
    slow_safe_succeeds=False,
)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server: ``command`` makes its command line from a port."""

    name: str
    loses_sessions_with: str
    command: Callable[[int], list[str]]
    needs: tuple[Path, ...]
    installed_by: str
    tools: HealServices = LEDGER_TOOLS
    environment: dict[str, str] = field(default_factory=dict)
    port_variable: str | None = None
    post_line: str | None = None
    """What the server prints at each POST: how the start of a slow call shows on a server without a ledger."""
    calls_out_by: str | None = None
    """The variable that names the upstream of its slow calls, whose start then shows as a connection to it."""
    serves_sessionless: bool = False
    """Whether clients that ask ``server/discover`` get revision 2026-07-28, without sessions."""

    @property
    def missing(self) -> str | None:
        """Why this server cannot be run here, or None."""
        return missing(self.needs, self.installed_by)


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """One client: the command line of its driver."""

    name: str
    command: list[str]
    needs: tuple[Path, ...]
    installed_by: str
    asks_discover: bool = False
    dies_of_a_cut: bool = False
    """Whether a connection that is refused, or cut under a call, ends this client for good, with a sidecar or without."""

    @property
    def missing(self) -> str | None:
        """Why this client cannot be run here, or None."""
        return missing(self.needs, self.installed_by)

    def has_session_on(self, server: ServerSpec) -> bool:
        """Whether this client gets a session from that server."""
        return not (self.asks_discover and server.serves_sessionless)


def missing(needs: tuple[Path, ...], installed_by: str) -> str | None:
    absent = [path for path in needs if not path.exists()]
    if not absent:
        return None
    tool = {"node": "node", "rust": "cargo", "go": "go", "conformance": "node"}.get(installed_by, sys.executable)
    without = "" if shutil.which(tool) else f" ({tool} is not on this machine)"
    return f"{absent[0].relative_to(ROOT)} is not there; `python -m tools.interop_env {installed_by}` makes it{without}"


def _python_server(name: str, flavour: str, loses_sessions_with: str, *, sessionless: bool = False) -> ServerSpec:
    python = VENVS / name / "bin" / "python"
    script = str(SUITE / "servers" / "python_server.py")
    return ServerSpec(
        name=name,
        loses_sessions_with=loses_sessions_with,
        command=lambda port: [str(python), script, flavour, str(port)],
        needs=(VENVS / name / ".pins",),
        installed_by="python",
        serves_sessionless=sessionless,
    )


def _typescript_server(version: str, status: int) -> ServerSpec:
    script = str(SUITE / "node" / "server.mjs")
    return ServerSpec(
        name=f"typescript-sdk-{version}",
        loses_sessions_with=f"{status} JSON or HTML" if status == 400 else f"{status} JSON",
        command=lambda port: ["node", script, f"sdk-{version}", str(port), str(status)],
        needs=(NODE_MODULES / ".pins",),
        installed_by="node",
    )


def _everything_server() -> ServerSpec:
    script = NODE_MODULES / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    loopback = (SUITE / "node" / "loopback.mjs").as_uri()
    return ServerSpec(
        name="server-everything",
        loses_sessions_with="400 JSON without id",
        command=lambda _port: ["node", "--import", loopback, str(script), "streamableHttp"],
        needs=(NODE_MODULES / ".pins",),
        installed_by="node",
        tools=EVERYTHING_TOOLS,
        port_variable="PORT",
        post_line="Received MCP POST request",
    )


def _biomcp_server() -> ServerSpec:
    program = VENVS / "biomcp-0.9.3" / "bin" / "biomcp"
    return ServerSpec(
        name="biomcp-0.9.3-rmcp-1.7.0",
        loses_sessions_with="404 text",
        command=lambda port: [str(program), "serve-http", "--host", "127.0.0.1", "--port", str(port)],
        needs=(VENVS / "biomcp-0.9.3" / ".pins",),
        installed_by="python",
        tools=BIOMCP_TOOLS,
        calls_out_by="BIOMCP_MYGENE_BASE",
        serves_sessionless=True,
    )


def _rust_server(name: str, binary: str, loses_sessions_with: str, *, sessionless: bool = False) -> ServerSpec:
    return ServerSpec(
        name=name,
        loses_sessions_with=loses_sessions_with,
        command=lambda port: [str(RUST_BUILDS / binary), str(port)],
        needs=(RUST_BUILDS.parent / ".pins",),
        installed_by="rust",
        serves_sessionless=sessionless,
    )


def _go_server(name: str, binary: str, *words: str, loses_sessions_with: str, sessionless: bool = True) -> ServerSpec:
    program = [str(GO_BUILDS / binary), *words]
    return ServerSpec(
        name=name,
        loses_sessions_with=loses_sessions_with,
        command=lambda port: [*program, str(port)],
        needs=(GO_BUILDS / f"{binary}.pins",),
        installed_by="go",
        serves_sessionless=sessionless,
    )


GO_SERVERS = (
    _go_server("mcp-go-0.43.2", "mcp_go_0_43", "stateful", loses_sessions_with="400 text", sessionless=False),
    _go_server("mcp-go-1.2.1", "mcp_go_1", "stateful", loses_sessions_with="404 text"),
    _go_server("mcp-go-1.2.1-default", "mcp_go_1", "default", loses_sessions_with="nothing: takes any id"),
    _go_server("go-sdk-1.8.0", "go_sdk", loses_sessions_with="404 text"),
)


def go_sdk_with_timeout(seconds: int) -> ServerSpec:
    """Return the same go-sdk server, which ends a session after so many seconds without a request."""
    usual = GO_SERVERS[-1]
    return replace(usual, name=f"{usual.name}-idle", command=lambda port: [*usual.command(port), str(seconds)])


SERVERS = (
    _python_server("mcp-1.12.4", "mcp1", "400 text"),
    _python_server("mcp-1.25.0", "mcp1", "400 text"),
    _python_server("mcp-1.26.0", "mcp1", "404 JSON"),
    _python_server("mcp-1.30.0", "mcp1", "404 JSON"),
    _python_server("mcp-2.3.0", "mcp2", "404 JSON", sessionless=True),
    _python_server("fastmcp-2.14.7", "fastmcp", "404 JSON"),
    _python_server("fastmcp-4.1.2", "fastmcp", "404 JSON", sessionless=True),
    _typescript_server("1.29.0", 400),
    _typescript_server("1.32.2", 404),
    _everything_server(),
    _biomcp_server(),
    _rust_server("rmcp-0.15.0", "rmcp_0_15", "401 text"),
    _rust_server("rmcp-3.9.0", "rmcp_3", "404 text", sessionless=True),
    *GO_SERVERS,
)
MARKERS = {"rust": "cargo", "go": "go"}
"""The marker of what only ``make interop`` runs, by what installs its server."""


def _python_client(name: str, venv: str, script: str, *arguments: str, asks_discover: bool = False) -> ClientSpec:
    command = [str(VENVS / venv / "bin" / "python"), str(SUITE / "clients" / script), *arguments]
    return ClientSpec(name, command, (VENVS / venv / ".pins",), "python", asks_discover, dies_of_a_cut=True)


def _typescript_client(name: str, script: str) -> ClientSpec:
    return ClientSpec(name, ["node", str(SUITE / "node" / script)], (NODE_MODULES / ".pins",), "node")


CLIENTS = (
    _python_client("python-1.30.0", "mcp-1.30.0", "python1.py"),
    _python_client("python-2.3.0", "mcp-2.3.0", "python2.py", "auto", asks_discover=True),
    _python_client("python-2.3.0-legacy", "mcp-2.3.0", "python2.py", "legacy"),
    _typescript_client("typescript-1.32.2", "client_v1.mjs"),
    _typescript_client("typescript-2.4.0", "client_v2.mjs"),
)

# Played only where they are asked for: they have to be built.
GO_CLIENT = ClientSpec(
    "go-sdk-1.8.0", [str(GO_BUILDS / "go_sdk"), "client"], (GO_BUILDS / "go_sdk.pins",), "go", asks_discover=True
)
RUST_CLIENT = ClientSpec("rmcp-0.15.0", [str(RUST_BUILDS / "rmcp_client")], (RUST_BUILDS.parent / ".pins",), "rust")
