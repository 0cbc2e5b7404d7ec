"""What the benchmark makes of its figures: medians, ratios, tables and verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import __main__ as command_line
from bench import report, results, targets
from bench.plan import STREAMS, THROUGHPUT, possible_streams
from bench.procfs import CpuTime
from bench.results import Results, Row, of_rounds
from bench.sampling import DISTURBED, OTHER_IS_LIMIT, Used, told
from bench.statistics import difference, median, noise, percentile, ratio

CASE = "JSON, 16 connections"


def a_run(*rows: Row) -> Results:
    """Four contenders; what the rows do not say was not measured."""
    kinds = {
        "direct": "no proxy",
        "nginx": "proxy",
        "sidecar": "proxy",
        "fastmcp": "MCP proxy",
        "mcp-proxy": "MCP proxy",
    }
    about = {name: {"kind": kind, "form": "as it is"} for name, kind in kinds.items()}
    return Results({"run": "quick"}, about, list(rows))


def throughput(name: str, per_second: float, cpu_us: float | None, *notes: str) -> Row:
    return Row(THROUGHPUT, CASE, name, {"per_second": per_second, "cpu_us": cpu_us}, notes)


RUN = a_run(
    throughput("direct", 150_000, None),
    throughput("nginx", 60_000, 10, f"{OTHER_IS_LIMIT} (1 of 3 rounds)"),
    throughput("sidecar", 25_000, 24),
    throughput("fastmcp", 30, 30_000),
    throughput("mcp-proxy", 1_000, 900),
)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([], 0.5, None, id="nothing"),
        pytest.param([3], 0.99, 3, id="one"),
        pytest.param([3, 1, 2], 0.5, 2, id="middle"),
        pytest.param([4, 1, 2, 3], 0.5, 2.5, id="between two"),
        pytest.param([0, 100], 0.99, 99, id="near the end"),
    ],
)
def test_percentiles_are_interpolated(values: list[float], share: float, expected: float | None) -> None:
    """A share of no values is nothing, not zero."""
    assert percentile(values, share) == (None if expected is None else pytest.approx(expected))


def test_what_was_not_measured_stays_so() -> None:
    """No median, ratio or difference makes a figure out of a missing one."""
    assert median([None, 3, 1, None, 2]) == 2
    assert median([None]) is None
    assert ratio(3, 2) == 1.5
    assert ratio(3, 0) is None
    assert ratio(None, 2) is None
    assert difference(3, 2) == 1
    assert difference(3, None) is None


def used(own: float, other_core: float, proxy_core: float, processes: float) -> Used:
    return Used(1.0, CpuTime(own, 0.0), own, other_core, proxy_core, processes)


@pytest.mark.parametrize(
    ("round_", "flags"),
    [
        pytest.param(used(0.7, 0.8, 1.0, 0.72), (), id="the proxy is at its end"),
        pytest.param(used(0.6, 1.0, 0.8, 0.6), (OTHER_IS_LIMIT,), id="the generator is"),
        pytest.param(used(0.7, 1.0, 1.0, 0.7), (), id="both are"),
        pytest.param(used(0.5, 0.5, 1.0, 0.9), (DISTURBED,), id="somebody else"),
        pytest.param(used(0.7, 0.9, 1.0, 0.71), (), id="interrupts are nobody"),
    ],
)
def test_rounds_that_say_little_are_flagged(round_: Used, flags: tuple[str, ...]) -> None:
    """Where the other core is the limit, or somebody else had the proxy's, a reader has to know."""
    assert round_.flags() == flags


def test_noise_is_half_the_distance_in_percent_of_the_median() -> None:
    """One round has none, and what was not measured in a round does not count."""
    assert noise([90, 100, 110]) == pytest.approx(10)
    assert noise([None, 100, 120]) == pytest.approx(100 / 11)
    assert noise([100]) is None
    assert noise([]) is None


def test_a_figure_is_shown_with_the_noise_of_its_rounds() -> None:
    """A ratio's noise is that of the ratios of each round: what disturbed both in the same round is not noise of it."""
    rounds = {"nginx": (10.0, 20.0, 15.0), "sidecar": (20.0, 40.0, 30.0)}
    rows = [
        of_rounds(THROUGHPUT, CASE, name, [{"cpu_us": each, "per_second": 1000.0} for each in values])
        for name, values in rounds.items()
    ]
    text = report.render(a_run(*rows), as_markdown=True)
    assert cells(text, "sidecar")[2:] == ["1,000 ±0%", "1.00× ±0%", "30.0 ±33%", "2.0× ±0%"]
    assert cells(text, "nginx")[2:] == ["1,000 ±0%", "1.00×", "15.0 ±33%", "1.0×"]
    assert report.NOISE in text
    assert report.NOISE not in report.render(RUN)


