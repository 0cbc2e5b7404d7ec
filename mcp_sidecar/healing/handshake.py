"""What a session must be told again, and whether the server that answers is still the one the client knows.

The handshake is kept as compact bytes: it holds the client's identity, no secrets, and many sessions share the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import blake2b
from typing import Any

from mcp_sidecar.healing.policy import OnServerChange
from mcp_sidecar.wire.jsonrpc import dump

LISTS = ("tools", "prompts", "resources")

MAX_PARAMS_BYTES = 64 * 1024
"""A client that says more of itself than this is not remembered, and its session not healed: real ones say some hundred
bytes, and what thousands of sessions keep must be bounded."""


MAX_PLAIN_BYTES = 128
"""What a server says of itself beyond so much is kept as a digest where space is short."""

DIGEST, DIGEST_BYTES = "mcp-sidecar/digest", 12


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Handshake:
    """A client's ``initialize`` and what was negotiated.

    ``params`` and ``result`` are compact JSON. ``params`` are the client's own, but for the version that was negotiated;
    ``result`` keeps only what is compared: server, capabilities, instructions.
    """

    params: bytes
    protocol_version: str
    result: bytes

    @classmethod
    def of(cls, params: Mapping[str, Any], result: Mapping[str, Any]) -> Handshake:
        """Record a client's ``initialize`` params and the result that the upstream gave."""
        version = str(result["protocolVersion"])
        offered = dump({**params, "protocolVersion": version})
        return cls(params=offered, protocol_version=version, result=_compared(result))

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the server can do, as it said."""
        found = json.loads(self.result).get("capabilities")
        return found if isinstance(found, dict) else {}

    @property
    def is_too_large(self) -> bool:
        """Whether the client said more than is kept."""
        return len(self.params) > MAX_PARAMS_BYTES

    def condensed(self) -> Handshake:
        """The same for ``differences`` in a bounded number of bytes: of what is long only a digest is kept, and the name."""
        result = json.loads(self.result)
        server = result.get("serverInfo")
        if len(dump(server)) > MAX_PLAIN_BYTES and isinstance(server, dict):
            result["serverInfo"] = {"name": server.get("name"), DIGEST: _digest_of(server)}
        if len(dump(result.get("instructions"))) > MAX_PLAIN_BYTES:
            result["instructions"] = {DIGEST: _digest_of(result["instructions"])}
        return replace(self, result=dump(result))

    def without_data_icons(self) -> Handshake:
        """The same without the pictures that a client has put into its own description (schema, ``Icon``)."""
        params = json.loads(self.params)
        client = params.get("clientInfo")
        if isinstance(client, dict) and isinstance(client.get("icons"), list):
            icons = [icon for icon in client["icons"] if not _is_picture(icon)]
            params["clientInfo"] = {**client, "icons": icons}
        return replace(self, params=dump(params))

    def initialize_request(self, request_id: str) -> bytes:
        """The body of a re-initialize: the client's own params, offering the version that was negotiated.

        Offering the client's newest again could silently negotiate another version than the one it keeps speaking.
        """
        return b'{"jsonrpc":"2.0","id":%b,"method":"initialize","params":%b}' % (dump(request_id), self.params)


INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


class Difference(Enum):
    """How a new InitializeResult differs from the recorded one."""

    PROTOCOL_VERSION = "another protocol version"
    SERVER_NAME = "another server name"
    CAPABILITY_REMOVED = "a capability was removed"
    SERVER_DETAILS = "another server version"
    UNANNOUNCED_LISTS = "another server version, and lists whose change the client was not promised to hear of"
    INSTRUCTIONS = "other instructions"


INCOMPATIBLE: dict[OnServerChange, frozenset[Difference]] = {
    OnServerChange.ADAPT: frozenset({Difference.PROTOCOL_VERSION, Difference.SERVER_NAME}),
    OnServerChange.RESET: frozenset(Difference) - {Difference.SERVER_DETAILS},
}
"""Which differences end a session. Most clients never recover from a 404, so ``adapt`` spends it only where going on
would be wrong; ``reset`` is the strict form."""


def differences(recorded: Handshake, result: Mapping[str, Any]) -> frozenset[Difference]:
    """Compare parsed objects, not bytes; added capabilities and ``_meta`` do not count."""
    if _compared(result) == recorded.result and result.get("protocolVersion") == recorded.protocol_version:
        return frozenset()
    before = json.loads(recorded.result)
    old_server, new_server = _mapping(before.get("serverInfo")), _mapping(result.get("serverInfo"))
    old_caps, new_caps = _mapping(before.get("capabilities")), _mapping(result.get("capabilities"))
    same_details = _is_same(old_server, new_server)
    found = {
        Difference.PROTOCOL_VERSION: result.get("protocolVersion") != recorded.protocol_version,
        Difference.SERVER_NAME: old_server.get("name") != new_server.get("name"),
        Difference.CAPABILITY_REMOVED: not _covers(new_caps, old_caps),
        Difference.SERVER_DETAILS: not same_details,
        Difference.UNANNOUNCED_LISTS: not same_details and _has_unannounced_lists(old_caps),
        Difference.INSTRUCTIONS: not _is_same(before.get("instructions") or "", result.get("instructions") or ""),
    }
    return frozenset(difference for difference, is_there in found.items() if is_there)


def _compared(result: Mapping[str, Any]) -> bytes:
    return dump({name: result.get(name) for name in ("serverInfo", "capabilities", "instructions")})


def is_same_server(found: frozenset[Difference]) -> bool:
    """Whether what the old server said of its tools still holds for the new one (current server version)."""
    return not found & {Difference.SERVER_NAME, Difference.SERVER_DETAILS}


def _is_same(recorded: object, said: object) -> bool:
    if isinstance(recorded, dict) and DIGEST in recorded:
        return bool(recorded[DIGEST] == _digest_of(said))
    return recorded == said


def _digest_of(said: object) -> str:
    """Of the value, not of its bytes: the order of members says nothing."""
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _is_picture(icon: object) -> bool:
    return isinstance(icon, dict) and isinstance(icon.get("src"), str) and icon["src"].lower().startswith("data:")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _covers(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether everything that ``old`` promised is still promised. ``false`` and ``null`` promise nothing."""
    waiting = [(new, old)]
    while waiting:
        now, before = waiting.pop()
        for name, promised in before.items():
            kept = now.get(name)
            if isinstance(promised, dict):
                if not isinstance(kept, dict):
                    return False
                waiting.append((kept, promised))
            elif promised and not kept:
                return False
    return True


def _has_unannounced_lists(capabilities: Mapping[str, Any]) -> bool:
    return any(name in capabilities and not _mapping(capabilities[name]).get("listChanged") for name in LISTS)
