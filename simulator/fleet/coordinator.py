"""The simulated coordinator: the production round machine and vetting, and a model of its shell.

Of the shell (`coordinator.service`, `intake`, `ledger`, `fleet`) is modelled, in the same order of
decisions: hello and welcome, tasks said again to who comes back, wills, the way of an update from
its offer to its verdict, blocks of broken uploads, and the terms of each round. Nobody lies here:
headers and contents of updates are not looked at, and nobody is put into quarantine.

Whatever a device says while an event is being dealt with waits until that is done, as a message
on the wire would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from coordinator.aggregation import weight_of
from coordinator.config import CoordinatorConfig
from coordinator.plans import round_plan
from coordinator.records import Terms
from coordinator.round_machine import (
    AbandonRound,
    AggregateRound,
    Command,
    DeviceArrived,
    DeviceLeft,
    Event,
    FinishFederation,
    InviteDevices,
    Member,
    Restarted,
    RoundAggregated,
    RoundState,
    TaskDeclined,
    TimeReached,
    UpdateAccepted,
    UpdateRejected,
    step,
)
from coordinator.vetting import Known, Verdict, admit
from edge_client.outbox import OUTBOX_MAX
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX
from fedtide.messages import BlobRef, Decline, Task, Update, Want, Welcome
from simulator.device_names import index_of
from simulator.fleet import events
from simulator.fleet.attendance import Attendance
from simulator.fleet.closing import why_closed
from simulator.fleet.device import Device
from simulator.fleet.learning import Learning, Part
from simulator.fleet.world import World

RUN_ID = "simulated"


class Coordinator:
    """See the module."""

    def __init__(self, world: World, learning: Learning) -> None:
        self.state = RoundState()
        self.finished: FinishFederation | None = None
        self.devices: list[Device] = []
        self._world = world
        self._config: CoordinatorConfig = world.config
        self._learning = learning
        self._inbox: deque[Callable[[], None]] = deque()
        self._busy = False
        self._attendance = Attendance(world.conditions.scenario.seed, self._config.hello_ms)
        self._terms: dict[int, Terms] = {}
        """By round: of the tasks that somebody may be at work on."""
        self._asked: list[dict[int, Terms]] = []
        """By device: terms of the tasks that it has not answered, by round."""
        self._blocks: dict[int, tuple[Update, int]] = {}
        """By device: its broken upload, and how much of it is here."""
        self._accepted: dict[tuple[str, int], Update] = {}
        """Updates that are in no model yet, by device and round of their task."""
        self._made_ms = [0]
        self._wake_at_ms: int | None = None

    def start(self, devices: list[Device]) -> None:
        """Nobody has said hello yet."""
        self.devices = devices
        self._asked = [{} for _ in devices]
        self._hear(lambda: self._apply(Restarted()))

    def _hear(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._inbox.popleft()()
        finally:
            self._busy = False

    # ---- what devices say ----

    def hello(self, device: Device) -> None:
        """A device is there, again or for the first time."""
        self._hear(lambda: self._hello(device))

    def decline(self, device: Device, decline: Decline) -> None:
        """A device cannot do its task."""
        self._heard_from(device)
        self._asked[device.index].pop(decline.round_id, None)
        event = TaskDeclined(decline.round_id, device.name)
        self._hear(lambda: self._apply(event))

    def offer(self, device: Device, update: Update) -> None:
        """A device has an update."""
        self._heard_from(device)
        self._hear(lambda: self._offer(device, update))

    def arrived(self, device: Device, update: Update) -> None:
        """All blocks of an update are here."""
        self._heard_from(device)
        self._hear(lambda: self._arrived(device, update))

    def arrived_in_part(self, device: Device, update: Update, blocks: int) -> None:
        """An upload broke off after so many blocks."""
        if blocks:
            self._heard_from(device)
        known, before = self._blocks.get(device.index, (update, 0))
        if known.update_id != update.update_id:
            before = 0
        self._blocks[device.index] = update, before + blocks

    def vanished(self, device: Device) -> None:
        """A device is off: its will says so, or its silence, unless it is back before."""
        agenda = self._world.agenda
        missed_at_ms = self._attendance.missed_at_ms(device, agenda.now_ms)
        if missed_at_ms is not None:
            agenda.at(missed_at_ms, self._missed, device, device.life)

    def _missed(self, device: Device, life: int) -> None:
        if device.life != life:
            return
        follower = self._attendance.missed(device, self._world.agenda.now_ms)
        self._hear(lambda: self._apply(DeviceLeft(device.name)))
        if follower is not None:
            self.hello(follower)

    def _heard_from(self, device: Device) -> None:
        self._attendance.fleet.heard(device.name, self._world.agenda.now_ms)

    def _hello(self, device: Device) -> None:
        if not self._attendance.hello(device, self._world.agenda.now_ms):
            return
        fleet, version = self._attendance.fleet, self.state.model_version
        device.hear(
            Welcome(
                bundle=self._bundle(),
                model=self._model(version),
                model_version=version,
                chunk_blocks=CHUNK_BLOCKS_MAX,
                hello_ms=fleet.hello_ms(device.name),
                spread_ms=fleet.spread_ms(),
            )
        )
        if self.state.phase == "collecting" and self.state.task_of(device.name) is not None:
            self._invite((device.name,))
        if not self.state.is_online(device.name):
            self._apply(DeviceArrived(device.name))

    # ---- updates ----

    def _vet(self, device: Device, update: Update) -> Verdict | None:
        terms = self._asked[device.index].get(update.round_id)
        known = Known(terms, answered=False)
        return admit(update, device.name, self.state, self._config, known)

    def _offer(self, device: Device, update: Update) -> None:
        verdict = self._vet(device, update)
        if verdict is not None:
            self._conclude(device, update, verdict)
        elif update.blob is None:
            self._conclude(device, update, Verdict("accepted", "in time"))
        else:
            known, there = self._blocks.get(device.index, (update, 0))
            there = there if known.update_id == update.update_id else 0
            left = -(-update.blob.size_bytes // BLOCK_BYTES) - there
            device.hear(Want(update.blob.digest, ((there, left),)))

    def _arrived(self, device: Device, update: Update) -> None:
        self._blocks.pop(device.index, None)
        verdict = self._vet(device, update) or Verdict("accepted", "in time")
        self._conclude(device, update, verdict)

    def _conclude(self, device: Device, update: Update, verdict: Verdict) -> None:
        """Commit a verdict, tell the device, then do what follows from it."""
        name, round_id = verdict.name, update.round_id
        commands: tuple[Command, ...] = ()
        terms = self._asked[device.index].pop(round_id, None)
        if verdict.verdict == "accepted":
            assert terms is not None, "vetting knows its terms"
            name = "late" if self._is_late(device, round_id, terms.base_version) else name
            self._write_verdict(device, round_id, verdict, name)
            self._accepted[device.name, round_id] = update
            commands = self._transition(
                UpdateAccepted(round_id, device.name, update.update_id, terms.base_version)
            )
        else:
            self._write_verdict(device, round_id, verdict, name)
            closed = self.state.round_id - (self.state.phase == "collecting")
            if 0 < round_id <= closed:
                commands = self._transition(UpdateRejected(round_id, device.name))
        device.hear(verdict.receipt(update))
        self._perform(commands)

    def _is_late(self, device: Device, round_id: int, version: int) -> bool:
        state = self.state
        if state.phase == "collecting" and state.member(device.name, round_id) is not None:
            return version != state.model_version
        return True

    def _write_verdict(self, device: Device, round_id: int, verdict: Verdict, name: str) -> None:
        self._world.write(
            events.Verdict(
                self._world.now_ms, device.index, round_id, verdict.verdict, name, verdict.reason
            )
        )

    # ---- rounds ----

    def _apply(self, event: Event) -> None:
        self._perform(self._transition(event))

    def _transition(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        commands, self.state = step(before, event, self._world.agenda.now_ms, self._config.rounds)
        if self.state.round_id != before.round_id:
            self._open_round()
        deadline_at_ms = self.state.deadline_at_ms
        if deadline_at_ms is not None:
            self._wake(deadline_at_ms)
        return commands

    def _wake(self, at_ms: int) -> None:
        """Look at the clock then; a deadline that moves away is found out when its time comes."""
        if self._wake_at_ms is None or at_ms < self._wake_at_ms:
            self._wake_at_ms = at_ms
            self._world.agenda.at(at_ms, self._time_reached, at_ms)

    def _time_reached(self, at_ms: int) -> None:
        if at_ms != self._wake_at_ms:
            return
        self._wake_at_ms = None
        deadline_at_ms = self.state.deadline_at_ms
        if deadline_at_ms is None:
            return
        if deadline_at_ms <= at_ms:
            self._hear(lambda: self._apply(TimeReached()))
        else:
            self._wake(deadline_at_ms)

    def _open_round(self) -> None:
        state, config = self.state, self._config
        live = {member.round_id for member in state.cohort}
        self._terms = {key: terms for key, terms in self._terms.items() if key in live}
        self._terms[state.round_id] = Terms(
            plan=round_plan(config.plan, config.rounds, state.round_id, state.model_version),
            encoding=config.encoding,
            kind=state.kind,
            base_version=state.model_version,
            norm_reference=None,
            norm_factor=None,
        )
        self._world.write(
            events.RoundOpened(
                self._world.now_ms,
                state.round_id,
                state.kind,
                state.model_version,
                state.wanted,
                state.quorum,
                len(state.online),
            )
        )

    def _perform(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            match command:
                case InviteDevices(device_ids):
                    self._forget_broken_uploads()
                    now_ms, round_id = self._world.now_ms, self.state.round_id
                    indices = tuple(index_of(name) for name in device_ids)
                    self._world.write(events.Invited(now_ms, round_id, indices))
                    terms = self._terms[round_id]
                    for index in indices:
                        asked = self._asked[index]
                        asked[round_id] = terms
                        if len(asked) > OUTBOX_MAX + 1:  # no device owes more
                            del asked[min(asked)]
                    self._invite(device_ids)
                case AggregateRound(round_id, kind, _):
                    self._aggregate(round_id, train=kind == "train")
                case AbandonRound(round_id, reason):
                    self._abandon(round_id, reason)
                case FinishFederation() as finish:
                    self.finished = finish

    def _forget_broken_uploads(self) -> None:
        """What cannot count any more."""
        for index, (update, _) in list(self._blocks.items()):
            if self._vet(self.devices[index], update) is not None:
                del self._blocks[index]

    def _invite(self, device_ids: tuple[str, ...]) -> None:
        """Say each its task: of the open round, or of the one that it is still at work on."""
        tasks: dict[int, Task] = {}
        at_work = {member.device_id: member for member in self.state.at_work()}
        for device_id in device_ids:
            member = at_work.get(device_id)
            if member is None:
                continue
            if member.round_id not in tasks:
                tasks[member.round_id] = self._task(member)
            self.devices[index_of(device_id)].hear(tasks[member.round_id])

    def _task(self, member: Member) -> Task:
        terms, now_ms = self._terms[member.round_id], self._world.agenda.now_ms
        deadline_at_ms = member.deadline_at_ms or self.state.deadline_at_ms or now_ms
        return Task(
            run_id=RUN_ID,
            round_id=member.round_id,
            kind=terms.kind,
            bundle=self._bundle(),
            model=self._model(terms.base_version),
            model_version=terms.base_version,
            chunk_blocks=CHUNK_BLOCKS_MAX,
            plan=terms.plan,
            encoding=terms.encoding,
            deadline_ms=max(0, deadline_at_ms - now_ms),
        )

    def _aggregate(self, round_id: int, *, train: bool) -> None:
        state, world = self.state, self._world
        counted, parts = [], []
        for member in state.accepted():
            update = self._accepted[member.device_id, member.round_id]
            index, staleness = index_of(member.device_id), state.model_version - member.version
            weight = weight_of(update.examples, staleness)
            counted.append(events.Counted(index, member.round_id, weight, staleness))
            if train:
                plan = round_plan(
                    self._config.plan, self._config.rounds, member.round_id, member.version
                )
                parts.append(Part(index, plan, member.version, staleness, update.steps))
        why = why_closed(state)
        world.write(events.RoundClosed(world.now_ms, round_id, tuple(counted), why))
        if train:
            world.agenda.after(world.job_ms(len(parts)), self._job_done, round_id, parts)
        else:
            self._forget_aggregated()
            self._apply(RoundAggregated(round_id))

    def _job_done(self, round_id: int, parts: list[Part]) -> None:
        if self.state.phase != "aggregating" or round_id != self.state.round_id:
            return
        version, world = self.state.model_version + 1, self._world
        self._tell(self._learning.advance(version, parts))
        world.write(events.ModelMade(world.now_ms, version, round_id))
        self._made_ms.append(world.now_ms)
        self._forget_aggregated()
        self._hear(lambda: self._apply(RoundAggregated(round_id)))

    def _forget_aggregated(self) -> None:
        for member in self.state.accepted():
            del self._accepted[member.device_id, member.round_id]

    def settle(self) -> None:
        """No more models are made."""
        self._tell(self._learning.settle())

    def _tell(self, evaluations: list[events.Evaluated]) -> None:
        for told in evaluations:
            at_ms = self._made_ms[told.version]
            self._world.write(events.Evaluated(at_ms, told.version, told.loss, told.accuracy))
            enough = self._world.conditions.scenario.learning.stop_at_accuracy
            if self.finished is None and enough is not None and (told.accuracy or 0) >= enough:
                reason = f"model {told.version} has an accuracy of {told.accuracy:.2%}"
                self.finished = FinishFederation(reason, succeeded=True)

    def _abandon(self, round_id: int, reason: str) -> None:
        kept = {(m.device_id, m.round_id) for m in (*self.state.ready(), *self.state.carried)}
        lost = sorted(key for key in self._accepted if key not in kept)
        for key in lost:
            del self._accepted[key]
        told = tuple((index_of(name), task_round) for name, task_round in lost)
        self._world.write(events.RoundAbandoned(self._world.now_ms, round_id, reason, told))

    def _bundle(self) -> BlobRef:
        return BlobRef("bundle", self._world.sizes.bundle)

    def _model(self, version: int) -> BlobRef:
        return BlobRef(f"model-{version}", self._world.sizes.model)
