"""kill -9 at every named step of client and coordinator: nothing lost, nothing counted twice."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fedtide.messages import Decline, Receipt, Task, Want
from tests.faults import points
from tests.faults.conftest import Record
from tests.faults.federation import FaultFederation, Walk

RESUME_S_MAX = 10.0
"""The target is 2 s on a machine that does nothing else; see results/faults.json."""


def goes_on(federation: FaultFederation, walk: Walk) -> list[float]:
    """After each restart of a coordinator that lived long enough: seconds until it went on, which
    is the first task, wish for blocks or receipt that it says; a welcome is not enough."""
    federation.goes_on_s(walk.births_s[-1])
    ends = [*walk.births_s[1:], float("inf")]
    said = [h.at_s for h in federation.observer.heard if isinstance(h.body, Task | Want | Receipt)]
    delays = []
    for born_s, died_s in zip(walk.births_s, ends, strict=True):
        first = next((at_s for at_s in said if born_s <= at_s < died_s), None)
        if first is not None:
            delays.append(round(first - born_s, 3))
    return delays


def run(
    folder: Path,
    record: Record,
    *,
    devices: dict[str, list[str]] | None = None,
    coordinator: list[str] | None = None,
) -> None:
    """One federation in which these processes walk through these steps."""
    with FaultFederation(folder) as federation:
        walks = [Walk(federation.devices[name], steps) for name, steps in (devices or {}).items()]
        if coordinator:
            walks.append(Walk(federation.coordinator, coordinator))
        federation.walk(walks)
        delays = goes_on(federation, walks[-1]) if coordinator else []
        figures = federation.finish()
        kills = [kill for walk in walks for kill in walk.kills]
        assert len(kills) == sum(len(walk.steps) for walk in walks)
        record(
            {
                **figures,
                "kills": len(kills),
                "extra_bytes": figures.pop("uplink_bytes") - figures.pop("payload_bytes"),
                "delays_s": {"coordinator's restart to the round going on": delays},
                "killed_at": kills,
            }
        )
        assert all(delay < RESUME_S_MAX for delay in delays), delays
        if coordinator and not devices:
            assert figures["abandoned"] == 0


def test_devices_killed_at_some_steps(tmp_path: Path, record: Record) -> None:
    run(
        tmp_path,
        record,
        devices={
            "alpha": [f"client: {s}=kill" for s in ("chunk stored", "update written", "offer")],
            "beta": ["client: chunk sent=kill@3", "client: receipt stored=kill"],
        },
    )


def test_the_coordinator_killed_at_some_steps(tmp_path: Path, record: Record) -> None:
    steps = ("chunk stored", "verdict committed", "resumed", "aggregate computed", "model offered")
    run(tmp_path, record, coordinator=[f"coordinator: {step}=kill" for step in steps])


@pytest.mark.slow
def test_devices_killed_at_every_step(tmp_path: Path, record: Record) -> None:
    """Each in another order, so that what a life resumes from differs."""
    every = points.of("client")
    half = len(every) // 2
    run(
        tmp_path,
        record,
        devices={
            "alpha": every,
            "beta": [*every[half:], *every[:half]],
            "gamma": [*points.CLIENT_DISK, *points.REPEATED],
        },
    )


@pytest.mark.slow
def test_the_coordinator_killed_at_every_step(tmp_path: Path, record: Record) -> None:
    run(tmp_path, record, coordinator=[*points.of("coordinator"), *points.COORDINATOR_DISK])


@pytest.mark.slow
def test_the_coordinator_killed_again_while_it_recovers(tmp_path: Path, record: Record) -> None:
    """Each step, and at once the resumption from it."""
    pairs = ([step, "coordinator: resumed=kill"] for step in points.of("coordinator"))
    run(tmp_path, record, coordinator=list(itertools.chain(*pairs)))


@pytest.mark.slow
def test_both_sides_killed_at_every_step_at_the_same_time(tmp_path: Path, record: Record) -> None:
    every = points.of("client")
    run(
        tmp_path,
        record,
        devices={"alpha": every, "beta": every[::-1]},
        coordinator=points.of("coordinator"),
    )


@pytest.mark.slow
def test_a_task_that_kills_its_device_is_declined_with_a_reason(
    tmp_path: Path, record: Record
) -> None:
    """Killed in the same step in every life, and as it declines; the round is abandoned with a
    reason, and the coordinator killed as it says so."""
    with FaultFederation(tmp_path, devices=("alpha",)) as federation:
        walks = [
            Walk(
                federation.devices["alpha"],
                ["client: training started=kill"] * 4 + ["client: decline=kill"] * 2,
            ),
            Walk(federation.coordinator, ["coordinator: round abandoned=kill"]),
        ]
        federation.walk(walks)
        declined = [h.body for h in federation.observer.heard if isinstance(h.body, Decline)]
        assert declined
        assert "went down" in declined[-1].reason
        figures = federation.finish()
        assert figures["abandoned"] >= 1
        record({**figures, "kills": sum(len(walk.kills) for walk in walks)})


@pytest.mark.slow
def test_the_coordinator_killed_as_it_finishes(tmp_path: Path, record: Record) -> None:
    with FaultFederation(tmp_path, rounds={"count": 2}) as federation:
        walk = Walk(federation.coordinator, ["coordinator: finished=kill"] * 2)
        federation.walk([walk])
        assert federation.coordinator.wait(60) == 0, federation.coordinator.log_tail()
        record({**federation.verdict(), "kills": len(walk.kills)})
