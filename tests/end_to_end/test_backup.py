"""Backup and restoration of real processes: taken while they work, then the disk is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.brokers import COORDINATOR, Broker, find_broker
from demo.local import LocalFederation, wait_for
from tests.end_to_end.conftest import DEVICES
from tests.end_to_end.test_bad_input import fill
from tests.end_to_end.test_federation import (
    WAIT_S,
    assert_clean,
    bundle,
    count,
    data,
    federation,
    fedtide,
    query,
)

__all__ = ["bundle", "data"]
STATE_FULL = 7


def back_up(local: LocalFederation, out: Path) -> str:
    config = local.folder / "coordinator.toml"
    done = fedtide("server", "backup", "--config", str(config), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done.stdout


def version(local: LocalFederation) -> int:
    return count(local, "SELECT COALESCE(MAX(version), 0) FROM models")


def test_devices_go_on_after_their_coordinators_disk_is_lost(
    tmp_path: Path, bundle: Path, data: Callable[[str], Path]
) -> None:
    """Backups while rounds go on; then the state folder is gone, and the second comes back."""
    backups = [tmp_path / f"{number}.backup" for number in range(3)]
    with (
        Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, *DEVICES)) as broker,
        federation(tmp_path, broker, bundle, data, count=400) as local,
    ):
        local.start()
        for number, out in enumerate(backups):
            reached = 2 + 4 * number
            wait_for(lambda: version(local) >= reached, "more models", WAIT_S)  # noqa: B023
            assert "verified" in back_up(local, out)
        wait_for(lambda: version(local) >= 14, "models after the backups", WAIT_S)
        local.coordinator.kill()
        lost = version(local)
        run_id = query(local, "SELECT value FROM facts WHERE name = 'run_id'")
        shutil.rmtree(local.state_dir)
        checked = fedtide("server", "restore", str(backups[2]), "--check")
        assert checked.returncode == 0, checked.stderr
        restored = fedtide(
            "server", "restore", str(backups[1]), "--state-dir", str(local.state_dir)
        )
        assert restored.returncode == 0, restored.stderr
        begun = version(local)
        assert 6 <= begun < lost
        assert query(local, "SELECT value FROM facts WHERE name = 'run_id'") != run_id
        local.coordinator.start()
        wait_for(lambda: version(local) > lost, "more models than were lost", WAIT_S)
        local.coordinator.stop()
        assert_clean(local)
        everybody = f"SELECT count(DISTINCT device_id) FROM updates WHERE round_id > {begun + 1}"
        assert count(local, everybody) == len(DEVICES)
        abandoned = "SELECT count(*) FROM rounds WHERE outcome = 'abandoned'"
        assert count(local, abandoned) == 0
        verified = fedtide("models", "verify", "--state-dir", str(local.state_dir))
        assert verified.returncode == 0, verified.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told_and_leaves_nothing_half(
    tmp_path: Path, bundle: Path, data: Callable[[str], Path]
) -> None:
    """From the beginning or in the middle: the backup before stays, and nothing beside it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    try:
        with (
            Broker(
                find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, *DEVICES)
            ) as broker,
            federation(tmp_path, broker, bundle, data, count=1) as local,
        ):
            local.start()
            assert local.coordinator.wait(WAIT_S) == 0
            out = disk / "state.backup"
            back_up(local, out)
            before, filler = out.read_bytes(), disk / "filler"
            for room in (0, 8_192, len(before) // 2):
                fill(filler)
                os.truncate(filler, filler.stat().st_size - room // 4_096 * 4_096)
                config = str(local.folder / "coordinator.toml")
                done = fedtide("server", "backup", "--config", config, "--out", str(out))
                assert done.returncode == STATE_FULL
                assert "No space left on device" in done.stderr
                assert str(disk) in done.stderr
                assert "Traceback" not in done.stderr
                assert out.read_bytes() == before
                assert {path.name for path in disk.iterdir()} == {"state.backup", "filler"}
                filler.unlink()
            assert not (local.state_dir / "backup").exists()
            fill(filler)
            target = disk / "state"
            done = fedtide("server", "restore", str(out), "--state-dir", str(target))
            assert done.returncode == STATE_FULL
            assert "MB are needed" in done.stderr
            assert not target.exists()
    finally:
        subprocess.run(["umount", str(disk)], check=False)
