"""What a seed says about a federation before anything goes wrong: sizes, policies, speeds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import msgspec

from coordinator.config import CoordinatorConfig
from fedtide.plan import Plan
from simulator.faults.link import Speed

PACKET_LIMITS = (17_500, 20_000, 40_000, 66_000, 132_096)
"""From one block in a message to all seven."""


class DeviceSettings(NamedTuple):
    """One device."""

    name: str
    examples: int
    train_ms: int
    speed: Speed


class Settings(NamedTuple):
    """One federation."""

    elements: int
    config: CoordinatorConfig
    devices: tuple[DeviceSettings, ...]
    coordinator_speed: Speed
    packet_bytes_max: int
    job_ms: int


def draw_settings(rng: random.Random, folder: Path) -> Settings:
    """The settings of a seed."""
    count = rng.randint(2, 5)
    retry_ms_max = rng.choice((2_000, 10_000, 60_000))
    devices = tuple(
        DeviceSettings(
            f"d{index}",
            rng.choice((1, 3, 10, 250)),
            rng.choice((50, 500, 3_000)),
            _draw_speed(rng, retry_ms_max),
        )
        for index in range(count)
    )
    return Settings(
        elements=rng.choice((3_000, 9_000, 20_000)),
        config=_draw_config(rng, folder, count),
        devices=devices,
        coordinator_speed=Speed(rng.choice((1, 20)), 0, 100_000, 30_000, retry_ms_max),
        packet_bytes_max=rng.choice(PACKET_LIMITS),
        job_ms=rng.choice((1, 100, 2_000)),
    )


def _draw_speed(rng: random.Random, retry_ms_max: int) -> Speed:
    return Speed(
        latency_ms=rng.choice((1, 20, 300)),
        jitter_ms=rng.choice((0, 10, 200)),
        bytes_per_ms=rng.choice((40, 200, 10_000)),
        keepalive_ms=rng.choice((10_000, 60_000)),
        retry_ms_max=retry_ms_max,
    )


def _draw_config(rng: random.Random, folder: Path, devices: int) -> CoordinatorConfig:
    size = rng.randint(1, devices)
    quorum = rng.randint(1, size)
    rounds: dict[str, object] = {
        "count": rng.randint(1, 3),
        "cohort_size": size,
        "over_selection": rng.choice((1.0, 1.3, 2.0)),
        "quorum": quorum,
        "devices_min": rng.randint(1, devices),
        "devices_wait_ms": rng.choice((30_000, 300_000)),
        "collect_ms": rng.choice((20_000, 60_000)),
        "aggregate_ms": rng.choice((10_000, 60_000)),
        "back_off_ms": rng.choice((500, 5_000)),
        "abandoned_max": rng.choice((3, 20)),
        "seed": rng.randrange(1_000),
    }
    if rng.random() < 0.2:
        del rounds["cohort_size"]
        rounds["cohort_fraction"] = rng.choice((0.1, 0.5, 1.0))
        rounds["quorum"] = rng.randint(1, 2)
    later: dict[str, object] = {
        "late": rng.choice(("discard", "discount")),
        "staleness_max": rng.randint(0, 3),
        "mode": rng.choice(("synchronous", "buffered")),
        "buffer_size": rng.randint(1, devices),
        "concurrency": rng.randint(1, devices),
    }
    rounds |= later
    if later["mode"] == "buffered":
        rounds = {k: v for k, v in rounds.items() if not k.startswith("cohort_")}
        rounds["quorum"] = rng.randint(1, rng.randint(1, devices))
        rounds["buffer_size"] = rng.randint(int(str(rounds["quorum"])), devices)
    return msgspec.convert(
        {
            "federation": "simulated",
            "bundle": folder,
            "state_dir": folder / "coordinator",
            "rounds": rounds,
            "encoding": rng.choice(("f32", "f32", "f16")),
            "hello_ms": rng.choice((2_000, 10_000, 30_000)),
            "plan": Plan(),
        },
        CoordinatorConfig,
    )
