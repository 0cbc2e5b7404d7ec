"""What clients send, as a table. The rule: each message carries a marker, so that the ledger can count what it caused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.support.client import McpClient

Body = dict[str, Any] | list[dict[str, Any]]


class Safety(Enum):
    """Whether a message may run twice: always, where the tool's hints are known and trusted, or never."""

    HARMLESS = "harmless"
    HINTED = "hinted"
    NEVER = "never"


class Kind(Enum):
    """Which form the answers to a message have."""

    INITIALIZE = "initialize"
    REQUEST = "request"
    SILENT = "silent"  # nobody waits for more than 202


@dataclass(frozen=True, slots=True)
class Traffic:
    """One message of a client. ``build`` gets the client and the marker."""

    name: str
    build: Callable[[McpClient, int], Body]
    safety: Safety
    kind: Kind = Kind.REQUEST
    is_response: bool = False


def _request(name: str, method: str, safety: Safety, **params: Any) -> Traffic:
    return Traffic(name, lambda client, n: client.request(method, {**params, "marker": n}), safety)


def tool(client: McpClient, n: int, name: str, **params: Any) -> dict[str, Any]:
    """A marked tool call."""
    return client.request("tools/call", {"name": name, "arguments": {"text": "hello", "marker": n}, **params})


def _tool(name: str, safety: Safety) -> Traffic:
    return Traffic(name, lambda client, n: tool(client, n, name), safety)


def note(method: str, n: int, **params: Any) -> dict[str, Any]:
    """A marked notification."""
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": {**params, "marker": n}}


def _note(method: str, safety: Safety, **params: Any) -> Traffic:
    return Traffic(f"notified-{method}", lambda _, n: note(method, n, **params), safety, Kind.SILENT)


def _initialize(client: McpClient, n: int) -> Body:
    info = {"name": "test-client", "version": "1"}
    params = {"protocolVersion": client.version, "capabilities": {}, "clientInfo": info, "marker": n}
    return client.request("initialize", params)


def _safe_batch(client: McpClient, n: int) -> Body:
    return [
        client.request("ping", {"marker": n}),
        note("roots/list_changed", n),
        client.request("tools/list", {"marker": n}),
    ]


def _unsafe_batch(client: McpClient, n: int) -> Body:
    return [tool(client, n, "charge"), note("progress", n, progressToken="t", progress=1)]


def _mixed_batch(client: McpClient, n: int) -> Body:
    return [client.request("ping"), tool(client, n, "charge"), note("roots/list_changed", 0)]


TRAFFIC = (
    Traffic("initialize", _initialize, Safety.HARMLESS, Kind.INITIALIZE),
    _request("ping", "ping", Safety.HARMLESS),
    _request("tools/list", "tools/list", Safety.HARMLESS),
    _request("resources/read", "resources/read", Safety.HARMLESS, uri="fake://one"),
    _request("unknown-method", "x/unknown", Safety.NEVER),
    _tool("echo", Safety.HINTED),
    _tool("put", Safety.HINTED),
    _tool("charge", Safety.NEVER),
    Traffic("task", lambda client, n: tool(client, n, "echo", task={"ttl": 60000}), Safety.NEVER),
    _note("initialized", Safety.HARMLESS),
    _note("cancelled", Safety.HARMLESS, requestId="nobody"),
    _note("roots/list_changed", Safety.HARMLESS),
    _note("progress", Safety.NEVER, progressToken="t", progress=1),
    _note("x/unknown", Safety.NEVER),
    Traffic(
        "response",
        lambda _, n: {"jsonrpc": "2.0", "id": n, "result": {}},
        Safety.NEVER,
        Kind.SILENT,
        is_response=True,
    ),
    Traffic("batch-safe", _safe_batch, Safety.HARMLESS),
    Traffic("batch-unsafe", _unsafe_batch, Safety.NEVER),
    Traffic("batch-mixed", _mixed_batch, Safety.NEVER),
    Traffic(
        "batch-silent",
        lambda _, n: [note("roots/list_changed", n), note("cancelled", n, requestId=1)],
        Safety.HARMLESS,
        Kind.SILENT,
    ),
)
