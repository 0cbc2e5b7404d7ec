"""What the sidecar refuses for what it is, before it means anything to a session."""

from __future__ import annotations

from http import HTTPStatus

from mcp_sidecar.healing import own_answers
from mcp_sidecar.healing.own_answers import INVALID_REQUEST, PARSE_ERROR, OwnAnswer
from mcp_sidecar.proxy.bodies import BodyTooLarge
from mcp_sidecar.proxy.call import BadSessionId
from mcp_sidecar.wire.messages import NotJson

BAD_ORIGIN = own_answers.rejected(HTTPStatus.FORBIDDEN, INVALID_REQUEST, "Forbidden: Origin is not allowed")
BAD_HOST = own_answers.rejected(HTTPStatus.FORBIDDEN, INVALID_REQUEST, "Forbidden: Host is not allowed")
TOO_LARGE = own_answers.rejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, INVALID_REQUEST, "Request body is too large")
NOT_JSON = own_answers.rejected(HTTPStatus.BAD_REQUEST, PARSE_ERROR, "Parse error: the body is not JSON")
BAD_SESSION_ID = own_answers.rejected(
    HTTPStatus.BAD_REQUEST, INVALID_REQUEST, "Bad Request: Mcp-Session-Id is repeated, too long or not visible ASCII"
)
HEADERS_TOO_LARGE = own_answers.rejected(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID_REQUEST, "Request headers are too large"
)
OWN_FAULT = OwnAnswer(HTTPStatus.BAD_GATEWAY, own_answers.TEXT, b"The sidecar failed to handle the request.\n")

Rejection = BodyTooLarge | NotJson | BadSessionId


def of(error: Rejection) -> OwnAnswer:
    """The answer to a request that could not be read."""
    if isinstance(error, BodyTooLarge):
        return TOO_LARGE
    return BAD_SESSION_ID if isinstance(error, BadSessionId) else NOT_JSON
