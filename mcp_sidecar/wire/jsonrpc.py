"""A peek into JSON-RPC bodies: which message it is, and the few members that decide what a proxy does with it.

Never a full model: a body that means nothing to this file is still somebody's message and is forwarded as it came.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from mcp_sidecar.wire.json_scan import (
    DECODER,
    META_PROTOCOL_VERSION,
    JsonRpcId,
    NotJson,
    TopLevelScan,
    array_members,
    valid_id,
)

__all__ = [
    "JsonRpcId",
    "Kind",
    "Message",
    "NotJson",
    "dump",
    "error_body",
    "error_object",
    "from_scan",
    "is_initialize_result",
    "mapped_back",
    "parse",
    "renumbered",
    "with_id",
    "with_progress_token",
    "with_reported_token",
]


class Kind(Enum):
    """What a body is. OTHER is valid JSON that is no JSON-RPC message; it is forwarded as it is."""

    REQUEST = auto()
    NOTIFICATION = auto()
    RESPONSE = auto()
    BATCH = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON-RPC message, or a batch of them (2025-03-26 only).

    ``value`` is the parsed JSON and is read only. It is None for a message known only by its top-level keys (too deep
    or too large to parse, see ``is_opaque``); then every property that looks inside ``params`` or ``result`` is None.
    ``members`` are those of a batch; an array inside a batch is OTHER. Of an opaque batch, too, each member is told, but
    the batch cannot be put together from their values. The envelope's ``jsonrpc`` member is not asked
    for, since a server may run what lacks it; where that matters, ask ``says_jsonrpc``.
    """

    kind: Kind
    method: str | None = None
    id: JsonRpcId = None
    value: Any = None
    members: tuple[Message, ...] = ()
    meta_protocol_version: str | None = None

    @property
    def is_opaque(self) -> bool:
        """Whether only kind, method, id and the version are known. Such a message cannot be renumbered."""
        return self.value is None and self.kind is not Kind.OTHER

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
    def progress_token(self) -> str | int | None:
        """The token under which a request wants to hear of its progress."""
        return _token_or_none(_object_or_empty(self.params.get("_meta")).get("progressToken"))

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


_NO_MESSAGE = Message(Kind.OTHER)
_TOO_MUCH = object()


# -- reading -------------------------------------------------------------------------------------------------------


def parse(body: bytes) -> Message:
    """Tells what a body is. Raises NotJson, and nothing else, on what is not JSON text in UTF-8.

    A byte order mark is tolerated, the literals NaN and Infinity are not. What is too deep for the parser, or holds
    an integer too long for it, is told by its top-level keys (``is_opaque``).
    """
    value = _parsed(body)
    if value is _TOO_MUCH:
        return _parse_top_level(body)
    if isinstance(value, list):
        return Message(Kind.BATCH, value=value, members=tuple(map(_member, value)))
    return _member(value)


def from_scan(scan: TopLevelScan) -> Message:
    """What a scan has told so far as an opaque message; a batch has no members here.

    A method or id that was too long to be kept makes the message OTHER. What names a method and has not ended is taken
    for a request, of which the id (None) may still come: some SDKs write it last.
    """
    if scan.is_array:
        return Message(Kind.BATCH)
    kind = _kind(
        method=scan.method,
        has_method=scan.has_method,
        id=scan.id,
        has_id=scan.has_id,
        is_answer=scan.has_result or scan.error_is_object,
    )
    if kind is Kind.NOTIFICATION and not scan.complete:
        kind = Kind.REQUEST
    return Message(kind, *_visible(kind, scan.method, scan.id), meta_protocol_version=scan.meta_protocol_version)


def is_initialize_result(message: Message) -> bool:
    """Whether the message answers ``initialize`` with success: the three members that every revision requires."""
    result = message.result or {}
    return (
        isinstance(result.get("protocolVersion"), str)
        and isinstance(result.get("capabilities"), dict)
        and isinstance(result.get("serverInfo"), dict)
    )


def _parsed(body: bytes) -> Any:
    try:
        return DECODER.decode(body.removeprefix(BOM_UTF8).decode())
    except (json.JSONDecodeError, UnicodeDecodeError, NotJson):
        raise NotJson("not JSON") from None
    except (RecursionError, ValueError):
        return _TOO_MUCH


