"""Everything restarted at once, with SQLite. ``HERD_SESSIONS=10000`` has more sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.herd import all_are_healed
from tests.support.stores import shared_store


@pytest.mark.long
async def test_all_are_healed(tmp_path: Path) -> None:
    """Once each, few at a time, and the file is asked for each once."""
    async with shared_store("sqlite", tmp_path) as store:
        await all_are_healed(store)
