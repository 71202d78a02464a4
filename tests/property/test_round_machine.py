"""The round machine against an external model: random events, and what must hold after each."""

from __future__ import annotations

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

DEVICES = tuple("abcdef")
CONFIG = RoundsConfig(
    count=3,
    cohort_size=3,
    over_selection=1.4,
    quorum=2,
    devices_min=3,
    collect_ms=1_000,
    back_off_ms=500,
    abandoned_max=3,
)
devices = st.sampled_from(DEVICES)


class Rounds(RuleBasedStateMachine):
    """Keeps its own books, from events and commands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RoundState()
        self.now_ms = 5_000
        self.sent: dict[tuple[int, str], str] = {}
        """Updates by round and device: the first accepted one."""
        self.invited: dict[int, set[str]] = {}
        self.aggregated: dict[int, tuple[str, ...]] = {}
        self.models = 0
        self.pending: AggregateRound | None = None
        self.uploads = 0

    def feed(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        commands, self.state = step(before, event, self.now_ms, CONFIG)
        assert step(before, event, self.now_ms, CONFIG) == (commands, self.state)
        assert self.state.round_id in (before.round_id, before.round_id + 1)
        assert self.state.model_version - before.model_version in (0, 1)
        for command in commands:
            self.note(command, before, event)
        return commands

    def note(self, command: Command, before: RoundState, event: Event) -> None:
        if isinstance(command, InviteDevices) and not isinstance(event, Restarted):
            assert command.device_ids
            assert set(command.device_ids) <= set(self.state.online)
            self.invited[self.state.round_id] = set(command.device_ids)
        elif isinstance(command, AggregateRound):
            round_id = command.round_id
            theirs = sorted(
                (name, update) for (of, name), update in self.sent.items() if of == round_id
            )
            # Every accepted update exactly once, in the order of device ids.
            assert command.update_ids == tuple(update for _, update in theirs)
            assert {name for name, _ in theirs} <= self.invited[round_id]
            assert len(theirs) >= (CONFIG.quorum if command.kind == "train" else 1)
            assert self.aggregated.setdefault(round_id, command.update_ids) == command.update_ids
            self.pending = command
        elif isinstance(command, AbandonRound):
            assert command.round_id not in self.aggregated
            assert "updates" in command.reason
        elif isinstance(command, FinishFederation):
            assert command.succeeded == (self.models >= CONFIG.count)
            assert command.reason

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

    @rule(device=devices, late_by=st.sampled_from([0, 0, 0, 0, 1, -1]))
    def accepted(self, device: str, late_by: int) -> None:
        before, round_id = self.state, max(0, self.state.round_id - late_by)
        counts = (
            before.phase == "collecting"
            and late_by == 0
            and device in self.invited[round_id]
            and all(m.answer == "none" for m in before.cohort if m.device_id == device)
        )
        self.uploads += 1
        if counts:
            self.sent[round_id, device] = f"u{self.uploads}"
        commands = self.feed(UpdateAccepted(round_id, device, f"u{self.uploads}"))
        if not counts:
            assert (commands, self.state) == ((), before)

    @rule(device=devices)
    def rejected(self, device: str) -> None:
        self.feed(UpdateRejected(self.state.round_id, device))

    @rule(device=devices)
    def declined(self, device: str) -> None:
        self.feed(TaskDeclined(self.state.round_id, device))

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
        self.models += pending.kind == "train"
        self.feed(RoundAggregated(pending.round_id))
        assert self.state.model_version == self.models

    @rule(jump_ms=st.sampled_from([0, 10_000, -4_000]))
    def restarts(self, jump_ms: int) -> None:
        """Every command that matters is derived again, and a clock set back stretches nothing."""
        self.now_ms = max(0, self.now_ms + jump_ms)
        before = self.state
        commands = self.feed(Restarted())
        assert self.state.online == ()
        if before.phase == "collecting":
            silent = tuple(m.device_id for m in before.cohort if m.answer == "none")
            assert commands == (InviteDevices(silent),)
            assert self.state.deadline_at_ms is not None
            assert self.state.deadline_at_ms <= self.now_ms + CONFIG.collect_ms
        elif before.phase == "aggregating":
            assert commands == (self.pending,)
        elif before.phase == "finished" and self.models >= CONFIG.count:
            assert [type(command) for command in commands] == [FinishFederation]

    @invariant()
    def always_a_deadline_or_a_reason(self) -> None:
        assert self.state.reason
        has_deadline = self.state.deadline_at_ms is not None
        if self.state.phase in ("collecting", "backing_off"):
            assert has_deadline
        elif self.state.phase in ("aggregating", "finished"):
            assert not has_deadline
        else:
            assert has_deadline or self.state == RoundState()
        assert (self.state.phase == "aggregating") == (self.pending is not None)

    @invariant()
    def the_books_agree(self) -> None:
        assert self.state.model_version == self.models
        if self.state.phase == "collecting":
            names = {m.device_id for m in self.state.accepted()}
            assert names == {name for of, name in self.sent if of == self.state.round_id}


def run(examples: int, *, shrink: bool) -> None:
    run_state_machine_as_test(
        Rounds,
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


def test_the_round_machine_keeps_its_promises() -> None:
    run(60, shrink=True)


def _double_count(original: object) -> object:
    """The machine as it would be if a second update of a device counted."""

    def answer(
        state: RoundState, round_id: int, member: object, at_ms: int, config: RoundsConfig
    ) -> object:
        assert isinstance(member, round_machine.Member)
        cohort = tuple(
            round_machine.Member(m.device_id) if m.device_id == member.device_id else m
            for m in state.cohort
        )
        forgetful = round_machine._with(state, cohort=cohort)
        return original(forgetful, round_id, member, at_ms, config)  # type: ignore[operator]

    return answer


def _stale(original: object) -> object:
    def answer(
        state: RoundState, _round_id: int, member: object, at_ms: int, config: RoundsConfig
    ) -> object:
        return original(state, state.round_id, member, at_ms, config)  # type: ignore[operator]

    return answer


def _no_quorum(_original: object) -> object:
    return lambda state, _why, _at_ms, _config: round_machine._close(state)


def _no_commands_after_restart(_original: object) -> object:
    return lambda state, _at_ms, _config: round_machine.Step(
        (), round_machine._with(state, online=())
    )


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("_answer", _double_count),
        ("_answer", _stale),
        ("_close_or_abandon", _no_quorum),
        ("_resume", _no_commands_after_restart),
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, name: str, plant: object) -> None:
    planted = plant(getattr(round_machine, name))  # type: ignore[operator]
    monkeypatch.setattr(round_machine, name, planted)
    with pytest.raises(AssertionError):
        run(200, shrink=False)
