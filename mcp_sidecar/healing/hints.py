"""What a client is told after a heal without having asked: notifications that its own revision knows.

Whatever was lost with the old upstream session is said in the client's own terms: a question that nobody waits for is
cancelled, a subscribed resource may have changed meanwhile, a list is not what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_sidecar.facts import HintKind, ListKind
from mcp_sidecar.healing.policy import Announce
from mcp_sidecar.wire.jsonrpc import JsonRpcId, dump

RESTARTED = "The MCP server restarted or forgot this session: its in-memory state is new."

_LEVELS_WITH_WARNINGS = frozenset({"debug", "info", "notice", "warning"})


@dataclass(frozen=True, slots=True)
class Hint:
    """One notification, ready to be sent."""

    kind: HintKind
    body: bytes


def resource_updated(uri: str) -> Hint:
    """Updates were missed: the client reads the resource again (server/resources, "Subscriptions")."""
    return _hint(HintKind.UPDATED, "notifications/resources/updated", {"uri": uri})


def question_cancelled(seen_id: JsonRpcId) -> Hint:
    """A question died with its server: no dialog stays open for it (basic/utilities/cancellation)."""
    params = {"requestId": seen_id, "reason": "The MCP server restarted"}
    return _hint(HintKind.CANCELLED, "notifications/cancelled", params)


def list_changed(kind: ListKind) -> Hint:
    """A list is not what the client saw: it asks for it again (server/tools, "List Changed Notification")."""
    return _hint(HintKind.LIST_CHANGED, f"notifications/{kind.value}/list_changed", {})


def restarted(announce: Announce, log_level: str | None) -> tuple[Hint, ...]:
    """The server's in-memory state is new: said where the client wants to read warnings (server/utilities/logging)."""
    if announce is Announce.OFF or log_level not in _LEVELS_WITH_WARNINGS:
        return ()
    params = {"level": "warning", "logger": "mcp-sidecar", "data": RESTARTED}
    return (_hint(HintKind.MESSAGE, "notifications/message", params),)


def _hint(kind: HintKind, method: str, params: Mapping[str, Any]) -> Hint:
    return Hint(kind, dump({"jsonrpc": "2.0", "method": method, "params": params}))
