"""Backup and restoration of real processes: taken while they work, then the disk is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.brokers import COORDINATOR, HOST, Broker, find_broker
from demo.local import LocalFederation, wait_for
from tests.deployment import Deployment
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
    """Backups while rounds go on; then the state folder is gone, and the first comes back."""
    backups = [tmp_path / f"{number}.backup" for number in range(2)]
    with (
        Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, *DEVICES)) as broker,
        federation(tmp_path, broker, bundle, data, count=400) as local,
    ):
        local.start()
        for number, out in enumerate(backups):
            reached = 2 + 4 * number
            wait_for(lambda: version(local) >= reached, "more models", WAIT_S)  # noqa: B023
            assert "verified" in back_up(local, out)
        wait_for(lambda: version(local) >= 9, "models after the backups", WAIT_S)
        local.coordinator.kill()
        lost = version(local)
        run_id = query(local, "SELECT value FROM facts WHERE name = 'run_id'")
        shutil.rmtree(local.state_dir)
        checked = fedtide("server", "restore", str(backups[1]), "--check")
        assert checked.returncode == 0, checked.stderr
        restored = fedtide(
            "server", "restore", str(backups[0]), "--state-dir", str(local.state_dir)
        )
        assert restored.returncode == 0, restored.stderr
        begun = version(local)
        assert 2 <= begun < lost
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


def test_a_whole_server_is_lost_and_its_devices_go_on(tmp_path: Path) -> None:
    """Authority, registry, coordinator and configuration come back; `server init` makes the rest.
    Nobody touches the device, which does not even notice but for the rounds that are repeated."""
    with Deployment(tmp_path) as server:
        layout, out = server.layout, tmp_path / "server.backup"
        device = server.start_client(server.join("pi-1"))
        wait_for(lambda: server.newest_model() >= 3, "models", WAIT_S)
        configs = ["--config", str(layout.coordinator_toml)]
        configs += ["--registrar", str(layout.registrar_toml)]
        done = fedtide("server", "backup", *configs, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert "IT HOLDS THE AUTHORITY'S PRIVATE KEY" in done.stderr
        assert out.stat().st_mode & 0o777 == 0o600
        server.admit("pi-2")
        reached = server.newest_model()
        wait_for(lambda: server.newest_model() > reached + 2, "models after it", WAIT_S)
        lost = server.newest_model()
        for service in (server.coordinator, server.registrar, server.broker):
            service.kill()
        again = fedtide("server", "restore", str(out), "--root", str(layout.root))
        assert again.returncode == 2
        assert "is there already" in again.stderr
        shutil.rmtree(layout.root)
        done = fedtide("server", "restore", str(out), "--root", str(layout.root))
        assert done.returncode == 0, done.stderr
        assert "REVOKED since then" in done.stdout
        assert f"fedtide server init {HOST} --federation tides" in done.stdout
        assert 3 <= server.newest_model() < lost
        authority = (layout.home("registrar") / "authority" / "key.pem").stat()
        assert authority.st_mode & 0o777 == 0o600
        server.init()
        members = json.loads(layout.members.read_text())["devices"]
        assert list(members) == ["pi-1"], "pi-2 joined later"
        server.start()
        wait_for(lambda: server.newest_model() > lost, "more models than were lost", WAIT_S)
        assert device.exit_code() is None
        for process in (server.coordinator, server.registrar, device):
            assert "Traceback" not in process.log()
