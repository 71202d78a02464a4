"""Measures: sums that add up, and means that know when there is nothing to divide by."""

from __future__ import annotations

import math

import msgspec
import pytest

from fedtide.measures import Measure, Metrics, add_up

A = Metrics(4, {"loss": Measure(2.0, 4.0), "accuracy": Measure(3.0, 4.0)})
B = Metrics(2, {"loss": Measure(4.0, 2.0)})


def test_parts_add_up() -> None:
    total = add_up([A, B])
    assert total == Metrics(6, {"loss": Measure(6.0, 6.0), "accuracy": Measure(3.0, 4.0)})
    assert (total.loss, total.accuracy, total.mean("f1")) == (1.0, 0.75, None)
    assert add_up([]) == Metrics(0)
    assert add_up([A]).measures is not A.measures


def test_a_mean_over_nothing_is_none() -> None:
    assert Measure(0.0, 0.0).mean is None
    assert Metrics(3, {"loss": Measure(0.0, 0.0)}).loss is None
    assert Metrics(3).perplexity is None


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert A.perplexity == pytest.approx(math.exp(0.5))
    assert Metrics(1, {"loss": Measure(1e9, 1.0)}).perplexity is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e301])
def test_what_no_message_holds_is_not_reportable(value: float) -> None:
    assert not Measure(value, 1.0).reportable
    assert not Measure(1.0, value).reportable
    assert Measure(-1.0, 1.0).reportable
    assert not Measure(1.0, -1.0).reportable


@pytest.mark.parametrize(
    "measures",
    [
        {"loss": [1.0]},
        {"loss": [1.0, -1.0]},
        {"loss": ["1", 1.0]},
        {"Loss": [1.0, 1.0]},
        {"": [1.0, 1.0]},
        {f"m{index}": [1.0, 1.0] for index in range(34)},
    ],
)
def test_malformed_measures_are_refused(measures: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"examples": 1, "measures": measures}, Metrics)
