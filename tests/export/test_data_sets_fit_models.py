"""Each data set through the model that it is for: shapes, dtypes, ranges, a finite loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export import ModelSpec
from export.losses import label_array, resolve_loss
from export.models import fedavg
from simulator.learning.datasets import open_data_set
from tests.unit.test_cifar10 import put as put_cifar10
from tests.unit.test_data_sets import mnist_files, plays

CASES: dict[str, tuple[Callable[[Path], object], Callable[[], ModelSpec]]] = {
    "mnist": (mnist_files, fedavg.mnist_2nn),
    "cifar10": (put_cifar10, fedavg.cifar_cnn),
    "shakespeare": (plays, fedavg.char_lstm),
    "shakespeare_sequences": (plays, fedavg.char_lstm),
    "shakespeare_words": (plays, fedavg.word_lstm),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_model_takes_the_data(tmp_path: Path, name: str) -> None:
    put, make = CASES[name]
    put(tmp_path)
    data, spec = open_data_set(name, tmp_path), make()
    loss = resolve_loss(spec.loss)
    for part in (data.examples(np.arange(len(data))), data.test):
        x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
        assert x.shape[1:] == spec.example_inputs.shape[1:]
        assert x.dtype == spec.example_inputs.dtype
        with torch.no_grad():
            output = spec.module(x)
        expected, classes = label_array(loss, output)
        assert tuple(y.shape[1:]) == tuple(expected.shape)
        assert str(part.y.dtype) == expected.dtype
        real = part.y[part.y != loss.ignored_label]
        assert classes is not None
        assert 0 <= int(real.min()) <= int(real.max()) < classes
        total, weight = loss.measure(output, y)
        assert float(weight) == real.size
        assert 0 < float(total / weight) < 2 * np.log(classes)
