"""Zip archives whose bytes follow from what is in them, whenever and wherever they are made."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import IO

_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that the format knows."""
_READABLE_FILE = 0o100644 << 16


def write_archive(
    file: IO[bytes], members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Append an archive of `members`, by name, to `file`, in the order of the mapping."""
    with zipfile.ZipFile(file, "a", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = _READABLE_FILE
            info.compress_type = compression
            archive.writestr(info, content)
