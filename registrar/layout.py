"""Where everything on a server lies, and who owns it.

/etc/fedtide/            coordinator.toml, registrar.toml
/etc/fedtide/broker/     mosquitto.conf, acl, revoked.pem, ca.pem, certificate.pem, key.pem
/var/lib/fedtide/        broker/, coordinator/, registrar/: each its service's own
                         members/: written by the registrar, read by the coordinator
                         observer/: an identity for dashboards, root's
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Literal, NamedTuple

Role = Literal["broker", "coordinator", "registrar"]
ROLES: tuple[Role, ...] = ("broker", "registrar", "coordinator")
"""In the order in which they start."""
STAGING_NAME = ".restoring"
"""In each folder that a backup is put back into, until what belongs there is in place."""


class Layout(NamedTuple):
    """The tree under `root`; of a whole system, each role has a user of its own."""

    root: Path
    system: bool

    def user(self, role: Role) -> str:
        """Who runs the service and owns its folder."""
        return f"fedtide-{role}" if self.system else pwd.getpwuid(os.getuid()).pw_name

    @property
    def etc(self) -> Path:
        """Folder of configurations."""
        return self.root / "etc" / "fedtide"

    @property
    def broker_dir(self) -> Path:
        """Folder of what the broker reads."""
        return self.etc / "broker"

    @property
    def coordinator_toml(self) -> Path:
        """The coordinator's configuration."""
        return self.etc / "coordinator.toml"

    @property
    def registrar_toml(self) -> Path:
        """The registrar's configuration."""
        return self.etc / "registrar.toml"

    @property
    def mosquitto_conf(self) -> Path:
        """The broker's configuration."""
        return self.broker_dir / "mosquitto.conf"

    @property
    def var(self) -> Path:
        """Folder of what services keep."""
        return self.root / "var" / "lib" / "fedtide"

    def home(self, role: Role) -> Path:
        """Folder of one service, closed to everybody else."""
        return self.var / role

    def identity(self, role: Role | Literal["observer"]) -> Path:
        """Folder of a role's identity."""
        return self.var / role / "identity"

    @property
    def bundle(self) -> Path:
        """Where the coordinator finds the model."""
        return self.home("coordinator") / "bundle"

    @property
    def members(self) -> Path:
        """The list of members."""
        return self.var / "members" / "members.json"

    @property
    def restored(self) -> tuple[Path, Path, Path, Path]:
        """What a backup brings back: the registrar's, the bundle, the coordinator's identity and
        state. The root of trust comes first."""
        state = self.home("coordinator") / "state"
        return self.home("registrar"), self.bundle, self.identity("coordinator"), state
