"""What a session must be told again after a heal, beyond its handshake, and what died with its old upstream session.

A server that was restarted has forgotten the log level and the subscriptions (server/utilities/logging, server/resources),
and will never take the answers to the questions that it had asked. Only what succeeded is remembered, only in the form in
which it is said again, and never more than a bound: what is beyond it is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_sidecar.facts import RestoreStep
from mcp_sidecar.healing.hints import Hint, question_cancelled, resource_updated
from mcp_sidecar.healing.marked_ids import Mark
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, dump

MAX_SUBSCRIPTIONS = 1_000
MAX_SUBSCRIBED_CHARS = 256 * 1024
MAX_QUESTIONS = 1_000
MAX_WORD_CHARS = 1_024
"""The longest log level or id of a question that is kept."""

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


@dataclass(slots=True)
class ClientState:
    """One session's state beyond ``initialize``.

    ``questions`` are the server's open requests by the id that the client saw, with the generation that asked.
    """

    log_level: str | None = None
    subscriptions: dict[str, None] = field(default_factory=dict)
    questions: dict[JsonRpcId, int] = field(default_factory=dict)
    _subscribed_chars: int = 0

    # -- what the client set ------------------------------------------------------------------------------------------

    def learn(self, request: Message) -> None:
        """Take note of a client's request that the server has answered with success."""
        if request.method == RestoreStep.SET_LEVEL and request.log_level is not None:
            if len(request.log_level) <= MAX_WORD_CHARS:
                self.log_level = request.log_level
        elif request.method == RestoreStep.SUBSCRIBE and request.uri is not None:
            self._subscribe(request.uri)
        elif request.method == UNSUBSCRIBE and request.uri in self.subscriptions:
            del self.subscriptions[request.uri]
            self._subscribed_chars -= len(request.uri)

    def _subscribe(self, uri: str) -> None:
        has_room = len(self.subscriptions) < MAX_SUBSCRIPTIONS
        if uri not in self.subscriptions and has_room and self._subscribed_chars + len(uri) <= MAX_SUBSCRIBED_CHARS:
            self.subscriptions[uri] = None
            self._subscribed_chars += len(uri)

    def to_restore(self, capabilities: Mapping[str, Any]) -> Iterator[RestoreRequest]:
        """What to say to a new upstream session, in this order, as far as its server has it at all."""
        if self.log_level is not None and "logging" in capabilities:
            yield RestoreRequest(RestoreStep.SET_LEVEL, self.log_level)
        resources = capabilities.get("resources")
        if isinstance(resources, dict) and resources.get("subscribe"):
            for uri in self.subscriptions:
                yield RestoreRequest(RestoreStep.SUBSCRIBE, uri)

    # -- what the server asked ----------------------------------------------------------------------------------------

    def heard(self, message: Message, mark: Mark) -> None:
        """A message of the server goes to the client: a question is open from now on, or is given up."""
        for member in message.members or (message,):
            if member.kind is Kind.REQUEST:
                self._asked(mark.on_id(member.id), mark.generation)
            elif member.cancelled_id is not None:
                self.settled(mark.on_id(member.cancelled_id))

    def answered(self, message: Message) -> None:
        """The client has said something: the questions that it answers are settled, whoever gets the answers."""
        for response in message.responses:
            self.settled(response.id)

    def settled(self, seen_id: JsonRpcId) -> None:
        """The client has answered, or the server has given the question up."""
        self.questions.pop(seen_id, None)

    def _asked(self, seen_id: JsonRpcId, generation: int) -> None:
        if isinstance(seen_id, str) and len(seen_id) > MAX_WORD_CHARS:
            return
        self.questions[seen_id] = generation
        if len(self.questions) > MAX_QUESTIONS:
            del self.questions[next(iter(self.questions))]

    def take_dead_questions(self, generation: int) -> list[JsonRpcId]:
        """The questions of upstream sessions before ``generation``, which nobody waits for any more."""
        dead = [seen_id for seen_id, asked_by in self.questions.items() if asked_by < generation]
        for seen_id in dead:
            del self.questions[seen_id]
        return dead

    # -- what the client is told --------------------------------------------------------------------------------------

    def take_hints(self, generation: int) -> list[Hint]:
        """What to tell the client when ``generation`` stands: dead questions, and the resources to be read again.

        A subscription that was not restored is among them: the client's own reading then meets what is wrong.
        """
        cancelled = [question_cancelled(seen_id) for seen_id in self.take_dead_questions(generation)]
        return [*cancelled, *map(resource_updated, self.subscriptions)]
