"""The rules of sidecars that restart, with Redis as their store, and by the real clock: it is another process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.sessions.test_durable import (  # noqa: F401 - collected here once more, with this module's ``store``
    TestCountingServer,
    TestOtherInstances,
    TestTwoAtOnce,
    TestWhoseItIs,
    test_a_listening_stream_comes_back,
    test_a_restart,
    test_again_and_again,
    test_what_the_client_had_set,
    test_what_was_ended_stays_so,
)
from tests.support.redis_server import NEEDS_REDIS
from tests.support.stores import Settings, shared_store

pytestmark = NEEDS_REDIS


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Settings]:
    async with shared_store("redis", tmp_path) as settings:
        yield settings
