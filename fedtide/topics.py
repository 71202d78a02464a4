"""Every topic of the protocol, in one place (protocol §2).

    fedtide/1/FEDERATION/up/DEVICE              device -> coordinator
    fedtide/1/FEDERATION/down/DEVICE            coordinator -> device
    fedtide/1/FEDERATION/presence/DEVICE        device, retained, and its will
    fedtide/1/FEDERATION/blob/DIGEST/BLOCK      coordinator, retained chunks for everybody
    fedtide/1/FEDERATION/beacon                 coordinator, retained, and its will
    fedtide/1/FEDERATION/status                 coordinator, retained, for people who watch
    fedtide/1/FEDERATION/keys                   coordinator, retained, sealed by the authority
    fedtide/1/FEDERATION/enrol/NAME             device, or claim on a join -> registrar
    fedtide/1/FEDERATION/enrolled/NAME          registrar -> device, or claim

A device's name is a whole topic level, so that a broker's ACL can confine it by pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedtide.limits import IDENTIFIER_CHARS_MAX

IDENTIFIER_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{IDENTIFIER_CHARS_MAX - 1}}}\Z"
"""Federation and device names: safe as a topic level, a file name and a certificate's name."""


def is_identifier(text: str) -> bool:
    """Whether `text` may name a federation or a device."""
    return re.match(IDENTIFIER_PATTERN, text) is not None


RESERVED_NAMES = frozenset({"coordinator", "registrar", "broker", "observer"})
"""Names of certificates and of users that are no device's."""
CLAIM_PREFIX = "join-"
"""Names of one-time joins begin with it, and no device's does."""

DOCTOR_PREFIX = "doctor-"
"""Under names that begin with it doctors ask; no new device's does."""


def is_device_name(text: str) -> bool:
    """Whether a device may be called so where each has a certificate in its name."""
    reserved = text in RESERVED_NAMES or text.startswith(CLAIM_PREFIX)
    return is_identifier(text) and not reserved


@dataclass(frozen=True)
class Topics:
    """The topics of one federation."""

    federation: str

    @property
    def root(self) -> str:
        """Prefix of every topic; the 1 is the protocol's version."""
        return f"fedtide/1/{self.federation}"

    @property
    def beacon(self) -> str:
        """Retained `Beacon` of the coordinator."""
        return f"{self.root}/beacon"

    @property
    def status(self) -> str:
        """Retained `Status` of the coordinator."""
        return f"{self.root}/status"

    @property
    def keys(self) -> str:
        """Retained `KeySet` of the federation."""
        return f"{self.root}/keys"

    def up(self, device_id: str) -> str:
        """Messages of one device to the coordinator; `+` for all devices."""
        return f"{self.root}/up/{device_id}"

    def down(self, device_id: str) -> str:
        """Messages of the coordinator to one device."""
        return f"{self.root}/down/{device_id}"

    def presence(self, device_id: str) -> str:
        """Retained `Presence` of one device; `+` for all devices."""
        return f"{self.root}/presence/{device_id}"

    def chunk(self, digest: str, first_block: int) -> str:
        """Retained chunk of a blob that starts at `first_block`."""
        return f"{self.root}/blob/{digest}/{first_block}"

    def enrol(self, name: str) -> str:
        """Requests for a certificate under one name; `+` for all."""
        return f"{self.root}/enrol/{name}"

    def enrolled(self, name: str) -> str:
        """What the registrar says to whoever has this name."""
        return f"{self.root}/enrolled/{name}"

    def enrolling(self, topic: str) -> str | None:
        """Name in an `enrol` topic of this federation, else None."""
        prefix = self.enrol("")
        name = topic.removeprefix(prefix)
        return name if topic.startswith(prefix) and is_identifier(name) else None

    def hearer(self, topic: str) -> str | None:
        """Device that a `down` topic of this federation speaks to, else None."""
        prefix = self.down("")
        return topic[len(prefix) :] if topic.startswith(prefix) else None

    def is_ordered(self, topic: str) -> bool:
        """Whether what is said there comes one after another: on the others lies a state."""
        ordered = (self.up(""), self.down(""), self.enrol(""), self.enrolled(""))
        return topic.startswith(ordered)

    def device_of(self, topic: str) -> str | None:
        """Device named by an `up` or `presence` topic of this federation, else None."""
        for kind in ("up", "presence"):
            prefix = f"{self.root}/{kind}/"
            if topic.startswith(prefix) and is_identifier(topic[len(prefix) :]):
                return topic[len(prefix) :]
        return None
