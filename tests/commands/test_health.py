"""``mcp-sidecar health``: what a container's health check runs."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.cli import main
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import running_sidecar


async def test_it_says_whether_the_sidecar_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    """Ready is 0, draining and gone are 1; the upstream need not be told, and is not asked."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url, admin="0.0.0.0:0") as sidecar:
        port = str(sidecar.admin_address).rpartition(":")[2]
        words = ["health", "--admin", f"0.0.0.0:{port}"]
        assert await asyncio.to_thread(main, words) == 0
        sidecar.is_accepting = False
        assert await asyncio.to_thread(main, words) == 1
        assert capsys.readouterr().err == "not ready: draining\n"
    assert await asyncio.to_thread(main, words) == 1
    assert "no answer at admin.address" in capsys.readouterr().err


def test_without_an_admin_listener_nobody_can_tell(capsys: pytest.CaptureFixture[str]) -> None:
    """It says so; a mistake in the settings is 2 as everywhere."""
    assert main(["health", "--admin", "off"]) == 1
    assert "admin.address is off" in capsys.readouterr().err
    assert main(["health", "--admin", "x"]) == 2
