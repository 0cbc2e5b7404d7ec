"""The answers that the sidecar itself gives, to the letter of the contract; written down here and not taken from the code."""

from __future__ import annotations

from tests.support.client import Answer

NOT_FOUND = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'


def is_not_found(answer: Answer) -> bool:
    """The one 404 that makes every client start over."""
    content_type = answer.headers.get("Content-Type")
    return (answer.status, answer.body, content_type) == (404, NOT_FOUND, "text/plain; charset=utf-8")


def is_error(answer: Answer, request_id: object, reason: str, *, status: int = 200) -> bool:
    """A JSON-RPC error with the request's own id and the reason."""
    if (answer.status, answer.content_type) != (status, "application/json"):
        return False
    message = answer.response
    error = message.get("error", {})
    return (message["id"], error.get("code"), error.get("data")) == (request_id, -32603, {"reason": reason})


def is_unavailable(answer: Answer, request_id: object) -> bool:
    """What `initialize` gets while the upstream is away."""
    return is_error(answer, request_id, "upstream_unavailable", status=503) and "Retry-After" in answer.headers
