"""Bad input to the real commands: a message that says what to do, its exit code, no traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.brokers import COORDINATOR, Broker, find_broker, free_port, write_private
from demo.local import LocalFederation, wait_for
from edge_client.worker import DATA_REASON
from fedtide.memory import matches
from fedtide.mqtt import MqttTransport
from tests import bundles
from tests.end_to_end.test_federation import DEVICE_PYTHON, assert_clean, query

BUNDLE = 3
WAIT_S = 60.0


@pytest.fixture(scope="module")
def bundle() -> Path:
    return bundles.build("tiny_mlp")


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    with Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, "alpha")) as running:
        yield running


def good_data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "good.npz"
    np.savez(path, x=rng.random((30, 8), dtype=np.float32), y=rng.integers(0, 3, 30))
    return path


def run(*arguments: str, timeout_s: float = WAIT_S) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "fedtide", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def client_toml(folder: Path, data: Path, extra: str = "") -> Path:
    path = folder / "client.toml"
    path.write_text(
        f'federation = "f"\ndevice = "alpha"\nstate_dir = "{folder / "alpha"}"\n'
        f'data.path = "{data}"\n{extra}'
    )
    return path


def test_no_broker_is_said_after_the_time_configured(tmp_path: Path) -> None:
    extra = f'[broker]\nhost = "127.0.0.1"\nport = {free_port()}\ngive_up_ms = 1500\n'
    done = run("client", "--config", str(client_toml(tmp_path, good_data(tmp_path), extra)))
    assert done.returncode == 6
    assert "no broker answered at 127.0.0.1" in done.stderr
    assert "hint:" in done.stderr


def test_a_port_that_never_speaks_mqtt_is_no_broker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        extra = f'[broker]\nhost = "127.0.0.1"\nport = {port}\ngive_up_ms = 1500\n'
        done = run("client", "--config", str(client_toml(tmp_path, good_data(tmp_path), extra)))
    assert done.returncode == 6


def test_wrong_password(tmp_path: Path, mosquitto: Broker) -> None:
    password = tmp_path / "password"
    write_private(password, "wrong\n")
    extra = (
        f'[broker]\nhost = "127.0.0.1"\nport = {mosquitto.port}\nusername = "alpha"\n'
        f'password_file = "{password}"\n'
    )
    done = run("client", "--config", str(client_toml(tmp_path, good_data(tmp_path), extra)))
    assert done.returncode == 6
    assert "refuses the connection" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('federation = "f"\n', "state_dir"),
        ('federation = "f"\nstate_dir = "s"\ndata.path = "d"\n', "device"),
        ('federation = "a b"\ndevice = "x"\nstate_dir = "s"\ndata.path = "d"\n', "federation"),
        (
            'federation = "f"\ndevice = "x"\nstate_dir = "s"\ndata.path = "d"\n'
            "[broker]\nprot = 1\n",
            "prot",
        ),
        ("federation = ", "is not TOML"),
    ],
)
def test_wrong_configuration(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "client.toml"
    path.write_text(text)
    done = run("client", "--config", str(path))
    assert done.returncode == 2
    assert expected in done.stderr


def test_missing_configuration_and_missing_data(tmp_path: Path) -> None:
    assert run("client", "--config", str(tmp_path / "no.toml")).returncode == 2
    done = run("client", "--config", str(client_toml(tmp_path, tmp_path / "no.npz")))
    assert done.returncode == 4
    assert "there is no data file" in done.stderr


def test_a_bundle_with_a_flipped_byte(tmp_path: Path, bundle: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    path = damaged / "portable" / "train.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    config = tmp_path / "coordinator.toml"
    config.write_text(
        f'federation = "f"\nbundle = "{damaged}"\nstate_dir = "{tmp_path / "c"}"\n'
        "[rounds]\ncohort_size = 1\n"
    )
    done = run("coordinator", "--config", str(config))
    assert done.returncode == BUNDLE
    assert "portable/train.onnx" in done.stderr
    assert "damaged" in done.stderr


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": np.zeros((5, 7), np.float32), "y": np.zeros(5, np.int64)}, "shape [5, 7]"),
        ({"x": np.zeros((5, 8), np.float64), "y": np.zeros(5, np.int64)}, "float64"),
        ({"x": np.zeros((0, 8), np.float32), "y": np.zeros(0, np.int64)}, "no examples"),
        ({"x": np.zeros((5, 8), np.float32), "y": np.full(5, 3)}, "out of range"),
    ],
)
def test_data_that_do_not_fit_are_declined_and_only_the_device_says_why(
    tmp_path: Path,
    mosquitto: Broker,
    bundle: Path,
    arrays: dict[str, np.ndarray],
    expected: str,
) -> None:
    """The round is abandoned and says so; the device stays, and no value or path leaves it."""
    data = tmp_path / "bad.npz"
    np.savez(data, **arrays)  # type: ignore[arg-type]
    with LocalFederation(tmp_path / "run", mosquitto) as local:
        rounds = {"count": 1, "cohort_size": 1, "abandoned_max": 1, "back_off_ms": 100}
        local.add_coordinator(bundle, rounds=rounds)
        local.add_device("alpha", data, DEVICE_PYTHON)
        local.start()
        assert local.coordinator.wait(WAIT_S) == 1
        told = local.coordinator.log_path.read_text()
        assert DATA_REASON in told
        assert expected not in told
        assert str(data) not in told
        own = local.devices["alpha"].log_path.read_text()
        assert expected in own
        assert str(data) in own
        assert local.devices["alpha"].exit_code() is None
        assert_clean(local)


def test_junk_on_live_topics_while_a_round_completes(
    tmp_path: Path, mosquitto: Broker, bundle: Path
) -> None:
    junk = np.random.default_rng(1)
    with LocalFederation(tmp_path / "run", mosquitto) as local:
        local.add_coordinator(bundle, rounds={"count": 2, "cohort_size": 1})
        local.add_device("alpha", good_data(tmp_path), DEVICE_PYTHON)
        topic = f"fedtide/1/{local.name}"
        link = MqttTransport(mosquitto.access(COORDINATOR), "vandal", lambda _event: None)
        link.start()
        sent = 0

        def vandalise() -> bool:
            nonlocal sent
            for kind in ("up", "down", "presence"):
                if link.publish(f"{topic}/{kind}/alpha", junk.bytes(int(junk.integers(0, 200)))):
                    sent += 1
            return sent > 0

        wait_for(vandalise, "the vandal's connection", WAIT_S)
        local.start()
        wait_for(lambda: vandalise() and local.coordinator.exit_code() is not None, "end", WAIT_S)
        link.stop()
        assert local.coordinator.exit_code() == 0, local.coordinator.log_tail()
        assert sent > 30
        assert_clean(local)
        assert matches(f"{topic}/#", f"{topic}/up/alpha")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("victim", ["coordinator", "alpha"])
def test_a_full_disk_is_told_and_loses_nothing(
    tmp_path: Path, mosquitto: Broker, bundle: Path, victim: str
) -> None:
    disk = tmp_path / "run" / victim
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    filler = disk / "filler"
    try:
        with LocalFederation(tmp_path / "run", mosquitto) as local:
            local.add_coordinator(bundle, rounds={"count": 2, "cohort_size": 1})
            device = local.add_device("alpha", good_data(tmp_path), DEVICE_PYTHON)
            fill(filler)
            local.start()
            if victim == "coordinator":  # it ends, and goes on when it is started again
                assert local.coordinator.wait(WAIT_S) == 7
                told = local.coordinator.log_tail()
                assert "No space left" in told or "disk is full" in told
                local.coordinator.kill()
                filler.unlink()
                local.coordinator.start()
            else:  # it waits, and goes on by itself
                wait_for(lambda: "No space left" in device.log_tail(), "the device's word", WAIT_S)
                filler.unlink()
            assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
            assert_clean(local)
            assert query(local, "SELECT MAX(version) FROM models") == [(2,)]
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def fill(path: Path) -> None:
    """Leave nothing on the disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return
