"""The only place on the device where session, clock, threads and signals meet."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

from edge_client.condition_watch import ConditionWatch
from edge_client.config import ClientConfig
from edge_client.data import open_source
from edge_client.linking import identified
from edge_client.room import Room
from edge_client.sensors import Sensors
from edge_client.session import Session
from edge_client.session_events import Event as Happened
from edge_client.session_events import Stopped
from edge_client.speaking import will_of
from edge_client.worker import Worker
from fedtide.blobs import BlobStore
from fedtide.errors import FedtideError, StateError
from fedtide.files import locked
from fedtide.notify import Notify
from fedtide.patience import Patience, await_delivery
from fedtide.topics import Topics
from fedtide.transport import LinkEvent, Transport

if TYPE_CHECKING:
    from edge_client.membership.renewal import Renewal
    from fedtide.identity import Identity

_log = logging.getLogger(__name__)

_IDLE_S = 3600.0
_GOODBYE_S = 2.0


class _Stop:
    """A signal asked us to stop."""


Item = LinkEvent | Happened | StateError | _Stop


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
    stopping = Event()
    while _live(given, stopping) and not stopping.is_set():
        _log.info("going on under the new name")


def _live(given: ClientConfig, stopping: Event) -> bool:
    """Run under one name; whether to go on under another."""
    with (
        identified(given) as (config, connect, identity),
        locked(config.state_dir, f"client of device {config.device!r}"),
    ):
        inbox: SimpleQueue[Item] = SimpleQueue()

        def stop(*_: object) -> None:
            stopping.set()
            inbox.put(_Stop())

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        topics = Topics(config.federation)
        link = connect(inbox.put, will_of(topics, config.device))
        renewal = _renewal(identity, config, link)
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
        reason, renamed = "ended by an error; the device's own log says why", False
        notify = Notify()
        try:
            if _start(session, inbox, notify):
                watch.start()
                link.start()
                notify.ready(monotonic_ms())
                renamed = _serve(config, session, renewal, inbox, notify)
                session.task_event(Stopped(), monotonic_ms())
            reason = "stopped"
        finally:
            if not renamed:
                notify.stopping()
            # Whatever ended us: a clean disconnect keeps our will unsaid, so it is said here.
            await_delivery(inbox, session.goodbye(reason), _GOODBYE_S)
            if renamed:  # nobody will come under this name again
                token = link.publish(topics.presence(config.device), b"", retain=True)
                await_delivery(inbox, token, _GOODBYE_S)
            watch.stop()
            worker.stop()
            link.stop()
        return renamed


def _renewal(identity: Identity | None, config: ClientConfig, link: Transport) -> Renewal | None:
    """What keeps the certificate young; what was saved under a former name is ours from here on.

    Raises:
        ConfigError: the authority's certificate cannot be read.
        StateError: the disk is full or failing.
    """
    if identity is None:
        return None
    from edge_client.membership.former_name import carry_over
    from edge_client.membership.renewal import Renewal
    from fedtide.sealed_transport import SealedTransport

    assert isinstance(link, SealedTransport)
    carry_over(identity, config.state_dir)
    topics = Topics(config.federation)
    return Renewal(identity, topics, link, link.inner.reconnect, monotonic_ms())


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
    config: ClientConfig,
    session: Session,
    renewal: Renewal | None,
    inbox: SimpleQueue[Item],
    notify: Notify,
) -> bool:
    """Until we are asked to stop, or have another name (True)."""
    patience = Patience(config.broker, monotonic_ms())
    while True:
        deadlines = [
            session.next_deadline_at_ms(),
            patience.deadline_at_ms,
            notify.deadline_at_ms,
            None if renewal is None else renewal.deadline_at_ms(),
        ]
        soonest = min((at_ms for at_ms in deadlines if at_ms is not None), default=None)
        wait_s = _IDLE_S if soonest is None else max(0.0, (soonest - monotonic_ms()) / 1000)
        with suppress(Empty):
            item = inbox.get(timeout=wait_s)
            match item:
                case _Stop():
                    waiting = "; ".join(session.waits.texts())
                    _log.info("stopping%s", f"; {waiting}" if waiting else "")
                    return False
                case StateError():
                    raise item
                case _ if isinstance(item, LinkEvent):
                    patience.link_event(item)
                    session.link_event(item, monotonic_ms())
                    if renewal is not None:
                        renewal.link_event(item, monotonic_ms())
                case _:
                    session.task_event(item, monotonic_ms())
        patience.time_reached(monotonic_ms())
        session.time_reached(monotonic_ms())
        notify.time_reached(monotonic_ms(), session.doing)
        if renewal is not None:
            renewal.time_reached(monotonic_ms(), idle=session.idle, welcomed=session.welcomed)
            if renewal.new_name:
                return True
        if session.waits.hang():
            raise FedtideError(
                "training has made no step for an hour",
                hint="start again: training goes on from its last saved epoch, and a task that "
                "hangs again and again is declined",
            )
