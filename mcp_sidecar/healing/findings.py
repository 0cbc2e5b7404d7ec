"""What asking has found in one session, so that nobody asks twice: bounded in number and in time.

A session that was found lost stays so: who lost it in the same generation compares with the words that the ping met. A
refusal in a living session counts for ``REMEMBERED_S``, and not beyond the upstream session in which it was asked about; one
that a heal did not change, for that credential as long as the session lives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.verdicts.refusals import PingAnswer, PingVerdict, Refusal
from mcp_sidecar.verdicts.words import Words

REMEMBERED_S: Final = 60.0
MAX_REMEMBERED: Final = 16
GENERATIONS: Final = 2

_SETTLED = frozenset({PingVerdict.ALIVE, PingVerdict.ELSEWHERE})


@dataclass(slots=True)
class Findings:
    """Of one session. Times are seconds of the owner's monotonic clock."""

    _lost: dict[int, PingAnswer] = field(default_factory=dict)
    _refused: dict[tuple[Words, int], tuple[PingAnswer, float]] = field(default_factory=dict)
    _useless: dict[tuple[Words, Principal], None] = field(default_factory=dict)

    def note(self, generation: int, answer: PingAnswer) -> None:
        """A ping that was sent under this generation was answered."""
        self._lost.pop(generation, None)
        if answer.verdict is PingVerdict.REFUSED:
            self._refused.clear()
            self._lost[generation] = answer
            _bound(self._lost, GENERATIONS)

    def loss_of(self, generation: int) -> PingAnswer | None:
        """What the ping met by which this generation was found lost."""
        return self._lost.get(generation)

    def remember(self, generation: int, refusal: Refusal, answer: PingAnswer, now: float) -> None:
        """This refusal was asked about; only what leaves the session as it is counts for the next one."""
        if answer.verdict in _SETTLED:
            self._refused.pop((refusal.words, generation), None)
            self._refused[refusal.words, generation] = answer, now + REMEMBERED_S
            _bound(self._refused, MAX_REMEMBERED)

    def remember_useless(self, refusal: Refusal, credential: Principal) -> None:
        """A heal has changed nothing about this refusal of this credential."""
        self._useless[refusal.words, credential] = None
        _bound(self._useless, MAX_REMEMBERED)

    def of(self, generation: int, refusal: Refusal, credential: Principal, now: float) -> PingAnswer | None:
        """What is known of a refusal under this generation without asking."""
        if (refusal.words, credential) in self._useless:
            return PingAnswer(PingVerdict.AUTH, refusal)
        answer, until = self._refused.get((refusal.words, generation), (None, 0.0))
        return answer if now < until else None


def _bound(kept: dict[Any, Any], size: int) -> None:
    while len(kept) > size:
        del kept[next(iter(kept))]
