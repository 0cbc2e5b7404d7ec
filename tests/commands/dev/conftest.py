"""What the tests of `dev` begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.dev.running import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A project with a server that has one tool."""
    return Folder(tmp_path)
