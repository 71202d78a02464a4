"""How the coordinator reaches its devices: by password, or by its identity, all messages sealed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coordinator.config import CoordinatorConfig
from coordinator.marks import Marks
from coordinator.traffic import CountedTransport, Traffic
from fedtide.config import BrokerConfig
from fedtide.errors import ConfigError
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Deliver, Transport, Will

if TYPE_CHECKING:
    from fedtide.identity import Identity

ROLE = "coordinator"


@contextmanager
def identified(config: CoordinatorConfig) -> Iterator[Identity | None]:
    """The coordinator's identity, if it has one, for this process alone.

    Raises:
        ConfigError: the identity cannot be used, or is another's.
        StateError: another process uses it, or the disk refuses.
    """
    if config.identity is None:
        yield None
        return
    from fedtide.rollover import held_identity  # who has no identity needs no cryptography

    with held_identity(config.identity, ROLE) as identity:
        if identity.name != ROLE:
            raise ConfigError(
                f"the identity in {str(identity.folder)!r} is that of {identity.name!r}, "
                f"not of the {ROLE}",
                hint="`fedtide server init` made the right one",
            )
        yield identity


def broker_of(config: CoordinatorConfig, identity: Identity | None) -> BrokerConfig:
    """The way to the broker.

    Raises:
        ConfigError: `broker` says otherwise than the identity.
    """
    return config.broker if identity is None else identity.broker(config.broker)


def connect(
    config: CoordinatorConfig,
    identity: Identity | None,
    marks: Marks,
    traffic: Traffic,
    deliver: Deliver,
    will: Will,
) -> Transport:
    """The link.

    Raises:
        ConfigError: a file that the configuration names cannot be used.
        StateError: one that the identity needs cannot be read.
    """

    def mqtt(deliver: Deliver, will: Will | None) -> Transport:
        client_id = f"{config.federation}//coordinator"
        link = MqttTransport(broker, client_id, traffic.counting(deliver), will)
        return CountedTransport(link, traffic)

    broker = broker_of(config, identity)
    if identity is None:
        return mqtt(deliver, will)
    from coordinator.trust import MemberTrust
    from fedtide.members import Members
    from fedtide.sealed_transport import SealedTransport
    from fedtide.sequence import Sequence

    assert config.members is not None, "it stands beside `identity`"
    topics, members = Topics(config.federation), Members(config.members)
    trust = MemberTrust(topics, members, marks, _key_set(identity, topics))
    numbers = Sequence(identity.folder)
    return SealedTransport(
        mqtt,
        deliver,
        will,
        topics,
        identity.key,
        numbers.take,
        trust,
    )


def _key_set(identity: Identity, topics: Topics) -> bytes:
    """The stored key set, which names our key: else no device would believe us."""
    from fedtide.keys import key_id, public_bytes
    from fedtide.trust import KeyRing

    ring = KeyRing(topics, identity, read_only=True)
    if ring.find(key_id(public_bytes(identity.key))) is None:
        what = "does not name its key" if ring.version else "is missing, or of another federation"
        raise ConfigError(
            f"the key set of the identity in {str(identity.folder)!r} {what}: "
            "no device would believe this coordinator",
            hint="restore the identity's folder from a backup, or: fedtide server rotate-key",
        )
    return ring.raw
