"""When a link is alive, and why it is not."""

from __future__ import annotations

from fedtide.pulse import ANSWER_MS, CONFIRM_MS_MIN, Pulse

KEEPALIVE_MS = 5_000
LIMIT_MS = KEEPALIVE_MS + ANSWER_MS


def test_silence_ends_it_and_says_how_long() -> None:
    pulse = Pulse(KEEPALIVE_MS, 0)
    assert pulse.verdict(LIMIT_MS - 1, unconfirmed=False) is None
    assert pulse.verdict(LIMIT_MS, unconfirmed=False) == "nothing has moved on the link for 10 s"


def test_what_comes_in_is_life() -> None:
    pulse = Pulse(KEEPALIVE_MS, 0)
    pulse.heard(7_000)
    assert pulse.verdict(7_000 + LIMIT_MS - 1, unconfirmed=False) is None
    assert pulse.verdict(7_000 + LIMIT_MS, unconfirmed=False) is not None


def test_a_slow_upload_is_life_for_as_long_as_it_moves() -> None:
    pulse = Pulse(KEEPALIVE_MS, 0)
    for second in range(1, 600):
        pulse.taken(1_000 * second, 1_000 * second)
        assert pulse.verdict(1_000 * second, unconfirmed=True) is None
    assert pulse.verdict(599_000 + LIMIT_MS, unconfirmed=True) is not None


def test_pings_that_only_a_kernel_takes_are_no_life() -> None:
    """A broker that hangs, on a machine that does not."""
    pulse = Pulse(KEEPALIVE_MS, 0)
    for second in range(10):
        pulse.taken(2 * second, 1_000 * second)
    assert pulse.verdict(LIMIT_MS, unconfirmed=False) is not None


def test_a_ping_comes_before_the_keepalive_is_over_and_not_more_often() -> None:
    pulse = Pulse(KEEPALIVE_MS, 0)
    due = [at_ms for at_ms in range(0, 15_000, 250) if pulse.ping_is_due(at_ms)]
    assert due == [3_750, 7_500, 11_250]


def test_a_broker_that_answers_pings_and_confirms_nothing_is_left() -> None:
    pulse = Pulse(KEEPALIVE_MS, 0)
    pulse.confirmed(1_000)
    for at_ms in range(1_000, 1_000 + CONFIRM_MS_MIN, 500):
        pulse.heard(at_ms)
        assert pulse.verdict(at_ms, unconfirmed=True) is None
    at_ms = 1_000 + CONFIRM_MS_MIN
    pulse.heard(at_ms)
    assert pulse.verdict(at_ms, unconfirmed=False) is None
    reason = pulse.verdict(at_ms, unconfirmed=True)
    assert reason == "the broker has confirmed nothing for 60 s"
