"""A training step in onnxruntime-web, in Node: the runtime of browsers computes the same numbers.

Not collected with the other tests (its name says so): it needs Node and 150 MB of a package.
`make test-runtimes` runs it, or `pytest tests/everywhere/web.py`.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtide.bundle import open_bundle_dir
from fedtide.runtime import load_session
from fedtide.vectors import split_vector
from tests.bundles import build
from tests.everywhere.requirements import ROOT

PACKAGE = "onnxruntime-web@1.30.0"
FOLDER = ROOT / "build" / "web"


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder `node_modules` with the package."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"onnxruntime-web needs {' and '.join(missing)}, not installed here")
    stamp = FOLDER / "ready"
    if not stamp.is_file() or stamp.read_text() != PACKAGE:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        command = [
            "npm",
            "install",
            "--silent",
            "--ignore-scripts",
            "--prefix",
            str(FOLDER),
            PACKAGE,
        ]
        subprocess.run(command, check=True)
        stamp.write_text(PACKAGE)
    return FOLDER / "node_modules"


@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_cnn", "tiny_regression"])
def test_a_step_is_the_same_in_onnxruntime_web(name: str, modules: Path, tmp_path: Path) -> None:
    folder = build(name)
    bundle = open_bundle_dir(folder)
    with np.load(folder.parent / "expected.npz", allow_pickle=False) as stored:
        expected = dict(stored)
    graph = bundle.read(bundle.manifest.runtimes.portable.train)
    session = load_session(graph)
    feeds = feeds_of_one_step(session, bundle.manifest, expected)
    names = [node.name for node in session.get_outputs()]
    native = dict(zip(names, session.run(None, feeds), strict=True))
    web = run_in_node(modules, graph, feeds, tmp_path)
    assert set(web) == set(native)
    moved = 0
    for output, value in native.items():
        assert web[output].shape == value.shape
        np.testing.assert_allclose(web[output], value, rtol=1e-5, atol=1e-6, err_msg=output)
        start = feeds.get(output.replace("new.", "tensor.", 1))
        moved += start is not None and not np.array_equal(web[output], start)
    assert moved, "no tensor was changed by the step"


def feeds_of_one_step(session: Any, manifest: Any, expected: dict[str, Any]) -> dict[str, Any]:
    """A value for each input of a training step (docs/bundle.md)."""
    tensors = split_vector(expected["start"], manifest)
    x, y = expected["x0"], expected["y0"]
    scalars = {
        "scale": np.float32(-0.05),
        "denominator": np.float32(len(y)),
        "seed": np.int64(7),
    }
    feeds = {"x": x, "y": y}
    for node in session.get_inputs():
        kind, _, tensor = node.name.partition(".")
        if kind in ("tensor", "base") and tensor:
            feeds[node.name] = np.ascontiguousarray(tensors[tensor])
        elif node.name not in feeds:
            feeds[node.name] = np.asarray(scalars[node.name]).reshape(node.shape)
    return feeds


def run_in_node(modules: Path, graph: bytes, feeds: dict[str, Any], folder: Path) -> dict[str, Any]:
    inputs = {
        name: {"type": value.dtype.name, "dims": value.shape, "data": encode(value.tobytes())}
        for name, value in feeds.items()
    }
    request = folder / "request.json"
    request.write_text(json.dumps({"graph": encode(graph), "inputs": inputs}))
    script = Path(__file__).with_name("step.mjs")
    command = ["node", str(script), str(modules), str(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return {
        name: np.frombuffer(base64.b64decode(item["data"]), item["type"]).reshape(item["dims"])
        for name, item in json.loads(done.stdout).items()
    }


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
