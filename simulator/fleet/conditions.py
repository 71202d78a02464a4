"""The conditions of a scenario: what each device is, when it is on, and what befalls its tasks.

Pure: functions of the scenario and its seed alone, the same for every policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fedtide.plan import Plan
from simulator.fleet import profiles
from simulator.fleet.availability import Availability
from simulator.fleet.dropouts import Fate, Fates
from simulator.fleet.links import Direction, link_numbers, transfer_ms
from simulator.fleet.lots import Lots, log_normal
from simulator.fleet.profiles import StepTimes, Work
from simulator.fleet.scenario import GroupConfig, LinkNumbers, Scenario
from simulator.fleet.trace import Interval


class Traits(NamedTuple):
    """What a device is."""

    profile: str
    link: str
    times: StepTimes
    """Of its training steps."""
    line: LinkNumbers
    examples: int
    """Local training examples. With real learning the partition knows better."""


class Conditions:
    """The conditions of one scenario.

    Raises:
        ConfigError: an unknown profile, link or model; data that the model does not learn from; a
            benchmark or trace that cannot be used.
        BundleError: the model is a folder, and what is in it is no bundle.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        profiles.check_data(scenario.learning)
        self.parameters = profiles.parameters_of(scenario.learning)
        """Values of the model that travel."""
        self._availability = Availability(
            scenario.availability,
            scenario.seed,
            devices=scenario.fleet.devices,
            hours_max=scenario.hours_max,
        )
        self._fates = Fates(scenario.dropouts, scenario.stragglers, scenario.seed)
        self._traits = _fleet(scenario)

    def __len__(self) -> int:
        return len(self._traits)

    def traits(self, device: int) -> Traits:
        """What device number `device` is."""
        return self._traits[device]

    def presence(self, device: int) -> Iterator[Interval]:
        """[from_ms, until_ms) since the start in which a device is on: ascending, neither empty
        nor touching; lazily, those that begin before the scenario's end."""
        return self._availability.intervals(device)

    def fate(self, device: int, round_id: int) -> Fate:
        """What befalls a device's task of a round; see `Fates.of`."""
        return self._fates.of(device, round_id)

    def work(
        self, device: int, plan: Plan, slow_factor: float = 1.0, examples: int | None = None
    ) -> Work:
        """Steps and time of a whole training, `plan.training_ms_max` obeyed.

        `slow_factor`: of the task's fate. `examples`: default, those of the traits.
        """
        traits = self._traits[device]
        return profiles.training(traits.times, plan, examples or traits.examples, slow_factor)

    def transfer_ms(self, device: int, size_bytes: int, direction: Direction) -> float:
        """Milliseconds from asking for `size_bytes` on the wire to the arrival of the last one."""
        return transfer_ms(self._traits[device].line, size_bytes, direction)


def _fleet(scenario: Scenario) -> list[Traits]:
    """The traits of all devices."""
    speeds, sizes = Lots(scenario.seed, "speed"), Lots(scenario.seed, "examples")
    learning, kinds = scenario.learning, _kinds(scenario)
    found = []
    for device, group in enumerate(_groups(scenario)):
        config, name, times, link, line = kinds[group]
        if config.speed_spread:
            times = times.scaled(log_normal(speeds.draw(device)[0], config.speed_spread))
        examples = learning.examples
        if learning.examples_spread:
            spread = log_normal(sizes.draw(device)[0], learning.examples_spread)
            examples = max(1, round(examples * spread))
        found.append(Traits(name, link, times, line, examples))
    return found


class _Kind(NamedTuple):
    config: GroupConfig
    profile: str
    times: StepTimes
    link: str
    line: LinkNumbers


def _kinds(scenario: Scenario) -> list[_Kind]:
    reference = profiles.reference_times(scenario.learning, scenario.plan)
    kinds = []
    for number, group in enumerate(scenario.fleet.group, 1):
        where = f"fleet.group {number}: "
        name, times = profiles.group_times(group, reference, scenario.plan, where)
        line = link_numbers(group.link, f"{where}link")
        link = group.link if isinstance(group.link, str) else "own"
        kinds.append(_Kind(group, name, times, link, line))
    return kinds


def _groups(scenario: Scenario) -> list[int]:
    """The group of each device: exact shares, by lot who gets into which."""
    devices, groups = scenario.fleet.devices, scenario.fleet.group
    lots = Lots(scenario.seed, "groups")
    order = sorted(range(devices), key=lambda device: lots.draw(device)[0])
    chosen = [0] * devices
    begin, total = 0, 0.0
    for number, group in enumerate(groups):
        total += group.share
        end = devices if number == len(groups) - 1 else round(total * devices)
        for device in order[begin:end]:
            chosen[device] = number
        begin = end
    return chosen
