"""The ``Host`` that the upstream gets (``upstream.host_header``)."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from mcp_sidecar.config import UpstreamConfig
from mcp_sidecar.wire.origins import DEFAULT_PORTS

AUTO: Final = "auto"
PASSED: Final = "client"
"""The client's own; where it has none, the upstream's as for ``auto``."""

_THE_CONTAINERS_HOST = frozenset({"host.docker.internal", "host.containers.internal"})
"""Servers there listen on loopback and know themselves by that name: the Python SDK answers any other with 421."""


def host_line(config: UpstreamConfig) -> str:
    """The whole header line."""
    if config.host_header not in (AUTO, PASSED):
        return f"Host: {config.host_header}"
    parts = urlsplit(config.origin)
    host = (parts.hostname or "").rstrip(".")
    if host in _THE_CONTAINERS_HOST:
        host = "localhost"
    shown = f"[{host}]" if ":" in host else host
    is_usual = parts.port in (None, DEFAULT_PORTS.get(parts.scheme))
    return f"Host: {shown}" if is_usual else f"Host: {shown}:{parts.port}"
