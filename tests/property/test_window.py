"""The window over virtual lines of every rate and length: busy, and never much ahead of itself."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX
from fedtide.window import FLOOR_BYTES, QUEUE_MS, WINDOW_BYTES_MAX, Window

TIME_MS = 120_000.0

RateAt = Callable[[float], float]


class Line:
    """A first-in, first-out line; confirmations take `round_ms` and no room."""

    def __init__(self, rate_at: RateAt, round_ms: float, window: Window | None = None) -> None:
        self.window = Window() if window is None else window
        self.rate_at, self.round_ms = rate_at, round_ms
        self.carried: list[tuple[float, int]] = []
        """When each chunk was at the other end, and its size."""
        self.queues: list[tuple[float, float]] = []
        """For each chunk, when it was sent and what it found in front of it, in ms."""

    def run(self, time_ms: float = TIME_MS) -> None:
        coming: list[tuple[float, int, float, int]] = []
        now_ms = free_at_ms = 0.0
        token = 0
        while now_ms < time_ms:
            while self.window.has_room(size := self._next_size()):
                token += 1
                self.window.sent(token, size)
                rate = self.rate_at(now_ms)
                begins_ms = max(now_ms, free_at_ms)
                self.queues.append((now_ms, begins_ms - now_ms))
                free_at_ms = begins_ms + size / rate
                self.carried.append((free_at_ms, size))
                heapq.heappush(coming, (free_at_ms + self.round_ms, token, now_ms, size))
                assert self.window.under_way_bytes <= WINDOW_BYTES_MAX
            now_ms, done, sent_ms, _ = heapq.heappop(coming)
            self.window.confirmed(done, round(now_ms - sent_ms), more=True)

    def _next_size(self) -> int:
        """As `ChunkSender`: a quarter of a window."""
        quarter = self.window.bytes // (4 * BLOCK_BYTES)
        return min(max(1, quarter), CHUNK_BLOCKS_MAX) * BLOCK_BYTES

    def busy_share(self, from_ms: float) -> float:
        """Of the line's time since then, while `run` went on."""
        carried = sum(size for at_ms, size in self.carried if from_ms <= at_ms <= TIME_MS)
        return carried / self.rate_at(TIME_MS) / (TIME_MS - from_ms)

    def longest_queue_ms(self, from_ms: float) -> float:
        return max(queue for at_ms, queue in self.queues if at_ms >= from_ms)


def check(line: Line) -> None:
    line.run()
    rate = line.rate_at(TIME_MS)
    settled_ms = TIME_MS / 2
    assert line.busy_share(settled_ms) > 0.9
    # What is under way: the floor, or what settles between half of the limit and the limit.
    allowed = max(QUEUE_MS, FLOOR_BYTES / rate) + BLOCK_BYTES / rate
    assert line.longest_queue_ms(settled_ms) <= allowed


rounds = st.floats(0, 900)
"""Milliseconds. Rates are in bytes per ms: 0.8 KB/s to 12 Mbit/s."""


@settings(max_examples=60, deadline=None)
@given(st.floats(8, 1_500), rounds)
def test_a_line_is_kept_busy_and_its_queue_short(rate: float, round_ms: float) -> None:
    check(Line(lambda _at: rate, round_ms))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.8, 8), rounds)
def test_a_very_slow_line_carries_single_blocks_two_at_a_time(rate: float, round_ms: float) -> None:
    line = Line(lambda _at: rate, round_ms)
    line.run(10 * TIME_MS)
    assert {size for _, size in line.carried} == {BLOCK_BYTES}
    assert line.window.bytes == FLOOR_BYTES
    assert line.longest_queue_ms(0) <= BLOCK_BYTES / rate + 1


@settings(max_examples=40, deadline=None)
@given(st.floats(50, 1_500), st.floats(0.02, 0.5), st.floats(0, 600))
def test_a_line_that_becomes_slow_is_soon_given_less(
    rate: float, share: float, round_ms: float
) -> None:
    slow = max(10.0, rate * share)
    line = Line(lambda at_ms: rate if at_ms < TIME_MS / 4 else slow, round_ms)
    line.run(4 * TIME_MS)
    # Once what was under way has come through, and a few windows more.
    begins_ms = TIME_MS / 4 + 3 * WINDOW_BYTES_MAX / slow
    if begins_ms < 3 * TIME_MS:
        allowed = max(QUEUE_MS, FLOOR_BYTES / slow) + BLOCK_BYTES / slow
        assert line.longest_queue_ms(begins_ms) <= allowed


def test_one_thing_always_goes_however_small_the_window() -> None:
    window = Window()
    assert window.has_room(10 * FLOOR_BYTES)
    window.sent(1, 10 * FLOOR_BYTES)
    assert not window.has_room(1)


def test_a_new_link_begins_with_half() -> None:
    line = Line(lambda _at: 500.0, 50)
    line.run()
    before = line.window.bytes
    line.window.link_lost()
    assert line.window.bytes == before // 2
    assert line.window.under_way_bytes == 0


def test_a_way_that_grows_is_taken_for_a_queue_until_the_next_link() -> None:
    window = Window()
    grown_ms = 50 + 2 * QUEUE_MS
    for token, waited_ms in enumerate([50] * 20 + [grown_ms] * 20):
        window.sent(token, BLOCK_BYTES)
        window.confirmed(token, waited_ms, more=True)
    assert window.bytes == FLOOR_BYTES
    window.link_lost()
    for token in range(3):
        window.sent(token, BLOCK_BYTES)
        window.confirmed(token, grown_ms, more=True)
    assert window.bytes > FLOOR_BYTES


def test_what_was_not_measured_changes_nothing() -> None:
    window = Window()
    window.sent(1, BLOCK_BYTES)
    window.confirmed(1, None, more=True)
    window.confirmed(2, 10, more=True)
    assert window.bytes == FLOOR_BYTES


class Blind(Window):
    """Planted: takes the whole wait for the queue."""

    def confirmed(self, token: int, waited_ms: int | None, *, more: bool) -> None:
        self._base_ms = 0
        super().confirmed(token, waited_ms, more=more)


class Greedy(Window):
    """Planted: never shrinks, and grows whatever it sees."""

    def confirmed(self, token: int, waited_ms: int | None, *, more: bool) -> None:
        size = self._sizes.pop(token)
        self.bytes = min(WINDOW_BYTES_MAX, self.bytes + size)


@pytest.mark.parametrize(("planted", "rate"), [(Blind, 1_000.0), (Greedy, 100.0)])
def test_the_checker_notices_a_broken_window(planted: type[Window], rate: float) -> None:
    with pytest.raises(AssertionError):
        check(Line(lambda _at: rate, 1_300, planted()))
