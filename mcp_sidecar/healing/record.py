"""What of a session must outlive the process: one frozen value, and its form in a store.

The rule of this file: a record is replaced, never changed, and holds nothing that could act in a client's name. Credentials
never stand in it; whose session it is stands there as a keyed hash. In a store it is one byte for the version and JSON behind
it. A reader keeps the members that it does not know, for old and new sidecars share a store during every roll-out; it leaves
records of a later version alone; and whatever bytes it is given, it answers with a value and raises nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, NewType

from mcp_sidecar.healing.client_state import NOTHING_SET, ClientState
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.lists import DIGEST_BYTES, LISTINGS
from mcp_sidecar.healing.principal import ACCEPTED, Identity, Principal
from mcp_sidecar.wire.cookies import MAX_COOKIES, Cookies, is_cookie

ClientSessionId = NewType("ClientSessionId", str)
UpstreamSessionId = NewType("UpstreamSessionId", str)

VERSION = 1
MAX_INSTANCES = 16
"""Upstream instances of which the session ids are kept; the one healed at longest ago is forgotten first."""

MAX_RECORD_BYTES = 1024 * 1024
"""In its encoded form. A larger one is not stored: its session lives in this process only."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The session's upstream session at one upstream instance, which alone knows the id.

    ``upstream_id`` is ``None`` where a heal found a server without sessions. ``word`` is what ids of this upstream session
    are marked with, empty for that of the original ``initialize`` (see ``healing.marked_ids``). ``cookies`` are those of load
    balancers that lead to the server of that upstream session.
    """

    key: str
    upstream_id: UpstreamSessionId | None
    word: str
    cookies: Cookies = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A client session, as far as it outlives connections, heals and processes.

    ``principal`` is a keyed hash. ``tag`` is random and stands in front of every marked id. Times are wall-clock seconds.
    ``instances`` come newest first. ``lists`` are the digests of the lists that the client has seen, by method. ``is_used``:
    a tool was called, so that a new server may lack state that the client counts on. ``revision`` counts what was written to
    a store. ``accepted`` are the hashes of the credentials that the upstream has accepted in it.
    ``unknown`` are the members that a later sidecar has added.
    """

    handshake: Handshake
    principal: Principal
    tag: str
    created_at: float
    last_used_at: float
    instances: tuple[Instance, ...] = ()
    client_state: ClientState = NOTHING_SET
    lists: tuple[tuple[str, int], ...] = ()
    safe_tools: frozenset[str] = frozenset()
    is_used: bool = False
    accepted: tuple[Identity, ...] = ()
    revision: int = 0
    unknown: tuple[tuple[str, Any], ...] = field(default=(), hash=False)

    def at(self, key: str) -> Instance | None:
        """What stands at this upstream instance."""
        return next((one for one in self.instances if one.key == key), None)

    def standing_at(self, new: Instance) -> SessionRecord:
        """The same, with another upstream session at one instance."""
        others = tuple(one for one in self.instances if one.key != new.key)
        return replace(self, instances=(new, *others)[:MAX_INSTANCES])

    def not_at(self, key: str) -> SessionRecord:
        """The same, with no upstream session at this instance: its id must not be used again."""
        return replace(self, instances=tuple(one for one in self.instances if one.key != key))


def rebased(mine: SessionRecord, base: SessionRecord, theirs: SessionRecord, key: str) -> SessionRecord:
    """What to write where another process has written meanwhile: theirs, with what was changed here since ``base``.

    Of the instances only that of ``key`` is ours to change.
    """
    changed: dict[str, Any] = {
        name: getattr(mine, name)
        for name in ("client_state", "lists", "safe_tools", "accepted")
        if getattr(mine, name) != getattr(base, name)
    }
    merged = replace(
        theirs,
        last_used_at=max(mine.last_used_at, theirs.last_used_at),
        is_used=mine.is_used or theirs.is_used,
        **changed,
    )
    own = mine.at(key)
    if own == base.at(key):
        return merged
    return merged.standing_at(own) if own is not None else merged.not_at(key)


# -- its form in a store ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LaterVersion:
    """A record that a later sidecar wrote: it is not healed, not overwritten, not deleted."""

    version: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """No record, or a damaged one. ``reason`` is a fixed phrase; the bytes are left as they are."""

    reason: str


class _Garbage(Exception):
    """What was read is no record; the text says why and quotes nothing."""


def encode(record: SessionRecord) -> bytes | None:
    """The record's form in a store; ``None`` where it would be larger than ``MAX_RECORD_BYTES``."""
    known = {
        "revision": record.revision,
        "params": record.handshake.params.decode(),
        "version": record.handshake.protocol_version,
        "result": record.handshake.result.decode(),
        "principal": record.principal.hex(),
        "tag": record.tag,
        "created": record.created_at,
        "last_used": record.last_used_at,
        "instances": [_place(one) for one in record.instances],
        "cookies": [[*_place(one), dict(one.cookies)] for one in record.instances if one.cookies],
        "level": record.client_state.log_level,
        "subscriptions": record.client_state.subscriptions,
        "lists": {method: f"{digest:x}" for method, digest in record.lists},
        "safe_tools": sorted(record.safe_tools),
        "used": record.is_used,
        "accepted": [_written(identity) for identity in record.accepted],
    }
    text = json.dumps({**dict(record.unknown), **known}, separators=(",", ":"), allow_nan=False)
    data = bytes((VERSION,)) + text.encode()
    return data if len(data) <= MAX_RECORD_BYTES else None


