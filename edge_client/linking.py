"""How a device reaches its coordinator: by password, or by its identity, all messages sealed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edge_client.config import ClientConfig
from fedtide.errors import ConfigError
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics, is_device_name
from fedtide.transport import Connect, Deliver, Transport, Will

if TYPE_CHECKING:
    from fedtide.identity import Identity


class Identified(NamedTuple):
    """Who we are, and how to get there."""

    config: ClientConfig
    """With the device's name and broker."""
    connect: Connect
    identity: Identity | None


@contextmanager
def identified(config: ClientConfig) -> Iterator[Identified]:
    """Hold the identity, if the configuration names one, for as long as the block lasts.

    Raises:
        ConfigError: the identity cannot be used, or is another's.
        StateError: another process uses it, or the disk refuses.
    """
    if config.identity is None:
        mqtt = partial(MqttTransport, config.broker, _client_id(config))
        yield Identified(config, mqtt, None)
        return
    # Who has no identity needs no cryptography.
    from edge_client.trust import DeviceTrust
    from fedtide.rollover import held_identity
    from fedtide.sealed_transport import SealedTransport
    from fedtide.sequence import Sequence

    with held_identity(config.identity, "client") as identity:
        config = named(config, identity)
        mqtt = partial(MqttTransport, config.broker, _client_id(config))
        topics, numbers = Topics(config.federation), Sequence(identity.folder)
        trust = DeviceTrust(topics, identity)

        def connect(deliver: Deliver, will: Will | None) -> Transport:
            key, take = identity.key, numbers.take
            return SealedTransport(mqtt, deliver, will, topics, key, take, trust)

        yield Identified(config, connect, identity)


def with_name(config: ClientConfig) -> ClientConfig:
    """The same for somebody who only looks, beside a running client or without one.

    Raises:
        ConfigError: the identity cannot be used, or is another's.
    """
    if config.identity is None:
        return config
    from fedtide.identity import load_identity

    return named(config, load_identity(config.identity))


def named(config: ClientConfig, identity: Identity) -> ClientConfig:
    """The same with the name and the way to the broker that the identity gives.

    Raises:
        ConfigError: it is no device's, or another's than `device`, or `broker` says otherwise.
    """
    if not is_device_name(identity.name):
        raise ConfigError(
            f"the identity in {str(identity.folder)!r} is that of {identity.name!r}, no device",
            hint="`identity` in client.toml is the folder that `fedtide device join` made",
        )
    if config.device not in ("", identity.name):
        raise ConfigError(
            f"device is {config.device!r}, and the identity in {str(identity.folder)!r} is that "
            f"of {identity.name!r}",
            hint="remove `device`: the certificate names it",
        )
    broker = identity.broker(config.broker)
    return msgspec.structs.replace(config, device=identity.name, broker=broker)


def _client_id(config: ClientConfig) -> str:
    return f"{config.federation}/{config.device}"
