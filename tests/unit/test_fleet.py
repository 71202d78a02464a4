"""Who is here, and when each is to speak again."""

from __future__ import annotations

from statistics import mean

import pytest

from coordinator.fleet import HELLOS_PER_S_MAX, Fleet


def fleet(devices: int = 0, expected: int = 0) -> Fleet:
    made = Fleet("s1", 30_000, 10_000)
    made.expect(expected)
    for number in range(devices):
        made.hello(f"d{number}", "", 0)
    return made


def test_each_device_has_its_own_time_within_a_quarter() -> None:
    times = [fleet().hello_ms(f"d{number}") for number in range(200)]
    assert all(22_500 <= time <= 37_500 for time in times)
    assert abs(mean(times) - 30_000) < 1_000
    assert len(set(times)) > 190
    assert times == [fleet().hello_ms(f"d{number}") for number in range(200)]
    assert Fleet("s2", 30_000, 10).hello_ms("d0") != times[0]
    assert Fleet("s1", 1_000, 10).hello_ms("d0") >= 1_000


def test_a_handful_need_not_spread_out_and_a_large_fleet_does() -> None:
    assert fleet(50).spread_ms() == 0
    assert fleet(1_000).spread_ms() == 1_000_000 // HELLOS_PER_S_MAX
    assert fleet(0, expected=1_000).spread_ms() == 20_000  # nobody is back yet
    assert fleet(0, expected=10_000).hello_ms("d") >= 0.75 * 200_000  # 50 hellos a second


def test_silence_counts_as_gone_after_three_of_its_own_hellos() -> None:
    here = fleet(1)
    limit = 3 * here.hello_ms("d0")
    assert here.next_deadline_at_ms() == here.silent_at_ms("d0") == limit
    assert here.silent(limit - 1) == []
    here.heard("d0", 5)
    assert here.silent_at_ms("d0") == limit + 5
    assert here.silent(limit) == []
    assert here.silent(limit + 5) == ["d0"]
    assert here.next_deadline_at_ms() is None


def test_a_message_costs_no_look_at_the_whole_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    here = fleet(100)
    limit = here.next_deadline_at_ms()
    assert limit is not None
    monkeypatch.delattr(Fleet, "_silence_ms")
    assert here.silent(limit - 1) == []
    assert here.next_deadline_at_ms() == limit


def test_who_was_not_here_does_not_leave() -> None:
    assert not fleet().left("ghost", 0)
    assert fleet().silent_at_ms("ghost") is None


def test_a_full_house() -> None:
    small = Fleet("s", 30_000, 1)
    assert [small.hello(name, "", 0) for name in ("a", "b", "a")] == ["new", "full", "known"]


def test_a_name_belongs_to_one_installation_at_a_time() -> None:
    here = fleet()
    assert here.hello("pi", "one", 0) == "new"
    assert here.hello("pi", "two", 10) == "twin"
    assert not here.left("pi", 20)  # whose will this is, nobody knows
    here.heard("pi", 30)  # nor who says this
    assert here.hello("pi", "one", 40) == "known"
    silent_at = 40 + 3 * here.hello_ms("pi")
    assert here.hello("pi", "two", silent_at - 1) == "twin"
    assert here.silent(silent_at) == ["pi"]
    assert here.hello("pi", "two", silent_at) == "new"
    assert here.left("pi", silent_at + 1)
