"""The flat vector of a model and its parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.trainers import Vector
from fedtide.manifest import Manifest


def check_vector(manifest: Manifest, vector: Vector) -> None:
    """Raise ValueError unless `vector` is float32[elements_count]."""
    expected = (manifest.elements_count,)
    if vector.dtype != np.float32 or vector.shape != expected:
        raise ValueError(
            f"the model is a vector of float32{list(expected)}, "
            f"got {vector.dtype}{list(vector.shape)}"
        )


def split(manifest: Manifest, vector: Vector) -> dict[str, NDArray[np.float32]]:
    """Views of `vector`, by tensor name, in the tensors' shapes."""
    return {
        tensor.name: vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
        for tensor in manifest.tensors
    }
