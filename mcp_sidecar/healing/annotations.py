"""Which tools may run twice, by what the server says of them (spec R50).

Hints are the server's own word; ``trust_annotations`` is the operator's decision to take it. Defaults are the
specification's: no hint means destructive and not idempotent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def safe_tools_in(result: Mapping[str, Any]) -> frozenset[str]:
    """The names of the tools in a ``tools/list`` result that declare ``readOnlyHint`` or ``idempotentHint``."""
    tools = result.get("tools")
    if not isinstance(tools, list):
        return frozenset()
    return frozenset(tool["name"] for tool in tools if _is_safe(tool))


def listed_tools_in(result: Mapping[str, Any]) -> frozenset[str]:
    """The names of all tools in a ``tools/list`` result."""
    tools = result.get("tools")
    if not isinstance(tools, list):
        return frozenset()
    return frozenset(tool["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str))


def updated(known: frozenset[str], result: Mapping[str, Any], *, is_first_page: bool) -> frozenset[str]:
    """The safe tools after one more page of ``tools/list``; what the page lists anew counts as it says now."""
    safe = safe_tools_in(result)
    return safe if is_first_page else (known - listed_tools_in(result)) | safe


def _is_safe(tool: object) -> bool:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        return False
    hints = tool.get("annotations")
    return isinstance(hints, dict) and (hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True)
