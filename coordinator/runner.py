"""The only place on the server where service, clock, threads and signals meet."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import TYPE_CHECKING

from coordinator.aggregate_job import (
    Aggregated,
    Evaluate,
    JobFailed,
    JobResult,
    run_aggregate_job,
)
from coordinator.config import CoordinatorConfig
from coordinator.evaluation import TestSet
from coordinator.figures import FigureTaker
from coordinator.inbox import Inbox
from coordinator.job_thread import JobThread
from coordinator.ledger import begin_run
from coordinator.linking import broker_of, connect, identified
from coordinator.plans import check_against
from coordinator.service import Service
from coordinator.store import Store
from coordinator.traffic import Traffic
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import BundleError, FedtideError, StateError
from fedtide.files import locked
from fedtide.members import Members
from fedtide.memory_limit import return_large_blocks
from fedtide.messages import Beacon, encode
from fedtide.notify import Notify
from fedtide.patience import Patience, await_delivery
from fedtide.safetensors import read_initial_model
from fedtide.topics import Topics
from fedtide.transport import LinkEvent, Will
from fedtide.vectors import Vector, encode_vector

if TYPE_CHECKING:
    from fedtide.identity import Identity

_log = logging.getLogger(__name__)

_IDLE_S = 3600.0
_GOODBYE_S = 3.0


class _Stop:
    """A signal asked us to stop."""


class _Failed:
    """The worker thread failed."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Scraped:
    """Somebody wants to see the metrics."""


Item = LinkEvent | JobResult | _Stop | _Failed | _Scraped


class Clock:
    """Milliseconds since the epoch that never go back while the process lives.

    Deadlines are stored, so they must mean something after a restart; within one life a clock
    that is set must not end a round.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        """The time."""
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000


def run_coordinator(config: CoordinatorConfig) -> int:
    """Run until the federation is finished, or SIGTERM or SIGINT; the exit code.

    Raises:
        ConfigError, BundleError, DataError, StateError, BrokerError: see `docs/configuration.md`.
    """
    return_large_blocks()
    bundle = open_bundle_dir(config.bundle)
    check_against(config, bundle.manifest)
    with identified(config) as identity, locked(config.state_dir, "coordinator"):
        store = Store(config.state_dir)
        try:
            return _run(config, identity, bundle, store)
        finally:
            store.close()


def _run(config: CoordinatorConfig, identity: Identity | None, bundle: Bundle, store: Store) -> int:
    inbox: Inbox[Item] = Inbox()
    clock, notify = Clock(), Notify()
    evaluate = _open_store(config, bundle, store, clock)
    session = f"{os.getpid():x}-{time.time_ns() // 1_000_000:x}"
    topics = Topics(config.federation)
    gone = encode(Beacon(online=False, session=session), "will")
    traffic, will = Traffic(), Will(topics.beacon, gone)
    link = connect(config, identity, store.marks, traffic, inbox.deliver, will)

    def report(said: JobResult | BaseException) -> None:
        inbox.put(_Failed(said) if isinstance(said, BaseException) else said)

    aggregation = JobThread(
        lambda job: run_aggregate_job(job, store.blobs, evaluate),
        report,
        clock.now_ms,
        config.rounds.aggregate_ms,
    )
    taker = FigureTaker(store, lambda: aggregation.last_ms)
    members = Members.of(config.members)
    service = Service(config, bundle, store, link, aggregation.start, session, members)
    for number in (signal.SIGTERM, signal.SIGINT):  # not before there is somebody to hear them
        signal.signal(number, lambda *_: inbox.put(_Stop()))
    try:
        with _metrics(config, traffic, taker, inbox) as show:
            service.start(clock.now_ms())
            link.start()
            patience = Patience(broker_of(config, identity), clock.now_ms())
            notify.ready(clock.now_ms())
            return _serve(patience, service, aggregation, inbox, clock, notify, show)
    finally:
        notify.stopping()
        inbox.wait_no_more()
        # Whatever ended us: a clean disconnect keeps our will unsaid, so it is said here.
        await_delivery(inbox, service.goodbye(), _GOODBYE_S)
        link.stop()
        if not aggregation.stop():
            _log.warning("the work on a model is left unfinished; the next start begins it anew")


@contextmanager
def _metrics(
    config: CoordinatorConfig, traffic: Traffic, taker: FigureTaker, inbox: Inbox[Item]
) -> Iterator[Callable[[int], None]]:
    """Serve the metrics, where the configuration wants it; yields what answers a `_Scraped`."""
    if config.metrics.listen is None:
        yield lambda _at_ms: None
        return
    from coordinator.metrics import MetricsServer  # prometheus-client is needed for nothing else

    server = MetricsServer(config, traffic, lambda: inbox.put(_Scraped()))

    def show(at_ms: int) -> None:
        try:
            server.figuring.show(taker.take(at_ms))
        except StateError as exc:  # a round does not end because nobody can watch it
            _log.warning("no metrics: %s", exc)

    try:
        yield show
    finally:
        server.stop()


def _open_store(
    config: CoordinatorConfig, bundle: Bundle, store: Store, clock: Clock
) -> Evaluate | None:
    """Bind the store to the bundle, and open the test set if there is one."""
    known = store.fact("bundle")
    if known is not None and known != bundle.digest:
        raise StateError(
            f"the state in {str(config.state_dir)!r} belongs to bundle {known[:12]}, "
            f"not to {bundle.digest[:12]}",
            hint="give this bundle a state_dir of its own",
        )
    federation = store.fact("federation")
    if federation is not None and federation != config.federation:
        raise StateError(
            f"the state in {str(config.state_dir)!r} belongs to federation {federation!r}",
            hint="give this federation a state_dir of its own",
        )
    try:
        initial = store.blobs.put(encode_vector(_initial_model(bundle), "f32"))
    except OverflowError as exc:
        raise BundleError(f"the initial model is unusable: {exc}") from exc
    evaluate = None if config.evaluation.data is None else TestSet(config.evaluation, bundle)
    begin_run(store, bundle, config.federation, initial, clock.now_ms())
    first = store.model(0)
    if evaluate is not None and first is not None and first.metrics is None:
        with store.transaction():
            metrics = evaluate.evaluate(_initial_model(bundle))
            store.set_metrics(0, metrics, held_out=False)
    return None if evaluate is None else evaluate.evaluate


def _initial_model(bundle: Bundle) -> Vector:
    """What travels of the bundle's initial model, float32[shared_count]."""
    return read_initial_model(bundle)[: bundle.manifest.shared_count]


