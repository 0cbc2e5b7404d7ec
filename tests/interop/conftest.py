"""The one laboratory of a test run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The processes that all tests of the suite share."""
    laboratory = Lab(tmp_path_factory.mktemp("interop"))
    yield laboratory
    laboratory.close()
