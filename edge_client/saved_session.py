"""The session's durable state on disk, which belongs to one device of one federation."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_client.durable import Durable
from fedtide.errors import StateError
from fedtide.generations import Generations

STATE_NAME = "session"


class SavedSession:
    """See the module."""

    def __init__(self, folder: Path, federation: str, device_id: str) -> None:
        self._folder = folder
        self._generations = Generations(folder / STATE_NAME)
        self._owner = (federation, device_id)

    def load(self) -> Durable:
        """What was saved last, or a new beginning.

        Raises:
            StateError: it is damaged, of another version, or of another device: its updates would
                be counted once more under this one's name.
        """
        raw = self._generations.load()
        federation, device_id = self._owner
        if raw is None:
            return Durable(federation=federation, device=device_id)
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
        return msgspec.structs.replace(durable, federation=federation, device=device_id)

    def save(self, durable: Durable) -> None:
        """On disk when this returns.

        Raises:
            StateError: the disk is full or failing.
        """
        self._generations.save(msgspec.json.encode(durable))
