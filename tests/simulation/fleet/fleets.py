"""Small federations under virtual time, for tests."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from simulator.fleet.conditions import Conditions
from simulator.fleet.engine import run
from simulator.fleet.events import Event, Finished
from simulator.fleet.learning import Learning
from simulator.fleet.scenario import Scenario, coordinator_config, policies
from simulator.fleet.world import Sizes, World

T = TypeVar("T")
IDEAL = {
    "name": "ideal",
    "hours_max": 1000.0,
    "fleet": {"devices": 5, "group": [{"step_ms": 10.0, "link": "wifi"}]},
    "learning": {"parameters": 1000, "examples": 95},
    "rounds": {"count": 3, "cohort_size": 3, "devices_min": 5},
    "plan": {"epochs": 2, "batch_size": 10},
}


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        self.events.append(event)


def scenario_of(*changes: Mapping[str, object]) -> Scenario:
    """The ideal scenario with other keys in some tables."""
    raw: dict[str, object] = dict(IDEAL)
    for change in changes:
        for key, value in change.items():
            before = raw.get(key)
            both = isinstance(before, dict) and isinstance(value, dict)
            raw[key] = {**before, **value} if both else value  # type: ignore[dict-item]
    return msgspec.convert(raw, Scenario)


def world_of(scenario: Scenario, write: object) -> World:
    policy = policies(scenario)[0]
    conditions = Conditions(scenario)
    config = coordinator_config(scenario, policy)
    assert conditions.parameters is not None
    sizes = Sizes.of(conditions.parameters, config, 20_000)
    return World(conditions, config, sizes, write)  # type: ignore[arg-type]


def history(scenario: Scenario, learning: Learning | None = None) -> list[Event]:
    """Every event of a run."""
    kept = Kept()
    finished = run(world_of(scenario, kept.write), scenario.hours_max, learning)
    assert isinstance(finished, Finished)
    return kept.events


def of_kind(kind: type[T], found: list[Event]) -> list[T]:
    return [event for event in found if isinstance(event, kind)]
