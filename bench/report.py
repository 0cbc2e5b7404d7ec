"""Tables out of results, as plain text for the terminal or as Markdown for the documents.

Absolute figures belong to one machine; ratios to nginx and to the best MCP proxy of the same run can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.contenders import DIRECT, NGINX, Kind
from bench.plan import BODIES, CROWDS, EVENTS, HEALS, LATENCY, SESSIONS, STORES, STREAMS, THROUGHPUT
from bench.results import Results, Row
from bench.statistics import difference, noise, ratio
from bench.targets import verdicts

NOTHING: Final = "–"
NOISE: Final = (
    "± is the noise: half the distance between the largest and the least of the rounds, in percent of the median."
)


def _no_noise(_: Results, __: Row) -> float | None:
    return None


@dataclass(frozen=True, slots=True)
class Cell:
    """What a column shows of a row."""

    title: str
    value: Callable[[Results, Row], float | None]
    digits: int = 0
    suffix: str = ""
    noise: Callable[[Results, Row], float | None] = _no_noise
    """In percent."""

    def text(self, results: Results, row: Row) -> str:
        """Return the figure as it is shown."""
        value = self.value(results, row)
        if value is None:
            return NOTHING
        spread = self.noise(results, row)
        return f"{value:,.{self.digits}f}{self.suffix}" + ("" if spread is None else f" ±{spread:.0f}%")


def figure(title: str, name: str, digits: int = 0, scale: float = 1.0, suffix: str = "") -> Cell:
    """Show a figure, divided by ``scale``, and its noise."""

    def value(_: Results, row: Row) -> float | None:
        found = row.figures.get(name)
        return None if found is None else found / scale

    return Cell(title, value, digits, suffix, lambda _, row: noise(row.rounds.get(name, ())))


def to_nginx(title: str, name: str, digits: int = 1) -> Cell:
    """Show how many times nginx's figure this is; the noise is that of the ratios of each round."""

    def value(results: Results, row: Row) -> float | None:
        return ratio(row.figures.get(name), results.figure(row.measure, row.case, NGINX, name))

    def spread(results: Results, row: Row) -> float | None:
        nginx = results.row(row.measure, row.case, NGINX)
        own, its = row.rounds.get(name, ()), nginx.rounds.get(name, ()) if nginx is not None else ()
        if row.contender == NGINX or len(own) != len(its):
            return None
        return noise(ratio(*pair) for pair in zip(own, its, strict=True))

    return Cell(title, value, digits, "×", spread)


def to_best_mcp_proxy(title: str, name: str, best: Callable[[Iterable[float]], float]) -> Cell:
    """Show how many times the figure of the best MCP proxy in this case this is."""

    def value(results: Results, row: Row) -> float | None:
        return ratio(row.figures.get(name), best_mcp_proxy(results, row.measure, row.case, name, best))

    return Cell(title, value, 2, "×")


def best_mcp_proxy(
    results: Results, measure: str, case: str, name: str, best: Callable[[Iterable[float]], float]
) -> float | None:
    """Return the best figure of the MCP proxies, None where no one has any."""
    found = [results.figure(measure, case, contender, name) for contender in results.of_kind(Kind.MCP_PROXY.value)]
    measured = [value for value in found if value is not None]
    return best(measured) if measured else None


def added(title: str, name: str) -> Cell:
    """Show what comes on top of the same without a proxy."""

    def value(results: Results, row: Row) -> float | None:
        if row.contender == DIRECT:
            return None
        return difference(row.figures.get(name), results.figure(row.measure, row.case, DIRECT, name))

    return Cell(title, value)


def added_to_nginx(title: str, name: str) -> Cell:
    """Show how many times as much comes on top as with nginx."""
    more = added("", name)

    def value(results: Results, row: Row) -> float | None:
        nginx = Row(row.measure, row.case, NGINX, {name: results.figure(row.measure, row.case, NGINX, name)})
        return ratio(more.value(results, row), more.value(results, nginx))

    return Cell(title, value, 1, "×")


@dataclass(frozen=True, slots=True)
class Table:
    """One table per measure: a title that says what is shown, and the columns after case and contender."""

    title: str
    cells: tuple[Cell, ...]


