"""A model down and an update up over links that are slow, or cut again and again.

The links, and what counts the bytes that they carry, are those of benchmarks/links.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.links import Coordinator, Device, Profile, measure
from coordinator.publishing import GRID_BLOCKS
from demo.brokers import COORDINATOR, Broker
from demo.proxy import Line, Proxy
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX

LIMIT_S = 60.0
HEADER_SHARE = 0.05
"""Message and packet headers, bundle, hellos, pings: of what is carried, with small chunks."""
SMALL_TALK_BYTES = 12_000


def test_a_slow_link_with_a_short_keepalive_carries_everything_once() -> None:
    """The same shape as 6.65 MB at 20 KB/s: a full chunk would take most of the keep-alive."""
    figures = measure(Profile(Line(25_000, 100), keepalive_s=5, size=0.015))
    for way in ("down", "up"):
        found = figures[way]
        assert found["seconds"] is not None, figures
        assert found["reconnects"] == 0, figures
        assert found["extra_bytes"] < HEADER_SHARE * figures["bytes"] + SMALL_TALK_BYTES, figures


@contextmanager
def running(folder: Path, elements: int) -> Iterator[tuple[Broker, Proxy, Coordinator]]:
    with (
        Broker("mosquitto", folder / "broker", (COORDINATOR, "device")) as broker,
        Proxy(broker.port, line=Line(150_000, 20)) as proxy,
    ):
        yield broker, proxy, Coordinator(folder / "coordinator", broker, elements)


@pytest.mark.parametrize("seed", [1])
def test_cuts_and_reboots_cost_what_was_on_its_way(tmp_path: Path, seed: int) -> None:
    """Cut at any byte of any chunk; the client dies in the download, both sides in the upload."""
    dice = random.Random(seed)
    elements = 100_000
    size = elements * 4
    (tmp_path / "device").mkdir()
    with running(tmp_path, elements) as (broker, proxy, first):
        coordinator = first

        def boot() -> Device:
            return Device(tmp_path / "device", proxy.port, broker, 60)

        def restarted(old: Coordinator) -> Coordinator:
            old.stop()
            return Coordinator(tmp_path / "coordinator", broker, elements)

        device = boot()
        until_s = time.monotonic() + LIMIT_S
        try:
            for is_uplink, word, chunk_blocks in (
                (False, "fetched", GRID_BLOCKS),
                (True, "receipt", CHUNK_BLOCKS_MAX),
            ):
                before, cuts = proxy.carried[is_uplink], 0
                for share in (0.2, 0.4, 0.6):
                    goal = before + int(size * (share + dice.uniform(-0.1, 0.1)))
                    while proxy.carried[is_uplink] < goal and time.monotonic() < until_s:
                        time.sleep(0.005)
                    proxy.cut()
                    cuts += 1
                    if share == 0.4:
                        device.kill()
                        device = boot()
                    if share == 0.6 and is_uplink:
                        coordinator = restarted(coordinator)
                    proxy.heal()
                device.wait(word, until_s)
                carried = proxy.carried[is_uplink] - before
                allowed = cuts * chunk_blocks * BLOCK_BYTES + SMALL_TALK_BYTES
                assert carried - size < allowed + HEADER_SHARE * carried
        finally:
            device.kill()
            coordinator.stop()
        assert coordinator.failure is None
