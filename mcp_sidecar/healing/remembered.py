"""What a session must be told again after a heal, beyond its handshake, and what died with its old upstream session.

A server that was restarted has forgotten the log level and the subscriptions (server/utilities/logging, server/resources),
and will never take the answers to the questions that it had asked. Only what succeeded is remembered, only in the form in
which it is said again, and never more than a bound: what is beyond it is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_sidecar.healing.facts import RestoreStep
from mcp_sidecar.wire.messages import JsonRpcId, Message, dump

MAX_SUBSCRIPTIONS = 1_000
MAX_QUESTIONS = 1_000

OWN_ID = "mcp-sidecar-restore"


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """One request of ours to a new upstream session."""

    step: RestoreStep
    own_id: str
    body: bytes


@dataclass(slots=True)
class Remembered:
    """One session's state beyond ``initialize``.

    ``questions`` are the server's open requests by the id that the client saw, with the generation that asked.
    """

    log_level: str | None = None
    subscriptions: dict[str, None] = field(default_factory=dict)
    questions: dict[JsonRpcId, int] = field(default_factory=dict)

    def learn(self, request: Message) -> None:
        """Take note of a client's request that the server has answered with success."""
        if request.method == RestoreStep.SET_LEVEL and request.log_level is not None:
            self.log_level = request.log_level
        elif request.method == RestoreStep.SUBSCRIBE and request.uri is not None:
            if len(self.subscriptions) < MAX_SUBSCRIPTIONS:
                self.subscriptions[request.uri] = None
        elif request.method == "resources/unsubscribe" and request.uri is not None:
            self.subscriptions.pop(request.uri, None)

    def asked(self, seen_id: JsonRpcId, generation: int) -> None:
        """The server has asked the client something; ``seen_id`` is what the client sees."""
        if len(self.questions) < MAX_QUESTIONS:
            self.questions[seen_id] = generation

    def settled(self, seen_id: JsonRpcId) -> None:
        """The client has answered, or the server has given the question up."""
        self.questions.pop(seen_id, None)

    def take_dead_questions(self, generation: int) -> list[JsonRpcId]:
        """The questions of upstream sessions before ``generation``, which nobody waits for any more."""
        dead = [seen_id for seen_id, asked_by in self.questions.items() if asked_by < generation]
        for seen_id in dead:
            del self.questions[seen_id]
        return dead

    def to_restore(self, capabilities: Mapping[str, Any]) -> Iterator[RestoreRequest]:
        """What to say to a new upstream session, as far as its server has it at all."""
        if self.log_level is not None and "logging" in capabilities:
            yield _request(RestoreStep.SET_LEVEL, 0, {"level": self.log_level})
        resources = capabilities.get("resources")
        if isinstance(resources, dict) and resources.get("subscribe"):
            for number, uri in enumerate(list(self.subscriptions), 1):
                yield _request(RestoreStep.SUBSCRIBE, number, {"uri": uri})


def _request(step: RestoreStep, number: int, params: dict[str, str]) -> RestoreRequest:
    own_id = f"{OWN_ID}-{number}"
    return RestoreRequest(step, own_id, dump({"jsonrpc": "2.0", "id": own_id, "method": step.value, "params": params}))
