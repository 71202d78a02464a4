"""Bugs planted in production code: each must be caught by the check that is about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from coordinator import aggregate_job, round_machine
from coordinator.aggregate_job import JobFailed
from coordinator.aggregation import Contribution
from coordinator.intake import Intake
from coordinator.ledger import Ledger
from coordinator.round_machine import Member, RoundState
from coordinator.service import Service
from coordinator.store import Store
from coordinator.vetting import Verdict
from edge_client.outbox import Wait
from edge_client.saved_session import SavedSession
from edge_client.session import Session
from edge_client.session_events import Heard
from fedtide.messages import Receipt
from fedtide.transport import Delivered
from simulator.faults import hostile
from simulator.faults.world import simulate

Patch = pytest.MonkeyPatch


def double_count(patch: Patch) -> None:
    """The first update of a round is averaged twice."""
    honest = aggregate_job.contributions

    def twice(*arguments: Any) -> Iterator[Contribution]:
        parts = list(honest(*arguments))
        return iter([parts[0], *parts])

    patch.setattr(aggregate_job, "contributions", twice)


def receipt_before_commit(patch: Patch) -> None:
    """The device hears the verdict, then it is committed."""
    honest = Ledger.conclude

    def conclude(self: Ledger, update: Any, device_id: str, verdict: Verdict, *rest: Any) -> Any:
        _voices[-1].say(device_id, verdict.receipt(update))
        return honest(self, update, device_id, verdict, *rest)

    _voices: list[Any] = []
    init = Intake.__init__

    def remembered(self: Intake, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        _voices.append(self._voice)

    patch.setattr(Intake, "__init__", remembered)
    patch.setattr(Ledger, "conclude", conclude)


def uninvited(patch: Patch) -> None:
    """Whoever says hello during a round gets its task."""
    honest = Service._hello

    def hello(self: Service, device_id: str, message: Any, at_ms: int) -> None:
        honest(self, device_id, message, at_ms)
        state = self._state
        if state.phase == "collecting":
            member = Member(device_id, "none", "", state.round_id, state.model_version)
            self._voice.say(device_id, self._invitations._task(member, at_ms))

    patch.setattr(Service, "_hello", hello)


def no_quorum(patch: Patch) -> None:
    """Rounds close with whatever there is."""
    honest = round_machine._close_or_abandon

    def close(state: RoundState, why: str, *rest: Any) -> Any:
        accepted = state.accepted()
        return round_machine._close(state, *rest) if accepted else honest(state, why, *rest)

    patch.setattr(round_machine, "_close_or_abandon", close)


def outbox_in_memory(patch: Patch) -> None:
    """The device's state is not written."""
    patch.setattr(SavedSession, "save", lambda self, durable: None)


def forgotten_on_puback(patch: Patch) -> None:
    """The broker took a message, so the update must have arrived."""
    honest = Session.link_event

    def link_event(self: Session, event: Any, at_ms: int) -> None:
        honest(self, event, at_ms)
        outbox = self._state.durable.outbox
        if isinstance(event, Delivered) and outbox and not self._sender.busy():
            receipt = Receipt(outbox[0].update_id, "accepted")
            self._apply(Heard(receipt), at_ms)

    patch.setattr(Session, "link_event", link_event)


def verdict_forgotten(patch: Patch) -> None:
    """Rejections are not written, so the same update is late when it comes again."""
    honest = Store.save_verdict

    def save(self: Store, update: Any, device_id: str, receipt: Receipt, *rest: Any) -> None:
        if receipt.verdict == "accepted":
            honest(self, update, device_id, receipt, *rest)

    patch.setattr(Store, "save_verdict", save)


def hello_once(patch: Patch) -> None:
    """A hello that is lost is never said again."""
    patch.setattr(Wait, "later", lambda self, now_ms, first_ms: Wait(10**15, self.tries + 1))


