"""How long a link waits before the next attempt."""

from __future__ import annotations

import pytest

from fedtide.back_off import GIVE_WAY_S, STABLE_S, TAKEOVERS_MAX, BackOff, Ended


def test_failures_double_the_pause_up_to_its_most_and_a_stable_link_resets_it() -> None:
    back_off = BackOff()
    pauses = [back_off.pause_s(Ended(at, None), 60.0) for at in range(10)]
    for index, pause_s in enumerate(pauses):
        longest_s = min(60.0, 2.0**index)
        assert longest_s / 2 <= pause_s <= longest_s
    assert not back_off.lived
    assert back_off.pause_s(Ended(1_000.0, 1_000.0 - 121), 60.0) <= 0.5
    assert back_off.lived


def test_a_bad_line_that_carries_blocks_is_tried_again_soon() -> None:
    back_off = BackOff()
    for at in range(10):
        assert back_off.pause_s(Ended(at, at - 1.0, carried=True), 60.0) <= 0.5


@pytest.mark.parametrize("carried", [True, False])
def test_a_link_cut_off_without_a_word_counts_as_failed(carried: bool) -> None:
    back_off = BackOff()
    pauses = [back_off.pause_s(Ended(at, at - 1.0, carried, "silently"), 60.0) for at in range(10)]
    assert pauses[-1] >= STABLE_S / 2


def test_who_is_taken_over_again_and_again_gives_way() -> None:
    back_off = BackOff()
    pauses = [
        back_off.pause_s(Ended(at, at, how="taken over"), 60.0) for at in range(TAKEOVERS_MAX)
    ]
    assert max(pauses[:-1]) < 60.0
    assert pauses[-1] >= GIVE_WAY_S


def test_who_is_unwelcome_does_not_hammer() -> None:
    assert BackOff().pause_s(Ended(0.0, None, how="unwelcome"), 60.0) >= GIVE_WAY_S
