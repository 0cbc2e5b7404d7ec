"""The bounded sets of labels: nothing that a client makes up ever becomes one."""

from __future__ import annotations

from mcp_sidecar.wire.jsonrpc import Kind, Message

NO_METHOD = "none"
BATCH = "batch"
OTHER = "other"

RPC_METHODS = frozenset(
    {
        "initialize",
        "ping",
        "tools/list",
        "tools/call",
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "completion/complete",
        "logging/setLevel",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tasks/cancel",
        "tasks/update",
        "server/discover",
        "subscriptions/listen",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
    }
)
HTTP_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT"})


def rpc_label(message: Message) -> str:
    """The label of a message: its method if it is a known one."""
    if message.kind is Kind.BATCH:
        return BATCH
    return message.method if message.method is not None and message.method in RPC_METHODS else OTHER


def http_label(method: str) -> str:
    """The label of an HTTP method."""
    return method if method in HTTP_METHODS else OTHER
