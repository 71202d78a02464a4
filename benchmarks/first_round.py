"""How many commands, and minutes, from bare Debian to the first round, on server and device?

Two machines with Debian 13 and a systemd of their own (containers; root only). What is run on them
is what docs/deploy.md tells, word for word but for addresses and processor. Given are the wheel
(`make wheel`), a bundle (`fedtide export`) and the device's data. Minutes are the commands' own,
downloads included; nobody types.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.containers import Container, missing_tools
from benchmarks.measurement import RESULTS, save
from tests import bundles
from tests.deployment import write_data

MODEL = "tiny_mlp"
_HOST = "127.0.0.1"
"""The machines see one network, this host's; a real server listens everywhere."""
_DEADLINE_S = 60.0
SERVER = [
    "apt-get update",
    "apt-get install -y mosquitto pipx",
    "systemctl disable --now mosquitto",
    "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin "
    'pipx install "fedtide[coordinator] @ file://$PWD/{wheel}"',
    "fedtide server init {host} --bind {host} --federation home --bundle bundle",
    "fedtide server package --arch x86_64 --python 3.13",
    "fedtide device add pi-1 --out pi-1.join",
]
COPY = "scp server:{file} server:pi-1.join ."
DEVICE = [
    "sh {file}",
    "fedtide device join pi-1.join --data /srv/data.npz",
]


def main() -> None:
    if missing := missing_tools():
        sys.exit(f"install {' '.join(missing)} (Debian's names)")
    (wheel,) = (RESULTS.parent / "dist").glob("fedtide-*.whl")
    samples: dict[str, Any] = {"server": {}, "device": {}}
    with tempfile.TemporaryDirectory() as name, Container("server") as server:
        data = Path(name) / "data.npz"
        write_data(data, seed=1)
        server.give(wheel, wheel.name)
        server.give(bundles.build(MODEL), "bundle")
        for line in SERVER:
            timed(samples["server"], server, line.format(wheel=wheel.name, host=_HOST))
        file = server.run("ls fedtide-client-*.run").strip()
        with Container("device") as device:
            device.give(data, "data.npz")
            device.run("mv data.npz /srv")
            started_s = time.monotonic()
            device.fetch(server, file, "pi-1.join")
            samples["device"][COPY.format(file=file)] = round(time.monotonic() - started_s, 1)
            for line in DEVICE:
                timed(samples["device"], device, line.format(file=file))
            samples["device"]["(the first round)"] = first_round_s(server, device)
    save("first_round", figures(samples), samples)


def timed(seconds: dict[str, float], machine: Container, line: str) -> None:
    """Run a command, and note how long it took."""
    print(f"# {line}", flush=True)
    started_s = time.monotonic()
    said = machine.run(line)
    seconds[line] = round(time.monotonic() - started_s, 1)
    print("\n".join(said.splitlines()[-12:]), f"\n({seconds[line]} s)", flush=True)


def first_round_s(server: Container, device: Container) -> float:
    """Seconds until the coordinator has made a model."""
    started_s = time.monotonic()
    while "model 1" not in server.run("journalctl -u fedtide-coordinator -o cat --no-pager"):
        if time.monotonic() - started_s > _DEADLINE_S:
            logs = [machine.run("journalctl -n 60 --no-pager") for machine in (server, device)]
            sys.exit("no model within the time\n\n".join(["", *logs]))
        time.sleep(0.2)
    return round(time.monotonic() - started_s, 1)


def figures(samples: dict[str, Any]) -> dict[str, Any]:
    """Commands and minutes of both machines."""
    counted: dict[str, Any] = {}
    for machine, seconds in samples.items():
        counted[f"{machine}_commands"] = sum(not line.startswith("(") for line in seconds)
        counted[f"{machine}_minutes"] = round(float(np.sum(list(seconds.values()))) / 60, 1)
    return counted


if __name__ == "__main__":
    main()
