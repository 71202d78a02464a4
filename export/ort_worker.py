"""The sub-process of `export.ort_artifacts`: `python -m export.ort_worker FOLDER`.

Reads `forward.onnx` and `task.json` in FOLDER and writes onnxruntime's artifacts beside them.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import onnx

from fedtide.runtime import import_onnxruntime

_IR_VERSION = 10
"""What onnxruntime 1.19 reads; newer onnx packages would write their own version."""


def main(folder: Path) -> None:
    """Generate the artifacts; failures are exceptions, or the end of the process."""
    import_onnxruntime()
    artifacts: Any = importlib.import_module("onnxruntime.training.artifacts")
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    artifacts.generate_artifacts(
        onnx.load(folder / "forward.onnx"),
        requires_grad=task["parameters"],
        frozen_params=task["others"],
        loss=None,  # it is the graph's first output
        loss_input_names=["loss"],
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=str(folder),
        nominal_checkpoint=True,
        additional_output_names=task["outputs"],
    )
    for name in ("training_model", "optimizer_model"):
        _clean(folder / f"{name}.onnx")
    # The buffer's order is that of the parameters among the training graph's inputs.
    tensors = {*task["parameters"], *task["others"]}
    graph = onnx.load(folder / "training_model.onnx").graph
    order = [value.name for value in graph.input if value.name in tensors]
    (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")


def _clean(path: Path) -> None:
    model = onnx.load(path)
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
