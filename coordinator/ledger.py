"""The machine's state and its history: every transition is one transaction.

A transaction holds the event, the state after it and all records that follow from both. When it is
committed the machine has moved; when it fails nothing has happened. Who is here is no part of what
must survive, for after a restart every device says hello anew: it is written now and then, so that
devices that come and go cost no commit each.
"""

from __future__ import annotations

import uuid
from statistics import median

import msgspec

from coordinator.aggregate_job import Aggregated, AggregateJob
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
    InviteDevices,
    Restarted,
    RoundAggregated,
    RoundState,
    UpdateAccepted,
    UpdateRejected,
    step,
)
from coordinator.round_state import Member
from coordinator.store import Model, Store
from coordinator.vetting import Known, Verdict, next_standing
from fedtide.bundle import Bundle
from fedtide.measures import add_up
from fedtide.messages import BlobRef, Hello, Receipt, Update

Commands = tuple[Command, ...]
PRESENCE_MS = 1_000
"""Who is here is written at most once in this time, unless something follows from it."""


def begin_run(store: Store, bundle: Bundle, federation: str, initial: BlobRef, at_ms: int) -> None:
    """First start of a store: bind it to a bundle and record the initial model as version 0."""
    if store.fact("bundle") is not None:
        return
    with store.transaction():
        store.set_fact("run_id", uuid.uuid4().hex[:16])
        store.set_fact("bundle", bundle.digest)
        store.set_fact("federation", federation)
        store.add_model(0, initial, 0, at_ms)


def begin_anew(store: Store) -> None:
    """Make a restored store another run.

    Devices know what came after the backup: they have answered rounds that will be opened once
    more. Tasks of another run are new to them, and updates of the lost one count nowhere.
    """
    with store.transaction():
        store.set_fact("run_id", uuid.uuid4().hex[:16])


