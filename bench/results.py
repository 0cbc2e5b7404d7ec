"""What was measured: rows of figures, kept as JSON between a run and its report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.statistics import median

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one piece of work. Figures carry their unit in their name; None is "not measured"."""

    measure: str
    case: str
    contender: str
    figures: Figures
    notes: tuple[str, ...] = ()
    rounds: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """What each round gave, of those figures that are medians of them."""


def of_rounds(
    measure: str,
    case: str,
    contender: str,
    rounds: Sequence[Figures],
    notes: Iterable[str] = (),
    **others: float | None,
) -> Row:
    """Return the row of the medians of what rounds gave, and of ``others`` that were measured once."""
    each = {name: [figures.get(name) for figures in rounds] for name in (rounds[0] if rounds else ())}
    figures = {name: median(values) for name, values in each.items()}
    return Row(measure, case, contender, {**figures, **others}, tuple(notes), each)


@dataclass(frozen=True, slots=True)
class Results:
    """A run: when, where, who, and its rows."""

    about: Mapping[str, str | int]
    contenders: Mapping[str, Mapping[str, str]]
    """Name to kind and form."""
    rows: list[Row] = field(default_factory=list)

    def row(self, measure: str, case: str, contender: str) -> Row | None:
        """Return one row, None where there is none."""
        for row in self.rows:
            if (row.measure, row.case, row.contender) == (measure, case, contender):
                return row
        return None

    def figure(self, measure: str, case: str, contender: str, name: str) -> float | None:
        """Return one figure, None where there is none."""
        row = self.row(measure, case, contender)
        return None if row is None else row.figures.get(name)

    def of_kind(self, kind: str) -> list[str]:
        """Return the names of the contenders of a kind."""
        return [name for name, about in self.contenders.items() if about["kind"] == kind]

    def write(self, file: Path) -> None:
        """Keep it as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = {"about": self.about, "contenders": self.contenders, "rows": [asdict(row) for row in self.rows]}
        file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> Results:
    """Read what ``Results.write`` wrote."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    return Results(whole["about"], whole["contenders"], _rows(whole["rows"]))


def _rows(entries: Iterable[dict[str, Any]]) -> list[Row]:
    return [Row(**{**entry, "notes": tuple(entry["notes"])}) for entry in entries]
