"""The plan of faults: the same for the same seed, about as many as promised, never too many."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from demo.faults import DROP_RATE, FaultPlan, plan_faults

DEVICES = tuple(f"device-{number:02}" for number in range(10))
SEEDS = st.integers(min_value=0, max_value=2**63)
ROUNDS = st.integers(min_value=1, max_value=60)
QUORUMS = st.integers(min_value=0, max_value=10)


@given(SEEDS, ROUNDS, QUORUMS)
def test_the_same_seed_gives_the_same_faults(seed: int, rounds: int, quorum: int) -> None:
    first = plan_faults(seed, DEVICES, rounds, quorum)
    assert plan_faults(seed, DEVICES, rounds, quorum) == first
    assert len(first.rounds) == rounds


def test_another_seed_gives_other_faults() -> None:
    assert len({str(plan_faults(seed, DEVICES, 30, 4)) for seed in range(50)}) == 50


@given(SEEDS, ROUNDS, st.integers(min_value=0, max_value=4))
def test_the_quorum_is_left_alone(seed: int, rounds: int, quorum: int) -> None:
    plan = plan_faults(seed, DEVICES, rounds, quorum)
    for round_id in range(1, rounds + 1):
        assert len(DEVICES) - len(troubled(plan, round_id)) >= quorum


@given(SEEDS, ROUNDS, QUORUMS)
def test_one_device_has_one_trouble_at_a_time(seed: int, rounds: int, quorum: int) -> None:
    plan = plan_faults(seed, DEVICES, rounds, quorum)
    down: dict[str, int] = {}
    for round_id in range(1, rounds + 1):
        faults = plan.of(round_id)
        names = [*faults.killed, *filter(None, (faults.late, faults.offline))]
        assert len(names) == len(set(names))
        assert set(names) <= set(DEVICES)
        for device in (*faults.killed, faults.late):
            assert device is None or down.get(device, 0) < round_id
        down.update(faults.killed)


@given(SEEDS, ROUNDS)
def test_the_killed_come_back_one_or_two_rounds_later(seed: int, rounds: int) -> None:
    plan = plan_faults(seed, DEVICES, rounds, 4)
    for round_id, faults in enumerate(plan.rounds, start=1):
        for device, back in faults.killed.items():
            assert back - round_id in (1, 2)
            assert device in plan.restarted(back)
    assert plan.restarted(1) == ()


@given(SEEDS, ROUNDS)
def test_the_first_round_is_left_alone(seed: int, rounds: int) -> None:
    plan = plan_faults(seed, DEVICES, rounds, 4)
    assert troubled(plan, 1) == set()


@given(SEEDS, st.integers(min_value=8, max_value=60))
def test_one_device_loses_its_network_once_for_two_or_three_rounds(seed: int, rounds: int) -> None:
    plan = plan_faults(seed, DEVICES, rounds, 4)
    without = [(n, f.offline) for n, f in enumerate(plan.rounds, start=1) if f.offline]
    assert len(without) in (2, 3)
    assert len({device for _, device in without}) == 1
    assert [n for n, _ in without] == list(range(without[0][0], without[0][0] + len(without)))


@settings(max_examples=20)
@given(SEEDS)
def test_about_a_fifth_of_the_devices_that_can_take_part_is_killed(seed: int) -> None:
    killed, able = 0, 0
    for offset in range(20):
        plan = plan_faults(seed + offset, DEVICES, 30, 2)
        for round_id, faults in enumerate(plan.rounds, start=1):
            killed += len(faults.killed)
            able += len(DEVICES) - len(troubled(plan, round_id))
            able += len(faults.killed) + (faults.late is not None)
    assert abs(killed / able - DROP_RATE) < 0.04


@given(SEEDS)
def test_beyond_the_plan_nothing_happens(seed: int) -> None:
    plan = plan_faults(seed, DEVICES, 5, 4)
    for round_id in (0, 6, 100):
        assert not troubled(FaultPlan(), round_id)
        assert not plan.of(round_id).killed


def troubled(plan: FaultPlan, round_id: int) -> set[str]:
    """Devices whose update cannot be counted on in this round."""
    faults = plan.of(round_id)
    names = {*faults.killed, *filter(None, (faults.late, faults.offline))}
    for earlier, before in enumerate(plan.rounds[: max(0, round_id - 1)], start=1):
        names |= {device for device, back in before.killed.items() if earlier < round_id <= back}
    return names
