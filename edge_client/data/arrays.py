"""Examples that come as whole arrays."""

from __future__ import annotations

import numpy as np

from edge_client.data import Loaded
from edge_client.data.choice import chosen_rows, divided, used_part
from edge_client.data.config import DataConfig
from edge_client.data.rows import LocalDataset, LocalExamples
from fedtide.dataset import Dataset


def from_arrays(data: Dataset, config: DataConfig) -> Loaded:
    """Those that are used. Held-out ones that the data name are all used, and no others are."""
    x, y = (np.require(array, requirements="W") for array in data.training)
    rows = chosen_rows(x, config.examples_max, config.choice)
    notes = () if rows is None else (left_out(len(x), config),)
    x, y = used_part(x, rows), used_part(y, rows)
    if data.held_out is None:
        return Loaded(divided(x, y, config.held_out_fraction), notes)
    return Loaded(LocalDataset(LocalExamples(x, y), LocalExamples(*data.held_out)), notes)


def left_out(seen: int, config: DataConfig) -> str:
    """The note about `examples_max`."""
    which = "the newest" if config.choice == "newest" else "a sample:"
    return f"{which} {config.examples_max:,} of {seen:,} examples are used (data.examples_max)"


def array_text(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> str:
    """As in `float32[60, 4]`."""
    return f"{dtype}{list(shape)}"
