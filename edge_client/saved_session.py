"""The session's durable state on disk, which belongs to one device of one federation."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_client.durable import Durable
from fedtide.errors import DamagedError, StateError
from fedtide.generations import Generations

_log = logging.getLogger(__name__)

STATE_NAME = "session"


def new_installation() -> str:
    """A random name for what is installed in one state folder."""
    return secrets.token_hex(8)


class SavedSession:
    """See the module."""

    def __init__(
        self,
        folder: Path,
        federation: str,
        device_id: str,
        new_installation: Callable[[], str] = new_installation,
    ) -> None:
        self._folder = folder
        self._generations = Generations(folder / STATE_NAME)
        self._owner = (federation, device_id)
        self._new_installation = new_installation

    def load(self) -> Durable:
        """What was saved last, or a new beginning: also if both copies are damaged, since all that
        is lost then are updates without a receipt, and a round that is done again counts once.

        Raises:
            StateError: it is of another version, or of another device: its updates would be
                counted once more under this one's name.
        """
        federation, device_id = self._owner
        try:
            raw = self._generations.load()
        except DamagedError as exc:
            _log.error("%s; starting afresh, updates without a receipt are lost", exc.args[0])
            raw = None
        if raw is None:
            name = self._new_installation()
            return Durable(federation=federation, device=device_id, installation=name)
        try:
            durable = msgspec.json.decode(raw, type=Durable)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise StateError(
                f"the saved session is not of this version of fedtide: {exc}",
                hint="use the version that wrote it, or remove the state folder to start afresh",
            ) from exc
        if durable.device and (durable.federation, durable.device) != self._owner:
            raise StateError(
                f"the state in {str(self._folder)!r} belongs to device {durable.device!r} of "
                f"federation {durable.federation!r}, not to {device_id!r} of {federation!r}",
                hint="give each device a state_dir of its own; a folder must not be copied",
            )
        installation = durable.installation or self._new_installation()
        return msgspec.structs.replace(
            durable, federation=federation, device=device_id, installation=installation
        )

    def save(self, durable: Durable) -> None:
        """On disk when this returns.

        Raises:
            StateError: the disk is full or failing.
        """
        self._generations.save(msgspec.json.encode(durable))
