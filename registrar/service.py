"""The registrar's service: the only place where enrolment meets a link, a clock and signals.

What comes in is bounded: so many messages wait, one of each name in half a second is looked at, and
nothing is allocated on the word of a message.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from fedtide.config import BrokerConfig
from fedtide.errors import ConfigError
from fedtide.files import locked
from fedtide.identity import Identity, load_identity
from fedtide.mqtt import MqttTransport
from fedtide.notify import Notify
from fedtide.patience import Patience
from fedtide.sequence import Sequence, epoch_ms
from fedtide.topics import Topics
from fedtide.transport import Connected, Disconnected, LinkEvent, Received
from registrar.authority import Authority
from registrar.config import RegistrarConfig
from registrar.enforcement import write_members
from registrar.enrolment import Enrolment
from registrar.registry import Registry

_log = logging.getLogger(__name__)

WAITING_MAX = 1_000
"""Messages that wait to be looked at; what comes beyond is dropped, and will be said again."""
NAME_PAUSE_MS = 500
"""Between two requests of one name: a device asks every two seconds at the most."""
NAMES_MAX = 10_000
LOOK_MS = 2_000
"""How often the registry is asked what the commands about devices have changed."""


class _Stop:
    """A signal asked us to stop."""


class _Inbox:
    """What happened, in its order; requests only as many as can be looked at in a few seconds."""

    def __init__(self) -> None:
        self._items: SimpleQueue[LinkEvent | _Stop] = SimpleQueue()
        self.dropped = 0

    def put(self, item: LinkEvent | _Stop) -> None:
        """From any thread."""
        if isinstance(item, Received) and self._items.qsize() >= WAITING_MAX:
            self.dropped += 1
            return
        self._items.put(item)

    def get(self, seconds: float) -> LinkEvent | _Stop:
        """The next; raises Empty when there is none within `seconds`."""
        return self._items.get(timeout=max(0.0, seconds))


class Pace:
    """Who asks too often is not heard."""

    def __init__(self) -> None:
        self._heard_at_ms: dict[str, int] = {}

    def allows(self, name: str, at_ms: int) -> bool:
        """Whether a request of this name is looked at now."""
        before = self._heard_at_ms.get(name)
        if before is not None and at_ms - before < NAME_PAUSE_MS:
            return False
        if len(self._heard_at_ms) >= NAMES_MAX:
            self._heard_at_ms.clear()
        self._heard_at_ms[name] = at_ms
        return True


class Service:
    """Answers requests, and tells devices of new names."""

    def __init__(
        self, topics: Topics, registry: Registry, enrolment: Enrolment, link: MqttTransport
    ) -> None:
        self._topics = topics
        self._registry = registry
        self._enrolment = enrolment
        self._link = link
        self._pace = Pace()
        self._told: dict[str, str] = {}
        self._connected = False
        self._lost = ""
        """Why there is no link, as it was logged last."""
        self._look_at_ms = 0

    def deadline_at_ms(self) -> int | None:
        """When to call `time_reached`."""
        return self._look_at_ms if self._connected else None

    def link_event(self, event: LinkEvent, at_ms: int) -> None:
        """Something happened on the link."""
        match event:
            case Connected(protocol):
                _log.info("connected over %s; devices can join and renew", protocol)
                self._link.subscribe([self._topics.enrol("+")])
                self._connected, self._told, self._look_at_ms = True, {}, at_ms
                self._lost = ""
            case Disconnected(reason, retry_ms):
                if reason != self._lost:
                    _log.warning("%s; trying again in %d s", reason, max(1, round(retry_ms / 1000)))
                self._connected, self._lost = False, reason
            case Received(topic, payload) if payload:  # empty: what lay there was taken away
                self._received(topic, payload, at_ms)
            case _:
                pass

    def time_reached(self, at_ms: int) -> None:
        """Let time pass: tell who shall have another name, and take back what no longer holds."""
        if not self._connected or at_ms < self._look_at_ms:
            return
        self._look_at_ms = at_ms + LOOK_MS
        names = {
            device.name: device.new_name
            for device in self._registry.devices()
            if device.new_name is not None and device.standing == "member"
        }
        for name in self._told.keys() - names.keys():
            self._say_name(name, None)
        for name, new_name in names.items():
            if self._told.get(name) != new_name:
                _log.info("device %r is told that its name is to be %r", name, new_name)
                self._say_name(name, new_name)
        self._told = names

    def _say_name(self, name: str, new_name: str | None) -> None:
        said = self._enrolment.renaming(name, new_name)
        self._link.publish(said.topic, said.payload, retain=True)

    def _received(self, topic: str, payload: bytes, at_ms: int) -> None:
        name = self._topics.enrolling(topic)
        if name is None or not self._pace.allows(name, at_ms):
            return
        said = self._enrolment.answer(topic, payload, epoch_ms())
        if isinstance(said, str):
            _log.warning("a message on %s is ignored: %s", topic, said)
        else:
            self._link.publish(said.topic, said.payload)


def run_registrar(config: RegistrarConfig) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        ConfigError: the identity or the authority cannot be used.
        BrokerError: the broker refuses us, or never answered within `broker.give_up_ms`.
        StateError: the state folder is in use by another registrar, or failing.
    """
    identity = load_identity(config.identity)
    if identity.name != "registrar":
        raise ConfigError(
            f"the identity in {str(config.identity)!r} is that of {identity.name!r}",
            hint="`fedtide server init` makes that of the registrar",
        )
    identity.warn_if_over()
    with locked(config.state_dir, "registrar"):
        authority = Authority.open(config.authority)
        registry = Registry(config.state_dir)
        try:
            _run(config, identity, authority, registry)
        finally:
            registry.close()


def _run(
    config: RegistrarConfig, identity: Identity, authority: Authority, registry: Registry
) -> None:
    inbox = _Inbox()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: inbox.put(_Stop()))
    topics = Topics(config.federation)

    def members_changed() -> None:
        write_members(registry, config.members)

    members_changed()  # whatever cut the last life short
    numbers = Sequence(config.state_dir)
    enrolment = Enrolment(
        topics, registry, authority, identity.key_set, members_changed, numbers.take
    )
    broker = identity.broker(config.broker)
    link = MqttTransport(broker, f"{config.federation}//registrar", inbox.put)
    service = Service(topics, registry, enrolment, link)
    notify = Notify()
    try:
        link.start()
        notify.ready(_now_ms())
        _serve(broker, service, inbox, notify)
    finally:
        notify.stopping()
        link.stop()


def _serve(broker: BrokerConfig, service: Service, inbox: _Inbox, notify: Notify) -> None:
    patience = Patience(broker, _now_ms())
    while True:
        deadlines = [service.deadline_at_ms(), patience.deadline_at_ms, notify.deadline_at_ms]
        soonest = min((at_ms for at_ms in deadlines if at_ms is not None), default=None)
        left_ms = 60_000 if soonest is None else soonest - _now_ms()
        with suppress(Empty):
            item = inbox.get(left_ms / 1000)
            if isinstance(item, _Stop):
                _log.info("stopping")
                return
            patience.link_event(item)
            service.link_event(item, _now_ms())
        if inbox.dropped:
            _log.warning("a flood: %d messages were dropped", inbox.dropped)
            inbox.dropped = 0
        patience.time_reached(_now_ms())
        service.time_reached(_now_ms())
        notify.time_reached(_now_ms(), "waiting for devices that join or renew")


def _now_ms() -> int:
    """Of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000
