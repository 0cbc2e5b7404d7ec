"""What the client of a session has seen of the progress of its calls, so that a second run of one does not go back.

The value must increase with each notification (utilities/progress, "Behavior Requirements"). A call that is run again
begins at its beginning: what it reports passes from where it is further than the run before it. Inside one run nothing is
judged; that is between the client and its server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mcp_sidecar.wire.jsonrpc import JsonRpcId, Message

Token = str | int

MAX_TOKENS = 1000
"""How many calls of a session are remembered; a server may report on any number."""

MAX_TOKEN_CHARS = 1024
"""The longest token that is remembered; a server may report on any."""


@dataclass(slots=True)
class Progress:
    """How far each call is in the client's eyes, and which run of it came that far.

    A run is told by its generation and by the token that the upstream knows. ``renewed`` are the tokens of ours under which
    calls were sent again, to the client's own; ``new_ids`` the ids of ours under which requests are under way now, by the
    client's own (basic, "Requests"), and ``ids`` the other way round, also of those whose POST is over: a server may answer
    on any stream. ``elsewhere`` are those of the client's ids that were answered so, on another stream than their POST's.
    """

    renewed: dict[str, Token] = field(default_factory=dict)
    new_ids: dict[JsonRpcId, str] = field(default_factory=dict)
    ids: dict[str, JsonRpcId] = field(default_factory=dict)
    elsewhere: set[JsonRpcId] = field(default_factory=set)
    _furthest: dict[Token, tuple[tuple[int, Token], float]] | None = None

    @staticmethod
    def judges(message: Message) -> bool:
        """Whether this is one report of progress that can be understood and remembered."""
        token = message.reported_token
        is_short = not isinstance(token, str) or len(token) <= MAX_TOKEN_CHARS
        return token is not None and is_short and message.reported_progress is not None

    def lets_pass(self, message: Message, generation: int) -> bool:
        """Whether the client may see this message."""
        reported, value = message.reported_token, message.reported_progress
        if reported is None or value is None or not self.judges(message):
            return True
        token = self.renewed.get(reported, reported) if isinstance(reported, str) else reported
        run = (generation, reported)
        self._furthest = self._furthest or {}
        last_run, furthest = self._furthest.get(token, (run, value))
        if run != last_run and value <= furthest:
            return False
        self._furthest[token] = (run, max(value, furthest))
        if len(self._furthest) > MAX_TOKENS:
            del self._furthest[next(iter(self._furthest))]
        return True

    def renumber(self, ids: Mapping[str, JsonRpcId]) -> None:
        """Requests are sent again under these ids of ours; the oldest of too many are forgotten."""
        self.new_ids.update({old: new for new, old in ids.items()})
        self.ids.update(ids)
        for new in list(self.ids)[:-MAX_TOKENS]:
            del self.ids[new]

    def note_elsewhere(self, message: Message) -> None:
        """A message goes to the client on another stream than its requests'."""
        for response in message.responses if self.new_ids else ():
            old = self.ids.get(response.id) if isinstance(response.id, str) else None
            if old is not None and self.new_ids.get(old) == response.id:
                self.elsewhere.add(old)

    def over(self, ids: Iterable[JsonRpcId]) -> None:
        """The POST of these requests of the client's is over."""
        for old in ids:
            self.new_ids.pop(old, None)
            self.elsewhere.discard(old)

    def begins(self, message: Message) -> None:
        """A client that uses an id again does not mean the request of before."""
        if self.ids:
            again = {request.id for request in message.requests}
            for new in [new for new, old in self.ids.items() if old in again]:
                del self.ids[new]

    def forget(self, message: Message) -> None:
        """No run of these requests is under way: before the first, and after the last."""
        if not self._furthest and not self.renewed:
            return
        for request in message.requests:
            token = request.progress_token
            if token is not None:
                self._forget(token)

    def _forget(self, token: Token) -> None:
        if self._furthest is not None:
            self._furthest.pop(token, None)
        for new in [new for new, old in self.renewed.items() if old == token]:
            del self.renewed[new]
