"""Brokers that die or freeze, links that are cut, processes that stand still, in each phase.

A device is held at a named step (it stops itself there), the fault happens, and the device goes
on: so the fault hits the middle of a download, of training, of an upload.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from demo.brokers import Broker
from demo.processes import Child
from demo.proxy import Proxy
from fedtide.failpoints import VARIABLE
from fedtide.messages import Beacon, Presence
from tests.faults.conftest import Record
from tests.faults.federation import DEVICES, FaultFederation, make_broker, stop, wake

PHASES = {
    "download": "client: chunk stored=stop@2",
    "training": "client: training started=stop",
    "offer": "client: offer=stop",
    "upload": "client: chunk sent=stop@2",
    "receipt": "client: receipt heard=stop",
}
RECONNECT_S = 1.0
"""`broker.reconnect_ms_max` of everybody in these tests: their pacing window."""
RETURN_S_MAX = RECONNECT_S + 10.0
"""Asserted; what it took is in results/faults.json."""
KEEPALIVE_S = 5
GONE_S = 1.5 * KEEPALIVE_S + 3 + 2
"""After this the broker has said the will of a silent client: 1.5 keep-alives and its delay."""


def is_stopped(child: Child) -> bool:
    """Whether it stands still."""
    status = Path(f"/proc/{child.process_id}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "T"


def hold(federation: FaultFederation, device: str, step: str) -> Child:
    """Start the device anew and wait until it stands still at this step."""
    child = federation.devices[device]
    child.stop()
    child.start(**{VARIABLE: step})
    federation.wait_until(lambda: is_stopped(child), f"{device} at {step}")
    return child


class Returns:
    """Who has connected again since a moment, by their logs."""

    def __init__(self, federation: FaultFederation) -> None:
        self._federation = federation
        children = (federation.coordinator, *federation.devices.values())
        self._seen = {child: child.log_path.stat().st_size for child in children}

    def wait(self, since_s: float) -> list[float]:
        """Seconds since `since_s` until each of them was connected."""
        delays: dict[str, float] = {}

        def all_back() -> bool:
            for child, seen in self._seen.items():
                with child.log_path.open("rb") as log:
                    log.seek(seen)
                    if child.name not in delays and b"connected over" in log.read():
                        delays[child.name] = round(time.monotonic() - since_s, 3)
            return len(delays) == len(self._seen)

        self._federation.wait_until(all_back, "everybody's return")
        return list(delays.values())


def killed(broker: Broker) -> None:
    broker.kill()
    broker.start()


def killed_and_empty(broker: Broker) -> None:
    broker.kill()
    for path in (broker.folder / "store").glob("*"):
        path.unlink()
    broker.start()


def ended(broker: Broker) -> None:
    broker.stop()
    broker.start()


FATES: dict[str, Callable[[Broker], None]] = {
    "killed, its state as of the last save": killed,
    "killed, and empty": killed_and_empty,
    "ended in good order": ended,
}
SAVES_OFTEN = {"autosave_interval": "1", "autosave_on_changes": "true"}


def lose_broker(
    folder: Path, record: Record, fates: dict[str, Callable[[Broker], None]], phases: list[str]
) -> None:
    with FaultFederation(folder, broker_lines=SAVES_OFTEN) as federation:
        federation.local.start()
        federation.rounds_more(1)
        delays: list[float] = []
        rounds: list[float] = []
        for fate in fates.values():
            for phase in phases:
                alpha = hold(federation, "alpha", PHASES[phase])
                returns = Returns(federation)
                fate(federation.broker)
                since_s = time.monotonic()
                wake(alpha)
                delays += returns.wait(since_s)
                rounds.append(round(federation.rounds_more(1), 3))
            returns = Returns(federation)
            fate(federation.broker)
            delays += returns.wait(time.monotonic())
        figures = federation.finish()
        faults = len(fates) * (len(phases) + 1)
        named = {"broker's return to a device connected": delays, "and to the next model": rounds}
        record({**figures, "faults": faults, "delays_s": named})
        assert max(delays) < RETURN_S_MAX
        assert figures["abandoned"] == 0


def test_a_broker_that_forgets_everything_in_the_middle_of_an_upload(
    tmp_path: Path, record: Record
) -> None:
    lose_broker(tmp_path, record, {"empty": killed_and_empty}, ["upload"])


@pytest.mark.slow
def test_a_broker_that_goes_in_every_phase(tmp_path: Path, record: Record) -> None:
    lose_broker(tmp_path, record, FATES, list(PHASES))


@pytest.mark.slow
@pytest.mark.parametrize("frozen_s", [3.0, 15.0])
def test_a_broker_that_freezes(tmp_path: Path, record: Record, frozen_s: float) -> None:
    """For less than a keep-alive nobody notices; for longer everybody comes back."""
    tables = {"broker": {"keepalive_s": KEEPALIVE_S}}
    with FaultFederation(tmp_path, tables=tables, device_tables=tables) as federation:
        federation.local.start()
        federation.rounds_more(1)
        process_id = federation.broker.process_id
        assert process_id is not None
        delays = []
        for phase in ("download", "upload"):
            alpha = hold(federation, "alpha", PHASES[phase])
            os.kill(process_id, signal.SIGSTOP)
            wake(alpha)
            time.sleep(frozen_s)  # the fault itself
            os.kill(process_id, signal.SIGCONT)
            delays.append(round(federation.rounds_more(1), 3))
        record(
            {
                **federation.finish(),
                "faults": 2,
                "delays_s": {"frozen broker's return to the next model": delays},
            }
        )


@pytest.mark.slow
def test_processes_that_stand_still_until_their_will_is_said(
    tmp_path: Path, record: Record
) -> None:
    """Half-open links: the broker says the will, the round goes on without, they come back."""
    tables = {"broker": {"keepalive_s": KEEPALIVE_S}}
    with FaultFederation(tmp_path, tables=tables, device_tables=tables) as federation:
        federation.local.start()
        federation.rounds_more(1)
        device_s, coordinator_s = [], []
        for phase in ("training", "upload"):
            alpha = hold(federation, "alpha", PHASES[phase])
            since_s = time.monotonic()
            federation.wait_until(
                lambda since_s=since_s: offline(federation, "alpha", since_s),  # type: ignore[misc]
                "alpha's will",
                GONE_S + 5,
            )
            since_s = time.monotonic()
            wake(alpha)
            device_s.append(round(federation.welcomed_s(since_s, "alpha"), 3))
            federation.rounds_more(1)
        for _ in range(2):
            since_s = time.monotonic()
            stop(federation.coordinator)
            federation.wait_until(
                lambda since_s=since_s: coordinator_gone(federation, since_s),  # type: ignore[misc]
                "the coordinator's will",
                GONE_S + 5,
            )
            since_s = time.monotonic()
            wake(federation.coordinator)
            federation.rounds_more(1)
            coordinator_s.append(round(time.monotonic() - since_s, 3))
        named = {
            "device's SIGCONT to its welcome": device_s,
            "coordinator's SIGCONT to the next model": coordinator_s,
        }
        record({**federation.finish(), "faults": 4, "delays_s": named})


def offline(federation: FaultFederation, device: str, since_s: float) -> bool:
    said = federation.observer.since(since_s)
    bodies = [h.body for h in said if h.device == device and isinstance(h.body, Presence)]
    return any(not body.online for body in bodies)


def coordinator_gone(federation: FaultFederation, since_s: float) -> bool:
    said = [h.body for h in federation.observer.since(since_s) if isinstance(h.body, Beacon)]
    return any(not body.online for body in said)


@pytest.mark.slow
def test_a_link_that_is_cut_or_swallows_everything_in_every_phase(
    tmp_path: Path, record: Record
) -> None:
    """Cut with resets, and an uplink on which nothing moves; at most one chunk is sent again."""
    tables = {"broker": {"keepalive_s": KEEPALIVE_S}}
    broker = make_broker(tmp_path / "broker", DEVICES, {})
    with ExitStack() as stack:
        broker.start()
        stack.callback(broker.stop)
        proxy = stack.enter_context(Proxy(broker.port))
        federation = stack.enter_context(
            FaultFederation(
                tmp_path, broker=broker, ports={"alpha": proxy.port}, device_tables=tables
            )
        )
        federation.local.start()
        federation.rounds_more(1)
        delays: dict[str, list[float]] = {"link's return to the next model": []}
        for phase in PHASES.values():
            for lost, back, seconds in (
                (proxy.cut, proxy.heal, 0.5),
                (proxy.hold_uplink, proxy.release_uplink, 1.0),
                (proxy.hold_uplink, proxy.release_uplink, GONE_S),
            ):
                if seconds == GONE_S and "chunk sent" not in phase:
                    continue
                alpha = hold(federation, "alpha", phase)
                lost()
                wake(alpha)
                time.sleep(seconds)  # the fault itself
                back()
                delays["link's return to the next model"].append(
                    round(federation.rounds_more(1), 3)
                )
        figures: dict[str, Any] = federation.finish()
        extra = figures.pop("uplink_bytes") - figures.pop("payload_bytes")
        faults = len(delays["link's return to the next model"])
        record({**figures, "faults": faults, "extra_bytes": extra, "delays_s": delays})
