"""How to look into a federation: as whom, and what can be believed of what is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from fedtide.config import BrokerConfig
from fedtide.host_check import is_locked
from fedtide.messages import Identifier
from fedtide.picture import Verified
from fedtide.topics import Topics, is_device_name
from fedtide.transport import Connect, Deliver, Transport

CLIENT_TELLS = (
    "systemctl status fedtide-client, journalctl -u fedtide-client; on the server: "
    "sudo fedtide status /etc/fedtide/coordinator.toml"
)
"""Where a running client says how it is, without another connection of its name."""

Sealer = Callable[[Connect, Deliver], Transport]
"""Makes a link on which messages are sealed and opened."""


class Access(Struct, frozen=True):
    """What a coordinator.toml and a client.toml have in common."""

    federation: Identifier
    broker: BrokerConfig = BrokerConfig()
    identity: Path | None = None
    members: Path | None = None


class Entrance(NamedTuple):
    """The way in."""

    broker: BrokerConfig
    sealer: Sealer | None
    verified: Verified


def is_taken(identity: Path | None) -> bool:
    """Whether a running client holds the one connection that a device's identity has.

    The broker lets each device in once (Mosquitto's `use_username_as_clientid`), so whoever else
    comes with its certificate would cut the client off. A server's roles may have several.
    """
    if identity is None or not is_locked(identity):
        return False
    from fedtide.identity import load_identity  # who has no identity needs no cryptography

    return is_device_name(load_identity(identity).name)


def entrance(access: Access) -> Entrance:
    """The way in for somebody who changes nothing.

    Raises:
        ConfigError: the identity cannot be used, `broker` says otherwise, or the list of members
            cannot be read.
        StateError: the key set cannot be read.
    """
    if access.identity is None:
        return Entrance(access.broker, None, "nothing")
    from fedtide.identity import load_identity  # who has no identity needs no cryptography
    from fedtide.members import Members
    from fedtide.seal import UNORDERED
    from fedtide.sealed_transport import SealedTransport
    from fedtide.trust import Onlooker

    identity, topics = load_identity(access.identity), Topics(access.federation)
    members = Members.of(access.members)
    trust = Onlooker(topics, identity, members)

    def sealed(connect: Connect, deliver: Deliver) -> Transport:
        # Without order nothing that is said here overtakes what the running process says.
        return SealedTransport(
            connect, deliver, None, topics, identity.key, lambda: UNORDERED, trust
        )

    verified: Verified = "coordinator" if members is None else "everything"
    return Entrance(identity.broker(access.broker), sealed, verified)