def _parse_top_level(body: bytes) -> Message:
    scan = TopLevelScan()
    scan.feed(body)
    scan.finish()
    if not scan.is_array:
        return from_scan(scan)
    return Message(Kind.BATCH, members=tuple(map(_parse_member, array_members(body))))


def _parse_member(text: bytes) -> Message:
    return _NO_MESSAGE if text.startswith(b"[") else parse(text)


def _member(value: Any) -> Message:
    if not isinstance(value, dict):
        return Message(Kind.OTHER, value=value)
    method = _string_or_none(value.get("method"))
    message_id = valid_id(value.get("id"))
    kind = _kind(
        method=method,
        has_method="method" in value,
        id=message_id,
        has_id="id" in value,
        is_answer="result" in value or isinstance(value.get("error"), dict),
    )
    meta = _object_or_empty(_object_or_empty(value.get("params")).get("_meta"))
    version = _string_or_none(meta.get(META_PROTOCOL_VERSION))
    return Message(kind, *_visible(kind, method, message_id), value, meta_protocol_version=version)


def _kind(*, method: str | None, has_method: bool, id: JsonRpcId, has_id: bool, is_answer: bool) -> Kind:
    if not has_method:
        return Kind.RESPONSE if is_answer else Kind.OTHER
    if method is None or (has_id and id is None):
        return Kind.OTHER
    return Kind.REQUEST if has_id else Kind.NOTIFICATION


def _visible(kind: Kind, method: str | None, id: JsonRpcId) -> tuple[str | None, JsonRpcId]:
    return (None, None) if kind is Kind.OTHER else (method, id)


# -- writing -------------------------------------------------------------------------------------------------------


def dump(value: Any) -> bytes:
    """Compact JSON in ASCII. Raises ValueError on NaN and infinities, which ``parse`` never yields."""
    try:
        return _ENCODER.encode(value).encode()
    except RecursionError:
        return "".join(_tokens(value)).encode()


def error_object(id: JsonRpcId, code: int, message: str, data: Any = None) -> dict[str, Any]:
    """A JSON-RPC error response. The order of its members is the one of the 404 that every client understands."""
    error = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "error": error, "id": id}


def error_body(id: JsonRpcId, code: int, message: str, data: Any = None) -> bytes:
    """``error_object`` as bytes."""
    return dump(error_object(id, code, message, data))


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
    ``new_id`` must never give the same string twice. Raises ValueError on an opaque message.
    """
    if message.is_opaque:
        raise ValueError("an opaque message cannot be renumbered")
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


def mapped_back(value: Any, ids: Mapping[str, JsonRpcId], tokens: Mapping[str, str | int]) -> Any:
    """A parsed answer, progress notification or array of them, as the client that ``renumbered`` hides expects it.

    Returns ``value`` itself where nothing is to be changed, so that its bytes can be passed on as they came.
    """
    if isinstance(value, list):
        mapped = [mapped_back(member, ids, tokens) if isinstance(member, dict) else member for member in value]
        return value if all(new is old for new, old in zip(mapped, value, strict=True)) else mapped
    message = _member(value)
    if message.kind is Kind.RESPONSE and isinstance(message.id, str) and message.id in ids:
        return with_id(value, ids[message.id])
    token = message.reported_token
    return with_reported_token(value, tokens[token]) if isinstance(token, str) and token in tokens else value


_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _tokens(value: Any) -> Iterator[str]:
    """The text of a value too deep for the encoder, piece by piece, without recursion."""
    waiting: list[Iterator[Any]] = [iter([value])]
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, _Text):
                yield item.text
            elif isinstance(item, dict):
                waiting.append(_object_parts(item))
                break
            elif isinstance(item, list):
                waiting.append(_array_parts(item))
                break
            else:
                yield _ENCODER.encode(item)
        else:
            waiting.pop()


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


def _object_parts(value: dict[str, Any]) -> Iterator[Any]:
    yield _Text("{")
    for separator, (key, item) in zip(_separators(), value.items(), strict=False):
        yield _Text(f"{separator}{_ENCODER.encode(key)}:")
        yield item
    yield _Text("}")


def _array_parts(value: Iterable[Any]) -> Iterator[Any]:
    yield _Text("[")
    for separator, item in zip(_separators(), value, strict=False):
        yield _Text(separator)
        yield item
    yield _Text("]")


def _separators() -> Iterator[str]:
    yield ""
    while True:
        yield ","


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
