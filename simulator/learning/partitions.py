"""Which device holds which examples.

Every partition is a list of int64 arrays, one a device: indices of training examples, ascending,
each example on exactly one device (`natural` may leave users out). A function of its arguments
only, on every machine and numpy version.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import ConfigError
from simulator.agenda import generator

if TYPE_CHECKING:
    from simulator.learning.datasets import TrainingData

Indices = NDArray[np.int64]
Partition = Literal["iid", "shards", "dirichlet", "natural"]


def divided(
    data: TrainingData,
    partition: Partition,
    devices: int,
    seed: int,
    *,
    shards_per_device: int = 2,
    alpha: float = 0.5,
) -> list[Indices]:
    """A data set's training examples among devices, by the name of a partition.

    Raises:
        ConfigError: the data set does not offer it, or there are too few examples or users.
    """
    if partition == "iid":
        return iid(len(data), devices, seed)
    by, what = (data.groups, "natural users") if partition == "natural" else (data.labels, "labels")
    if by is None:
        raise ConfigError(
            f"the data set {data.name!r} has no {what}, by which {partition!r} divides",
            hint='"shards" and "dirichlet" need labels, "natural" needs users, "iid" neither',
        )
    match partition:
        case "natural":
            return natural(by, devices, seed)
        case "shards":
            return shards(by, devices, shards_per_device, seed)
        case "dirichlet":
            return dirichlet(by, devices, alpha, seed)


def iid(examples: int, devices: int, seed: int) -> list[Indices]:
    """Shuffled, then dealt out evenly: sizes differ by at most one (McMahan et al. 2016, §3).

    Raises:
        ConfigError: there are more devices than examples.
    """
    _enough(examples, devices, "devices")
    return [np.sort(part) for part in np.array_split(order(examples, seed, "iid"), devices)]


def shards(labels: Indices, devices: int, shards_per_device: int, seed: int) -> list[Indices]:
    """Sorted by label and cut into equal shards, some to each device (McMahan et al. 2016, §3).

    The paper's pathological split of MNIST is 100 devices with 2 of 200 shards of 300 examples,
    so that most devices have examples of two digits only. Sizes of shards differ by at most one.

    Raises:
        ConfigError: there are more shards than examples.
    """
    if shards_per_device < 1:
        raise ConfigError(f"there are {shards_per_device} shards per device, expected 1 or more")
    count = devices * shards_per_device
    _enough(len(labels), devices, "devices")
    _enough(len(labels), count, f"shards, {shards_per_device} for each of {devices:,} devices")
    pieces = np.array_split(np.argsort(labels, kind="stable").astype(np.int64), count)
    drawn = order(count, seed, "shards").reshape(devices, shards_per_device)
    return [np.sort(np.concatenate([pieces[shard] for shard in mine])) for mine in drawn]


def dirichlet(
    labels: Indices, devices: int, alpha: float, seed: int, examples_min: int = 1
) -> list[Indices]:
    """Each class divided among the devices in proportions of its own, drawn from Dir(alpha).

    The smaller alpha, the fewer classes a device has: about one at 0.01, nearly the same mix for
    all at 100. Sizes differ, too (Yurochkin et al. 2019, "Bayesian nonparametric federated learning
    of neural networks", §4); Hsu et al. 2019 draw each device's mix instead, at equal sizes.
    Devices with less than `examples_min` then get single examples of whoever has most.

    Raises:
        ConfigError: alpha is not above 0, or there are too few examples for all devices.
    """
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha is {alpha}, expected a number above 0")
    if examples_min < 0:
        raise ConfigError(f"examples_min is {examples_min}, expected 0 or more")
    _enough(len(labels), devices, "devices")
    if devices * examples_min > len(labels):
        raise ConfigError(
            f"{len(labels):,} examples are too few for {devices:,} devices with at least "
            f"{examples_min:,} each",
            hint="ask for fewer",
        )
    shuffled = order(len(labels), seed, "dirichlet")
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        ends = np.cumsum(_proportions(devices, alpha, generator(seed, "dirichlet", label)))
        cuts = np.rint(ends[:-1] * len(mine)).astype(np.int64)
        owner[mine] = np.searchsorted(cuts, np.arange(len(mine)), side="right")
    _top_up(owner, devices, examples_min, shuffled)
    return _by_owner(owner, devices)


def natural(groups: Indices, devices: int, seed: int) -> list[Indices]:
    """A device for each natural user, in the order of their numbers.

    With fewer devices than users, as many users drawn at random; nobody has the others' examples.

    Raises:
        ConfigError: there are more devices than users.
    """
    users, owner = np.unique(groups, return_inverse=True)
    if not 1 <= devices <= len(users):
        raise ConfigError(
            f"there are {len(users):,} natural users, expected as many devices or fewer; "
            f"{devices:,} are asked for",
            hint="ask for fewer, or divide the examples otherwise",
        )
    parts = _by_owner(owner, len(users))
    return [parts[user] for user in np.sort(order(len(users), seed, "natural")[:devices])]


def _proportions(count: int, alpha: float, lots: random.Random) -> NDArray[np.float64]:
    """float64[count], from Dir(alpha, ..., alpha): gamma variates, divided by their sum.

    In logarithms, because most variates of a small alpha are too small for a float:
    Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha).
    """
    logs = np.array(
        [
            math.log(lots.gammavariate(alpha + 1, 1)) + math.log(1 - lots.random()) / alpha
            for _ in range(count)
        ]
    )
    weights: NDArray[np.float64] = np.exp(logs - logs.max())
    weights /= weights.sum()
    return weights


def _top_up(owner: Indices, devices: int, examples_min: int, shuffled: Indices) -> None:
    """Give single examples of whoever has most to those with less than `examples_min`."""
    sizes = np.bincount(owner, minlength=devices)
    poor = np.repeat(np.arange(devices), np.maximum(examples_min - sizes, 0))
    if not len(poor):
        return
    rich = [(-int(sizes[device]), int(device)) for device in np.flatnonzero(sizes > examples_min)]
    heapq.heapify(rich)
    held = [iter(shuffled[places]) for places in _by_owner(owner[shuffled], devices)]
    for taker in poor:
        size, giver = rich[0]
        owner[next(held[giver])] = taker
        heapq.heapreplace(rich, (size + 1, giver))


def _by_owner(owner: Indices, devices: int) -> list[Indices]:
    """The examples of each device, given the device of each example."""
    ends = np.cumsum(np.bincount(owner, minlength=devices))[:-1]
    return np.split(np.argsort(owner, kind="stable").astype(np.int64, copy=False), ends)


def order(count: int, seed: int, *names: object) -> Indices:
    """int64[count], a shuffle of 0 ... count - 1, another one for each seed and names.

    It sorts raw Philox numbers, whose stream is fixed, where `Generator.permutation` may change
    between versions of numpy; as `edge_client.training.epoch_order` does.
    """
    numbers = philox("partition", seed, *names).random_raw(count)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)


def philox(*names: object) -> np.random.Philox:
    """A generator of its own for each sequence of names, the same everywhere."""
    key = hashlib.sha256("/".join(map(str, names)).encode()).digest()[:16]
    return np.random.Philox(key=np.frombuffer(key, "<u8").astype(np.uint64))


def _enough(examples: int, parts: int, what: str) -> None:
    if parts < 1:
        raise ConfigError(f"there are {parts:,} {what}, expected 1 or more")
    if parts > examples:
        raise ConfigError(
            f"{examples:,} examples are too few for {parts:,} {what}",
            hint="ask for fewer devices, or other data",
        )
