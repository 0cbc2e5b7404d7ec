"""What one message may have done upstream, over all the attempts to send it: one value, moved along one table.

The law of this file: a message counts as run as soon as one attempt may have run, and nothing takes that back. Only of the
last refusal it may be open whether it came before anything was dispatched; it is settled by whoever asks the server,
before the next attempt. ``TRANSITIONS`` is all there is; what it has no row for cannot happen.
"""

from __future__ import annotations

from enum import Enum


class Arrival(Enum):
    """What the message may have done so far."""

    NOT_SENT = "not sent"
    NOT_RUN = "not run"  # sent, and proven of every attempt
    IN_QUESTION = "in question"  # the last attempt's refusal shows perhaps that it did not run; none before it has
    MAY_HAVE_RUN = "may have run"
    IN_QUESTION_AGAIN = "in question again"  # the same of the last one, but one before it may have run

    @property
    def is_open(self) -> bool:
        """Whether the last refusal is still to be settled."""
        return self in (Arrival.IN_QUESTION, Arrival.IN_QUESTION_AGAIN)

    @property
    def may_have_run(self) -> bool:
        """Whether the message may have run; as long as that is open it counts as run."""
        return self not in (Arrival.NOT_SENT, Arrival.NOT_RUN)

    def after(self, event: Attempt | Settled) -> Arrival:
        """The state that follows. Raises ``KeyError`` where nothing can."""
        return TRANSITIONS[self, event]


class Attempt(Enum):
    """What an attempt to send came to."""

    DID_NOT_RUN = "did not run"  # no connection, or refused in words that a server says before it dispatches
    PERHAPS_NOT = "perhaps not"  # refused in words that an ingress says, too: asking settles it
    MAY_HAVE_RUN = "may have run"  # answered, cut, or refused in words that prove nothing


class Settled(Enum):
    """What came of asking about a refusal."""

    PROVEN = "proven"  # it came before anything was dispatched
    UNPROVEN = "unproven"


TRANSITIONS: dict[tuple[Arrival, Attempt | Settled], Arrival] = {
    (Arrival.NOT_SENT, Attempt.DID_NOT_RUN): Arrival.NOT_RUN,
    (Arrival.NOT_SENT, Attempt.PERHAPS_NOT): Arrival.IN_QUESTION,
    (Arrival.NOT_SENT, Attempt.MAY_HAVE_RUN): Arrival.MAY_HAVE_RUN,
    (Arrival.NOT_RUN, Attempt.DID_NOT_RUN): Arrival.NOT_RUN,
    (Arrival.NOT_RUN, Attempt.PERHAPS_NOT): Arrival.IN_QUESTION,
    (Arrival.NOT_RUN, Attempt.MAY_HAVE_RUN): Arrival.MAY_HAVE_RUN,
    (Arrival.IN_QUESTION, Settled.PROVEN): Arrival.NOT_RUN,
    (Arrival.IN_QUESTION, Settled.UNPROVEN): Arrival.MAY_HAVE_RUN,
    (Arrival.MAY_HAVE_RUN, Attempt.DID_NOT_RUN): Arrival.MAY_HAVE_RUN,
    (Arrival.MAY_HAVE_RUN, Attempt.PERHAPS_NOT): Arrival.IN_QUESTION_AGAIN,
    (Arrival.MAY_HAVE_RUN, Attempt.MAY_HAVE_RUN): Arrival.MAY_HAVE_RUN,
    (Arrival.IN_QUESTION_AGAIN, Settled.PROVEN): Arrival.MAY_HAVE_RUN,
    (Arrival.IN_QUESTION_AGAIN, Settled.UNPROVEN): Arrival.MAY_HAVE_RUN,
}