def _serve(
    patience: Patience,
    service: Service,
    aggregation: JobThread,
    inbox: Inbox[Item],
    clock: Clock,
    notify: Notify,
    show: Callable[[int], None],
) -> int:
    while service.finished is None:
        deadlines = [
            service.next_deadline_at_ms(),
            patience.deadline_at_ms,
            aggregation.deadline_at_ms,
            notify.deadline_at_ms,
        ]
        soonest = min((at_ms for at_ms in deadlines if at_ms is not None), default=None)
        left_s = _IDLE_S if soonest is None else (soonest - clock.now_ms()) / 1000
        with suppress(Empty):
            item = inbox.get(timeout=min(max(0.0, left_s), _IDLE_S))
            match item:
                case _Stop():
                    _log.info("stopping; start again to go on with the same round")
                    break
                case _Failed():
                    raise _as_fedtide(item.error)
                case _Scraped():
                    show(clock.now_ms())
                case Aggregated() | JobFailed():
                    service.job_done(item, clock.now_ms())
                case _:
                    patience.link_event(item)
                    service.link_event(item, clock.now_ms())
        now_ms = clock.now_ms()
        patience.time_reached(now_ms)
        service.time_reached(now_ms)
        notify.time_reached(now_ms, service.doing())
        if service.finished is None:
            aggregation.time_reached(now_ms)
    if service.finished is None:
        return 0
    _log.info("finished: %s", service.finished.reason)
    return 0 if service.finished.succeeded else 1


def _as_fedtide(error: BaseException) -> BaseException:
    if isinstance(error, FedtideError):
        return error
    if isinstance(error, FileNotFoundError):
        return StateError(
            f"the current model is gone: {error}", hint="restore the state folder from a backup"
        )
    return error