def no_failure_path(patch: Patch) -> None:
    """An aggregation that fails is not told to anybody, and nobody waits for its deadline."""
    honest = Service.job_done

    def job_done(self: Service, result: Any, at_ms: int) -> None:
        if not isinstance(result, JobFailed):
            honest(self, result, at_ms)

    late = round_machine._time

    def time(state: RoundState, *rest: Any) -> Any:
        if state.phase == "aggregating":
            return round_machine.Step((), state)
        return late(state, *rest)

    patch.setattr(Service, "job_done", job_done)
    patch.setattr(round_machine, "_time", time)


def traceback(patch: Patch) -> None:
    """A malformed message raises."""

    def refuse(self: Service, device_id: str, regarding: str, reason: str) -> None:
        raise ValueError(reason)

    patch.setattr(Service, "_refuse", refuse)


def busy_loop(patch: Patch) -> None:
    """What is due stays due."""
    patch.setattr(Wait, "later", lambda self, now_ms, first_ms: Wait(now_ms, self.tries + 1))


def carried_lost(patch: Patch) -> None:
    """Late updates that are accepted are forgotten when the next round opens."""
    honest = round_machine._open

    def opened(state: RoundState, *rest: Any) -> Any:
        return honest(msgspec.structs.replace(state, carried=()), *rest)

    patch.setattr(round_machine, "_open", opened)


def norms_unbounded(patch: Patch) -> None:
    """Nothing is scaled down to the norm that the others have."""
    patch.setattr(hostile, "TWISTS", {"huge": hostile.TWISTS["huge"]})
    patch.setattr(aggregate_job, "clip_scales", lambda norms, factor: [1.0] * len(norms))


def late_at_full_weight(patch: Patch) -> None:
    """Staleness is no discount."""
    honest = aggregate_job.contributions

    def fresh(*arguments: Any) -> Iterator[Contribution]:
        return (part._replace(staleness=0) for part in honest(*arguments))

    patch.setattr(aggregate_job, "contributions", fresh)


Kinds = frozenset[str] | None
PLANTED: list[tuple[Callable[[Patch], None], str, str, int, Kinds]] = [
    (double_count, "safety", "recomputed", 5, None),
    (receipt_before_commit, "safety", "receipt after commit", 5, None),
    (uninvited, "safety", "only invited", 40, None),
    (no_quorum, "safety", "quorum", 40, None),
    (outbox_in_memory, "safety", "stored before offered", 5, None),
    (forgotten_on_puback, "safety", "outbox", 10, None),
    (verdict_forgotten, "safety", "receipts agree", 30, frozenset({"hostile_update", "duplicate"})),
    (hello_once, "liveness", "not back", 20, frozenset({"drop"})),
    (no_failure_path, "liveness", "busy loop", 30, frozenset({"rot"})),
    (carried_lost, "safety", "accepted lost", 200, frozenset({"straggler", "decline"})),
    (norms_unbounded, "safety", "recomputed", 100, frozenset({"hostile_update"})),
    (late_at_full_weight, "safety", "recomputed", 200, frozenset({"straggler", "decline"})),
    (traceback, "crash", "ValueError", 20, None),
    (busy_loop, "liveness", "busy loop", 5, None),
]
"""What is planted, the kind of failure, the check that must notice, within how many seeds, and
these kinds of faults (None: those that each seed draws)."""


@pytest.mark.parametrize(
    ("plant", "kind", "check", "seeds", "kinds"),
    PLANTED,
    ids=[entry[0].__name__ for entry in PLANTED],
)
def test_a_planted_bug_is_caught(
    plant: Callable[[Patch], None],
    kind: str,
    check: str,
    seeds: int,
    kinds: Kinds,
    monkeypatch: Patch,
) -> None:
    plant(monkeypatch)
    for seed in range(seeds):
        failure = simulate(seed, kinds=kinds).failure
        if failure is not None:
            assert failure.kind == kind, (seed, failure)
            assert check in failure.text, (seed, failure)
            return
    pytest.fail(f"not caught within {seeds} seeds")
