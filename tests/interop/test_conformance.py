"""The official conformance suite finds nothing worse through the sidecar."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.catalogue import ServerSpec
from tests.interop.conformance import PROGRAM, TARGETS, compare
from tests.interop.processes import DEFAULT_STORE, StoreOptions
from tests.interop.stores import STORES, store


@pytest.mark.interop
@pytest.mark.interop_full
@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in TARGETS])
def test_no_scenario_is_worse_through_the_sidecar(spec: ServerSpec) -> None:
    """Each check of each scenario comes out at least as well as directly against the same server."""
    nothing_is_worse(spec, DEFAULT_STORE)


@pytest.mark.interop
@pytest.mark.interop_full
@pytest.mark.parametrize("kind", STORES)
def test_no_store_makes_it_worse(kind: str, tmp_path: Path) -> None:
    """The same, wherever sessions are kept, on the server that has what every scenario asks for."""
    with store(kind, tmp_path) as options:
        nothing_is_worse(TARGETS[0], options)


def nothing_is_worse(spec: ServerSpec, kept_in: StoreOptions) -> None:
    """Run the suite both ways."""
    if reason := spec.missing:
        pytest.skip(reason)
    if not PROGRAM.exists():
        pytest.skip("the conformance suite is not installed; `python -m tools.interop_env conformance` does it")
    _, found = compare(spec, kept_in)
    assert [str(difference) for difference in found if difference.worse] == []
