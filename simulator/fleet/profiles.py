"""How long a training step takes: on the reference machine, and on devices by profile.

The reference is the machine of `results/train_step.json` and `results/digits_step.json`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from fedtide.bundle import open_bundle_dir
from fedtide.errors import ConfigError
from fedtide.manifest import Manifest
from fedtide.plan import Plan
from simulator.fleet.scenario import GroupConfig, LearningConfig

PROFILES = {
    "pi-zero-2w": 0.017,
    "pi-4": 0.060,
    "pi-5": 0.16,
    "phone-mid": 0.23,
    "phone-fast": 0.34,
    "laptop": 0.58,
}
"""Speed of one core as a fraction of one of the reference machine's: estimates, from inference
times that ncnn's users measured (docs/simulate.md, "Profiles", says how)."""
FLOPS_PER_MS = 1e8
"""Of the reference machine, for a model without a measured step: 100 GFLOP/s. The five models of
the FedAvg paper reach 64 to 136, see docs/simulate.md."""


class StepTimes(NamedTuple):
    """Time of an optimizer step by its batch size, from one or two measured sizes."""

    small: int
    """Examples in a batch."""
    small_ms: float
    large: int
    large_ms: float

    def at(self, batch: float) -> float:
        """Milliseconds of a step on `batch` examples.

        On the straight line through both measurements; below the smaller one never less than its
        share. With one measured size (`small` = `large`): in proportion.
        """
        share = self.small_ms * batch / self.small
        if self.small == self.large:
            return share
        slope = max(0.0, self.large_ms - self.small_ms) / (self.large - self.small)
        line = self.small_ms + slope * (batch - self.small)
        return line if batch >= self.small else max(line, share)

    def scaled(self, factor: float) -> StepTimes:
        """The times of a machine that takes `factor` times as long."""
        return self._replace(small_ms=self.small_ms * factor, large_ms=self.large_ms * factor)


class Model(NamedTuple):
    """A model that is known by name."""

    parameters: int
    times: StepTimes | None
    """On the reference machine, with the portable runtime and one thread; None: not measured."""
    data: tuple[str, ...]
    """Data sets that it learns from."""


MODELS = {
    "digits": Model(76_810, StepTimes(10, 0.095, 50, 0.24), ("digits",)),
    "mnist_lr": Model(7_850, None, ("mnist",)),
    "mnist_2nn": Model(199_210, StepTimes(10, 0.136, 50, 0.361), ("mnist",)),
    "mnist_cnn": Model(1_663_370, StepTimes(10, 7.107, 50, 46.33), ("mnist",)),
    "cifar_cnn": Model(1_068_298, StepTimes(10, 10.777, 50, 49.513), ("cifar10",)),
    "char_lstm": Model(
        822_570,
        StepTimes(10, 38.637, 50, 144.066),
        ("shakespeare", "shakespeare_sequences"),
    ),
    "word_lstm": Model(4_360_144, StepTimes(10, 14.972, 50, 62.372), ("shakespeare_words",)),
}


