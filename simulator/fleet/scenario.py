"""A scenario file: the fleet, what befalls it, what it learns, and the policies to compare.

Every key is in docs/simulate.md. `read_scenario` reads and checks one; `policies` gives each
policy's settings whole, checked as the coordinator checks its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from coordinator.config import CoordinatorConfig, RoundsConfig
from fedtide.config import Positive, convert_config, given_path, load_config, shortened
from fedtide.errors import ConfigError
from fedtide.messages import Encoding, Identifier
from fedtide.plan import Plan
from simulator.learning.partitions import Partition

Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=1, le=1e12)]
StepMs = Annotated[float, Meta(ge=1e-6, le=1e9)]
Mean = Annotated[float, Meta(ge=1, le=1e9)]
Sigma = Annotated[float, Meta(ge=0, le=5)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Hour = Annotated[float, Meta(ge=0, le=24)]
HINT = "docs/simulate.md lists every key and its meaning"
PARAMETERS_MAX = 10**12
"""A few thousand times the largest model that the protocol carries."""
_EFFECTIVE = {
    "availability.on_s availability.off_s": ("availability.kind", ("churn",)),
    "availability.night_share availability.day_share availability.night_from_h "
    "availability.night_until_h availability.night_spread_s availability.zones_h "
    "availability.starts_at_h": ("availability.kind", ("day_night",)),
    "stragglers.per stragglers.fraction": ("stragglers.kind", ("factor", "log_normal")),
    "stragglers.factor": ("stragglers.kind", ("factor",)),
    "stragglers.sigma": ("stragglers.kind", ("log_normal",)),
    "learning.data learning.data_dir learning.partition": ("learning.kind", ("real",)),
    "learning.shards_per_device": ("learning.partition", ("shards",)),
    "learning.alpha": ("learning.partition", ("dirichlet",)),
    "learning.examples learning.examples_spread": ("learning.kind", ("modelled",)),
}
"""Keys that mean something only where another has one of these values."""
_COHORT_KEYS = ("cohort_size", "cohort_fraction")


class LinkNumbers(Struct, frozen=True, forbid_unknown_fields=True):
    """A link of the user's own."""

    down_bytes_per_s: Rate
    up_bytes_per_s: Rate
    latency_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    """One way: half a ping."""
    loss: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    """Packets lost."""


class GroupConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices of one kind. One of `profile`, `step_ms` and `benchmark` says how fast they are."""

    profile: str | None = None
    step_ms: StepMs | None = None
    """Of an optimizer step with the scenario's `plan.batch_size`."""
    benchmark: Path | None = None
    """What `fedtide client benchmark BUNDLE --json` printed."""
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    link: str | LinkNumbers = "wifi"
    speed_spread: Sigma = 0.0
    """Sigma of the log-normal factor on each device's step time; its median is 1."""

    def __post_init__(self) -> None:
        """One speed."""
        given = sum(value is not None for value in (self.profile, self.step_ms, self.benchmark))
        if given != 1:
            raise ValueError(
                f"give one of profile, step_ms and benchmark, not {given or 'none'} of them"
            )


class FleetConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How many devices, and of what kinds."""

    devices: Annotated[int, Meta(ge=1, le=100_000)]
    group: Annotated[tuple[GroupConfig, ...], Meta(min_length=1)] = (GroupConfig(profile="pi-4"),)

    def __post_init__(self) -> None:
        """The shares are of one whole."""
        total = math.fsum(group.share for group in self.group)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the groups add up to {total:g}, expected 1")


class AvailabilityConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """When devices are on."""

    kind: Literal["always", "churn", "day_night", "trace"] = "always"
    on_s: Mean = 3_600.0
    """churn: mean of the exponential time on."""
    off_s: Mean = 3_600.0
    """churn: mean of the exponential time off."""
    night_share: Share = 0.8
    """day_night: chance of a device to be plugged in on a night."""
    day_share: Share = 0.0
    """day_night: the same by day."""
    night_from_h: Hour = 22.0
    night_until_h: Hour = 6.0
    night_spread_s: Annotated[float, Meta(ge=0, le=86_400)] = 3_600.0
    """day_night: each device's nights are shifted by up to this much, either way."""
    zones_h: Annotated[float, Meta(ge=0, le=24)] = 0.0
    """day_night: width of the time zones that the fleet lives in."""
    starts_at_h: Hour = 20.0
    """day_night: local hour at the start, in the middle of the zones."""
    trace: Path | None = None
    """trace: CSV with the columns device, from_s, until_s."""
    repeat_s: Mean | None = None
    """trace: it begins anew after this long."""

    def __post_init__(self) -> None:
        """A trace where there has to be one."""
        if (self.kind == "trace") != (self.trace is not None):
            raise ValueError('give trace with kind = "trace", and only then')
        if self.repeat_s is not None and self.kind != "trace":
            raise ValueError(f'repeat_s is of kind = "trace", the kind is "{self.kind}"')
        if self.night_from_h % 24 == self.night_until_h % 24:
            raise ValueError(f"the night begins and ends at {self.night_from_h:g} h")
        if self.kind == "day_night" and not self.night_share and not self.day_share:
            raise ValueError("night_share and day_share are both 0: no device is ever on")


class DropoutsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Tasks cut short by a power cut: chances of a task, by phase."""

    before_download: Share = 0.0
    in_training: Share = 0.0
    before_upload: Share = 0.0
    during_upload: Share = 0.0
    at_epoch: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """In this epoch of the training, the first is 1; without it anywhere in the training."""
    back_after_s: Seconds = 0.0
    """Mean of the exponential time until the device is back; 0: never again."""

    def __post_init__(self) -> None:
        """No task is cut short in two phases."""
        total = self.total
        if total > 1 + 1e-9:
            raise ValueError(f"the rates of the phases add up to {total:g}, expected 1 at the most")

    @property
    def total(self) -> float:
        """Chance that a task is cut short."""
        return math.fsum(
            (self.before_download, self.in_training, self.before_upload, self.during_upload)
        )


class StragglersConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices or tasks that take longer than their profile says."""

    kind: Literal["none", "factor", "log_normal"] = "none"
    per: Literal["device", "task"] = "device"
    """Whether the slow ones are always the same."""
    fraction: Share = 1.0
    """Of the devices or of the tasks."""
    factor: Annotated[float, Meta(ge=1, le=10_000)] = 4.0
    sigma: Sigma = 0.5
    """Of the log-normal factor, whose median is 1."""


class LearningConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What is learned, or how long it would take."""

    kind: Literal["modelled", "real"] = "modelled"
    model: str = "mnist_2nn"
    """A name, or the folder of a bundle: a path with a `/`."""
    data: str | None = None
    data_dir: Path | None = None
    partition: Partition = "iid"
    shards_per_device: Positive = 2
    alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5
    examples: Positive = 600
    """modelled: of the median device."""
    examples_spread: Sigma = 0.0
    """modelled: sigma of the log-normal spread of the examples."""
    parameters: Annotated[int, Meta(ge=1, le=PARAMETERS_MAX)] | None = None
    """modelled: values that travel."""
    step_ms: StepMs | None = None
    """Of a step with `plan.batch_size` on the reference machine."""
    stop_at_accuracy: Annotated[float, Meta(gt=0, le=1)] | None = None
    """real: a policy ends once a model is known to be as good on the test set."""

    def __post_init__(self) -> None:
        """Real learning has real data."""
        if self.kind == "real" and self.data is None:
            raise ValueError('kind = "real" needs data, the name of a data set')
        if self.kind == "real" and self.parameters is not None:
            raise ValueError('parameters are of kind = "modelled"; a real model knows its own')
        if self.kind == "modelled" and self.stop_at_accuracy is not None:
            raise ValueError('stop_at_accuracy is of kind = "real"; nothing is learned here')


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What one policy does otherwise than [rounds] and [plan] say."""

    name: Identifier
    rounds: dict[str, Any] = {}
    plan: dict[str, Any] = {}


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a scenario file."""

    name: Identifier
    fleet: FleetConfig
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    hours_max: Annotated[float, Meta(gt=0, le=100_000)] = 24.0
    """Virtual time at which every policy ends, finished or not."""
    availability: AvailabilityConfig = AvailabilityConfig()
    dropouts: DropoutsConfig = DropoutsConfig()
    stragglers: StragglersConfig = StragglersConfig()
    learning: LearningConfig = LearningConfig()
    rounds: RoundsConfig = RoundsConfig()
    plan: Plan = Plan()
    policy: tuple[PolicyConfig, ...] = ()
    encoding: Encoding = "f32"
    hello_ms: Annotated[int, Meta(ge=1_000, lt=2**53)] = 30_000


class Policy(NamedTuple):
    """One policy's settings, whole and checked."""

    name: str
    rounds: RoundsConfig
    plan: Plan