def test_flags_are_counted_over_rounds() -> None:
    """One flagged round of many is another thing than all of them."""
    assert told([(DISTURBED,), (), (DISTURBED,)]) == (f"{DISTURBED} (2 of 3 rounds)",)
    assert told([(), ()]) == ()


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if f"| {name}" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_gives_ratios_to_nginx_and_to_the_best_mcp_proxy() -> None:
    """Most calls per second and least CPU are each the best; a contender compares with itself as 1."""
    text = report.render(RUN, as_markdown=True)
    assert cells(text, "sidecar") == [CASE, "sidecar", "25,000", "0.42×", "25.00×", "24.0", "2.4×", "0.03×"]
    assert cells(text, "nginx") == [CASE, "nginx*", "60,000", "1.00×", "60.00×", "10.0", "1.0×", "0.01×"]
    assert cells(text, "direct")[5:] == ["–", "–", "–"]


def test_columns_without_figures_are_left_out_and_notes_are_told() -> None:
    """The table shows what was measured; a name with an asterisk has a note under the table."""
    text = report.render(RUN)
    assert "p99" not in text
    assert f"* {CASE}, nginx: {OTHER_IS_LIMIT} (1 of 3 rounds)" in text


def test_markdown_tables_are_rectangular() -> None:
    """Every line of a table has as many cells as its header."""
    blocks = [
        block.splitlines() for block in report.render(RUN, as_markdown=True).split("\n\n") if block.startswith("|")
    ]
    assert len(blocks) == 3
    assert [len({line.count("|") for line in block}) for block in blocks] == [1, 1, 1]


def test_bounds_are_judged_by_what_the_run_has() -> None:
    """A claim without figures is not judged; one with figures holds or falls short."""
    judged = {verdict.claim: verdict for verdict in targets.verdicts(RUN)}
    assert set(judged) == {f"CPU per call, to nginx: {CASE}", f"calls per second, to the best MCP proxy: {CASE}"}
    assert all(verdict.holds for verdict in judged.values())
    slower = a_run(
        throughput("nginx", 60_000, 10), throughput("sidecar", 9_000, 61), throughput("mcp-proxy", 1_000, 900)
    )
    assert [verdict.word for verdict in targets.verdicts(slower)] == [targets.MISSED, targets.MISSED]


def test_what_is_aimed_at_stands_beside_the_bound() -> None:
    """A bound may hold and its aim not be reached; where there is none nothing is said of it."""
    said = {}
    for cpu_us in (20, 40):
        run = a_run(throughput("nginx", 60_000, 10), throughput("sidecar", 9_000, cpu_us))
        (verdict,) = targets.verdicts(run)
        said[cpu_us] = verdict.holds, verdict.aim_text
    assert said == {20: (True, "≤ 2.5×, reached"), 40: (True, "≤ 2.5×, not reached")}
    (verdict,) = targets.verdicts(a_run(Row(STREAMS, "5,000 streams", "sidecar", {"kib_each": 7.0})))
    assert (verdict.word, verdict.aim_text) == (targets.MET, "")


def test_only_the_cases_of_a_bound_are_held_against_it() -> None:
    """The bound on streams is on 5,000 of them."""
    rows = [Row(STREAMS, f"{count:,} streams", "sidecar", {"kib_each": 9.0}) for count in (1000, 5000)]
    assert [verdict.claim for verdict in targets.verdicts(a_run(*rows))] == ["memory of an idle stream: 5,000 streams"]


def test_results_survive_their_file(tmp_path: Path) -> None:
    """A report can be made of a run of another day."""
    run = a_run(*RUN.rows, of_rounds(STREAMS, "5,000 streams", "sidecar", [{"kib_each": 7.0}, {"kib_each": 8.0}]))
    run.write(tmp_path / "folder" / "run.json")
    assert report.render(results.read(tmp_path / "folder" / "run.json")) == report.render(run)


def test_a_report_is_printed_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m bench report FILE` prints the tables as Markdown, and needs no nginx."""
    RUN.write(tmp_path / "run.json")
    assert command_line.main(["report", str(tmp_path / "run.json")]) == 0
    assert capsys.readouterr().out == report.render(RUN, as_markdown=True)


def test_a_python_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, before anything is started."""
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["quick", "--python", "no-such-python"])
    assert "no-such-python not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("descriptors", "counts"),
    [
        pytest.param(100_000, (1000, 5000, 10_000), id="enough"),
        pytest.param(8_300, (1000, 4000), id="two for each stream"),
        pytest.param(100, (1,), id="hardly any"),
    ],
)
def test_no_more_streams_than_descriptors(descriptors: int, counts: tuple[int, ...]) -> None:
    """A stream takes two descriptors of a proxy, and a few are for everything else."""
    assert possible_streams((1000, 5000, 10_000), descriptors) == counts
