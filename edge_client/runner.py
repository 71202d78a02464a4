"""The only place on the device where session, clock, threads and signals meet."""

from __future__ import annotations

import logging
import signal
import time
from queue import Empty, SimpleQueue

from edge_client.config import ClientConfig
from edge_client.session import Session, will_of
from edge_client.session_machine import Event
from edge_client.worker import Worker
from fedtide.blobs import BlobStore
from fedtide.errors import BrokerError, DataError, StateError
from fedtide.files import locked
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, Disconnected, LinkEvent, Refused

_log = logging.getLogger(__name__)

_IDLE_S = 3600.0


class _Stop:
    """A signal asked us to stop."""


Item = LinkEvent | Event | StateError | _Stop


def monotonic_ms() -> int:
    """Milliseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def run_client(config: ClientConfig) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        DataError: there is no data file.
        BrokerError: the broker refuses us, or never answered within `broker.give_up_ms`.
        StateError: the state folder is in use, full, failing or damaged.
    """
    if not config.data.path.exists():
        raise DataError(
            f"there is no data file {str(config.data.path)!r}", hint="correct [data] path"
        )
    with locked(config.state_dir, f"client of device {config.device!r}"):
        inbox: SimpleQueue[Item] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: inbox.put(_Stop()))
        topics = Topics(config.federation)
        link = MqttTransport(
            config.broker,
            f"{config.federation}.{config.device}",
            inbox.put,
            will_of(topics, config.device),
        )
        worker = Worker(config, BlobStore(config.state_dir), inbox.put)
        session = Session(config.device, topics, config.state_dir, link, worker)
        try:
            session.start(monotonic_ms())
            link.start()
            _serve(config, session, inbox)
            session.goodbye()
        finally:
            worker.stop()
            link.stop()


def _serve(config: ClientConfig, session: Session, inbox: SimpleQueue[Item]) -> None:
    give_up_at_ms: int | None = None
    if config.broker.give_up_ms:
        give_up_at_ms = monotonic_ms() + config.broker.give_up_ms
    while True:
        deadlines = [session.next_deadline_at_ms(), give_up_at_ms]
        soonest = min((at_ms for at_ms in deadlines if at_ms is not None), default=None)
        wait_s = _IDLE_S if soonest is None else max(0.0, (soonest - monotonic_ms()) / 1000)
        try:
            item = inbox.get(timeout=wait_s)
        except Empty:
            if give_up_at_ms is not None and monotonic_ms() >= give_up_at_ms:
                raise _never_connected(config) from None
            session.time_reached(monotonic_ms())
            continue
        match item:
            case _Stop():
                _log.info("stopping")
                return
            case StateError():
                raise item
            case Refused(reason):
                raise BrokerError(reason, hint="check broker.username and broker.password_file")
            case Connected() | Disconnected():
                if isinstance(item, Connected):
                    give_up_at_ms = None
                session.link_event(item, monotonic_ms())
            case _ if isinstance(item, LinkEvent):
                session.link_event(item, monotonic_ms())
            case _:
                session.task_event(item, monotonic_ms())
        session.time_reached(monotonic_ms())


def _never_connected(config: ClientConfig) -> BrokerError:
    broker = config.broker
    return BrokerError(
        f"no broker answered at {broker.host}:{broker.port} within {broker.give_up_ms / 1000:g} s",
        hint="start the broker or correct [broker]; give_up_ms = 0 waits for ever",
    )
