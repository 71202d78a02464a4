"""Why a round has closed: the round machine orders the aggregation and does not say."""

from __future__ import annotations

from coordinator.round_state import RoundState
from simulator.fleet.events import Closing


def why_closed(state: RoundState) -> Closing:
    """Of the state that the machine gives with the order to aggregate."""
    if state.buffered:
        return "enough" if len(state.accepted()) >= state.wanted else "deadline"
    # Late updates that were carried into the round count in it, but close none.
    answers = [member.answer for member in state.cohort if member.round_id == state.round_id]
    if answers.count("accepted") >= state.wanted:
        return "enough"
    return "deadline" if "none" in answers else "answered"
