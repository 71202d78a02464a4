"""The only place on the device where session, clock, threads and signals meet."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from edge_client.condition_watch import ConditionWatch
from edge_client.config import ClientConfig
from edge_client.data import open_source
from edge_client.linking import identified
from edge_client.room import Room
from edge_client.sensors import Sensors
from edge_client.session import Session
from edge_client.session_events import Event, Stopped
from edge_client.speaking import will_of
from edge_client.worker import Worker
from fedtide.blobs import BlobStore
from fedtide.errors import FedtideError, StateError
from fedtide.files import locked
from fedtide.notify import Notify
from fedtide.patience import Patience, await_delivery
from fedtide.topics import Topics
from fedtide.transport import LinkEvent

_log = logging.getLogger(__name__)

_IDLE_S = 3600.0
_GOODBYE_S = 2.0


class _Stop:
    """A signal asked us to stop."""


Item = LinkEvent | Event | StateError | _Stop


def monotonic_ms() -> int:
    """Milliseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def run_client(given: ClientConfig) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        DataError: there are no data.
        ConfigError: a file that the configuration names cannot be used.
        BrokerError: the broker refuses us, or never answered within `broker.give_up_ms`.
        StateError: the state folder is in use, failing, or another device's.
        FedtideError: training hangs.
    """
    open_source(given.data).stamp()
    with (
        identified(given) as (config, connect),
        locked(config.state_dir, f"client of device {config.device!r}"),
    ):
        inbox: SimpleQueue[Item] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: inbox.put(_Stop()))
        topics = Topics(config.federation)
        link = connect(inbox.put, will_of(topics, config.device))
        worker = Worker(config, BlobStore(config.state_dir), inbox.put)
        sensors = Sensors(config.conditions, config.state_dir)
        watch = ConditionWatch(config.conditions, sensors, inbox.put)
        session = Session(
            config.device,
            topics,
            config.state_dir,
            link,
            worker,
            outbox_bytes_max=config.outbox_bytes_max,
            conditions=watch.first,
        )
        reason = "ended by an error; the device's own log says why"
        notify = Notify()
        try:
            if _start(session, inbox, notify):
                watch.start()
                link.start()
                notify.ready(monotonic_ms())
                _serve(config, session, inbox, notify)
                session.task_event(Stopped(), monotonic_ms())
            reason = "stopped"
        finally:
            notify.stopping()
            # Whatever ended us: a clean disconnect keeps our will unsaid, so it is said here.
            await_delivery(inbox, session.goodbye(reason), _GOODBYE_S)
            watch.stop()
            worker.stop()
            link.stop()


def _start(session: Session, inbox: SimpleQueue[Item], notify: Notify) -> bool:
    """Begin, as soon as the disk has room for that; False: we were asked to stop first.

    Raises:
        StateError: the disk is failing, or the state is another device's.
    """
    room = Room()
    while True:
        now_ms = monotonic_ms()
        try:
            session.start(now_ms)
        except StateError as exc:
            room.missing(exc, now_ms)
            notify.starting(exc.args[0])
        else:
            return True
        with suppress(Empty):
            inbox.get(timeout=((room.retry_at_ms or now_ms) - now_ms) / 1000)
            return False  # nothing but a signal can come before the link is there


def _serve(
    config: ClientConfig, session: Session, inbox: SimpleQueue[Item], notify: Notify
) -> None:
    patience = Patience(config.broker, monotonic_ms())
    while True:
        deadlines = [
            session.next_deadline_at_ms(),
            patience.deadline_at_ms,
            notify.deadline_at_ms,
        ]
        soonest = min((at_ms for at_ms in deadlines if at_ms is not None), default=None)
        wait_s = _IDLE_S if soonest is None else max(0.0, (soonest - monotonic_ms()) / 1000)
        with suppress(Empty):
            item = inbox.get(timeout=wait_s)
            match item:
                case _Stop():
                    waiting = "; ".join(session.waits.texts())
                    _log.info("stopping%s", f"; {waiting}" if waiting else "")
                    return
                case StateError():
                    raise item
                case _ if isinstance(item, LinkEvent):
                    patience.link_event(item)
                    session.link_event(item, monotonic_ms())
                case _:
                    session.task_event(item, monotonic_ms())
        patience.time_reached(monotonic_ms())
        session.time_reached(monotonic_ms())
        notify.time_reached(monotonic_ms(), session.doing)
        if session.waits.hang():
            raise FedtideError(
                "training has made no step for an hour",
                hint="start again: training goes on from its last saved epoch, and a task that "
                "hangs again and again is declined",
            )
