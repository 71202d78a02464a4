"""What an experiment needs to run: its data, divided among devices, and its model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import ConfigError
from repro.experiment import Experiment
from simulator.learning.bundles import named_bundle
from simulator.learning.datasets import TrainingData, data_folder, open_data_set
from simulator.learning.datasets.download import download
from simulator.learning.learner import Learner
from simulator.learning.partitions import Indices, divided


class Setting(NamedTuple):
    """A learner for an experiment's devices, and one line about its data."""

    learner: Learner
    data: str


def fetch(names: set[str], data_dir: Path | None) -> None:
    """Get the data sets that are not there.

    Raises:
        FedtideError: they cannot be fetched.
    """
    for name in sorted(names):
        download(name, data_dir or data_folder(), lambda line: print(line, flush=True))


def open_setting(
    experiment: Experiment, data_dir: Path | None, bundle_folder: Path | None = None
) -> Setting:
    """Open data and model.

    `bundle_folder`: see `bundle_of`.

    Raises:
        ConfigError: there is no such data set, or it has other devices.
        DataError: the data are missing or damaged.
        FedtideError: the model is not there and cannot be exported.
    """
    data = open_data_set(experiment.data, data_dir)
    parts = devices_of(experiment, data)
    return Setting(Learner(bundle_of(experiment, bundle_folder), data, parts), data.about)


def bundle_of(experiment: Experiment, folder: Path | None) -> Bundle:
    """The experiment's model; of `folder`, where it was exported otherwise, if one is given.

    Raises:
        FedtideError: it is not there, or cannot be exported.
    """
    return named_bundle(experiment.model) if folder is None else open_bundle_dir(folder)


def devices_of(experiment: Experiment, data: TrainingData) -> list[Indices]:
    """Which device holds which examples.

    The paper's IID version of data by user has as many devices (McMahan et al. 2016, section 3).

    Raises:
        ConfigError: the data set does not offer this partition, or has another number of users.
    """
    partition = experiment.partition
    if partition in ("natural", "iid_as_natural"):
        users = 0 if data.groups is None else len(np.unique(data.groups))
        if users != experiment.devices:
            raise ConfigError(
                f"the data set {data.name!r} has {users:,} natural users, "
                f"the experiment {experiment.devices:,} devices",
                hint="its file is not the one that the experiment was made for",
            )
    chosen = "iid" if partition == "iid_as_natural" else partition
    return divided(data, chosen, experiment.devices, experiment.seed)
