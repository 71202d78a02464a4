"""What takes minutes: the whole demo with all its faults, and the paper's models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedtide.bundle import open_bundle_dir
from tests.end_to_end.test_federation import DEVICE_PYTHON

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("broker", ["mosquitto", "amqtt"])
def test_the_whole_demo_keeps_its_promise(tmp_path: Path, broker: str, seed: int) -> None:
    """Exit code 0: better than every device alone, within two points of central training."""
    flags = ["--plain", "--broker", broker, "--seed", str(seed), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "fedtide", "demo", "--device-python", DEVICE_PYTHON, *flags],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["dropouts"] > 30
    assert figures["late"] > 10
    for log in (tmp_path / "demo-run").rglob("*.log"):
        assert "Traceback" not in log.read_text(errors="replace"), log


@pytest.mark.parametrize(("model", "count"), [("mnist_2nn", 199_210), ("mnist_cnn", 1_663_370)])
def test_the_models_of_the_paper_export_and_verify(tmp_path: Path, model: str, count: int) -> None:
    out = tmp_path / model
    subprocess.run(
        [sys.executable, "-m", "fedtide", "export", f"export.models.fedavg:{model}", "--out", out],
        check=True,
    )
    manifest = open_bundle_dir(out).manifest
    assert manifest.elements_count == count
    assert manifest.runtimes.portable is not None
