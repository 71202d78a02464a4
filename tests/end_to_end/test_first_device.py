"""The whole story by its commands: a server, two devices join and learn, one has to go."""

from __future__ import annotations

import json
import re
from pathlib import Path

from demo.local import wait_for, wait_for_log
from tests.deployment import Deployment
from tests.server import WAIT_S, told


def test_two_devices_join_and_learn_and_one_is_shut_out(tmp_path: Path) -> None:
    with Deployment(tmp_path, collect_ms=2_000) as server:
        kitchen, attic = (
            server.start_client(server.join(device)) for device in ("kitchen", "attic")
        )
        for client in (kitchen, attic):
            wait_for_log(client, "the update is accepted", WAIT_S)

        assert server.device("revoke", "attic") == "attic is revoked\n"

        wait_for_log(attic, "certificate revoked", WAIT_S)
        reached = server.newest_model()
        wait_for(lambda: server.newest_model() > reached + 2, "models without it", WAIT_S)
        assert "connection lost" not in kitchen.log(), kitchen.log()

        server.device("rename", "kitchen", "larder")
        wait_for_log(server.coordinator, "inviting larder", WAIT_S)
        devices = json.loads(server.device("list", "--json"))["devices"]
        told = {device["name"]: device["standing"] for device in devices}
        assert told == {"larder": "member", "attic": "revoked"}
        for process in (kitchen, server.coordinator):
            assert process.stop() in (0, 143), process.log()


def test_the_device_judges_the_final_model_with_what_joining_wrote(tmp_path: Path) -> None:
    with Deployment(tmp_path, count=2, collect_ms=2_000) as server:
        server.start_client(server.join("kitchen"))
        wait_for_log(server.coordinator, "finished: 2 rounds are done", WAIT_S)
        listed = told("models", "list", "--state-dir", str(server.state_dir)).splitlines()
    columns = re.split(r"  +", listed[0].strip())
    assert "held-out accuracy" in columns
    for line in listed[1:]:
        measured = dict(zip(columns, re.split(r"  +", line.strip()), strict=True))
        assert 0 <= float(measured["held-out accuracy"]) <= 1
    assert measured["version"] == "2"
