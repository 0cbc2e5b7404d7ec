"""What a session must be told again after a heal, beyond its handshake.

A server that was restarted has forgotten the log level and the subscriptions (server/utilities/logging, server/resources).
Only what succeeded is remembered, only in the form in which it is said again, and never more than a bound: what is beyond it
is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mcp_sidecar.facts import RestoreStep
from mcp_sidecar.wire.jsonrpc import Message, dump

MAX_SUBSCRIPTIONS = 1_000
MAX_SUBSCRIBED_CHARS = 256 * 1024
MAX_LEVEL_CHARS = 1_024

UNSUBSCRIBE = "resources/unsubscribe"
LEARNT = frozenset({RestoreStep.SET_LEVEL.value, RestoreStep.SUBSCRIBE.value, UNSUBSCRIBE})
"""The requests whose success is remembered."""

_PARAMETER = {RestoreStep.SET_LEVEL: "level", RestoreStep.SUBSCRIBE: "uri"}


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """One thing to say to a new upstream session."""

    step: RestoreStep
    value: str

    def body(self, own_id: str) -> bytes:
        """The request, under an id of ours."""
        params = {_PARAMETER[self.step]: self.value}
        return dump({"jsonrpc": "2.0", "id": own_id, "method": self.step.value, "params": params})


@dataclass(frozen=True, slots=True)
class ClientState:
    """One session's state beyond ``initialize``. ``subscriptions`` are URIs, each once, in the order of subscribing."""

    log_level: str | None = None
    subscriptions: tuple[str, ...] = ()

    def learnt(self, request: Message) -> ClientState:
        """The state after a client's request that the server has answered with success."""
        if request.method == RestoreStep.SET_LEVEL and request.log_level is not None:
            return replace(self, log_level=request.log_level) if len(request.log_level) <= MAX_LEVEL_CHARS else self
        if request.method == RestoreStep.SUBSCRIBE and request.uri is not None:
            return self._subscribed(request.uri)
        if request.method == UNSUBSCRIBE and request.uri in self.subscriptions:
            return replace(self, subscriptions=tuple(uri for uri in self.subscriptions if uri != request.uri))
        return self

    def _subscribed(self, uri: str) -> ClientState:
        has_room = len(self.subscriptions) < MAX_SUBSCRIPTIONS
        has_room = has_room and sum(map(len, self.subscriptions)) + len(uri) <= MAX_SUBSCRIBED_CHARS
        return (
            replace(self, subscriptions=(*self.subscriptions, uri))
            if has_room and uri not in self.subscriptions
            else self
        )

    def to_restore(self, capabilities: Mapping[str, Any]) -> Iterator[RestoreRequest]:
        """What to say to a new upstream session, in this order, as far as its server has it at all."""
        if self.log_level is not None and "logging" in capabilities:
            yield RestoreRequest(RestoreStep.SET_LEVEL, self.log_level)
        resources = capabilities.get("resources")
        if isinstance(resources, dict) and resources.get("subscribe"):
            for uri in self.subscriptions:
                yield RestoreRequest(RestoreStep.SUBSCRIBE, uri)


NOTHING_SET = ClientState()
