"""Transport failures. What matters of each is whether the request can have arrived."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """Why there is no answer, or no whole one."""

    UNREACHABLE = "unreachable"  # refused, no name, no route, TLS failed: nothing was sent
    BROKEN = "broken"  # reset or closed after something was sent
    STALLED = "stalled"  # no byte for upstream.idle_timeout
    GARBLED = "garbled"  # the answer is not HTTP

    @property
    def may_have_arrived(self) -> bool:
        """Whether the upstream can have executed the request."""
        return self is not Fault.UNREACHABLE
