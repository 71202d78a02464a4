"""The session machine against an external model: an update leaves on a receipt, or never."""

from __future__ import annotations

from collections import Counter

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

from edge_client import session_machine
from edge_client.durable import Durable
from edge_client.outbox import OFFERS_VAIN_MAX, OUTBOX_MAX, Due, Offers, Wait
from edge_client.session_events import (
    Adapt,
    BlocksArrived,
    Command,
    ConditionsJudged,
    EpochsSaved,
    Event,
    ForgetUpdate,
    Heard,
    Linked,
    PrepareTask,
    Say,
    SayHello,
    SendBlocks,
    StartTask,
    TaskDone,
    TaskFailed,
    TaskHeld,
    TaskPrepared,
    TimeReached,
    Unlinked,
)
from edge_client.session_machine import (
    RESTARTS_MAX,
    resume,
    step,
)
from edge_client.session_state import ALL_HOLD, State, Step, next_deadline_at_ms, presence
from fedtide.messages import (
    Beacon,
    BlobRef,
    Decline,
    Offer,
    Problem,
    Receipt,
    Task,
    Update,
    Want,
    Welcome,
)
from fedtide.plan import Plan

MANIFEST, MODEL = BlobRef("aa" * 32, 100), BlobRef("bb" * 32, 100)
rounds = st.integers(1, 24)


def task_of(round_id: int, run_id: str = "run") -> Task:
    return Task(run_id, round_id, "train", MANIFEST, MODEL, round_id - 1, 7, Plan(), "f32", 60_000)


def update_of(task: Task) -> Update:
    return Update(
        update_id=f"{task.run_id}-{task.round_id}",
        run_id=task.run_id,
        round_id=task.round_id,
        kind="train",
        model=MODEL.digest,
        examples=5,
        blob=BlobRef(f"{task.round_id:064x}", 100),
        encoding="f32",
        steps=1,
        training_ms=1,
    )


