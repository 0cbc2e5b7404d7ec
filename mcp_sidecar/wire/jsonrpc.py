"""A peek into JSON-RPC bodies: which message it is, and the few members that decide what a proxy does with it.

Never a full model: a body that means nothing to this file is still somebody's message and is forwarded as it came.
"""

from __future__ import annotations

import json
import math
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

try:
    from msgspec.json import Decoder
except ImportError:  # docs/decisions/0015: quicker where it is installed, never needed
    quick_reader: Callable[[bytes], Any] | None = None
else:
    quick_reader = Decoder().decode

JsonRpcId = str | int | float | None

META_PROTOCOL_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CLIENT_INFO = "io.modelcontextprotocol/clientInfo"

MAX_DEPTH = 512
"""Of arrays and objects in each other. What is deeper is not read: writing it anew could exhaust Python's stack."""

MAX_MEMBERS = 1_000
"""Of a batch. A longer one is not read: work on each member would cost many times what the client paid for it."""

_BEYOND_DOUBLE = 10**309
_BLANKS = " \t\r\n"


class NotJson(ValueError):
    """The bytes are not JSON text in UTF-8. The message is a fixed phrase and never quotes them."""


class Kind(Enum):
    """What a body is. OTHER is valid JSON that is no JSON-RPC message; it is forwarded as it is."""

    REQUEST = auto()
    NOTIFICATION = auto()
    RESPONSE = auto()
    BATCH = auto()
    OTHER = auto()


