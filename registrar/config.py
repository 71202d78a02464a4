"""The registrar's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fedtide.config import BrokerConfig
from fedtide.messages import Identifier


class RegistrarConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `registrar.toml`; the commands about devices read it, too."""

    federation: Identifier
    identity: Path
    """Folder with the registrar's own key and certificate, and the key set for new devices."""
    state_dir: Path
    """Folder of the registry; in it, `authority` is the certificate authority."""
    members: Path
    """File in which the coordinator finds the devices in good standing."""
    broker_dir: Path
    """Folder of the broker's configuration: `acl` and `revoked.pem` are written there."""
    broker_pid: Path | None = None
    """File with the broker's process id; None: systemd knows it."""
    broker: BrokerConfig = BrokerConfig()

    @property
    def authority(self) -> Path:
        """Folder of the certificate authority."""
        return self.state_dir / "authority"
