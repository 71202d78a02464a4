"""What every benchmark records beside its figures: versions, machine, raw samples."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "results"
_PACKAGES = (
    "fedtide", "numpy", "paho-mqtt", "msgspec", "onnxruntime", "onnxruntime-training-cpu", "torch",
    "cryptography",
)  # fmt: skip


def save(name: str, figures: dict[str, Any], samples: dict[str, Any]) -> None:
    """Write `results/<name>.json` and print the figures."""
    RESULTS.mkdir(exist_ok=True)
    record = {"figures": figures, "samples": samples, "versions": versions(), "machine": machine()}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: figures}))


def versions() -> dict[str, str]:
    """Versions of what is installed here."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    info = Path("/proc/cpuinfo")
    models = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": pages * page,
        "system": platform.platform(),
    }


def pss_bytes(process_id: int) -> int:
    """Proportional set size of one process now."""
    for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in smaps_rollup")


def gemm_flops_per_second(size: int = 512) -> float:
    """The best rate of float32 matrix products on one core, by onnxruntime: a physical limit."""
    from onnx import TensorProto, helper

    from fedtide.runtime import load_session

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "abc"]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "graph", value[:2], value[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = load_session(model.SerializeToString())
    feeds = {name: np.ones((size, size), np.float32) for name in "ab"}
    best = math.inf
    for _ in range(50):
        started = time.process_time()
        for _ in range(10):
            session.run(None, feeds)
        best = min(best, (time.process_time() - started) / 10)
    return 2 * size**3 / best