@dataclass(slots=True)
class Message:
    """One JSON-RPC message, or a batch of them (2025-03-26 only).

    Read only; to freeze it would cost a fifth of what parsing does. ``value`` is the parsed JSON, ``members`` are those of a
    batch. The envelope's ``jsonrpc`` member is not asked for, since a server may run what lacks it; where that matters, ask
    ``says_jsonrpc``.
    """

    kind: Final[Kind]
    method: Final[str | None] = None
    id: Final[JsonRpcId] = None
    value: Final[Any] = None
    members: Final[tuple[Message, ...]] = ()
    meta_protocol_version: Final[str | None] = None

    @property
    def is_unread(self) -> bool:
        """Whether nothing is known of it: encoded, too deep, or a batch that is too long or not one of messages only.

        It may hold anything, an answer to a question included.
        """
        return self.value is ...

    @property
    def says_jsonrpc(self) -> bool:
        """Whether it carries ``"jsonrpc": "2.0"`` (of a batch: any member). Gateways' error pages do not."""
        if self.kind is Kind.BATCH:
            return any(member.says_jsonrpc for member in self.members)
        return bool(_member_of(self.value, "jsonrpc") == "2.0")

    @property
    def requests(self) -> tuple[Message, ...]:
        """The message itself if it is a request, of a batch its requests."""
        return self._all_of(Kind.REQUEST)

    @property
    def responses(self) -> tuple[Message, ...]:
        """The message itself if it is a response, of a batch its responses."""
        return self._all_of(Kind.RESPONSE)

    @property
    def params(self) -> dict[str, Any]:
        """The named parameters of a request or notification; empty if it has none. Read only."""
        return _object_or_empty(_member_of(self.value, "params")) if self.method is not None else {}

    @property
    def tool_name(self) -> str | None:
        """Which tool a ``tools/call`` names."""
        return _string_or_none(self.params.get("name")) if self.method == "tools/call" else None

    @property
    def has_task(self) -> bool:
        """Whether the request is task-augmented (2025-11-25)."""
        return isinstance(self.params.get("task"), dict)

    @property
    def cursor(self) -> str | None:
        """Where a list request goes on (pagination)."""
        return _string_or_none(self.params.get("cursor"))

    @property
    def meta(self) -> dict[str, Any]:
        """``_meta`` of the params; empty where there is none."""
        return _object_or_empty(self.params.get("_meta"))

    @property
    def progress_token(self) -> str | int | None:
        """The token under which a request wants to hear of its progress."""
        return _token_or_none(self.meta.get("progressToken"))

    @property
    def reported_token(self) -> str | int | None:
        """The token that a ``notifications/progress`` reports on."""
        return _token_or_none(self.params.get("progressToken")) if self.method == "notifications/progress" else None

    @property
    def reported_progress(self) -> float | None:
        """How far a ``notifications/progress`` says that it is; ``None`` where that is no number."""
        value = self.params.get("progress") if self.method == "notifications/progress" else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def cancelled_id(self) -> JsonRpcId:
        """The request that a ``notifications/cancelled`` gives up."""
        return valid_id(self.params.get("requestId")) if self.method == "notifications/cancelled" else None

    @property
    def uri(self) -> str | None:
        """The resource that a request is about."""
        return _string_or_none(self.params.get("uri"))

    @property
    def log_level(self) -> str | None:
        """The level that a ``logging/setLevel`` asks for."""
        return _string_or_none(self.params.get("level"))

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a response."""
        return _object_or_none(_member_of(self.value, "result")) if self.kind is Kind.RESPONSE else None

    @property
    def error(self) -> dict[str, Any] | None:
        """The error of a response."""
        return _object_or_none(_member_of(self.value, "error")) if self.kind is Kind.RESPONSE else None

    def _all_of(self, kind: Kind) -> tuple[Message, ...]:
        if self.kind is kind:
            return (self,)
        return tuple(member for member in self.members if member.kind is kind)


UNREAD = Message(Kind.OTHER, value=...)
"""See ``Message.is_unread``."""


# -- reading -------------------------------------------------------------------------------------------------------


def parse(body: bytes) -> Message:
    """Tells what a body is. Raises NotJson, and nothing else, on what is not JSON text in UTF-8.

    A byte order mark is tolerated, the literals NaN and Infinity are not. What is deeper than ``MAX_DEPTH``, or holds an
    integer too long for Python, is ``UNREAD``, and so is a batch that is longer than ``MAX_MEMBERS`` or has a member that
    is no message.
    """
    try:
        value = _value(body)
    except (json.JSONDecodeError, UnicodeDecodeError, NotJson):
        raise NotJson("not JSON") from None
    except (RecursionError, ValueError):
        return UNREAD
    if isinstance(value, list) and len(value) > MAX_MEMBERS:
        return UNREAD
    if _is_too_deep(body, value):
        return UNREAD
    return _batch(value) if isinstance(value, list) else _member(value)


def is_result(body: bytes, request_id: JsonRpcId) -> bool:
    """Whether ``parse`` would read the response to this request, with a result. Never raises; builds no ``Message``."""
    try:
        value = _value(body)
    except (RecursionError, ValueError, NotJson):  # the errors of JSON and of Unicode are ValueErrors
        return False
    return (
        isinstance(value, dict)
        and "result" in value
        and "method" not in value
        and valid_id(value.get("id")) == request_id
        and not _is_too_deep(body, value)
    )


def _value(body: bytes) -> Any:
    """What a text in UTF-8 says. On whatever the quick reader does not take, the other one has the last word."""
    if quick_reader is None:
        return _json(body)
    try:
        return quick_reader(body)
    except (ValueError, RecursionError):
        return _json(body)


def _json(body: bytes) -> Any:
    text = body.removeprefix(BOM_UTF8).decode().strip(_BLANKS)
    value, end = DECODER.raw_decode(text)  # ``decode`` would look for blanks twice, for half of what reading costs
    if end < len(text):
        raise NotJson("not JSON")
    return value


def _batch(values: list[Any]) -> Message:
    members = []
    for value in values:
        member = _member(value)
        if member.kind is Kind.OTHER:
            return UNREAD
        members.append(member)
    return Message(Kind.BATCH, value=values, members=tuple(members))


def _is_too_deep(body: bytes, value: Any) -> bool:
    """Level by level, so that nothing recurses; few brackets are not deep, whatever they hold."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def valid_id(value: object) -> JsonRpcId:
    """The value, if JSON-RPC 2.0 allows it as the id of a request, else None. ``true`` is not a number here."""
    if type(value) is int or type(value) is str:
        return value
    return value if type(value) is float and math.isfinite(value) else None


def finite_number(literal: str) -> float | int:
    """A JSON number as a double. One beyond its range stays finite: Python would write infinity as no JSON."""
    number = float(literal)
    if math.isfinite(number):
        return number
    return _BEYOND_DOUBLE if number > 0 else -_BEYOND_DOUBLE


def _no_constant(_: str) -> Any:
    raise NotJson("not JSON")


DECODER = json.JSONDecoder(parse_float=finite_number, parse_constant=_no_constant)
"""JSON as the standard says it: Python's parser would also take NaN and infinities."""