def batch_ms(times: StepTimes, plan: Plan, batch: int) -> float:
    """Milliseconds of one optimizer step on `batch` examples, in parts as the plan says."""
    parts = -(-batch // plan.examples_at_once)
    return parts * times.at(batch / parts)


class Work(NamedTuple):
    """A training, from its first step to its last."""

    steps: int
    """Optimizer steps; fewer than `Plan.steps_for` if `training_ms_max` ends it."""
    ms: float
    """Of them all, the `slow_factor` included, as in:"""
    epoch_ms: float
    """Of a whole epoch, whether or not one is done."""
    steps_in_epoch: int


def training(times: StepTimes, plan: Plan, examples: int, slow_factor: float = 1.0) -> Work:
    """A whole training on this many examples by a device that takes `slow_factor` times as long."""
    steps = plan.steps_for(examples)
    size = _batch_size(plan, examples)
    whole, rest = divmod(examples, size)
    step_ms = batch_ms(times, plan, size) * slow_factor
    rest_ms = batch_ms(times, plan, rest) * slow_factor if rest else 0.0
    in_epoch = whole + (rest > 0)
    epoch_ms = whole * step_ms + rest_ms
    if plan.training_ms_max is not None:
        # It ends after the step in which the time is used up.
        epochs, left_ms = divmod(plan.training_ms_max, epoch_ms)
        last = min(math.ceil(left_ms / step_ms), in_epoch)
        steps = min(steps, max(1, int(epochs) * in_epoch + last))
    epochs_done, steps_left = divmod(steps, in_epoch)
    ms = epochs_done * epoch_ms + steps_left * step_ms
    return Work(steps, ms, epoch_ms, in_epoch)


def _batch_size(plan: Plan, examples: int) -> int:
    return examples if plan.batch_size == "all" else min(plan.batch_size, examples)


class _Measured(Struct):
    threads: int
    batch_size: int
    median_s: float | None = None


class _Benchmark(Struct):
    name: str
    results: tuple[_Measured, ...]


def read_benchmark(path: Path) -> StepTimes:
    """Step times that `fedtide client benchmark BUNDLE --json` measured on a device.

    Of the smallest and the largest batch, each with the fastest runtime and number of threads.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    hint = "fedtide client benchmark BUNDLE --batch-size 10,50 --json > FILE"
    try:
        told = msgspec.json.decode(path.read_bytes(), type=_Benchmark)
    except OSError as exc:
        raise ConfigError(f"benchmark {str(path)!r} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"benchmark {str(path)!r} is not what `fedtide client benchmark` prints: {exc}",
            hint=hint,
        ) from exc
    fastest: dict[int, float] = {}
    for entry in told.results:
        if entry.median_s is not None and 0 < entry.median_s < math.inf and entry.batch_size > 0:
            known = fastest.get(entry.batch_size, math.inf)
            fastest[entry.batch_size] = min(known, entry.median_s * 1_000)
    if not fastest:
        raise ConfigError(f"benchmark {str(path)!r} holds no measurement", hint=hint)
    small, large = min(fastest), max(fastest)
    return StepTimes(small, fastest[small], large, fastest[large])


def parameters_of(learning: LearningConfig) -> int:
    """Values of the model that travel.

    Raises:
        ConfigError: the model is neither a known name nor the folder of a bundle.
        BundleError: what is in the folder is no bundle.
    """
    if learning.parameters is not None:
        return learning.parameters
    if learning.model in MODELS:
        return MODELS[learning.model].parameters
    return _manifest(learning.model).shared_count


def check_data(learning: LearningConfig) -> None:
    """Nothing, if the model learns from the data, as far as a model in a folder lets us know.

    Raises:
        ConfigError: it does not.
    """
    model = MODELS.get(learning.model)
    if learning.data is None or model is None or learning.data in model.data:
        return
    others = ", ".join(sorted({name for known in MODELS.values() for name in known.data}))
    fitting = ", ".join(name for name, known in MODELS.items() if learning.data in known.data)
    raise ConfigError(
        f"learning.data is {learning.data!r}, and learning.model {learning.model!r} learns from: "
        f"{', '.join(model.data)}",
        hint=f"models for {learning.data!r}: {fitting}" if fitting else f"data sets: {others}",
    )


def reference_times(learning: LearningConfig, plan: Plan) -> StepTimes | None:
    """Step times on the reference machine; None: not known.

    Raises:
        ConfigError: the model is neither a known name nor the folder of a bundle.
        BundleError: what is in the folder is no bundle.
    """
    if learning.step_ms is not None:
        return given_times(learning.step_ms, plan)
    if learning.parameters is not None:
        return None
    if learning.model in MODELS:
        return MODELS[learning.model].times
    estimates = _manifest(learning.model).estimates
    if estimates is None:
        return None
    example_ms = estimates.flops_per_example / FLOPS_PER_MS
    return StepTimes(1, example_ms, 1, example_ms)


def _manifest(model: str) -> Manifest:
    folder = Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"learning.model is {model!r}, expected the folder of a bundle or one of: "
            f"{', '.join(MODELS)}",
            hint="or, if only time matters, give learning.parameters and learning.step_ms",
        )
    return open_bundle_dir(folder).manifest


def given_times(step_ms: float, plan: Plan) -> StepTimes:
    """Step times in proportion to the batch, from those of the plan's batch size."""
    size = plan.examples_at_once if plan.batch_size == "all" else plan.batch_size
    return StepTimes(size, step_ms, size, step_ms)


def group_times(
    group: GroupConfig, reference: StepTimes | None, plan: Plan, where: str
) -> tuple[str, StepTimes]:
    """Name and step times of a group's median device; `where` begins what is said of its keys.

    Raises:
        ConfigError: an unknown profile, no time to relate it to, a benchmark that cannot be used.
    """
    if group.step_ms is not None:
        return f"{group.step_ms:g} ms", given_times(group.step_ms, plan)
    if group.benchmark is not None:
        return group.benchmark.stem, read_benchmark(group.benchmark)
    assert group.profile is not None
    if group.profile not in PROFILES:
        raise ConfigError(
            f"{where}profile is {group.profile!r}, expected one of: {', '.join(PROFILES)}",
            hint="or give step_ms, or benchmark, in its place",
        )
    if reference is None:
        raise ConfigError(
            f"{where}profile {group.profile!r} is relative to the reference machine, whose time "
            "for this model is not known",
            hint="give learning.step_ms: milliseconds of a step there",
        )
    return group.profile, reference.scaled(1 / PROFILES[group.profile])
