"""The answers that the sidecar itself gives, in the form that every client survives.

The forms are decided by what real clients do with them, not by the letter of the specification; ``docs/behaviour.md``
says why. Three rules: a request with a session never gets a 4xx or 5xx of ours but the one 404; an error always
carries the request's own id; ``initialize`` and sessionless traffic never get a made-up 4xx.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from http import HTTPStatus
from typing import Any

from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, dump, error_object
from mcp_sidecar.wire.reply import OwnAnswer

INTERNAL_ERROR = -32603
INVALID_REQUEST = -32600
PARSE_ERROR = -32700
RETRY_AFTER_S = 1
HTTP_ERROR = "http_error"
"""The ``data.reason`` where the upstream has answered, but on a stream its status cannot be passed on."""

FAILED_TO_START = "server_failed_to_start"
"""The ``data.reason`` where `dev` runs the server, and the last save has left it unable to start."""

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class Reason(Enum):
    """Why a request gets an error of ours: the ``data.reason`` of it, and what a person reads."""

    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    OUTCOME_UNKNOWN = "outcome_unknown"
    CANCELLED = "cancelled"
    SESSION_LOST = "session_lost"
    SESSION_STORE_UNAVAILABLE = "session_store_unavailable"

    @property
    def code(self) -> str:
        """The value of ``data.reason``."""
        return self.value

    @property
    def sentence(self) -> str:
        """The error's message."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.UPSTREAM_UNAVAILABLE: "The MCP server is not available; the request was not executed.",
    Reason.OUTCOME_UNKNOWN: "The MCP server may have got the request, and no whole answer came. Whether it was executed"
    " is unknown.",
    Reason.CANCELLED: "The request was cancelled while it waited for the MCP server.",
    Reason.SESSION_LOST: "The MCP server has lost the session and it could not be restored.",
    Reason.SESSION_STORE_UNAVAILABLE: "The store of sessions is not available; the request was not executed.",
}


SESSION_NOT_FOUND = OwnAnswer(
    HTTPStatus.NOT_FOUND,
    TEXT,
    b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}',
    tells=Reason.SESSION_LOST.code,
)
"""Exactly this form: clients that look at the status, at the text, or at the code all start over."""

ACCEPTED = OwnAnswer(HTTPStatus.ACCEPTED)
ENDED = OwnAnswer(HTTPStatus.OK)
GET_NOT_SUPPORTED = OwnAnswer(HTTPStatus.METHOD_NOT_ALLOWED, headers=(("Allow", "POST, DELETE"),))
UNAVAILABLE_PATH = OwnAnswer(
    HTTPStatus.SERVICE_UNAVAILABLE,
    TEXT,
    b"The upstream server is not available.\n",
    (("Retry-After", str(RETRY_AFTER_S)),),
    Reason.UPSTREAM_UNAVAILABLE.code,
)
BAD_GATEWAY = OwnAnswer(
    HTTPStatus.BAD_GATEWAY,
    TEXT,
    b"The upstream server broke off without an answer.\n",
    tells=Reason.OUTCOME_UNKNOWN.code,
)


def error(request_id: JsonRpcId, reason: Reason) -> dict[str, object]:
    """The JSON-RPC error object that one request gets."""
    return error_object(request_id, INTERNAL_ERROR, reason.sentence, {"reason": reason.code})


def in_session(message: Message, reason: Reason) -> OwnAnswer:
    """What a message of an older revision gets: 200 with its error, an array for a batch, 202 if nobody waits.

    Where the ids are not known there is one error without an id.
    """
    return _for_each(message, lambda request_id: error(request_id, reason), reason.code)


def instead_of(message: Message, status: int, phrase: str, said: Mapping[str, Any] | None = None) -> OwnAnswer:
    """What a message gets whose stream was open before the upstream answered with an error status.

    ``said`` is the JSON-RPC error in that answer, if there is one: it reaches the requests under their own ids.
    """
    error = said or {
        "code": INTERNAL_ERROR,
        "message": f"The MCP server answered with HTTP status {status} {phrase}".rstrip() + ".",
        "data": {"reason": HTTP_ERROR, "status": status},
    }
    return _for_each(message, lambda request_id: {"jsonrpc": "2.0", "id": request_id, "error": error}, HTTP_ERROR)


def readdressed(body: str, message: Message) -> str | None:
    """An error for this one request that is addressed to nobody, or to another, under the request's id; else ``None``.

    A body that is no JSON-RPC becomes an error of ours that says what the server did.
    """
    if len(message.requests) != 1 or message.members:
        return None
    own_id = message.requests[0].id
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and said.get("jsonrpc") == "2.0" and "method" not in said and "result" not in said:
        if said.get("id") == own_id or not isinstance(said.get("error"), dict):
            return None
        return dump({**said, "id": own_id}).decode()
    return None


def _for_each(message: Message, make: Callable[[JsonRpcId], dict[str, object]], tells: str) -> OwnAnswer:
    if message.kind is Kind.OTHER:
        return OwnAnswer(HTTPStatus.OK, JSON, dump(make(None)), tells=tells)
    errors = [make(request.id) for request in message.requests]
    if not errors:
        return ACCEPTED
    body: object = errors if message.members else errors[0]
    return OwnAnswer(HTTPStatus.OK, JSON, dump(body), tells=tells)


def unavailable(request_id: JsonRpcId, *, may_have_run: bool = False) -> OwnAnswer:
    """What ``initialize``, ``server/discover`` and sessionless traffic get while the upstream is away."""
    reason = Reason.UPSTREAM_UNAVAILABLE
    sentence = "The MCP server is not available." if may_have_run else reason.sentence
    return OwnAnswer(
        HTTPStatus.SERVICE_UNAVAILABLE,
        JSON,
        dump(error_object(request_id, INTERNAL_ERROR, sentence, {"reason": reason.code})),
        (("Retry-After", str(RETRY_AFTER_S)),),
        reason.code,
    )


def broken_gateway(request_id: JsonRpcId) -> OwnAnswer:
    """What sessionless traffic gets when the upstream broke off before it answered."""
    reason = Reason.OUTCOME_UNKNOWN
    return OwnAnswer(HTTPStatus.BAD_GATEWAY, JSON, dump(error(request_id, reason)), tells=reason.code)


def outcome_unknown(request_id: JsonRpcId) -> OwnAnswer:
    """What a client gets that polls for a request whose upstream session is gone."""
    reason = Reason.OUTCOME_UNKNOWN
    return OwnAnswer(HTTPStatus.OK, JSON, dump(error(request_id, reason)), tells=reason.code)


def failed_to_start(answer: OwnAnswer, why: str) -> OwnAnswer:
    """The answer for an upstream that is away, where it is known why it does not come back: in its own last words."""
    if answer.content_type != JSON:
        return answer
    said = json.loads(answer.body)
    for one in said if isinstance(said, list) else [said]:
        one["error"] |= {"message": why, "data": {"reason": FAILED_TO_START}}
    return replace(answer, body=dump(said))


def opaque(reason: Reason) -> OwnAnswer:
    """What an encoded request gets, whose id cannot be read: there is no form that carries an id."""
    return BAD_GATEWAY if reason is Reason.OUTCOME_UNKNOWN else UNAVAILABLE_PATH


def rejected(status: int, code: int, message: str) -> OwnAnswer:
    """A request that the sidecar refuses for what it is: bad origin, too large, no JSON, a bad session id."""
    return OwnAnswer(status, JSON, dump(error_object(None, code, message, None)))