TABLES: Final[dict[str, Table]] = {
    THROUGHPUT: Table(
        "Calls per second, at the limit unless a rate is named, and CPU of the proxy per call (µs)",
        (
            figure("calls/s", "per_second"),
            to_nginx("to nginx", "per_second", 2),
            to_best_mcp_proxy("to best MCP proxy", "per_second", max),
            figure("CPU µs", "cpu_us", 1),
            figure("user", "user_us", 1),
            figure("system", "system_us", 1),
            to_nginx("CPU to nginx", "cpu_us"),
            figure("CPU to plain JSON", "to_plain", 2, suffix="×"),
            to_best_mcp_proxy("CPU to best MCP proxy", "cpu_us", min),
            figure("p50 µs", "p50_us"),
            figure("p99 µs", "p99_us"),
        ),
    ),
    LATENCY: Table(
        "At a fixed rate: duration of a call (µs), and what the proxy adds",
        (
            figure("p50", "p50_us"),
            figure("p99", "p99_us"),
            added("added p50", "p50_us"),
            added("added p99", "p99_us"),
            added_to_nginx("added p50 to nginx", "p50_us"),
            figure("CPU µs", "cpu_us", 1),
            to_nginx("CPU to nginx", "cpu_us"),
        ),
    ),
    STREAMS: Table(
        "Open, idle GET streams",
        (
            figure("KiB each", "kib_each", 1),
            to_nginx("to nginx", "kib_each", 2),
            figure("process MiB", "total_mib", 1),
            figure("open", "open"),
            figure("attached again", "attached"),
            figure("after s", "seconds", 2),
            figure("peak MiB", "peak_mib", 1),
        ),
    ),
    SESSIONS: Table(
        "Idle sessions",
        (
            figure("KiB each", "kib_each", 2),
            figure("process MiB", "total_mib", 1),
            figure("CPU µs to open one", "cpu_us"),
        ),
    ),
    EVENTS: Table(
        "Forwarded events: time on the way and CPU of the proxy per event (µs)",
        (
            figure("p50", "p50_us"),
            figure("p99", "p99_us"),
            added("added p50", "p50_us"),
            figure("CPU µs", "cpu_us", 1),
            to_nginx("CPU to nginx", "cpu_us"),
        ),
    ),
    BODIES: Table(
        "Large bodies",
        (
            figure("ms", "ms", 1),
            to_nginx("to nginx", "ms"),
            figure("CPU ms", "cpu_ms", 1),
            to_nginx("CPU to nginx", "cpu_ms"),
            figure("peak growth MiB", "peak_growth_mib", 2),
        ),
    ),
    CROWDS: Table(
        "Messages of very many small parts, and another client's pings meanwhile",
        (
            figure("CPU ms", "cpu_ms", 1),
            to_nginx("to nginx", "cpu_ms"),
            figure("to json.loads", "to_loads", 1, suffix="×"),
            figure("per byte, to fewer", "to_fewer", 2, suffix="×"),
            figure("longest ping ms", "longest_ping_us", 1, 1000),
        ),
    ),
    HEALS: Table(
        "Coming back",
        (
            figure("plain call ms", "plain_us", 2, 1000),
            figure("p50 ms", "p50_us", 2, 1000),
            figure("p99 ms", "p99_us", 2, 1000),
            figure("all after ms", "all_ms"),
            figure("results", "good"),
            figure("requests per heal", "requests_per_heal", 1),
            figure("CPU µs per request", "cpu_us", 1),
            figure("plain call's CPU µs", "plain_cpu_us", 1),
            figure("to plain", "to_plain", 1, suffix="×"),
        ),
    ),
    STORES: Table(
        "With each store: CPU of the sidecar for a plain call and to open a session (µs), and memory of an idle stream",
        (
            figure("call", "cpu_us", 1),
            figure("to memory:", "to_memory", 2, suffix="×"),
            figure("opening", "opening_us", 1),
            figure("to memory:", "opening_to_memory", 2, suffix="×"),
            figure("KiB of an idle stream", "stream_kib", 1),
        ),
    ),
}


def render(results: Results, *, as_markdown: bool = False) -> str:
    """Return all that was measured as tables, then what must hold."""
    heading = "### {}" if as_markdown else "{}"
    draw = _markdown if as_markdown else _plain
    parts = [" · ".join(f"{name} {value}" for name, value in results.about.items())]
    parts += [NOISE] if any(row.rounds for row in results.rows) else []
    for measure, table in TABLES.items():
        rows = [row for row in results.rows if row.measure == measure]
        if rows:
            parts += [heading.format(table.title), draw(*_texts(results, table, rows)), *_notes(rows, as_markdown)]
    judged = verdicts(results)
    if judged:
        lines = [[each.claim, each.text, each.bound_text, each.word, each.aim_text] for each in judged]
        parts += [heading.format("What must hold"), draw(["claim", "measured", "bound", "", "aim"], lines)]
    parts += [heading.format("Who is who"), draw(["name", "what it is here"], _forms(results))]
    return "\n\n".join(parts) + "\n"


def _forms(results: Results) -> list[list[str]]:
    return [[name, f"{about['kind']}: {about['form']}"] for name, about in results.contenders.items()]


def _texts(results: Results, table: Table, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    # A column that would be empty is left out, and rows of one case stand together.
    cases = list(dict.fromkeys(row.case for row in rows))
    ordered = sorted(rows, key=lambda row: cases.index(row.case))
    shown = [cell for cell in table.cells if any(cell.text(results, row) != NOTHING for row in ordered)]
    header = ["", "", *(cell.title for cell in shown)]
    return header, [[row.case, _name(row), *(cell.text(results, row) for cell in shown)] for row in ordered]


def _name(row: Row) -> str:
    return f"{row.contender}*" if row.notes else row.contender


def _notes(rows: Iterable[Row], as_markdown: bool) -> list[str]:
    bullet = "- " if as_markdown else "  * "
    noted = [f"{bullet}{row.case}, {row.contender}: {'; '.join(row.notes)}" for row in rows if row.notes]
    return ["\n".join(noted)] if noted else []


def _plain(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[place]) for line in (header, *lines)) for place in range(len(header))]
    aligned = ([_aligned(*pair) for pair in zip(line, widths, strict=True)] for line in (header, *lines))
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _aligned(text: str, width: int) -> str:
    return text.rjust(width) if _is_number(text) else text.ljust(width)


def _is_number(text: str) -> bool:
    return text == NOTHING or text[:1].isdigit() or text[:1] == "-"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    numeric = [bool(lines) and all(_is_number(line[place]) for line in lines) for place in range(len(header))]
    rule = ["--:" if is_numeric else "---" for is_numeric in numeric]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
