"""`verification.npz` of a bundle: some steps, and what PyTorch computed for them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.fingerprint import PROJECTIONS, Fingerprint, Floats
from edge_client.trainers import AnyArray
from edge_client.trainers.batches import check_batch
from fedtide.bundle import Bundle
from fedtide.errors import BundleError, DataError
from fedtide.manifest import Manifest

_STEPS_MAX = 64


@dataclass(frozen=True)
class RecordedSteps:
    """Consecutive steps of plain SGD from `fingerprint.start_near(initial model, noise_seed)`.

    The seed of a step's dropout is the step's index from 0.
    """

    noise_seed: int
    learning_rate: float
    batches: tuple[tuple[AnyArray, AnyArray], ...]
    """x[b, ...] and y[b, ...] of each step."""
    losses: Floats
    """float64[steps, 2]: sum and weight of the loss of each step."""
    changes: tuple[Fingerprint, ...]
    """Of the model after each step, less the start."""
    gradient: Fingerprint
    """Of the sum of the first batch's losses, at the start; zero for what is no parameter."""
    evaluation: Floats
    """float64[measures, 2]: sum and weight of the loss and each metric of the manifest, of the
    last model on the first batch."""


def encode_recorded_steps(steps: RecordedSteps) -> bytes:
    """The content of the file: an .npz without compression."""
    fingerprints = (*steps.changes, steps.gradient)
    arrays: dict[str, AnyArray] = {
        "noise_seed": np.array(steps.noise_seed, np.int64),
        "learning_rate": np.array(steps.learning_rate, np.float64),
        "losses": steps.losses,
        "evaluation": steps.evaluation,
        "largest": np.stack([part.largest for part in fingerprints]),
        "mean_square": np.stack([part.mean_square for part in fingerprints]),
        "projections": np.stack([part.projections for part in fingerprints]),
    }
    for index, (x, y) in enumerate(steps.batches):
        arrays |= {f"x{index}": x, f"y{index}": y}
    file = io.BytesIO()
    save: Any = np.savez
    save(file, **arrays)
    return file.getvalue()


def read_recorded_steps(bundle: Bundle) -> RecordedSteps:
    """What the bundle's export recorded.

    Raises:
        BundleError: it recorded nothing, or the file is damaged or does not fit the manifest.
    """
    path = bundle.manifest.verification
    if path is None:
        raise BundleError(
            "the bundle does not say what PyTorch computed",
            hint="export the model again with this version of fedtide",
        )
    try:
        return _decode(_load(bundle.read(path)), bundle.manifest)
    except KeyError as exc:
        raise BundleError(f"{path!r} does not fit the bundle: it has no array {exc}") from exc
    except (ValueError, TypeError, OverflowError, DataError) as exc:
        raise BundleError(f"{path!r} does not fit the bundle: {exc}") from exc


def _load(raw: bytes) -> dict[str, AnyArray]:
    """Raises ValueError. Nothing is compressed; a header that asks for more fails to be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) for array in loaded.values()):
            raise ValueError("it holds something else than arrays")
        return loaded
    except Exception as exc:  # those of numpy and zipfile share no base class
        raise ValueError(f"it cannot be read: {exc}") from exc


def _decode(arrays: dict[str, AnyArray], manifest: Manifest) -> RecordedSteps:
    steps_count = len(arrays["losses"])
    if not 1 <= steps_count <= _STEPS_MAX:
        raise ValueError(f"{steps_count} steps")
    batches = tuple(
        check_batch(manifest, arrays[f"x{index}"], arrays[f"y{index}"])
        for index in range(steps_count)
    )
    rows, tensors = steps_count + 1, len(manifest.tensors)
    parts = (
        _floats(arrays, "largest", rows, tensors),
        _floats(arrays, "mean_square", rows, tensors),
        _floats(arrays, "projections", rows, tensors, PROJECTIONS),
    )
    *changes, gradient = (Fingerprint(*row) for row in zip(*parts, strict=True))
    return RecordedSteps(
        noise_seed=int(arrays["noise_seed"][()]),
        learning_rate=float(_floats(arrays, "learning_rate")),
        batches=batches,
        losses=_floats(arrays, "losses", steps_count, 2),
        changes=tuple(changes),
        gradient=gradient,
        evaluation=_floats(arrays, "evaluation", 1 + len(manifest.metrics), 2),
    )


def _floats(arrays: dict[str, AnyArray], name: str, *shape: int) -> NDArray[np.float64]:
    array = arrays[name]
    if array.dtype != np.float64 or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, expected {list(shape)}")
    return array.astype(np.float64)
