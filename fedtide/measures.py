"""What is measured of a model: sums and what to divide them by, so that parts add up.

The same on a device, on the wire, in the coordinator's store, and on its screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from fedtide.limits import MEASURES_MAX, METRIC_MAX
from fedtide.manifest import Name

Natural = Annotated[int, Meta(ge=0, lt=2**53)]
"""Below 2^53, so that a JavaScript client holds it exactly."""
Finite = Annotated[float, Meta(ge=-METRIC_MAX, le=METRIC_MAX)]
"""Neither infinite nor NaN, which JSON cannot hold."""
Weight = Annotated[float, Meta(ge=0, le=METRIC_MAX)]


class Measure(NamedTuple):
    """A weighted sum over examples, labelled tokens, or whatever a measure counts."""

    sum: Finite
    weight: Weight

    @property
    def mean(self) -> float | None:
        """None where nothing was counted."""
        return self.sum / self.weight if self.weight > 0 else None

    @property
    def reportable(self) -> bool:
        """Whether a message can hold it: neither NaN nor infinite."""
        return abs(self.sum) <= METRIC_MAX and 0 <= self.weight <= METRIC_MAX


class Metrics(Struct, frozen=True):
    """What a model measured on some examples: its loss, and whatever its bundle measures."""

    examples: Natural
    measures: Annotated[dict[Name, Measure], Meta(max_length=MEASURES_MAX)] = {}

    def mean(self, name: str) -> float | None:
        """Of one measure; None where it was not measured."""
        measure = self.measures.get(name)
        return None if measure is None else measure.mean

    @property
    def loss(self) -> float | None:
        """Mean loss."""
        return self.mean("loss")

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions of a classifier."""
        return self.mean("accuracy")

    @property
    def perplexity(self) -> float | None:
        """exp(mean loss), for models of language."""
        loss = self.loss
        return None if loss is None or loss > 700 else math.exp(loss)


def add_up(parts: Iterable[Metrics]) -> Metrics:
    """Of all examples of all parts. A measure that a part lacks is that of the other parts."""
    examples = 0
    sums: dict[str, Measure] = {}
    for part in parts:
        examples += part.examples
        for name, (value, weight) in part.measures.items():
            before = sums.get(name, Measure(0.0, 0.0))
            sums[name] = Measure(before.sum + value, before.weight + weight)
    return Metrics(examples, sums)


def quality(metrics: Metrics | None) -> str:
    """Every measure, for a log."""
    if metrics is None:
        return ""
    means = {name: measure.mean for name, measure in sorted(metrics.measures.items())}
    return "".join(f", {name} {mean:.4f}" for name, mean in means.items() if mean is not None)
