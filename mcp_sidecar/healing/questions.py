"""The server's questions to a client that are still open, and which of them died with their upstream session.

A server that was restarted will never take the answers to the questions that it had asked. What is remembered of them is
bounded: what is beyond it is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_sidecar.healing.marked_ids import Mark
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message

MAX_QUESTIONS = 1_000
MAX_ID_CHARS = 1_024
"""The longest id of a question that is kept."""


@dataclass(slots=True)
class Questions:
    """The open ones of one session, by the id that the client saw, with the generation that asked."""

    _open: dict[JsonRpcId, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def heard(self, message: Message, mark: Mark) -> None:
        """A message of the server goes to the client: a question is open from now on, or is given up."""
        for member in message.members or (message,):
            if member.kind is Kind.REQUEST:
                self._asked(mark.on_id(member.id), mark.generation)
            elif member.cancelled_id is not None:
                self._open.pop(mark.on_id(member.cancelled_id), None)

    def answered(self, message: Message) -> None:
        """The client has said something: the questions that it answers are settled, whoever gets the answers."""
        for response in message.responses if self._open else ():
            self._open.pop(response.id, None)

    def take_dead(self, generation: int) -> list[JsonRpcId]:
        """The questions of upstream sessions before ``generation``, which nobody waits for any more."""
        dead = [seen_id for seen_id, asked_by in self._open.items() if asked_by < generation]
        for seen_id in dead:
            del self._open[seen_id]
        return dead

    def _asked(self, seen_id: JsonRpcId, generation: int) -> None:
        if isinstance(seen_id, str) and len(seen_id) > MAX_ID_CHARS:
            return
        self._open[seen_id] = generation
        if len(self._open) > MAX_QUESTIONS:
            del self._open[next(iter(self._open))]
