"""What the examples of a data set are like, counted in parts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from edge_client.data.rows import Column, LocalDataset, in_parts
from fedtide.manifest import Manifest


def summary(dataset: LocalDataset, manifest: Manifest) -> dict[str, Any]:
    """Counts, shapes, dtypes and ranges, and how often each class occurs; as JSON has them."""
    parts = [part for part in dataset if part is not None and len(part.x)]
    facts: dict[str, Any] = {
        "training": len(dataset.training.x),
        "held_out": 0 if dataset.held_out is None else len(dataset.held_out.x),
        "inputs": f"{manifest.inputs.dtype}{list(manifest.inputs.shape)}",
        "inputs_range": _range([part.x for part in parts]),
        "labels": f"{manifest.labels.dtype}{list(manifest.labels.shape)}",
    }
    labels = [part.y for part in parts]
    if manifest.classes is None:
        return {**facts, "labels_range": _range(labels)}
    counts: Counter[int] = Counter()
    for column in labels:
        for array in in_parts(column):
            values, times = np.unique(array, return_counts=True)
            counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    return {**facts, "classes": {str(label): counts[label] for label in sorted(counts)}}


def _range(columns: list[Column]) -> str:
    lows, highs = [], []
    for column in columns:
        for part in in_parts(column):
            lows.append(part.min())
            highs.append(part.max())
    return f"{min(lows)} to {max(highs)}" if lows else "none"
