"""How long does it take to shut a connected device out? `fedtide device revoke`, from its start.

The device publishes one message after another, each as soon as the broker has confirmed the one
before. Noted are, from the start of the command's process: the last message that the broker took,
the end of the device's connection, and the end of the command. Another thousand devices are in
the registry. Loopback, Mosquitto with the configuration of `fedtide server init`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.measurement import save
from demo.brokers import child_environment, mosquitto_version
from fedtide.config import BrokerConfig
from fedtide.keys import new_key, public_bytes
from fedtide.launch import module_command
from fedtide.mqtt import MqttTransport
from fedtide.transport import Connected, Delivered, Disconnected, LinkEvent
from registrar.office import now_ms
from registrar.records import Claim
from tests.server import DEVICE_PYTHON, TOPICS, Server

TIMES, OTHERS = 20, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--others", type=int, default=OTHERS, help="devices in the registry")
    options = parser.parse_args()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name))
        add_others(server, options.others)
        with server:
            for number in range(options.times):
                device = f"leaver-{number}"
                samples.append(revoke(server, device, server.admit(device)))
    figures: dict[str, Any] = {
        f"{what}_ms_median": round(statistics.median(s[what] for s in samples), 1)
        for what in samples[0]
    }
    figures |= {f"{what}_ms_max": round(max(s[what] for s in samples), 1) for what in samples[0]}
    figures |= {"times": options.times, "others": options.others, "mosquitto": mosquitto_version()}
    save("revocation", figures, {"ms": samples})


def add_others(server: Server, count: int) -> None:
    """Members that are not here."""
    now = datetime.now(UTC)
    with server.office() as office:
        for number in range(count):
            claim_id, device, key = f"join-{number:08}", f"other-{number}", new_key()
            expires = now + timedelta(hours=1)
            claim = Claim(claim_id, device, public_bytes(key), now_ms() + 3_600_000, None)
            pem = office.authority.sign_claim(claim_id, key.public_key(), now, expires)
            office.registry.invite(claim, pem, now_ms())
            pem = office.authority.sign_device(device, key.public_key(), now)
            office.registry.admit(claim_id, public_bytes(key), pem, now_ms())


def revoke(server: Server, device: str, access: BrokerConfig) -> dict[str, float]:
    """Milliseconds from the start of the command."""
    events: SimpleQueue[tuple[float, LinkEvent]] = SimpleQueue()
    link = MqttTransport(access, device, lambda event: events.put((time.monotonic(), event)))
    link.start()
    topic = TOPICS.up(device)
    while not isinstance(events.get(timeout=20)[1], Connected):
        pass
    link.publish(topic, b"x")
    config = str(server.layout.registrar_toml)
    words = ("device", "revoke", device, "--config", config)
    command = module_command("fedtide", *words, python=DEVICE_PYTHON)
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=child_environment())
    taken_s = refused_s = began_s
    while True:
        at_s, event = events.get(timeout=20)
        if isinstance(event, Disconnected):
            break
        if process.poll() not in (None, 0):
            raise RuntimeError("the command has failed")
        if not isinstance(event, Delivered):
            continue
        if event.refused is None:
            taken_s = at_s
        elif refused_s == began_s:
            refused_s = at_s
        link.publish(topic, b"x")
    assert process.wait(timeout=20) == 0
    ended_s = time.monotonic()
    link.stop()
    assert refused_s > taken_s
    return {
        "last_taken": (taken_s - began_s) * 1000,
        "first_refused": (refused_s - began_s) * 1000,
        "connection_ended": (at_s - began_s) * 1000,
        "command_ended": (ended_s - began_s) * 1000,
    }


if __name__ == "__main__":
    main()