def is_initialize_result(message: Message) -> bool:
    """Whether the message answers ``initialize`` with success: the three members that every revision requires."""
    result = message.result or {}
    return (
        isinstance(result.get("protocolVersion"), str)
        and isinstance(result.get("capabilities"), dict)
        and isinstance(result.get("serverInfo"), dict)
    )


def _member(value: Any) -> Message:
    if not value or not isinstance(value, dict):
        return Message(Kind.OTHER, value=value)
    method, message_id = _string_or_none(value.get("method")), valid_id(value.get("id"))
    kind = _kind(value, method, message_id)
    if kind is Kind.OTHER:
        method = message_id = None
    return Message(kind, method, message_id, value, meta_protocol_version=_meta_version(value.get("params")))


def _kind(value: dict[str, Any], method: str | None, message_id: JsonRpcId) -> Kind:
    if "method" not in value:
        is_answer = "result" in value or isinstance(value.get("error"), dict)
        return Kind.RESPONSE if is_answer else Kind.OTHER
    if "id" not in value:
        return Kind.OTHER if method is None else Kind.NOTIFICATION
    return Kind.OTHER if method is None or message_id is None else Kind.REQUEST


def _meta_version(params: object) -> str | None:
    meta = params.get("_meta") if isinstance(params, dict) else None
    return _string_or_none(meta.get(META_PROTOCOL_VERSION)) if isinstance(meta, dict) else None


# -- writing -------------------------------------------------------------------------------------------------------


def dump(value: Any) -> bytes:
    """Compact JSON in ASCII. Raises ValueError on NaN and infinities, which ``parse`` never yields."""
    return _ENCODER.encode(value).encode()


def error_object(id: JsonRpcId, code: int, message: str, data: Any = None) -> dict[str, Any]:
    """A JSON-RPC error response. The order of its members is the one of the 404 that every client understands."""
    error = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "error": error, "id": id}


def with_id(value: Mapping[str, Any], id: JsonRpcId) -> dict[str, Any]:
    """A copy of a message with another id."""
    return {**value, "id": id}


def with_progress_token(value: Mapping[str, Any], token: str | int) -> dict[str, Any]:
    """A copy of a request with another ``params._meta.progressToken``."""
    params = _object_or_empty(value.get("params"))
    meta = _object_or_empty(params.get("_meta"))
    return {**value, "params": {**params, "_meta": {**meta, "progressToken": token}}}


def with_reported_token(value: Mapping[str, Any], token: str | int) -> dict[str, Any]:
    """A copy of a ``notifications/progress`` that reports on another token."""
    return {**value, "params": {**_object_or_empty(value.get("params")), "progressToken": token}}


def renumbered(
    message: Message, new_id: Callable[[JsonRpcId], str]
) -> tuple[bytes, dict[str, JsonRpcId], dict[str, str | int]]:
    """A request or batch under new request ids and progress tokens, for a second try in the same live session.

    Returns the body, {new id: old id} and {new token: old token}. Every session may use an id only once, and a token
    only for one active request (``basic/index`` §Requests and ``utilities/progress`` of all session revisions).
    ``new_id`` must never give the same string twice.
    """
    ids: dict[str, JsonRpcId] = {}
    tokens: dict[str, str | int] = {}
    copies = [_renumbered_one(request, new_id, ids, tokens) for request in message.requests]
    if message.kind is not Kind.BATCH:
        return dump(copies[0] if copies else message.value), ids, tokens
    remaining = iter(copies)
    values = zip(message.members, message.value, strict=True)
    return dump([next(remaining) if one.kind is Kind.REQUEST else value for one, value in values]), ids, tokens


def _renumbered_one(
    request: Message, new_id: Callable[[JsonRpcId], str], ids: dict[str, JsonRpcId], tokens: dict[str, str | int]
) -> dict[str, Any]:
    fresh = new_id(request.id)
    ids[fresh] = request.id
    copy = with_id(request.value, fresh)
    token = request.progress_token
    if token is None:
        return copy
    fresh_token = new_id(token)
    tokens[fresh_token] = token
    return with_progress_token(copy, fresh_token)


_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


# -- members that may be of any type -------------------------------------------------------------------------------


def _member_of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _object_or_none(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _object_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _string_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _token_or_none(value: Any) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
