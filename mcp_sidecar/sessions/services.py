"""What the exchanges of this process work with, each thing once. Put together by ``app``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcp_sidecar.config import Limits
from mcp_sidecar.facts import Emit
from mcp_sidecar.healing.policy import Policy
from mcp_sidecar.sessions.open_streams import OpenStreams
from mcp_sidecar.sessions.sessions import Sessions
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.waiting.hold import Holds


@dataclass(slots=True, kw_only=True)
class Services:
    """``clock`` gives monotonic seconds."""

    upstream: Upstream
    sessions: Sessions
    holds: Holds
    streams: OpenStreams
    policy: Policy
    limits: Limits
    emit: Emit
    clock: Callable[[], float]
