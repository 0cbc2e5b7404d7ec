"""Markers and the one laboratory of a test run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.lab import Lab


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers by which the suite is selected."""
    config.addinivalue_line("markers", "interop: real SDK servers under real SDK clients; needs tools/interop_env.py")
    config.addinivalue_line("markers", "cargo: needs the servers that cargo builds")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The processes that all tests of the suite share."""
    laboratory = Lab(tmp_path_factory.mktemp("interop"))
    yield laboratory
    laboratory.close()
