"""What the client of a session has seen of the progress of its calls, so that a second run of one does not go back.

The value must increase with each notification (utilities/progress, "Behavior Requirements"). A call that is run again
begins at its beginning: what it reports passes from where it is further than the run before it. Inside one run nothing is
judged; that is between the client and its server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mcp_sidecar.healing.marked_ids import NOT_RENUMBERED, Renumbering
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Message

Token = str | int

MAX_TOKENS = 1000
"""How many calls of a session are remembered; a server may report on any number."""

MAX_TOKEN_CHARS = 1024
"""The longest token that is remembered; a server may report on any."""


_NO_IDS: Final[Mapping[JsonRpcId, str]] = MappingProxyType({})
_NONE: Final[frozenset[JsonRpcId]] = frozenset()


@dataclass(slots=True)
class SentAgain:
    """The requests of a session that were sent again inside one upstream session (basic, "Requests").

    ``renumbering`` has the tokens and ids of ours, to the client's own, also of those whose POST is over: a server may answer
    on any stream. ``new_ids`` are those under which requests are under way now, by the client's own. ``elsewhere`` are those
    of the client's ids that were answered on another stream than their POST's.
    """

    renumbering: Final[Renumbering] = field(default_factory=Renumbering)
    new_ids: Final[dict[JsonRpcId, str]] = field(default_factory=dict)
    elsewhere: Final[set[JsonRpcId]] = field(default_factory=set)


@dataclass(slots=True)
class Progress:
    """How far each call is in the client's eyes, and which run of it came that far.

    A run is told by its generation and by the token that the upstream knows. Most sessions have nothing to remember here, and
    there may be a hundred thousand of them: what holds it is made when there is something.
    """

    _again: SentAgain | None = None
    _furthest: dict[Token, tuple[tuple[int, Token], float]] | None = None

    @property
    def renumbering(self) -> Renumbering:
        """The tokens and ids of ours under which requests were sent again, to the client's own, so far."""
        return self._again.renumbering if self._again is not None else NOT_RENUMBERED

    @property
    def new_ids(self) -> Mapping[JsonRpcId, str]:
        """The ids of ours under which requests are under way now, by the client's own."""
        return self._again.new_ids if self._again is not None else _NO_IDS

    @property
    def elsewhere(self) -> AbstractSet[JsonRpcId]:
        """The client's requests that were answered on another stream than their own."""
        return self._again.elsewhere if self._again is not None else _NONE

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
        token = reported
        if self._again is not None and isinstance(reported, str):
            token = self._again.renumbering.tokens.get(reported, reported)
        run = (generation, reported)
        self._furthest = self._furthest or {}
        last_run, furthest = self._furthest.get(token, (run, value))
        if run != last_run and value <= furthest:
            return False
        self._furthest[token] = (run, max(value, furthest))
        if len(self._furthest) > MAX_TOKENS:
            del self._furthest[next(iter(self._furthest))]
        return True

    def renumber(self, renumbering: Renumbering) -> None:
        """Requests are sent again under these ids and tokens of ours; the oldest of too many ids are forgotten."""
        again = self._again = self._again or SentAgain()
        known = again.renumbering
        again.new_ids.update({old: new for new, old in renumbering.ids.items()})
        known.tokens.update(renumbering.tokens)
        known.ids.update(renumbering.ids)
        for new in list(known.ids)[:-MAX_TOKENS]:
            del known.ids[new]

    def note_elsewhere(self, message: Message) -> None:
        """A message goes to the client on another stream than its requests'."""
        again = self._again
        if again is None or not again.new_ids:
            return
        for response in message.responses:
            old = again.renumbering.ids.get(response.id) if isinstance(response.id, str) else None
            if old is not None and again.new_ids.get(old) == response.id:
                again.elsewhere.add(old)

    def over(self, ids: Iterable[JsonRpcId]) -> None:
        """The POST of these requests of the client's is over."""
        if self._again is not None:
            for old in ids:
                self._again.new_ids.pop(old, None)
                self._again.elsewhere.discard(old)

    def begins(self, message: Message) -> None:
        """A client that uses an id again does not mean the request of before."""
        if self._again is not None:
            known, again = self._again.renumbering.ids, {request.id for request in message.requests}
            for new in [new for new, old in known.items() if old in again]:
                del known[new]

    def forget(self, message: Message) -> None:
        """No run of these requests is under way: before the first, and after the last."""
        if self._furthest is None and self._again is None:
            return
        for request in message.requests:
            token = request.progress_token
            if token is not None:
                self._forget(token)

    def _forget(self, token: Token) -> None:
        if self._furthest is not None:
            self._furthest.pop(token, None)
        if self._again is not None:
            tokens = self._again.renumbering.tokens
            for new in [new for new, old in tokens.items() if old == token]:
                del tokens[new]
