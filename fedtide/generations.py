"""A small state that is saved often: two generations with checksums, one fsync a save.

Each save overwrites the older of two files in place; the newer one stays intact whatever happens
meanwhile. This costs an SD card a fraction of what writing beside and renaming does.

    file = SHA-256 of the rest (32 bytes) | number of the save (8 bytes, little-endian) | content
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from fedtide.errors import DamagedError
from fedtide.failpoints import reach
from fedtide.files import disk_errors_of, read_checked, sync_folder

_DIGEST_BYTES, _NUMBER_BYTES = 32, 8


class _Generation(NamedTuple):
    number: int
    content: bytes


class Generations:
    """The files `NAME.0` and `NAME.1`."""

    def __init__(self, path: Path) -> None:
        self._paths = [path.with_name(f"{path.name}.{index}") for index in (0, 1)]
        self._number = 0

    def load(self) -> bytes | None:
        """The newest intact content; None if nothing was ever saved.

        Raises:
            DamagedError: there are files, but neither is intact.
        """
        raws = [read_checked(path) for path in self._paths if path.exists()]
        intact = [generation for raw in raws if (generation := _parse(raw)) is not None]
        if not intact:
            # A first save that was cut short left nothing that anybody relied on.
            if len(raws) > 1:
                raise DamagedError(
                    f"both generations of {str(self._paths[0])!r} are damaged",
                    hint="remove the state folder to start afresh; local data are not in it",
                )
            return None
        newest = max(intact)
        self._number = newest.number
        return newest.content

    def save(self, content: bytes) -> None:
        """Make `content` the newest generation, durably.

        Raises:
            StateError: the disk is full or failing; the last generation is intact.
        """
        number = self._number + 1
        path = self._paths[number % 2]
        body = number.to_bytes(_NUMBER_BYTES, "little") + content
        with disk_errors_of(path.parent):
            new = not path.exists()
            reach("disk: write")
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                raw = memoryview(hashlib.sha256(body).digest() + body)
                while raw:
                    raw = raw[file.write(raw) :]
                file.truncate()
                reach("disk: sync")
                os.fsync(file.fileno())
            if new:
                sync_folder(path.parent)
        self._number = number


def _parse(raw: bytes) -> _Generation | None:
    digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if len(body) < _NUMBER_BYTES or hashlib.sha256(body).digest() != digest:
        return None
    return _Generation(int.from_bytes(body[:_NUMBER_BYTES], "little"), body[_NUMBER_BYTES:])
