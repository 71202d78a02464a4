"""Training and test data by name: `open_data_set`."""

from simulator.learning.datasets.catalogue import (
    DATA_SETS,
    TrainingData,
    data_folder,
    open_data_set,
)

__all__ = ["DATA_SETS", "TrainingData", "data_folder", "open_data_set"]
