"""A bundle on disk: complete, or not at all."""

import errno
from pathlib import Path

import pytest

from export.writer import replacing, write_files
from fedtide.errors import StateError


def test_a_full_disk_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("export.writer.os.fsync", full)
    with pytest.raises(StateError, match="No space left"), replacing(tmp_path / "b") as staging:
        write_files(staging, {"manifest.json": b"{}"})
    assert not any(tmp_path.iterdir())
