"""One request of a client, on its way to whoever answers it."""

from __future__ import annotations

from collections.abc import Hashable

from mcp_sidecar.downstream.upload import Upload
from mcp_sidecar.wire.framing import SizedBody
from mcp_sidecar.wire.headers import NO_FIELDS
from mcp_sidecar.wire.request import RequestHead


class Request:
    """One request of a client. ``in_flight`` is what the fast path has handed over with it, if it has."""

    __slots__ = (
        "connection",
        "fields",
        "in_flight",
        "is_http10",
        "keep_alive",
        "length",
        "method",
        "peer",
        "target",
        "upload",
    )

    def __init__(self, head: RequestHead, peer: str | None) -> None:
        """``connection`` is what it came on, for whoever must tell one from another.

        ``upload`` is set where a body follows; ``length`` is ``None`` where there is none, or it is not told.
        """
        self.method = head.method
        self.target = head.target
        self.fields = head.fields
        self.is_http10 = head.is_http10
        self.keep_alive = head.keep_alive
        self.peer = peer
        self.connection: Hashable | None = None
        self.upload: Upload | None = None
        self.length = head.framing.missing if isinstance(head.framing, SizedBody) else None
        self.in_flight: object | None = None

    def forget_head(self) -> None:
        """From now on only the answer counts."""
        self.fields, self.target = NO_FIELDS, ""