def decode(data: bytes) -> SessionRecord | LaterVersion | Unreadable:
    """What stands in a store, whatever it is."""
    if not data or not data[0]:
        return Unreadable("no version")
    if data[0] > VERSION:
        return LaterVersion(data[0])
    if len(data) > MAX_RECORD_BYTES:
        return Unreadable("too large")
    try:
        return _Reader(_object(data[1:].decode())).record()
    except _Garbage as error:
        return Unreadable(str(error))
    except (ValueError, RecursionError, OverflowError):
        return Unreadable("not JSON")


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise _Garbage("no JSON object")
    return value


def _refuse_constant(_: str) -> None:
    raise _Garbage("a number that is none")


class _Reader:
    """Takes the members out of a record one by one; what is left at the end is unknown to this version."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = members

    def record(self) -> SessionRecord:
        """All of it. Raises ``_Garbage``, and ``ValueError`` where text is not what it should be."""
        return SessionRecord(
            handshake=self._handshake(),
            principal=Principal(bytes.fromhex(self._text("principal"))),
            tag=self._text("tag"),
            created_at=self._seconds("created"),
            last_used_at=self._seconds("last_used"),
            instances=self._instances(),
            client_state=self._client_state(),
            lists=tuple(_digests(self._take("lists", dict))),
            safe_tools=frozenset(_texts(self._take("safe_tools", list))),
            is_used=self._take("used", bool),
            accepted=tuple(map(_identity, self._take("accepted", list)))[:ACCEPTED],
            revision=self._revision(),
            unknown=tuple(self._members.items()),
        )

    def _take(self, name: str, kind: type) -> Any:
        value = self._members.pop(name, None)
        if type(value) is not kind:
            raise _Garbage(f"no {name}")
        return value

    def _text(self, name: str) -> str:
        text: str = self._take(name, str)
        return text

    def _seconds(self, name: str) -> float:
        value = self._members.pop(name, None)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _Garbage(f"no {name}")
        return float(value)

    def _revision(self) -> int:
        revision: int = self._take("revision", int)
        if revision < 0:
            raise _Garbage("no revision")
        return revision

    def _handshake(self) -> Handshake:
        params, result = self._text("params"), self._text("result")
        for text in (params, result):
            _object(text)
        found = Handshake(params.encode(), self._text("version"), result.encode())
        if found.is_too_large:
            raise _Garbage("no params")
        return found

    def _instances(self) -> tuple[Instance, ...]:
        """Cookies stand beside them, for sidecars that know none; they count for the very upstream session that they name."""
        found = tuple(map(_instance, self._take("instances", list)))[:MAX_INSTANCES]
        cookies = dict(map(_cookies, self._take("cookies", list) if "cookies" in self._members else ()))
        return tuple(replace(one, cookies=cookies.get(one, ())) for one in found) if cookies else found

    def _client_state(self) -> ClientState:
        level = self._members.pop("level", None)
        if level is not None and not isinstance(level, str):
            raise _Garbage("no level")
        return ClientState(level, tuple(_texts(self._take("subscriptions", list))))


def _texts(values: list[Any]) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise _Garbage("no text")
    return values


def _place(instance: Instance) -> list[Any]:
    return [instance.key, instance.upstream_id, instance.word]


def _cookies(value: Any) -> tuple[Instance, Cookies]:
    match value:
        case [*place, dict(found)] if all(
            isinstance(said, str) and is_cookie(name, said) for name, said in found.items()
        ):
            return _instance(place), tuple(found.items())[:MAX_COOKIES]
        case _:
            raise _Garbage("no cookies")


def _instance(value: Any) -> Instance:
    match value:
        case [str(key), str() | None as upstream_id, str(word)]:
            return Instance(key, UpstreamSessionId(upstream_id) if upstream_id is not None else None, word)
        case _:
            raise _Garbage("no instance")


def _written(identity: Identity) -> list[Any]:
    kind = [[place, issuer.hex(), subject.hex()] for place, issuer, subject in identity.kind]
    return [identity.principal.hex(), identity.credential.hex(), kind, identity.is_verbatim]


def _identity(value: Any) -> Identity:
    match value:
        case [str(principal), str(credential), list(kind), bool(is_verbatim)]:
            return Identity(
                Principal(bytes.fromhex(principal)),
                Principal(bytes.fromhex(credential)),
                tuple(map(_kind, kind)),
                is_verbatim,
            )
        case _:
            raise _Garbage("no identity")


def _kind(value: Any) -> tuple[str, bytes, bytes]:
    match value:
        case [str(place), str(issuer), str(subject)]:
            return place, bytes.fromhex(issuer), bytes.fromhex(subject)
        case _:
            raise _Garbage("no kind")


def _digests(values: dict[str, Any]) -> list[tuple[str, int]]:
    """Lists of a method that this version does not compare are left out, and not lost: the next look finds them again."""
    found = {method: int(text, 16) for method, text in values.items() if method in LISTINGS and isinstance(text, str)}
    if not all(0 <= digest < 1 << (8 * DIGEST_BYTES) for digest in found.values()):
        raise _Garbage("no digest")
    return list(found.items())