class Ledger:
    """See the module. The store must have been through `begin_run`."""

    def __init__(self, store: Store, config: CoordinatorConfig) -> None:
        self._store = store
        self._config = config
        self.state: RoundState = store.load_state()
        self.run_id = store.fact("run_id") or ""
        self._hellos: dict[str, tuple[Hello, int]] = {}
        self._written_at_ms = -PRESENCE_MS
        self.write_at_ms: int | None = None
        """When to call `write_presence`."""

    def newest_model(self) -> Model:
        """The current global model."""
        model = self._store.model(self.state.model_version)
        assert model is not None, "every version up to the state's is committed with it"
        return model

    def model(self, version: int) -> Model:
        """A global model that a task starts from."""
        model = self._store.model(version)
        assert model is not None, "tasks start from versions that are committed"
        return model

    def terms(self, round_id: int) -> Terms:
        """What a round asks of its cohort."""
        return self._store.terms(round_id)

    def known(self, update: Update, device_id: str) -> Known:
        """What was agreed with this device about an update's task."""
        invited = self._store.invited(update.round_id, device_id)
        terms = self._store.terms(update.round_id) if invited else None
        return Known(terms, self._store.answered(update.round_id, device_id))

    def job(self, shared_count: int) -> AggregateJob:
        """What the round that is aggregating is to be made of."""
        state = self.state
        parts = tuple(self._store.part(m, state.model_version) for m in state.accepted())
        base, terms = self.newest_model().ref, self.terms(state.round_id)
        factor, weights = terms.norm_factor, terms.weights
        return AggregateJob(state.round_id, base, parts, shared_count, factor, weights)

    def _new_terms(self, state: RoundState) -> Terms:
        config, version = self._config, state.model_version
        norms = self._store.norms()
        return Terms(
            plan=round_plan(config.plan, config.rounds, state.round_id, version),
            encoding=config.encoding,
            kind=state.kind,
            base_version=version,
            norm_reference=median(norms) if norms else None,
            norm_factor=config.vetting.norm_factor,
            weights=config.rounds.weights,
        )

    def apply(self, event: Event, at_ms: int) -> Commands:
        """One transition.

        Raises:
            StateError: the disk is full or failing.
        """
        if isinstance(event, DeviceArrived | DeviceLeft):
            commands, after = step(self.state, event, at_ms, self._config.rounds)
            if not commands and _lasting(after) == _lasting(self.state):
                self._presence_changed()
                self.state = after
                self.write_presence(at_ms)
                return ()
        with self._store.transaction():
            return self._transition(event, at_ms)

    def heard(self, device_id: str, hello: Hello, at_ms: int) -> None:
        """A device is here that was not."""
        self._hellos[device_id] = (hello, at_ms)
        self._presence_changed()

    def _presence_changed(self) -> None:
        self.write_at_ms = self._written_at_ms + PRESENCE_MS

    def write_presence(self, at_ms: int) -> None:
        """Write who is here, if that is due: for people who look into the store.

        Raises:
            StateError: the disk is full or failing.
        """
        if self.write_at_ms is None or at_ms < self.write_at_ms:
            return
        with self._store.transaction():
            self._store.save_state(self.state)
            self._save_hellos(at_ms)

    def _save_hellos(self, at_ms: int) -> None:
        for device_id, (hello, heard_at_ms) in self._hellos.items():
            self._store.heard(device_id, msgspec.json.encode(hello).decode(), heard_at_ms)
        self._hellos.clear()
        self._written_at_ms, self.write_at_ms = at_ms, None

    def conclude(
        self, update: Update, device_id: str, verdict: Verdict, at_ms: int
    ) -> tuple[Receipt, Commands]:
        """Commit the verdict on an update; an update of this run enters its round."""
        receipt = verdict.receipt(update)
        ours = update.run_id == self.run_id
        discarded = verdict.verdict == "discarded" and verdict.name != "repeated"
        closed = self.state.round_id - (self.state.phase == "collecting")
        if not ours or (discarded and not 0 < update.round_id <= closed):
            return receipt, ()  # of no round that has closed: not worth a row, whoever sends it
        if discarded and self._store.answered(update.round_id, device_id):
            return receipt, ()  # the first verdict stands: another costs no write to the disk
        with self._store.transaction():
            commands: Commands = ()
            before = self._store.standing(device_id)
            standing = next_standing(before, verdict, at_ms, self._config.vetting)
            if standing != before:
                self._store.set_standing(device_id, standing)
            if standing.until_ms > max(before.until_ms, at_ms):
                hours = (standing.until_ms - at_ms) / 3_600_000
                told = f"{receipt.reason}; rejected too often: not invited for {hours:.2g} h"
                receipt = msgspec.structs.replace(receipt, reason=told[:1000])
                commands = self._transition(DeviceLeft(device_id), at_ms)
            self._store.save_verdict(update, device_id, receipt, at_ms, verdict.norm)
            if verdict.verdict == "accepted":
                version = self.terms(update.round_id).base_version
                event: Event = UpdateAccepted(update.round_id, device_id, update.update_id, version)
                return receipt, (*commands, *self._transition(event, at_ms))
            # The round waits no more for this device.
            event = UpdateRejected(update.round_id, device_id)
            return receipt, (*commands, *self._transition(event, at_ms))

    def add_model(self, result: Aggregated, at_ms: int) -> Commands:
        """Commit the next global model; a no-op if it is not the one that is waited for."""
        if self.state.phase != "aggregating" or result.round_id != self.state.round_id:
            return ()
        with self._store.transaction():
            version = self.state.model_version + 1
            self._store.add_model(version, result.model, result.round_id, at_ms)
            if result.metrics is not None:
                self._store.set_metrics(version, result.metrics, held_out=False)
            return self._transition(RoundAggregated(result.round_id), at_ms)

    def _transition(self, event: Event, at_ms: int) -> Commands:
        before = self.state
        commands, after = step(before, event, at_ms, self._config.rounds)
        if after == before and not commands:
            return ()
        self._store.save_event(event, after, at_ms)
        self._save_hellos(at_ms)
        if isinstance(event, RoundAggregated):
            self._store.close_round(event.round_id, at_ms, None)
        for command in commands:
            if isinstance(command, AbandonRound):
                self._store.close_round(command.round_id, at_ms, command)
        if (before.phase, before.round_id) != (after.phase, after.round_id):
            self._part_with(before, event, after)
        if after.round_id != before.round_id:
            self._store.open_round(after, self._new_terms(after), at_ms)
        for command in commands:
            if isinstance(command, InviteDevices) and not isinstance(event, Restarted):
                ours = (m.device_id for m in after.cohort if m.round_id == after.round_id)
                self._store.save_cohort(after.round_id, ours)
            elif isinstance(command, AggregateRound) and not isinstance(event, Restarted):
                self._record_held_out(after)
        self.state = after
        return commands

    def _part_with(self, before: RoundState, event: Event, after: RoundState) -> None:
        """Updates that the machine knows no more: in a model, or abandoned with their round."""
        ready = list(before.ready())
        if isinstance(event, UpdateAccepted):  # the last answer of a round may be its end
            name, update_id = event.device_id, event.update_id
            ready.append(Member(name, "accepted", update_id, event.round_id, event.version))
        kept = {_task(member) for member in (*after.ready(), *after.carried)}
        for member in ready:
            if _task(member) not in kept:
                staleness = before.model_version - member.version
                self._store.join(member, before.round_id, staleness)

    def _record_held_out(self, state: RoundState) -> None:
        """Each update says how the model it started from does on its device's held-out data."""
        version = state.model_version
        parts = (self._store.part(m, version) for m in state.accepted() if m.version == version)
        total = add_up(part.update.held_out for part in parts if part.update.held_out)
        self._store.set_metrics(version, total, held_out=True)


def _lasting(state: RoundState) -> RoundState:
    """Without what changes with each device that comes or goes."""
    return msgspec.structs.replace(state, online=(), reason="")


def _task(member: Member) -> tuple[str, int]:
    return member.device_id, member.round_id
