"""Partitions: every example on exactly one device, the same ones for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedtide.errors import ConfigError
from simulator.learning.partitions import (
    Indices,
    Partition,
    dirichlet,
    divided,
    iid,
    natural,
    order,
    shards,
)

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


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=300),
    st.integers(1, 40),
    st.floats(1e-4, 1e4),
    st.integers(0, 10),
    SEEDS,
)
def test_dirichlet(labels: list[int], devices: int, alpha: float, least: int, seed: int) -> None:
    y = np.array(labels, np.int64)
    devices = min(devices, len(y))
    least = min(least, len(y) // devices)
    parts = dirichlet(y, devices, alpha, seed, least)
    check(parts, len(y))
    assert len(parts) == devices
    assert min(len(part) for part in parts) >= least
    assert same(parts, dirichlet(y, devices, alpha, seed, least))


def test_a_smaller_alpha_is_a_more_uneven_mix() -> None:
    labels = np.tile(np.arange(10), 1000)
    kinds = []
    for alpha in (0.01, 0.3, 100):
        parts = dirichlet(labels, 20, alpha, seed=1)
        kinds.append(np.mean([len(np.unique(labels[part])) for part in parts]))
    assert kinds[0] < 3 < kinds[1] < 10 == kinds[2]
    sizes = [len(part) for part in dirichlet(labels, 20, 1e4, seed=1)]
    assert max(sizes) < 1.1 * min(sizes)


def test_dirichlet_is_the_same_everywhere_and_forever() -> None:
    parts = dirichlet(np.arange(12) % 3, 3, 0.5, 7, 2)
    assert [part.tolist() for part in parts] == [[9, 10], [0, 1, 2, 4, 7], [3, 5, 6, 8, 11]]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), SEEDS)
def test_natural_users_and_as_many_devices(groups: list[int], seed: int) -> None:
    of = np.array(groups, np.int64)
    parts = natural(of, len(set(groups)), seed)
    check(parts, len(of))
    assert [set(of[part]) for part in parts] == [{user} for user in sorted(set(groups))]
    some = natural(of, 1 + len(parts) // 2, seed)
    assert len(some) == 1 + len(parts) // 2
    places = [next(i for i, part in enumerate(parts) if np.array_equal(part, one)) for one in some]
    assert places == sorted(set(places))
    assert same(some, natural(of, len(some), seed))


class Data:
    """As much of a data set as a partition asks for."""

    name = "mine"

    def __init__(self, *, labels: Indices | None = None, groups: Indices | None = None) -> None:
        self.labels, self.groups = labels, groups

    def __len__(self) -> int:
        return 40


def test_a_partition_by_its_name() -> None:
    of = np.arange(40) % 10
    data = Data(labels=of, groups=of)
    expected: dict[Partition, list[Indices]] = {
        "iid": iid(40, 5, 1),
        "shards": shards(of, 5, 3, 1),
        "dirichlet": dirichlet(of, 5, 0.2, 1),
        "natural": natural(of, 5, 1),
    }
    for name, parts in expected.items():
        found = divided(data, name, 5, 1, shards_per_device=3, alpha=0.2)  # type: ignore[arg-type]
        assert same(found, parts)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("shards", "labels"), ("dirichlet", "labels"), ("natural", "natural users")],
)
def test_a_partition_that_the_data_do_not_offer(name: Partition, missing: str) -> None:
    said = f"the data set 'mine' has no {missing}, by which '{name}' divides"
    with pytest.raises(ConfigError, match=said):
        divided(Data(), name, 5, 1)  # type: ignore[arg-type]
    divided(Data(), "iid", 5, 1)  # type: ignore[arg-type]


def test_ten_thousand_devices() -> None:
    labels = np.tile(np.arange(10), 6000)
    for parts in (dirichlet(labels, 10_000, 0.1, 1, 2), shards(labels, 10_000, 2, 1)):
        check(parts, 60_000)
        assert len(parts) == 10_000


@pytest.mark.parametrize("planted", ["lost", "twice", "unsorted"])
def test_the_check_notices_a_planted_fault(planted: str) -> None:
    parts = iid(100, 10, 1)
    if planted == "lost":
        parts[3] = parts[3][:-1]
    elif planted == "twice":
        parts[3][0] = parts[4][0]
    else:
        parts[3] = parts[3][::-1]
    with pytest.raises(AssertionError):
        check(parts, 100)


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
    with pytest.raises(ConfigError, match=r"10 natural users, .* 11 are asked for"):
        natural(labels, 11, 0)
    with pytest.raises(ConfigError, match=r"10 natural users, .* 0 are asked for"):
        natural(labels, 0, 0)
    with pytest.raises(ConfigError, match=r"alpha is 0, expected a number above 0"):
        dirichlet(labels, 10, 0, 0)
    with pytest.raises(ConfigError, match=r"alpha is nan"):
        dirichlet(labels, 10, math.nan, 0)
    with pytest.raises(ConfigError, match=r"100 examples are too few for 101 devices"):
        dirichlet(labels, 101, 1, 0)
    with pytest.raises(ConfigError, match=r"100 .* too few for 10 devices with at least 11 each"):
        dirichlet(labels, 10, 1, 0, 11)
    with pytest.raises(ConfigError, match=r"examples_min is -1"):
        dirichlet(labels, 10, 1, 0, -1)
