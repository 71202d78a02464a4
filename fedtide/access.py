"""How to look into a federation: as whom, and what can be believed of what is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from fedtide.config import BrokerConfig
from fedtide.messages import Identifier
from fedtide.picture import Verified
from fedtide.topics import Topics
from fedtide.transport import Connect, Deliver, Transport

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
    members = None if access.members is None else Members(access.members)
    trust = Onlooker(topics, identity, members)

    def sealed(connect: Connect, deliver: Deliver) -> Transport:
        # Without order nothing that is said here overtakes what the running process says.
        return SealedTransport(
            connect, deliver, None, topics, identity.key, lambda: UNORDERED, trust
        )

    verified: Verified = "coordinator" if members is None else "everything"
    return Entrance(identity.broker(access.broker), sealed, verified)
