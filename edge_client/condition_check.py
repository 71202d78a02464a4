"""What `fedtide doctor` says of a device's conditions: each with how it is with it now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from edge_client.conditions import ConditionsConfig, Readings, examine
from edge_client.sensors import Sensors
from fedtide.checkup import Finding, ok, problem, warning

LOAD_S = 0.5
"""The load is of this time."""


def check_conditions(
    config: ConditionsConfig, state_dir: Path, root: Path = Path("/")
) -> Iterator[Finding]:
    """Each condition that is asked for, then what can be read here."""
    sensors = Sensors(config, state_dir, root=root)
    if config.load_max is not None:
        threading.Event().wait(LOAD_S)
    readings = sensors.read()
    for condition in examine(readings, config):
        key = f"conditions.{condition.key}"
        if condition.met is None:
            yield problem(
                f"{condition.text}: tasks wait for it",
                f"nothing is trained on this machine as long as it is so; remove {key}, or let "
                "the client's user read it (docs/operations.md, conditions)",
            )
        elif condition.met:
            yield ok(f"{key}: {condition.now}")
        else:
            yield warning(
                f"{key}: {condition.text}", "nothing, if this is as it should be; it goes on then"
            )
    yield ok(f"here and now: {', '.join(_known(readings))}")


def _known(readings: Readings) -> Iterator[str]:
    """What a condition could be made of."""
    if readings.power is not None:
        charge = readings.battery_percent
        yield f"on {readings.power}" + ("" if charge is None else f", battery at {charge:.0f}%")
    if readings.temperature_c is not None:
        yield f"{readings.temperature_c:.0f} °C"
    if readings.throttled is not None:
        yield f"firmware flags 0x{readings.throttled:x}"
    if readings.memory_mb is not None:
        yield f"{readings.memory_mb} MB of memory available"
    if readings.disk_mb is not None:
        yield f"{readings.disk_mb} MB of disk space free"
    if readings.link is not None and readings.link.interface:
        yield f"default route over {readings.link.interface}"
    if readings.time is None:
        yield "the clock is not set"
