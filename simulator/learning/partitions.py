"""Which device holds which examples.

Every partition is a list of int64 arrays, one a device: indices of training examples, ascending,
each example on exactly one device. A function of its arguments only, on every machine and numpy
version.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import ConfigError

Indices = NDArray[np.int64]


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


def order(count: int, seed: int, *names: object) -> Indices:
    """int64[count], a shuffle of 0 ... count - 1, another one for each seed and names.

    It sorts raw Philox numbers, whose stream is fixed, where `Generator.permutation` may change
    between versions of numpy; as `edge_client.training.epoch_order` does.
    """
    numbers = _philox(seed, *names).random_raw(count)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)


def _philox(seed: int, *names: object) -> np.random.Philox:
    text = "/".join(str(name) for name in ("partition", seed, *names))
    key = hashlib.sha256(text.encode()).digest()[:16]
    return np.random.Philox(key=np.frombuffer(key, "<u8").astype(np.uint64))


def _enough(examples: int, parts: int, what: str) -> None:
    if parts < 1:
        raise ConfigError(f"there are {parts:,} {what}, expected 1 or more")
    if parts > examples:
        raise ConfigError(
            f"{examples:,} examples are too few for {parts:,} {what}", hint="ask for fewer"
        )
