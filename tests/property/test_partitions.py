"""Partitions: every example on exactly one device, the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedtide.errors import ConfigError
from simulator.learning.partitions import Indices, iid, order, shards

SEEDS = st.integers(0, 2**64)


def check(parts: Sequence[NDArray[np.int64]], examples: int) -> None:
    """Disjoint, complete, ascending, int64."""
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    together = np.concatenate(parts)
    assert len(together) == examples
    np.testing.assert_array_equal(np.sort(together), np.arange(examples))


def same(one: list[Indices], other: list[Indices]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@given(st.integers(1, 300), st.integers(1, 300), SEEDS)
def test_iid(examples: int, devices: int, seed: int) -> None:
    devices = min(devices, examples)
    parts = iid(examples, devices, seed)
    check(parts, examples)
    sizes = [len(part) for part in parts]
    assert len(sizes) == devices
    assert max(sizes) - min(sizes) <= 1
    assert same(parts, iid(examples, devices, seed))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=300),
    st.integers(1, 40),
    st.integers(1, 4),
    SEEDS,
)
def test_shards(labels: list[int], devices: int, each: int, seed: int) -> None:
    y = np.array(labels, np.int64)
    devices = min(devices, max(1, len(y) // each))
    each = min(each, len(y) // devices)
    parts = shards(y, devices, each, seed)
    check(parts, len(y))
    sizes = [len(part) for part in parts]
    assert len(sizes) == devices
    assert max(sizes) - min(sizes) <= each
    assert same(parts, shards(y, devices, each, seed))


def test_shards_as_in_the_paper() -> None:
    """100 devices with two of 200 shards of 300: two digits, as every digit fills 20 shards."""
    labels = np.tile(np.arange(10), 6000)
    parts = shards(labels, 100, 2, seed=1)
    check(parts, 60_000)
    assert {len(part) for part in parts} == {600}
    assert {len(np.unique(labels[part])) for part in parts} == {1, 2}


def test_the_order_is_the_same_everywhere_and_forever() -> None:
    assert order(10, 7, "iid").tolist() == [8, 7, 4, 2, 3, 5, 6, 1, 0, 9]
    assert order(10, 8, "iid").tolist() != order(10, 7, "iid").tolist()
    assert order(10, 7, "shards").tolist() != order(10, 7, "iid").tolist()


def test_another_seed_is_another_partition() -> None:
    labels = np.arange(600) % 10
    assert not same(iid(600, 10, 1), iid(600, 10, 2))
    assert not same(shards(labels, 10, 2, 1), shards(labels, 10, 2, 2))


def test_what_cannot_be_is_said_with_its_numbers() -> None:
    labels = np.arange(100) % 10
    with pytest.raises(ConfigError, match=r"100 examples are too few for 101 devices"):
        iid(100, 101, 0)
    with pytest.raises(ConfigError, match=r"0 devices, expected 1 or more"):
        iid(100, 0, 0)
    with pytest.raises(ConfigError, match=r"100 examples .* 120 shards, 2 .* 60 devices"):
        shards(labels, 60, 2, 0)
    with pytest.raises(ConfigError, match=r"0 shards per device"):
        shards(labels, 60, 0, 0)
