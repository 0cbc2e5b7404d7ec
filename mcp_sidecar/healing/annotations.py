"""Which tools may run twice, by what the server says of them (tools, annotations).

Hints are the server's own word; ``trust_annotations`` is the operator's decision to take it. Defaults are the
specification's: no hint means destructive and not idempotent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


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
