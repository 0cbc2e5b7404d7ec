"""What an edit did to the tools, prompts and resources of a server, in one short text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Items = Mapping[str, Any]
"""By what they are called; the value is all that the server says of one."""

LISTS: Final = {
    "tools": ("tools/list", "tools", "name"),
    "prompts": ("prompts/list", "prompts", "name"),
    "resources": ("resources/list", "resources", "uri"),
}
"""By capability: the method, the member of its result, and what an item is called by."""

MAX_SHOWN: Final = 6


def items_of(kind: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The items of a list's result."""
    _, member, key = LISTS[kind]
    found = result.get(member)
    listed = found if isinstance(found, list) else []
    return {str(item[key]): item for item in listed if isinstance(item, dict) and key in item}


def difference(before: Mapping[str, Items], after: Mapping[str, Items]) -> str:
    """Such as `tools: +add(x, y) ~search −old`; empty where nothing changed. A list that only one side has says nothing."""
    parts = []
    for kind in LISTS:
        if kind in before and kind in after:
            words = _changes(before[kind], after[kind], kind)
            if words:
                shown = words[:MAX_SHOWN] + ([f"and {len(words) - MAX_SHOWN} more"] if len(words) > MAX_SHOWN else [])
                parts.append(f"{kind}: {' '.join(shown)}")
    return " · ".join(parts)


def _changes(before: Items, after: Items, kind: str) -> list[str]:
    return [
        *(f"+{_shown(name, after[name], kind)}" for name in after if name not in before),
        *(f"~{name}" for name in after if name in before and after[name] != before[name]),
        *(f"−{name}" for name in before if name not in after),
    ]


def _shown(name: str, item: Any, kind: str) -> str:
    if kind != "tools" or not isinstance(item, dict):
        return name
    schema = item.get("inputSchema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return f"{name}({', '.join(properties)})" if isinstance(properties, dict) else name


def counted(lists: Mapping[str, Items]) -> str:
    """How much there is: `3 tools, 1 prompt`."""
    sizes: Sequence[tuple[str, int]] = [(kind, len(items)) for kind, items in lists.items() if items]
    return ", ".join(f"{size} {kind.removesuffix('s') if size == 1 else kind}" for kind, size in sizes)
