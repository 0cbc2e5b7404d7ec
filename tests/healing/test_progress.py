"""Over all runs of a call its progress increases; inside one nothing is judged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.marked_ids import Renumbering
from mcp_sidecar.healing.progress import MAX_TOKEN_CHARS, MAX_TOKENS, Progress
from mcp_sidecar.wire.jsonrpc import Message, dump, parse


def report(value: Any, token: Any = "t") -> Message:
    """A report of progress."""
    params = {"progressToken": token, "progress": value}
    return parse(dump({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))


def call(token: Any = "t") -> Message:
    """A call that wants to hear of its progress."""
    params = {"name": "x", "_meta": {"progressToken": token}}
    return parse(dump({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))


@pytest.mark.parametrize(
    ("reports", "passed"),
    [
        pytest.param([(1, 1), (1, 2), (1, 2), (1, 1)], [1, 2, 2, 1], id="one run, whatever it says"),
        pytest.param([(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)], [1, 2, 3], id="a second run"),
        pytest.param([(1, 1), (2, 2), (1, 3), (2, 3), (2, 4)], [1, 2, 3, 4], id="two runs that overlap"),
        pytest.param([(1, 0.5), (2, 0.5), (2, 0.6)], [0.5, 0.6], id="fractions"),
        pytest.param([(1, 5), (2, 1), (3, 4), (3, 6)], [5, 6], id="a third run"),
        pytest.param([(1, 5), (2, "far"), (2, None), (2, True)], [5, "far", None, True], id="no numbers"),
    ],
)
def test_what_passes(reports: list[tuple[int, Any]], passed: list[Any]) -> None:
    """A run has to overtake the one before it before it is seen."""
    progress = Progress()
    assert [value for run, value in reports if progress.lets_pass(report(value), run)] == passed


def sent_again(tokens: dict[str, str | int]) -> Progress:
    """Calls were sent again under these tokens, in front of the client's own."""
    progress = Progress()
    progress.renumber(Renumbering(tokens=tokens))
    return progress


def test_a_token_of_ours_stands_for_the_clients() -> None:
    """Sent again in one session a call reports under a new token: it is the same call's progress."""
    progress = sent_again({"ours": 7})
    assert progress.lets_pass(report(2, 7), 1)
    assert not progress.lets_pass(report(2, "ours"), 1)
    assert progress.lets_pass(report(3, "ours"), 1)
    assert progress.lets_pass(report(1, "7"), 1), "another token, however alike"


def test_a_token_that_is_too_long_is_not_kept() -> None:
    """A server may report on any: nothing is judged, and a call that was told so is not begun anew."""
    progress, long = Progress(), "t" * (MAX_TOKEN_CHARS + 1)
    assert Progress.judges(report(1, long[1:]))
    assert not Progress.judges(report(1, long))
    assert progress.lets_pass(report(2, long), 1)
    assert progress.lets_pass(report(1, long), 2)
    assert not progress._furthest


def test_forgotten_with_its_call() -> None:
    """A token may be used again once its call is over."""
    progress = sent_again({"ours": "t", "another": "u"})
    progress.lets_pass(report(5), 1)
    progress.forget(call())
    assert progress.lets_pass(report(1), 2)
    assert progress.renumbering.tokens == {"another": "u"}


@pytest.mark.parametrize("message", [call(), parse(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')], ids=["call", "none"])
def test_forgetting_what_nobody_reported_on(message: Message) -> None:
    """A call may end without a report, or never have asked for one."""
    empty, renewed = Progress(), sent_again({"ours": "t"})
    empty.forget(message)
    renewed.forget(message)
    assert empty == Progress()
    assert renewed.renumbering.tokens == ({} if message.progress_token else {"ours": "t"})


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            {"method": "notifications/message", "params": {"progressToken": "t", "progress": 1}}, id="another"
        ),
        pytest.param({"method": "notifications/progress", "params": {"progress": 1}}, id="of no call"),
        pytest.param({"method": "notifications/progress"}, id="empty"),
        pytest.param({"id": 1, "result": {"progress": 1}}, id="an answer"),
    ],
)
def test_what_is_no_progress_passes(message: dict[str, Any]) -> None:
    """And nothing of it is remembered."""
    progress, parsed = Progress(), parse(dump({"jsonrpc": "2.0", **message}))
    assert not progress.judges(parsed)
    assert [progress.lets_pass(parsed, run) for run in (1, 2, 1)] == [True] * 3
    assert progress == Progress()


def test_bounded() -> None:
    """A server that reports on any number of calls costs no more than a thousand."""
    progress = Progress()
    for token in range(3 * MAX_TOKENS):
        assert progress.lets_pass(report(1, token), 1)
    assert not progress.lets_pass(report(1, 3 * MAX_TOKENS - 1), 2)
    assert progress.lets_pass(report(1, 0), 2), "forgotten"


@given(st.lists(st.lists(st.integers(0, 20), unique=True).map(sorted), max_size=6))
def test_increases_over_any_runs(runs: list[list[int]]) -> None:
    """Each run increases by itself: so does what the client sees of all of them."""
    progress = Progress()
    seen = [value for run, values in enumerate(runs, 1) for value in values if progress.lets_pass(report(value), run)]
    assert seen == sorted(set(seen))
