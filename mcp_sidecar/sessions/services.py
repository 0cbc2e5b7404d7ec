"""What every exchange of this process works with, put together once by ``app``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mcp_sidecar.config import Limits
from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.facts import Emit
from mcp_sidecar.healing.policy import Mode, Policy
from mcp_sidecar.healing.principal import Principals
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.healer import Healer
from mcp_sidecar.sessions.list_check import ListCheck
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.open_streams import GetStreams, UpstreamStreams
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.waiting.availability import Availability
from mcp_sidecar.waiting.hold import Holds
from mcp_sidecar.wire.jsonrpc import JsonRpcId


@dataclass(slots=True)
class Open:
    """What is open now, for the gauges."""

    get_streams: int = 0
    post_streams: int = 0

    @contextmanager
    def post(self, *, is_stream: bool) -> Iterator[None]:
        """While the block runs the answer to a POST is passed on, and counts if it is a stream."""
        self.post_streams += is_stream
        try:
            yield
        finally:
            self.post_streams -= is_stream


@dataclass(slots=True, kw_only=True)
class Services:
    """The process's own things. ``principals`` hold the secret of their hashes; ``endpoint_worked`` is set by the first 2xx.

    ``renumbered`` tells under which new id a request of a client is under way (basic, "Requests").
    """

    upstream: Upstream
    table: SessionTable
    holds: Holds
    availability: Availability
    healer: Healer
    keepalive: Keepalive
    get_streams: GetStreams
    upstream_streams: UpstreamStreams
    notifier: Notifier
    list_check: ListCheck
    policy: Policy
    limits: Limits
    emit: Emit
    clock: Callable[[], float]
    new_id: Callable[[], str]
    principals: Principals
    endpoint_worked: bool = False
    open: Open = field(default_factory=Open)
    renumbered: dict[tuple[Session, JsonRpcId], str] = field(default_factory=dict)

    @property
    def heals(self) -> bool:
        """Whether this process may hold, probe, heal and replay."""
        return self.policy.mode is Mode.HEAL

    @property
    def observes(self) -> bool:
        """Whether this process changes nothing."""
        return self.policy.mode is Mode.OBSERVE
