"""The ``Host`` that the upstream gets."""

from __future__ import annotations

import pytest

from tests.support.raw_upstream import RawUpstream
from tests.upstream.sending import sender, whole


@pytest.mark.parametrize(
    ("origin", "setting", "line"),
    [
        ("http://server", "auto", "Host: server"),
        ("http://server:9000", "auto", "Host: server:9000"),
        ("http://[::1]:9", "auto", "Host: [::1]:9"),
        ("https://server:443", "auto", "Host: server"),
        ("http://host.docker.internal:9000", "auto", "Host: localhost:9000"),
        ("http://host.containers.internal", "auto", "Host: localhost"),
        ("http://host.docker.internal:9000", "mcp.example.com", "Host: mcp.example.com"),
        ("http://server:9000", "mcp.example.com:8443", "Host: mcp.example.com:8443"),
        ("http://host.docker.internal:9000", "client", "Host: localhost:9000"),
    ],
)
async def test_the_upstream_is_named_as_it_knows_itself(origin: str, setting: str, line: str) -> None:
    """By its URL, unless that is only a container's name for its host, or another name is set."""
    async with sender(origin, host_header=setting) as upstream:
        assert upstream.host_line == line


@pytest.mark.parametrize(
    ("setting", "headers", "hosts"),
    [
        ("auto", [], [b"127.0.0.1:%d"]),
        ("client", [], [b"127.0.0.1:%d"]),
        ("client", [("host", "mcp.example.com")], [b"mcp.example.com"]),
    ],
)
async def test_there_is_one_host(setting: str, headers: list[tuple[str, str]], hosts: list[bytes]) -> None:
    """The client's own where that is wanted and there is one."""
    async with RawUpstream() as server, sender(server.origin, host_header=setting) as upstream:
        await whole(await upstream.send("GET", "/", headers))
        assert server.last.values("host") == [host.replace(b"%d", b"%d" % server.port) for host in hosts]
