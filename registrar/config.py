"""The registrar's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from fedtide.config import BrokerConfig
from fedtide.messages import Identifier


class RegistrarConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `registrar.toml`; the commands about devices read it, too."""

    federation: Identifier
    host: Annotated[str, Meta(min_length=1, max_length=255)]
    """Name or address at which devices reach the broker: join codes carry it."""
    port: Annotated[int, Meta(ge=1, le=65535)]
    """The broker's port for devices."""
    identity: Path
    """Folder with the registrar's own key and certificate, and the key set for new devices."""
    state_dir: Path
    """Folder of the registry; in it, `authority` is the certificate authority."""
    members: Path
    """File in which the coordinator finds the devices in good standing."""
    broker_dir: Path
    """Folder of the broker's configuration: its `acl` and `revoked.pem` are written there."""
    broker: BrokerConfig = BrokerConfig()
    """How the registrar itself reaches the broker."""

    @property
    def authority(self) -> Path:
        """Folder of the certificate authority."""
        return self.state_dir / "authority"
