"""Which tools only read, by principal, as far as a server without sessions has said so in a `tools/list` of that principal's.

Where there are sessions their record keeps it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.replay import updated

MAX_PRINCIPALS: Final = 1000
MAX_TOOLS: Final = 1000
"""Of one principal; whoever is told of more is told of none."""


class SafeTools:
    """What principals were told, those that were told something last."""

    def __init__(self) -> None:
        """Nobody was told anything."""
        self._known: OrderedDict[Principal, frozenset[str]] = OrderedDict()

    def of(self, principal: Principal) -> frozenset[str]:
        """The tools that this principal may have called again in doubt."""
        return self._known.get(principal, frozenset())

    def learnt(self, principal: Principal, result: Mapping[str, Any], *, is_first_page: bool) -> None:
        """This principal was given one page of a list."""
        tools = updated(self._known.pop(principal, frozenset()), result, is_first_page=is_first_page)
        if 0 < len(tools) <= MAX_TOOLS:
            self._known[principal] = tools
        if len(self._known) > MAX_PRINCIPALS:
            self._known.popitem(last=False)
