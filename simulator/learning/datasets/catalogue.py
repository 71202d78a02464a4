"""The data sets by name, what each offers, and where their files are."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedtide.dataset import Examples
from fedtide.errors import ConfigError
from simulator.learning.datasets.cifar10 import Cifar10
from simulator.learning.datasets.digits import Digits
from simulator.learning.datasets.mnist import Mnist
from simulator.learning.datasets.shakespeare import ShakespeareCharacters, ShakespeareWords


class TrainingData(Protocol):
    """Examples to divide among devices, kept compactly, and a test set for the coordinator."""

    @property
    def name(self) -> str:
        """As in `open_data_set`."""

    @property
    def about(self) -> str:
        """One line for people: how much there is, and how it differs from the original."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64[n], the class of each training example; None: they have no single class."""

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """int64[n], the natural user of each training example, 0, 1, ...; None: there are none."""

    def __len__(self) -> int:
        """Training examples, n."""

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        """Those training examples, in that order, in the model's shapes and dtypes.

        They are made anew by every call: nothing of them is kept. `seed` decides about random
        augmentation where the set has any, for each example apart; others ignore it.
        """

    @property
    def test(self) -> Examples:
        """The whole test set; made when first asked for."""


DATA_SETS: dict[str, Callable[[Path], TrainingData]] = {
    "cifar10": Cifar10,
    "digits": Digits,
    "mnist": Mnist,
    "shakespeare": ShakespeareCharacters,
    "shakespeare_sequences": partial(ShakespeareCharacters, cut="sequence"),
    "shakespeare_words": ShakespeareWords,
}
"""What opens each, given the folder of all data."""


def open_data_set(name: str, data_dir: Path | None = None) -> TrainingData:
    """The data set of that name from `data_dir` (default: `data_folder`).

    Raises:
        ConfigError: there is none of that name.
        DataError: its files are missing or damaged.
    """
    if name not in DATA_SETS:
        raise ConfigError(
            f"there is no data set {name!r}", hint=f"there are: {', '.join(sorted(DATA_SETS))}"
        )
    return DATA_SETS[name](data_folder() if data_dir is None else data_dir)


def data_folder() -> Path:
    """Where data are by default: $FEDTIDE_DATA, else fedtide/data in the user's cache."""
    if chosen := os.environ.get("FEDTIDE_DATA"):
        return Path(chosen)
    return cache_folder() / "data"


def cache_folder() -> Path:
    """Where this program keeps, for this user, what it can make or get again."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fedtide"
