"""The round machine against an external model: random events, and what must hold after each."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from coordinator import round_machine
from coordinator.config import RoundsConfig
from coordinator.round_machine import (
    AbandonRound,
    AggregateRound,
    AggregationFailed,
    Command,
    DeviceArrived,
    DeviceLeft,
    Event,
    FinishFederation,
    InviteDevices,
    Restarted,
    RoundAggregated,
    RoundState,
    TaskDeclined,
    TimeReached,
    UpdateAccepted,
    UpdateRejected,
    step,
)
from coordinator.round_state import Member, unwelcome

DEVICES = tuple("abcdef")
DISCARD = RoundsConfig(
    count=3,
    cohort_size=3,
    over_selection=1.4,
    quorum=2,
    devices_min=3,
    collect_ms=1_000,
    back_off_ms=500,
    abandoned_max=3,
    staleness_max=1,
)
replace = msgspec.structs.replace
DISCOUNT = replace(DISCARD, late="discount")
BUFFERED = replace(
    DISCARD, mode="buffered", cohort_size=None, buffer_size=3, concurrency=4, devices_min=2
)
devices = st.sampled_from(DEVICES)
Task = tuple[str, int]
"""Device and round."""


def task_of(member: Member) -> Task:
    return member.device_id, member.round_id


class Rounds(RuleBasedStateMachine):
    """Keeps its own books, from events and commands alone.

    Like vetting, it offers each task's update once, and only of devices that were given the task.
    """

    config = DISCARD

    def __init__(self) -> None:
        super().__init__()
        self.state = RoundState()
        self.now_ms = 5_000
        self.given: dict[Task, int] = {}
        """Tasks and the versions that they start from."""
        self.offered: set[Task] = set()
        self.waiting: dict[Task, str] = {}
        """Accepted updates that have not come to their end."""
        self.counting: dict[Task, str] = {}
        self.counted: set[Task] = set()
        self.kinds: dict[int, str] = {}
        self.models = 0
        self.pending: AggregateRound | None = None
        self.uploads = 0

    def feed(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        commands, self.state = step(before, event, self.now_ms, self.config)
        assert step(before, event, self.now_ms, self.config) == (commands, self.state)
        assert self.state.round_id in (before.round_id, before.round_id + 1)
        assert self.state.model_version - before.model_version in (0, 1)
        self.kinds.setdefault(self.state.round_id, self.state.kind)
        for command in commands:
            self.note(command, event)
        return commands

    def note(self, command: Command, event: Event) -> None:
        if isinstance(command, InviteDevices) and not isinstance(event, Restarted):
            assert command.device_ids
            assert set(command.device_ids) <= set(self.state.online)
            for device in command.device_ids:
                assert (device, self.state.round_id) not in self.given, "invited twice"
                self.given[device, self.state.round_id] = self.models
        elif isinstance(command, AggregateRound) and not isinstance(event, Restarted):
            self.closes(command)
        elif isinstance(command, AbandonRound):
            assert "updates" in command.reason or "evaluations" in command.reason
            if self.kinds[command.round_id] == "evaluate" or self.config == DISCARD:
                lost = [task for task in self.waiting if task[1] == command.round_id]
                for task in lost:
                    del self.waiting[task]
        elif isinstance(command, FinishFederation):
            assert command.succeeded == (self.models >= self.config.count)
            assert command.reason

    def closes(self, command: AggregateRound) -> None:
        """Every update that waits counts, exactly once, in the order of devices and rounds."""
        trains = command.kind == "train"
        tasks = sorted(task for task in self.waiting if (self.kinds[task[1]] == "train") == trains)
        assert command.update_ids == tuple(self.waiting[task] for task in tasks)
        assert set(tasks) <= set(self.given)
        assert not set(tasks) & self.counted
        assert len({name for name, _ in tasks}) >= (self.config.quorum if trains else 1)
        for task in tasks:
            assert 0 <= self.models - self.given[task] <= self.config.staleness_max
            self.counting[task] = self.waiting.pop(task)
        self.pending = command

    @initialize(online=st.sets(devices, min_size=2))
    def devices_are_there(self, online: set[str]) -> None:
        for device in sorted(online):
            self.feed(DeviceArrived(device))

    @rule(device=devices)
    def arrives(self, device: str) -> None:
        self.feed(DeviceArrived(device))
        assert device in self.state.online

    @rule(device=devices)
    def leaves(self, device: str) -> None:
        self.feed(DeviceLeft(device))
        assert device not in self.state.online

    @rule(device=devices, late_by=st.sampled_from([0, 0, 1, 1, 2, 3, -1]))
    def any_update(self, device: str, late_by: int) -> None:
        self.accepted(device, late_by)

    def accepted(self, device: str, late_by: int) -> None:
        before, task = self.state, (device, max(0, self.state.round_id - late_by))
        late = late_by > 0 or before.phase != "collecting"
        if late and (task not in self.given or task in self.offered):
            return  # vetting lets none through that was never given, or is known
        if late_by > 0 and self.kinds[task[1]] == "evaluate":
            return
        takes = task in self.given and task not in self.offered and self.takes(before, task)
        self.uploads += 1
        if takes:
            self.offered.add(task)
            self.waiting[task] = f"u{self.uploads}"
        version = self.given.get(task, self.models)
        commands = self.feed(UpdateAccepted(task[1], device, f"u{self.uploads}", version))
        if not takes:
            assert (commands, self.state) == ((), before)

    @rule(index=st.integers(0, 5), count=st.integers(1, 2))
    def does_its_work(self, index: int, count: int) -> None:
        """So that models are made often: an update of a device that is at work."""
        for member in self.state.at_work()[index : index + count]:
            self.accepted(member.device_id, self.state.round_id - member.round_id)

    def takes(self, state: RoundState, task: Task) -> bool:
        """Whether an update of a task that was given must count."""
        in_time = state.phase == "collecting" and task[1] == state.round_id
        member = state.member(*task)
        if member is not None and member.answer in ("rejected", "declined"):
            return False
        next_version = self.models + (self.pending is not None and self.pending.kind == "train")
        if next_version - self.given[task] > self.config.staleness_max:
            return False
        if in_time or (state.phase == "collecting" and member is not None):
            return True
        waits = any(carried.device_id == task[0] for carried in state.carried)
        ended = next_version >= self.config.count
        return self.config != DISCARD and not waits and not ended

    @rule(device=devices)
    def rejected(self, device: str) -> None:
        self.feed(UpdateRejected(self.state.round_id, device))

    @rule(device=devices, late_by=st.sampled_from([0, 0, 1]))
    def declined(self, device: str, late_by: int) -> None:
        self.feed(TaskDeclined(self.state.round_id - late_by, device))

    @rule(wait_ms=st.sampled_from([0, 100, 1_000, 60_000]))
    def time_passes(self, wait_ms: int) -> None:
        self.now_ms += wait_ms
        due = self.state.deadline_at_ms is not None and self.now_ms >= self.state.deadline_at_ms
        before = self.state
        self.feed(TimeReached())
        assert (self.state == before) <= (not due)

    @rule()
    def aggregates(self) -> None:
        pending, self.pending = self.pending, None
        if pending is None:
            return
        assert self.state.phase == "aggregating"
        working = set(map(task_of, self.state.at_work()))
        self.models += pending.kind == "train"
        self.counted |= set(self.counting)
        self.counting.clear()
        self.feed(RoundAggregated(pending.round_id))
        assert self.state.model_version == self.models
        if self.config.mode == "buffered" and self.models < self.config.count:
            assert working <= set(map(task_of, self.state.at_work())), "work was forgotten"

    @rule()
    def aggregation_fails(self) -> None:
        pending = self.pending
        if pending is None or pending.kind == "evaluate" or self.models > 1:
            return
        self.pending = None
        self.counting.clear()
        self.feed(AggregationFailed(pending.round_id, "the sum of the updates is unusable"))

    @rule(jump_ms=st.sampled_from([0, 10_000, -4_000]))
    def restarts(self, jump_ms: int) -> None:
        """Every command that matters is derived again, and a clock set back stretches nothing."""
        self.now_ms = max(0, self.now_ms + jump_ms)
        before = self.state
        commands = self.feed(Restarted())
        assert self.state.online == ()
        if before.phase == "collecting":
            silent = tuple(m.device_id for m in before.cohort if m.answer == "none")
            assert commands == ((InviteDevices(silent),) if silent else ())
            assert self.state.deadline_at_ms is not None
            assert self.state.deadline_at_ms <= self.now_ms + self.config.collect_ms
        elif before.phase == "aggregating":
            assert commands == (self.pending,)
        elif before.phase == "finished" and self.models >= self.config.count:
            assert [type(command) for command in commands] == [FinishFederation]

    @invariant()
    def always_a_deadline_or_a_reason(self) -> None:
        assert self.state.reason
        has_deadline = self.state.deadline_at_ms is not None
        if self.state.phase in ("collecting", "aggregating", "backing_off"):
            assert has_deadline
        elif self.state.phase == "finished":
            assert not has_deadline
        else:
            assert has_deadline or self.state == RoundState()
        assert (self.state.phase == "aggregating") == (self.pending is not None)

    @invariant()
    def the_books_agree(self) -> None:
        assert self.state.model_version == self.models
        ready = {task_of(m): m.update_id for m in (*self.state.accepted(), *self.state.carried)}
        assert ready == self.waiting | self.counting
        assert not set(self.waiting) & self.counted

    @invariant()
    def whoever_is_free_has_something_to_do(self) -> None:
        state = self.state
        working = [member.device_id for member in state.at_work()]
        assert len(working) == len(set(working))
        if state.phase != "collecting" or not state.buffered:
            return
        assert len(working) <= self.config.concurrency
        assert len(state.ready()) < state.wanted or state.devices_ready() < state.quorum
        asked = {name for name, round_id in self.given if round_id == state.round_id}
        late = {m.device_id for m in (*state.stragglers, *state.cohort) if m.answer != "accepted"}
        if state.abandoned_in_a_row > self.config.abandoned_max // 2:
            late = set()  # nothing else has helped
        free = set(state.online) - asked - set(working) - late
        assert not free or len(working) == self.config.concurrency
        assert state.idle == (not working)


class DiscountedRounds(Rounds):
    config = DISCOUNT


class FreshRounds(Rounds):
    config = replace(BUFFERED, staleness_max=0)


class BufferedRounds(Rounds):
    config = BUFFERED


def run(machine: type[Rounds], examples: int, *, shrink: bool) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=not shrink,  # planted bugs are found every time, or never
            report_multiple_bugs=False,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        ),
    )


@pytest.mark.parametrize("machine", [Rounds, DiscountedRounds, BufferedRounds])
def test_the_round_machine_keeps_its_promises(machine: type[Rounds]) -> None:
    run(machine, 60, shrink=True)


def _double_count(original: object) -> object:
    """The machine as it would be if a second update of a device counted."""

    def accepted(
        state: RoundState, event: UpdateAccepted, at_ms: int, config: RoundsConfig
    ) -> object:
        cohort = tuple(
            replace(m, answer="none", update_id="") if m.device_id == event.device_id else m
            for m in state.cohort
        )
        return original(replace(state, cohort=cohort), event, at_ms, config)  # type: ignore[operator]

    return accepted


def _wrong_round(original: object) -> object:
    """An update counts for the open round, whatever its own."""

    def accepted(
        state: RoundState, event: UpdateAccepted, at_ms: int, config: RoundsConfig
    ) -> object:
        event = replace(event, round_id=state.round_id)
        return original(state, event, at_ms, config)  # type: ignore[operator]

    return accepted


def _no_quorum(_original: object) -> object:
    return lambda state, _why, at_ms, config: round_machine._close(state, at_ms, config)


def _no_commands_after_restart(_original: object) -> object:
    return lambda state, _at_ms, _config: round_machine.Step((), replace(state, online=()))


def _carried_twice(original: object) -> object:
    def close(state: RoundState, *arguments: object) -> round_machine.Step:
        commands, new = original(state, *arguments)  # type: ignore[operator]
        return round_machine.Step(commands, replace(new, carried=state.carried))

    return close


def _carried_lost(original: object) -> object:
    def abandon(state: RoundState, *arguments: object, **named: object) -> object:
        return original(replace(state, carried=()), *arguments, **named)  # type: ignore[operator]

    return abandon


def _any_age(original: object) -> object:
    def ageless(state: RoundState, config: RoundsConfig, *others: object) -> object:
        return original(state, replace(config, staleness_max=1000), *others)  # type: ignore[operator]

    assert original is unwelcome
    return ageless


def _work_forgotten(original: object) -> object:
    def aggregated(state: RoundState, *others: object) -> object:
        cohort = state.accepted()
        return original(replace(state, cohort=cohort), *others)  # type: ignore[operator]

    return aggregated


def _nobody_loses_its_place(original: object) -> object:
    def time(state: RoundState, at_ms: int, config: RoundsConfig) -> object:
        if state.buffered and not state.idle and state.phase == "collecting":
            return round_machine.Step((), state)
        return original(state, at_ms, config)  # type: ignore[operator]

    return time


@pytest.mark.parametrize(
    ("machine", "name", "plant"),
    [
        (Rounds, "_accepted", _double_count),
        (Rounds, "_accepted", _wrong_round),
        (Rounds, "_close_or_abandon", _no_quorum),
        (Rounds, "_resume", _no_commands_after_restart),
        (DiscountedRounds, "_close", _carried_twice),
        (DiscountedRounds, "_abandon", _carried_lost),
        (FreshRounds, "unwelcome", _any_age),
        (BufferedRounds, "_close", _carried_twice),
        (BufferedRounds, "_aggregated", _work_forgotten),
        (BufferedRounds, "_time", _nobody_loses_its_place),
    ],
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, machine: type[Rounds], name: str, plant: object
) -> None:
    planted = plant(getattr(round_machine, name))  # type: ignore[operator]
    monkeypatch.setattr(round_machine, name, planted)
    with pytest.raises(AssertionError):
        run(machine, 1_000, shrink=False)
