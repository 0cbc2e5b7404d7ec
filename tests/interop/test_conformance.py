"""The official conformance suite finds nothing worse through the sidecar."""

from __future__ import annotations

import pytest

from tests.interop.catalogue import ServerSpec
from tests.interop.conformance import PROGRAM, TARGETS, compare


@pytest.mark.interop
@pytest.mark.interop_full
@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in TARGETS])
def test_no_scenario_is_worse_through_the_sidecar(spec: ServerSpec) -> None:
    """Each check of each scenario comes out at least as well as directly against the same server."""
    if reason := spec.missing:
        pytest.skip(reason)
    if not PROGRAM.exists():
        pytest.skip("the conformance suite is not installed; `python -m tools.interop_env conformance` does it")
    _, found = compare(spec)
    assert [str(difference) for difference in found if difference.worse] == []
