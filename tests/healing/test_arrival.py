"""What a message may have done, as the table says it: every row, and what no row may ever say."""

from __future__ import annotations

from typing import Final

import pytest

from mcp_sidecar.healing.arrival import TRANSITIONS, Arrival, Attempt, Settled

AFTER_AN_ATTEMPT: Final = {
    Arrival.NOT_SENT: (Arrival.NOT_RUN, Arrival.IN_QUESTION, Arrival.MAY_HAVE_RUN),
    Arrival.NOT_RUN: (Arrival.NOT_RUN, Arrival.IN_QUESTION, Arrival.MAY_HAVE_RUN),
    Arrival.MAY_HAVE_RUN: (Arrival.MAY_HAVE_RUN, Arrival.IN_QUESTION_AGAIN, Arrival.MAY_HAVE_RUN),
}
AFTER_ASKING: Final = {
    Arrival.IN_QUESTION: (Arrival.NOT_RUN, Arrival.MAY_HAVE_RUN),
    Arrival.IN_QUESTION_AGAIN: (Arrival.MAY_HAVE_RUN, Arrival.MAY_HAVE_RUN),
}


@pytest.mark.parametrize("event", [*Attempt, *Settled], ids=lambda event: event.name)
@pytest.mark.parametrize("before", Arrival, ids=lambda state: state.name)
def test_every_pair_of_state_and_event(before: Arrival, event: Attempt | Settled) -> None:
    """An attempt follows where nothing is open, asking where something is; there are no other transitions."""
    rows = AFTER_AN_ATTEMPT if isinstance(event, Attempt) else AFTER_ASKING
    if before in rows:
        assert before.after(event) is rows[before][list(type(event)).index(event)]
    else:
        with pytest.raises(KeyError):
            before.after(event)


def test_what_may_have_run_stays_so() -> None:
    """No event leads from an attempt that may have run to the claim that nothing ran."""
    reached = {
        after
        for (before, _), after in TRANSITIONS.items()
        if before in (Arrival.MAY_HAVE_RUN, Arrival.IN_QUESTION_AGAIN)
    }
    assert reached == {Arrival.MAY_HAVE_RUN, Arrival.IN_QUESTION_AGAIN}


def test_a_message_that_was_sent_is_never_unsent() -> None:
    """Nothing leads back to the beginning."""
    assert Arrival.NOT_SENT not in TRANSITIONS.values()


def test_what_is_open_counts_as_run() -> None:
    """Until it is settled, the worse is taken for true."""
    assert {state for state in Arrival if state.may_have_run} == set(Arrival) - {Arrival.NOT_SENT, Arrival.NOT_RUN}
    assert {state for state in Arrival if state.is_open} == set(AFTER_ASKING)
