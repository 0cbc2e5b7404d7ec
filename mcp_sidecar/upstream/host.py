"""The ``Host`` that the upstream gets (``upstream.host_header``)."""

from __future__ import annotations

from typing import Final

from yarl import URL

from mcp_sidecar.config import UpstreamConfig

AUTO: Final = "auto"
PASSED: Final = "client"
"""The client's own; where it has none, the upstream's as for ``auto``."""

_THE_CONTAINERS_HOST = frozenset({"host.docker.internal", "host.containers.internal"})
"""Servers there listen on loopback and know themselves by that name: the Python SDK answers any other with 421."""


def host_line(config: UpstreamConfig) -> str:
    """The whole header line."""
    if config.host_header not in (AUTO, PASSED):
        return f"Host: {config.host_header}"
    url = URL(config.origin)
    if url.host in _THE_CONTAINERS_HOST:
        url = url.with_host("localhost")
    return f"Host: {url.host_port_subcomponent}"