def read_scenario(path: Path) -> Scenario:
    """Read and check a scenario and all of its policies.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong value, a policy that
            contradicts itself; the message names the key, the value and what was expected.
    """
    scenario = load_config(path, Scenario, hint=HINT)
    model = scenario.learning.model
    if "/" in model:  # a folder, relative to the file; a name has none
        try:
            model = str(given_path(model, path.parent))
        except ValueError as exc:
            told = f"{str(path)!r}: learning.model is {shortened(model)}: {exc}"
            raise ConfigError(told, hint=HINT) from exc
        learning = msgspec.structs.replace(scenario.learning, model=model)
        scenario = msgspec.structs.replace(scenario, learning=learning)
    try:
        _check_effects(scenario)
        policies(scenario)
    except ConfigError as exc:
        raise ConfigError(f"{str(path)!r}: {exc.args[0]}", hint=HINT) from exc
    return scenario


def _check_effects(scenario: Scenario) -> None:
    """Whoever gives a key means something by it.

    Raises:
        ConfigError: it has no effect.
    """
    for keys, (deciding, values) in _EFFECTIVE.items():
        table, _, field = deciding.partition(".")
        decided = getattr(getattr(scenario, table), field)
        for key in keys.split():
            config, name = getattr(scenario, table), key.partition(".")[2]
            default = getattr(type(config)(), name)
            if getattr(config, name) != default and decided not in values:
                expected = " or ".join(f'"{value}"' for value in values)
                raise ConfigError(
                    f"{key} has no effect: it is of {deciding} = {expected}, and that is "
                    f'"{decided}"; leave it out, or change {deciding}'
                )
    step_ms = scenario.learning.step_ms
    if step_ms is not None and all(group.profile is None for group in scenario.fleet.group):
        raise ConfigError(
            f"learning.step_ms is {step_ms:g} and has no effect: it is for groups with a profile, "
            "and no fleet.group has one; leave it out, or give a group a profile"
        )


def policies(scenario: Scenario) -> tuple[Policy, ...]:
    """Every policy of a scenario: [rounds] and [plan] with its own keys in their place.

    Raises:
        ConfigError: a key or value that the coordinator would refuse, or a name given twice.
    """
    names = [policy.name for policy in scenario.policy]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"policy.name {twice!r} is given twice, expected names that differ")
    given = scenario.policy or (PolicyConfig(name="default"),)
    return tuple(_policy(scenario, policy) for policy in given)


def _policy(scenario: Scenario, policy: PolicyConfig) -> Policy:
    rounds = msgspec.to_builtins(scenario.rounds)
    if any(key in policy.rounds for key in _COHORT_KEYS):
        rounds |= dict.fromkeys(_COHORT_KEYS)  # one way to size the cohort replaces the other
    raw = {
        "rounds": rounds | policy.rounds,
        "plan": msgspec.to_builtins(scenario.plan) | policy.plan,
        "federation": "simulated",
        "bundle": ".",
        "state_dir": ".",
    }
    where = f"policy {policy.name!r}" if scenario.policy else "without a policy of its own"
    config = convert_config(raw, CoordinatorConfig, where)
    devices = scenario.fleet.devices
    for key in ("quorum", "devices_min"):
        if getattr(config.rounds, key) > devices:
            raise ConfigError(
                f"{where}: rounds.{key} is {getattr(config.rounds, key)}, "
                f"expected at most fleet.devices, {devices}"
            )
    return Policy(policy.name, config.rounds, config.plan)


def coordinator_config(scenario: Scenario, policy: Policy) -> CoordinatorConfig:
    """As the policy's coordinator would be configured."""
    return CoordinatorConfig(
        federation="simulated",
        bundle=Path(),
        state_dir=Path(),
        rounds=policy.rounds,
        plan=policy.plan,
        encoding=scenario.encoding,
        hello_ms=scenario.hello_ms,
    )
