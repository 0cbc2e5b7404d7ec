"""What clients get without the sidecar and through it, as a Markdown table.

    python -m tests.interop.table

It prints what the last runs wrote down: ``INTEROP_DIRECT=1 pytest tests/interop`` and ``pytest tests/interop``.
A cell tells how many calls of all clients gave a result; the dagger marks those with clients that got no answer or died.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field

from tests.interop.catalogue import SERVERS
from tests.interop.lab import records_file
from tests.interop.scenarios import SCENARIOS

Cells = dict[tuple[str, str], "Cell"]


@dataclass(slots=True)
class Cell:
    """The calls of all clients in one scenario on one server."""

    kinds: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.kinds:
            return "–"
        dagger = " †" if {"timeout", "dead"} & set(self.kinds) else ""
        return f"{self.kinds.count('result')}/{len(self.kinds)}{dagger}"


def cells(direct: bool) -> Cells:
    """Read the outcomes of one kind of run."""
    file = records_file(direct)
    if not file.exists():
        return {}
    gathered: Cells = defaultdict(Cell)
    for name, outcome in json.loads(file.read_text()).items():
        server, scenario, _client = name.split("|")
        gathered[server, scenario].kinds += outcome["kinds"]
    return gathered


def rows(direct: Cells, through: Cells) -> list[str]:
    """Return the lines of the table."""
    heads = ["server", "a lost session is", *SCENARIOS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for spec in SERVERS:
        told = [f"{direct.get((spec.name, s), Cell())} → {through.get((spec.name, s), Cell())}" for s in SCENARIOS]
        lines.append("| " + " | ".join([spec.name, spec.loses_sessions_with, *told]) + " |")
    return lines


def main() -> int:
    """Print the table: successful calls directly → through the sidecar."""
    print("\n".join(rows(cells(direct=True), cells(direct=False))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