class Session(RuleBasedStateMachine):
    """Keeps its own books of what is owed."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.disk = Durable()
        self.now_ms = 1_000
        self.owed: dict[str, Update] = {}
        self.done: set[int] = set()
        self.working: Task | None = None
        self.task: Task | None = None
        self.vain_lives = 0
        self.epochs = 0
        self.asked_for = ""
        """Whose content the coordinator wanted: it is not given up, and nothing goes before it."""
        self.offers = Counter[str]()
        """Said in vain so far."""
        self.held = ALL_HOLD

    def feed(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        commands, self.state = step(before, event, self.now_ms)
        assert step(before, event, self.now_ms) == (commands, self.state)
        self.keep(commands, event)
        return commands

    def keep(self, commands: tuple[Command, ...], event: Event | None) -> None:
        # What is on disk is what a JSON file gives back.
        self.disk = msgspec.json.decode(msgspec.json.encode(self.state.durable), type=Durable)
        assert self.disk == self.state.durable
        if self.disk.task != self.task:
            self.task, self.vain_lives, self.epochs = self.disk.task, 0, 0
        receipt = event.message if isinstance(event, Heard) else None
        for command in commands:
            match command:
                case ForgetUpdate(update):
                    if isinstance(receipt, Receipt):
                        assert update.update_id == receipt.update_id
                        self.settled(update)
                    elif update.update_id in self.owed:
                        assert len(self.owed) > OUTBOX_MAX
                        others = [u for u in self.owed if u != self.asked_for]
                        assert update.update_id == others[0], "the oldest goes first"
                        self.settled(update)
                case StartTask(task):
                    assert task.round_id not in self.done, "an answered round is not done again"
                    assert not self.held.training
                    self.working = task
                case Say(Offer(update)):
                    assert update.update_id in self.owed
                    assert self.state.connected
                    assert not self.held.transfers
                    assert update.update_id in self.turns(), "one at a time"
                    self.offers[update.update_id] += 1
                case PrepareTask():
                    assert event is None or self.held == ALL_HOLD, "no task is taken in vain"
                case SendBlocks(update):
                    assert update.update_id in self.owed
                    assert not self.held.transfers
                    assert update.update_id in self.turns(), "nothing takes its place"
                    self.asked_for = update.update_id

    def settled(self, update: Update) -> None:
        self.owed.pop(update.update_id)
        self.offers.pop(update.update_id, None)
        if update.update_id == self.asked_for:
            self.asked_for = ""

    def turns(self) -> set[str]:
        """Whose content may be offered and sent: who was asked for, or the newest."""
        if max(self.offers.values(), default=0) >= OFFERS_VAIN_MAX:
            return set(self.owed)  # nothing came of one: another goes before it
        return {self.asked_for} if self.asked_for else {*list(self.owed)[-1:]}

    @initialize(welcomed=st.booleans())
    def begins(self, welcomed: bool) -> None:
        if welcomed:
            self.links()
            self.is_welcomed(30_000)

    @rule(round_id=rounds)
    def does_a_task(self, round_id: int) -> None:
        self.hears_a_task(round_id)
        self.prepares()
        self.finishes(False)
        self.time_passes(0)

    @rule()
    def links(self) -> None:
        self.offers.clear()
        self.feed(Linked())

    @rule()
    def unlinks(self) -> None:
        self.feed(Unlinked("cut"))
        assert next_deadline_at_ms(self.state) is None

    @rule(hello_ms=st.sampled_from([1_000, 30_000]))
    def is_welcomed(self, hello_ms: int) -> None:
        self.feed(Heard(Welcome(MANIFEST, MODEL, 0, 7, hello_ms)))

    @rule(session=st.sampled_from(["one", "two"]), online=st.booleans())
    def sees_a_beacon(self, session: str, online: bool) -> None:
        if online and session != self.state.coordinator_session and self.state.connected:
            self.offers.clear()
        self.feed(Heard(Beacon(online, session)))

    @rule(round_id=rounds)
    def hears_a_task(self, round_id: int) -> None:
        before = self.state.durable
        commands = self.feed(Heard(task_of(round_id)))
        if round_id in self.done or (before.task and round_id <= before.task.round_id):
            assert self.state.durable == before
            assert not any(isinstance(command, PrepareTask) for command in commands)
        if before.declined_because != self.state.durable.declined_because and self.held != ALL_HOLD:
            self.done.add(round_id)
        # Once more: nothing new may follow.
        after = self.state.durable
        again = self.feed(Heard(task_of(round_id)))
        assert self.state.durable == after
        assert all(isinstance(command, Say) for command in again)

    @rule()
    def prepares(self) -> None:
        if self.state.durable.task is not None:
            self.feed(TaskPrepared("run", self.state.durable.task.round_id))

    @rule(epochs=st.integers(1, 3))
    def saves_epochs(self, epochs: int) -> None:
        if self.task is not None:
            if epochs > self.epochs:
                self.epochs, self.vain_lives = epochs, 0
            self.feed(EpochsSaved(self.task.run_id, self.task.round_id, epochs))

    @rule()
    def gets_blocks(self) -> None:
        if self.state.phase == "fetching":
            self.vain_lives = 0
        self.feed(BlocksArrived())

    @rule()
    def is_held(self) -> None:
        if self.task is not None:
            before = self.state.durable
            self.feed(TaskHeld(self.task.run_id, self.task.round_id, "the disk is full"))
            assert self.state.durable == before
            assert presence(self.state, sending=False).reason == "the disk is full"

    @rule(stale=st.booleans())
    def finishes(self, stale: bool) -> None:
        """Of the task at hand, or (stale) of one that was dropped meanwhile."""
        task = self.working
        if task is None:
            return
        current = self.state.durable.task
        update = update_of(task)
        if current == task:
            self.owed[update.update_id] = update
            self.done.add(task.round_id)
            self.working = None
        elif not stale:
            return
        self.feed(TaskDone(update))

    @rule()
    def fails(self) -> None:
        task = self.state.durable.task
        if task is not None:
            self.done.add(task.round_id)
            commands = self.feed(TaskFailed(task.run_id, task.round_id, "no data"))
            assert Say(Decline(task.run_id, task.round_id, "no data")) in commands

    @rule(data=st.data(), known=st.booleans())
    def gets_a_receipt(self, data: st.DataObject, known: bool) -> None:
        update_id = data.draw(st.sampled_from(sorted(self.owed) or ["none"])) if known else "other"
        before = self.state
        self.feed(Heard(Receipt(update_id, "accepted")))
        if update_id in ("none", "other"):
            assert self.state == before

    @rule(data=st.data())
    def is_asked_for_blocks(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from([f"{number:064x}" for number in range(1, 25)]))
        wanted = [u.update_id for u in self.owed.values() if u.blob and u.blob.digest == digest]
        commands = self.feed(Heard(Want(digest, ((0, 1),))))
        assert {type(command) for command in commands} <= {SendBlocks}
        assert len(commands) <= len(wanted)
        if self.held.transfers:
            return
        if self.turns() == set(wanted):
            assert len(commands) == len(wanted)
        for update_id in wanted:
            self.offers.pop(update_id, None)

    @rule()
    def is_asked_for_what_it_offers(self) -> None:
        turns = self.turns()
        if len(turns) == 1 and not self.held.transfers:
            current = turns.pop()
            blob = self.owed[current].blob
            assert blob is not None
            assert self.feed(Heard(Want(blob.digest, ((0, 1),))))
            self.offers.pop(current, None)

    @rule(first=st.integers(1, 20), more=st.integers(1, 3))
    def does_another_while_it_sends(self, first: int, more: int) -> None:
        self.does_a_task(first)
        self.is_asked_for_what_it_offers()
        self.does_a_task(first + more)

    @rule()
    def hears_of_a_problem(self) -> None:
        before = self.state
        self.feed(Heard(Problem("1", "what?")))
        assert self.state == before

    @rule(wait_ms=st.sampled_from([0, 1_000, 10_000, 100_000]))
    def time_passes(self, wait_ms: int) -> None:
        self.now_ms += wait_ms
        self.feed(TimeReached())
        deadline = next_deadline_at_ms(self.state)
        assert deadline is None or deadline > self.now_ms, "it would be woken for ever"

    @rule(round_id=rounds, lives=st.integers(1, RESTARTS_MAX + 2), further=st.booleans())
    def dies_again_and_again(self, round_id: int, lives: int, further: bool) -> None:
        """In the same epoch each time, or (further) one epoch later."""
        self.hears_a_task(round_id)
        for life in range(lives):
            self.saves_epochs(2 + life if further else 2)
            self.power_is_cut()

    @rule()
    def power_is_cut(self) -> None:
        task = self.disk.task
        self.vain_lives += 1
        commands, self.state = resume(self.disk)
        self.held = ALL_HOLD
        self.working = None
        self.asked_for = self.disk.uploading  # written once there is another beside it
        self.offers.clear()
        if task is not None and self.vain_lives > RESTARTS_MAX:
            self.done.add(task.round_id)
            assert self.state.durable.declined_because
        elif task is not None:
            assert commands == (PrepareTask(task),)
        self.keep(commands, None)

    @invariant()
    def what_is_owed_is_in_the_outbox(self) -> None:
        assert {u.update_id: u for u in self.disk.outbox} == self.owed
        assert len(self.owed) <= OUTBOX_MAX

    @invariant()
    def whoever_is_connected_has_a_deadline(self) -> None:
        assert (next_deadline_at_ms(self.state) is not None) == self.state.connected


class Conditional(Session):
    """A session on a device with conditions of its own."""

    @rule(
        training=st.sampled_from(["", "71 °C", "72 °C"]),
        transfers=st.sampled_from(["", "", "metered"]),
    )
    def its_conditions_change(self, training: str, transfers: str) -> None:
        before, self.held = self.held, ConditionsJudged(training, transfers)
        if before.transfers and not transfers:
            self.offers.clear()
        disk = self.disk
        commands = self.feed(self.held)
        assert self.disk == disk, "nothing is lost, nor begun"
        changes = (bool(before.training), bool(before.transfers)) != (
            bool(training),
            bool(transfers),
        )
        assert (Adapt() in commands) == changes
        ready = self.held == ALL_HOLD
        if (before == ALL_HOLD) != ready and self.state.connected and self.state.welcomed:
            assert any(isinstance(c, SayHello) for c in self.feed(TimeReached()))

    @rule(round_id=rounds, training=st.sampled_from(["", "71 °C"]), early=st.booleans())
    def it_changes_during_a_task(self, round_id: int, training: str, early: bool) -> None:
        self.its_conditions_change("", "")
        self.hears_a_task(round_id)
        if not early:
            self.prepares()
        self.its_conditions_change(training, "" if training else "metered")
        self.prepares()
        self.finishes(False)

    @rule()
    def is_asked_over_a_metered_link(self) -> None:
        self.its_conditions_change("", "metered")
        for update in self.disk.outbox:
            assert update.blob is not None
            assert self.feed(Heard(Want(update.blob.digest, ((0, 1),)))) == ()


def run(examples: int, *, shrink: bool, machine: type[Session] = Session) -> None:
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


def test_the_session_machine_keeps_its_promises() -> None:
    run(60, shrink=True)


def test_it_keeps_them_whatever_its_conditions_are() -> None:
    run(40, shrink=True, machine=Conditional)


def _forget_on_want(original: object) -> object:
    def heard(state: State, message: object, at_ms: int) -> object:
        if isinstance(message, Want):
            durable = msgspec.structs.replace(state.durable, outbox=())
            state = msgspec.structs.replace(state, durable=durable)
        return original(state, message, at_ms)  # type: ignore[operator]

    return heard


def _do_it_again(original: object) -> object:
    def task(state: State, message: Task, at_ms: int) -> object:
        durable = msgspec.structs.replace(state.durable, answered_round=0)
        return original(  # type: ignore[operator]
            msgspec.structs.replace(state, durable=durable), message, at_ms
        )

    return task


def _any_epoch_is_progress(original: object) -> object:
    """A task that dies in the same epoch again and again would never be declined."""

    def progressed(state: State, run_id: str, round_id: int, epochs: int) -> object:
        durable = msgspec.structs.replace(state.durable, epochs_saved=0)
        state = msgspec.structs.replace(state, durable=durable)
        return original(state, run_id, round_id, epochs)  # type: ignore[operator]

    return progressed


def _no_epoch_is_progress(_original: object) -> object:
    """A power cut a day would end a task of many days."""

    def progressed(state: State, *_: object) -> object:
        return Step((), state)

    return progressed


def _wake_for_ever(_original: object) -> object:
    """As it was: offers had a deadline although nobody had said welcome."""

    def offer_due(state: State, _at_ms: int) -> object:
        return Step((), state)

    return offer_due


def _offer_everything(_original: object) -> object:
    """As it was: the offer of one made the coordinator drop what had come of another."""

    def due(outbox: tuple[Update, ...], _uploading: str, offers: Offers, at_ms: int) -> Due:
        return Due(outbox, {**offers, **{u.update_id: Wait(at_ms + 3_000) for u in outbox}})

    return due


def _newest_first_always(original: object) -> object:
    """Whoever learns faster than he sends would begin ever new uploads and end none."""

    def owe(state: State, outbox: tuple[Update, ...]) -> object:
        return original(msgspec.structs.replace(state, uploading=""), outbox)  # type: ignore[operator]

    return owe


def _in_spite_of_conditions(original: object) -> object:
    def heedless(state: State, *arguments: object) -> object:
        held = {"training_held": state.training_held, "transfers_held": state.transfers_held}
        free = msgspec.structs.replace(state, training_held="", transfers_held="")
        commands, after = original(free, *arguments)  # type: ignore[operator]
        return Step(commands, msgspec.structs.replace(after, **held))

    return heedless


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("_heard", _forget_on_want),
        ("_task", _do_it_again),
        ("_offer_due", _wake_for_ever),
        ("_progressed", _any_epoch_is_progress),
        ("_progressed", _no_epoch_is_progress),
        ("due", _offer_everything),
        ("_owe", _newest_first_always),
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, name: str, plant: object) -> None:
    planted = plant(getattr(session_machine, name))  # type: ignore[operator]
    monkeypatch.setattr(session_machine, name, planted)
    with pytest.raises((AssertionError, KeyError)):
        run(1_000, shrink=False)  # what hypothesis draws depends on what else is imported


@pytest.mark.parametrize("name", ["_start", "_task", "_offer_due", "_want"])
def test_a_machine_that_does_not_heed_its_conditions_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    planted = _in_spite_of_conditions(getattr(session_machine, name))
    monkeypatch.setattr(session_machine, name, planted)
    with pytest.raises(AssertionError):
        run(2_000, shrink=False, machine=Conditional)
