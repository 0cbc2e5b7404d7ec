"""One client request on its way through the endpoint."""

from __future__ import annotations

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.endpoint.passthrough import Passthrough
from mcp_sidecar.endpoint.post import Post
from mcp_sidecar.healing.labels import NO_METHOD, OTHER
from mcp_sidecar.sessions.in_flight import InFlight
from mcp_sidecar.streams.listener import Listener
from mcp_sidecar.wire.headers import NO_FIELDS
from mcp_sidecar.wire.jsonrpc import Message


class Incoming:
    """One client request on its way: what is known of it before anybody decides."""

    __slots__ = (
        "begun",
        "fields",
        "headers",
        "in_session",
        "is_refused",
        "is_traced",
        "listener",
        "message",
        "method",
        "owner",
        "request",
        "responder",
        "rpc_label",
        "started_at",
        "target",
        "way",
    )

    def __init__(self, request: Request, responder: Responder) -> None:
        """``rpc_label`` becomes known when the body is read."""
        self.request = request
        self.method = request.method
        self.fields = request.fields
        self.target = request.target
        self.responder = responder
        self.rpc_label = OTHER if request.method == "POST" else NO_METHOD
        self.message: Message | None = None
        self.in_session = False
        self.is_refused = False
        self.way: Post | Passthrough | None = None
        self.listener: Listener | None = None
        self.begun = in_flight(request)
        self.started_at = 0.0
        self.is_traced = False
        self.owner = request.connection

    def forget_head(self) -> None:
        """From now on only the answer counts."""
        self.fields, self.target = NO_FIELDS, ""
        self.request.forget_head()


def in_flight(request: Request) -> InFlight | None:
    """What of it the fast path has sent already."""
    return request.in_flight if isinstance(request.in_flight, InFlight) else None
