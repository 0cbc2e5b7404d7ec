"""What the sidecar refuses for what it is, before it means anything to a session."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from mcp_sidecar.downstream.upload import BrokenBody
from mcp_sidecar.endpoint.body import BodyTooLarge
from mcp_sidecar.endpoint.outcome import OWN_FAULT as OUR_FAULT
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.replies import INVALID_REQUEST, PARSE_ERROR
from mcp_sidecar.sessions.call import BadSessionId
from mcp_sidecar.wire.jsonrpc import NotJson
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.request import Fault


@dataclass(frozen=True, slots=True)
class Refusal(OwnAnswer):
    """An answer to a request that goes nowhere; ``reason`` is the fixed phrase that it says."""

    reason: str = ""


def _refusal(status: HTTPStatus, code: int, reason: str) -> Refusal:
    answer = replies.rejected(status, code, reason)
    return Refusal(answer.status, answer.content_type, answer.body, answer.headers, reason=reason)


BAD_ORIGIN = _refusal(HTTPStatus.FORBIDDEN, INVALID_REQUEST, "Forbidden: Origin is not allowed")
BAD_HOST = _refusal(HTTPStatus.FORBIDDEN, INVALID_REQUEST, "Forbidden: Host is not allowed")
BAD_TARGET = _refusal(HTTPStatus.BAD_REQUEST, INVALID_REQUEST, "Bad Request: the request target is not a path")
BAD_CODING = _refusal(HTTPStatus.NOT_IMPLEMENTED, INVALID_REQUEST, "Not Implemented: Transfer-Encoding but chunked")
HEADERS_TOO_LARGE = _refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID_REQUEST, "Request headers are too large"
)
UNREADABLE = _refusal(HTTPStatus.BAD_REQUEST, INVALID_REQUEST, "Bad Request: not valid HTTP")
TOO_SLOW = _refusal(HTTPStatus.REQUEST_TIMEOUT, INVALID_REQUEST, "Request Timeout: the head was not sent to its end")
OWN_FAULT = OwnAnswer(
    HTTPStatus.BAD_GATEWAY, replies.TEXT, b"The sidecar failed to handle the request.\n", tells=OUR_FAULT
)

OF_UNREADABLE = {
    Fault.UNREADABLE: UNREADABLE,
    Fault.HEAD_TOO_LARGE: HEADERS_TOO_LARGE,
    Fault.BAD_CODING: BAD_CODING,
    Fault.HEAD_TOO_SLOW: TOO_SLOW,
}
"""What the client's connection answers to what does not become a request."""

Rejection = BodyTooLarge | BrokenBody | NotJson | BadSessionId

_OF: dict[type[Rejection], Refusal] = {
    BodyTooLarge: _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, INVALID_REQUEST, "Request body is too large"),
    BrokenBody: _refusal(HTTPStatus.BAD_REQUEST, PARSE_ERROR, "Parse error: the body breaks off"),
    NotJson: _refusal(HTTPStatus.BAD_REQUEST, PARSE_ERROR, "Parse error: the body is not JSON"),
    BadSessionId: _refusal(
        HTTPStatus.BAD_REQUEST,
        INVALID_REQUEST,
        "Bad Request: Mcp-Session-Id is empty, repeated or not visible ASCII",
    ),
}


def of(error: Rejection) -> Refusal:
    """The answer to a request that could not be read."""
    return _OF[type(error)]
