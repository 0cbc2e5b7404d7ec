"""May this message be sent again? The replay matrix as a table by method and failure.

Two failures, two columns. *After a loss* the upstream said that it had no session, before it dispatched anything: the
message did not run. *In doubt* the connection broke after sending: it may have run, and only what is harmless twice
goes again (RFC 9110 §9.2.2).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mcp_sidecar.wire.jsonrpc import Kind, Message


class AfterLoss(Enum):
    """What becomes of a message whose session the upstream has lost; for a batch the first one that a member wants."""

    REPLAY = "replay"  # heal, then send it again
    HEAL_ONLY = "heal_only"  # the heal itself says it again (`notifications/initialized`)
    DROP = "drop"  # it is about something that died with the session


@dataclass(frozen=True, slots=True)
class Row:
    """One method of the matrix."""

    after_loss: AfterLoss = AfterLoss.REPLAY
    safe_in_doubt: bool = False


_READ = Row(safe_in_doubt=True)
_SETS_A_VALUE = Row(safe_in_doubt=True)
_UNKNOWN = Row()

MATRIX: dict[str, Row] = {
    "initialize": Row(safe_in_doubt=True),  # costs at most an orphaned session
    "ping": _READ,
    "server/discover": _READ,
    "tools/list": _READ,
    "prompts/list": _READ,
    "prompts/get": _READ,
    "resources/list": _READ,
    "resources/templates/list": _READ,
    "resources/read": _READ,
    "completion/complete": _READ,
    "tasks/get": _READ,
    "tasks/list": _READ,
    "tasks/result": _READ,
    "tasks/cancel": _UNKNOWN,  # twice is harmless, but the second answer may mislead (-32602: already terminal)
    "logging/setLevel": _SETS_A_VALUE,
    "resources/subscribe": _SETS_A_VALUE,
    "resources/unsubscribe": _SETS_A_VALUE,
    "notifications/initialized": Row(AfterLoss.HEAL_ONLY, safe_in_doubt=True),
    "notifications/cancelled": Row(AfterLoss.DROP, safe_in_doubt=True),
    "notifications/progress": Row(AfterLoss.DROP),  # values must increase: a second copy breaks the rule
    "notifications/roots/list_changed": Row(safe_in_doubt=True),
}
"""``tools/call`` is not here: it depends on the tool. What is not in the table is unknown, hence unsafe in doubt."""


def after_loss(message: Message) -> AfterLoss:
    """What to do with a message that a lost session refused.

    A JSON-RPC response never goes to a newer session: the new server's question with the same id may be another one
    (basic, "Requests"). A batch is replayed if any member is to be, else left to the heal if any member is.
    """
    if message.kind is Kind.RESPONSE:
        return AfterLoss.DROP
    if message.kind is Kind.BATCH and message.members:
        wanted = {after_loss(member) for member in message.members}
        return next(choice for choice in AfterLoss if choice in wanted)
    return MATRIX.get(message.method or "", _UNKNOWN).after_loss


def is_safe_in_doubt(message: Message, safe_tools: Container[str]) -> bool:
    """Whether a message that may have run may be sent again.

    ``safe_tools`` are the names that the ``tools/list`` of this principal declared ``readOnlyHint`` or
    ``idempotentHint`` (tools, annotations); empty where annotations are not trusted. Task-augmented calls never are (tasks).
    A batch is as safe as its least safe member.
    """
    if message.kind is Kind.BATCH:
        return bool(message.members) and all(is_safe_in_doubt(member, safe_tools) for member in message.members)
    if message.method == "tools/call" and not safe_tools:
        return False
    if message.kind not in (Kind.REQUEST, Kind.NOTIFICATION) or message.has_task:
        return False
    if message.method == "tools/call":
        return message.tool_name is not None and message.tool_name in safe_tools
    return MATRIX.get(message.method or "", _UNKNOWN).safe_in_doubt


def safe_tools_in(result: Mapping[str, Any]) -> frozenset[str]:
    """The names of the tools in a ``tools/list`` result that declare ``readOnlyHint`` or ``idempotentHint``.

    A name that is listed twice is safe if it is so each time.
    """
    tools = list(_tools_in(result))
    return frozenset(tool["name"] for tool in tools if _is_safe(tool)) - frozenset(
        tool["name"] for tool in tools if not _is_safe(tool)
    )


def listed_tools_in(result: Mapping[str, Any]) -> frozenset[str]:
    """The names of all tools in a ``tools/list`` result."""
    return frozenset(tool["name"] for tool in _tools_in(result))


def updated(known: frozenset[str], result: Mapping[str, Any], *, is_first_page: bool) -> frozenset[str]:
    """The safe tools after one more page of ``tools/list``; what the page lists anew counts as it says now."""
    safe = safe_tools_in(result)
    return safe if is_first_page else (known - listed_tools_in(result)) | safe


def _tools_in(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    tools = result.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and isinstance(tool.get("name"), str):
            yield tool


def _is_safe(tool: Mapping[str, Any]) -> bool:
    hints = tool.get("annotations")
    return isinstance(hints, dict) and (hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True)
