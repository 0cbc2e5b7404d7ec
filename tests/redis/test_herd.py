"""Everything restarted at once, with Redis. ``HERD_SESSIONS=10000`` has more sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.herd import all_are_healed
from tests.support.redis_server import NEEDS_REDIS
from tests.support.stores import shared_store


@pytest.mark.long
@NEEDS_REDIS
async def test_all_are_healed(tmp_path: Path) -> None:
    """Once each, few at a time, and Redis is asked for each once."""
    async with shared_store("redis", tmp_path) as store:
        await all_are_healed(store)
