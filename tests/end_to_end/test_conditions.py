"""A real client that gets too hot in mid-training: it stands still, says why, survives kill -9, and
goes on when it has cooled."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from demo.brokers import COORDINATOR, OBSERVER, Broker, find_broker
from demo.local import LocalFederation, wait_for
from demo.processes import Child
from fedtide import cli
from fedtide.launch import module_command
from tests import bundles
from tests.faults.federation import make_data

DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
WAIT_S = 180.0


class Machine:
    """Its files, and the client that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "machine"
        zone = self.root / "sys/class/thermal/thermal_zone0"
        zone.mkdir(parents=True)
        (zone / "type").write_text("cpu-thermal\n")
        self._temperature = zone / "temp"
        self.becomes(48)

    def becomes(self, degrees: int) -> None:
        new = self._temperature.with_suffix(".new")
        new.write_text(f"{degrees}000\n")
        new.replace(self._temperature)

    def client(self, local: LocalFederation, device: str) -> Child:
        """The device's client, with this machine under it."""
        path = local.folder / f"{device}.toml"
        module, root = "tests.end_to_end.conditioned_client", str(self.root)
        command = module_command(module, root, "--config", str(path), python=DEVICE_PYTHON)
        local.devices[device] = Child(device, command, local.folder / f"{device}.log")
        return local.devices[device]


def presence_of(broker: Broker, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `fedtide status` says of the device."""
    access = broker.access(OBSERVER)
    flags = ["--federation", "local", "--host", access.host, "--port", str(access.port)]
    flags += ["--username", OBSERVER, "--password-file", str(access.password_file)]
    assert cli.main(["status", "--once", "--json", *flags]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    found: dict[str, str] = device
    return found


def test_a_client_that_gets_hot_pauses_survives_a_power_cut_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    with (
        Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, "alpha")) as broker,
        LocalFederation(tmp_path / "run", broker) as local,
    ):
        local.add_coordinator(
            bundles.build("tiny_mlp"),
            rounds={"count": 1, "cohort_size": 1, "collect_ms": 600_000},
            plan={"epochs": 40},
        )
        data = make_data(tmp_path / "data.npz", 1)
        training = {"cpu_share": 0.05, "lost_ms_max": 1}
        conditions = {"temperature_c_max": 70, "throttled": "ignore"}
        local.add_device("alpha", data, training=training, conditions=conditions)
        client = machine.client(local, "alpha")
        progress = local.folder / "alpha" / "progress"

        def said(text: str, times: int = 1) -> None:
            log = client.log_path
            wait_for(lambda: log.read_text().count(text) >= times, f"{times} x {text!r}", WAIT_S)

        local.start()
        wait_for(progress.exists, "an epoch", WAIT_S)
        machine.becomes(71)
        said("waits: 71 °C, trains again below 65 °C")
        told = presence_of(broker, capsys)
        assert told["phase"] == "training"
        assert told["doing"] == "waits: 71 °C, trains again below 65 °C"
        stands_at = progress.read_bytes()
        assert presence_of(broker, capsys)["doing"] == told["doing"]  # an epoch takes less time
        assert progress.read_bytes() == stands_at

        client.kill()
        client.start()
        said("waits: 71 °C, trains again below 65 °C", 2)
        assert progress.read_bytes() == stands_at, "still too hot"
        assert "goes on after epoch" not in client.log_path.read_text()

        machine.becomes(66)  # within its margin
        machine.becomes(50)
        said("its conditions hold")
        said("goes on after epoch")
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        log = client.log_path.read_text()
        assert "the update is accepted" in log
        assert "declined" not in log
        assert "Traceback" not in log
