"""The matrix of faults in sessions that a sidecar knows from a store alone, by the real clock: files and processes take time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_sidecar.facts import SidecarFault
from tests.faults.evidence import CASES, Case, Evidence
from tests.faults.promises import Knowledge, Moment
from tests.faults.test_matrix import standing
from tests.support.behaviour import Answers
from tests.support.stores import ALL, shared_store


def _cells_of_stores() -> Iterator[pytest.ParameterSet]:
    """The moment at which a session is lost as soon as it has been found. What takes its time is left to the other matrix."""
    for case in CASES:
        if case.evidence not in (Evidence.NOT_SENT, Evidence.POLLING, Evidence.STALLED):
            yield pytest.param(case, Moment.ONCE_LOST, id=case.name)


@pytest.mark.long
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("case", "moment"), list(_cells_of_stores()))
async def test_every_promise_is_kept_by_another_sidecar(case: Case, moment: Moment, kind: str, tmp_path: Path) -> None:
    """The same in sessions that this sidecar knows from the store alone, each from its first request on."""
    async with (
        shared_store(kind, tmp_path) as store,
        standing(case, Knowledge.BOUND, moment, Answers.JSON, store) as stood,
    ):
        problems = await stood.try_all()
        problems += [f"fault of the sidecar: {fact}" for fact in stood.sidecar.of(SidecarFault)]
    assert not problems, "\n" + "\n".join(problems)
