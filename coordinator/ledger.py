"""The machine's state and its history: every transition is one transaction.

A transaction holds the event, the state after it and all records that follow from both. When it is
committed the machine has moved; when it fails nothing has happened.
"""

from __future__ import annotations

import uuid

import msgspec

from coordinator.aggregate_job import Aggregated
from coordinator.config import CoordinatorConfig
from coordinator.round_machine import (
    AbandonRound,
    AggregateRound,
    Command,
    Event,
    RoundAggregated,
    RoundState,
    UpdateAccepted,
    UpdateRejected,
    step,
)
from coordinator.store import Model, Store, Terms
from fedtide.bundle import Bundle
from fedtide.measures import add_up
from fedtide.messages import BlobRef, Receipt, Update

Commands = tuple[Command, ...]


def begin_run(store: Store, bundle: Bundle, federation: str, initial: BlobRef, at_ms: int) -> None:
    """First start of a store: bind it to a bundle and record the initial model as version 0."""
    if store.fact("bundle") is not None:
        return
    with store.transaction():
        store.set_fact("run_id", uuid.uuid4().hex[:16])
        store.set_fact("bundle", bundle.digest)
        store.set_fact("federation", federation)
        store.add_model(0, initial, 0, at_ms)


class Ledger:
    """See the module. The store must have been through `begin_run`."""

    def __init__(self, store: Store, config: CoordinatorConfig) -> None:
        self._store = store
        self._config = config
        self.state: RoundState = store.load_state()
        self.run_id = store.fact("run_id") or ""

    def newest_model(self) -> Model:
        """The current global model."""
        model = self._store.model(self.state.model_version)
        assert model is not None, "every version up to the state's is committed with it"
        return model

    def terms(self) -> Terms:
        """What the newest round asks of its cohort."""
        return self._store.terms(self.state.round_id)

    def _new_terms(self, round_id: int) -> Terms:
        """Each round shuffles the examples anew, from the configured seeds."""
        plan = self._config.plan
        seed = (plan.seed + self._config.rounds.seed + round_id) % 2**53
        return Terms(msgspec.structs.replace(plan, seed=seed), self._config.encoding)

    def apply(self, event: Event, at_ms: int) -> Commands:
        """One transition.

        Raises:
            StateError: the disk is full or failing.
        """
        with self._store.transaction():
            return self._transition(event, at_ms)

    def conclude(self, update: Update, device_id: str, receipt: Receipt, at_ms: int) -> Commands:
        """Commit the verdict on an update; an update of this run enters its round."""
        event: Event | None = None
        if update.run_id == self.run_id and receipt.verdict == "accepted":
            event = UpdateAccepted(update.round_id, device_id, update.update_id)
        elif update.run_id == self.run_id and receipt.verdict == "rejected":
            event = UpdateRejected(update.round_id, device_id)
        late = update.run_id == self.run_id and update.round_id < self.state.round_id
        if event is None and not late:
            return ()  # of no round that we know: not worth a row, whoever sends it
        with self._store.transaction():
            self._store.save_verdict(update, device_id, receipt, at_ms)
            return () if event is None else self._transition(event, at_ms)

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
        if isinstance(event, RoundAggregated):
            self._store.close_round(event.round_id, at_ms, None)
        for command in commands:
            if isinstance(command, AbandonRound):
                self._store.close_round(command.round_id, at_ms, command)
            elif isinstance(command, AggregateRound) and before.phase == "collecting":
                self._record_held_out(command.round_id, before.model_version)
        if after.round_id != before.round_id:
            self._store.open_round(after, self._new_terms(after.round_id), at_ms)
        self.state = after
        return commands

    def _record_held_out(self, round_id: int, version: int) -> None:
        """Each update says how the model it started from does on its device's held-out data."""
        total = add_up(u.held_out for u in self._store.updates(round_id) if u.held_out)
        self._store.set_metrics(version, total, held_out=True)
