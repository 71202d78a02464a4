"""What PyTorch computes for a model of `tests/models.py`: `python -m tests.expected NAME FILE`.

Runs where torch is; the file is what environments without torch compare with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import tests.models
from export.inspection import inspect_model
from export.verification import compute_expected


def main(name: str, path: Path) -> None:
    model = inspect_model(getattr(tests.models, name)(), name)
    expected = compute_expected(model, seed=42)
    arrays: dict[str, Any] = {"start": expected.start, "losses": np.array(expected.losses)}
    for index, (x, y) in enumerate(expected.batches):
        arrays |= {f"x{index}": x.numpy(), f"y{index}": y.numpy()}
        arrays[f"vector{index}"] = expected.vectors[index]
    arrays["evaluation_loss"] = np.array(expected.evaluation_loss)
    arrays["correct"] = np.array(-1 if expected.correct is None else expected.correct)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.rename(path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
