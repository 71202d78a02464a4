"""An .npz with `x` and `y`, and optionally `x_held_out` and `y_held_out`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from edge_client.data import Loaded, Problems, file_stamp
from edge_client.data.arrays import array_text, from_arrays
from edge_client.data.config import DataConfig
from fedtide.dataset import check_names, load_dataset, read_arrays
from fedtide.manifest import Manifest


class NpzFile:
    """See the module."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._config, self._path = config, config.path

    def stamp(self) -> Hashable:
        """The file's."""
        return file_stamp(self._path)

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """Its arrays."""
        del problems, rows_max  # arrays are taken whole or not at all
        arrays = read_arrays(self._path)
        check_names(arrays, ("x", "y"), repr(str(self._path)))
        return {
            "arrays": {name: array_text(a.shape, a.dtype) for name, a in sorted(arrays.items())}
        }

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """All of it, in memory."""
        del problems  # arrays are taken whole or not at all
        return from_arrays(load_dataset(self._path, manifest, self._config.divisor), self._config)
