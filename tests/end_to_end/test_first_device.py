"""The whole story by its commands: a server, two devices join and learn, one has to go."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demo.brokers import HOST
from tests.bundles import build
from tests.certified import FEDERATION, Server, fedtide, wait_for


def test_two_devices_join_and_learn_and_one_is_shut_out(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        words = ["server", "init", HOST, "--federation", FEDERATION, "--bind", HOST]
        words += ["--root", str(server.folder), "--port", str(server.port)]
        words += ["--local-port", str(server.config.broker.port)]
        fedtide(*words, "--bundle", str(build("tiny_mlp")))
        toml = server.layout.coordinator_toml
        text = toml.read_text().replace("count = 100 ", "count = 1_000_000 ")
        toml.write_text(text.replace("collect_ms = 60_000 ", "collect_ms = 2_000 "))
        coordinator = server.run("coordinator", "coordinator", "--config", str(toml))
        clients = {}
        for device in ("kitchen", "attic"):
            data = tmp_path / f"{device}.npz"
            rng = np.random.default_rng(0)
            x = rng.random((20, 8), dtype=np.float32)
            np.savez(data, x=x, y=rng.integers(0, 3, 20))
            code, folder = server.add(device), tmp_path / device
            fedtide("device", "join", code, "--folder", str(folder), "--data", str(data))
            config = str(folder / "client.toml")
            clients[device] = server.run(device, "client", "--config", config)
        for client in clients.values():
            client.says("the update is accepted")

        server.device("revoke", "attic")

        clients["attic"].says("certificate revoked")
        said = len(coordinator.text())
        wait_for(
            lambda: coordinator.text()[said:].count("INFO    model ") > 2,
            "models without it in:\n",
            coordinator.text,
            coordinator.popen,
        )
        kept = clients["kitchen"].text()
        assert "connection lost" not in kept, kept

        server.device("rename", "kitchen", "larder")
        coordinator.says("inviting larder")
        told = {device["name"]: device["standing"] for device in server.device("list")["devices"]}
        assert told == {"larder": "member", "attic": "revoked"}
        for process in (clients["kitchen"], coordinator):
            assert process.stop() in (0, 143), process.text()
