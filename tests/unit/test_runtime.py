"""The door to onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.trainers.opening import available_runtimes
from fedtide.runtime import import_onnxruntime

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not available_runtimes(), reason="no onnxruntime in this environment")
@pytest.mark.parametrize("module", ["fedtide.runtime", "edge_client.doctor", "coordinator.runner"])
def test_onnxruntime_makes_no_id_of_the_machine_and_reports_nothing(
    module: str, tmp_path: Path
) -> None:
    """Its telemetry is silent where `CI` is set, so that it would not be seen there.

    It is initialised at the import: it writes files, and has threads that send.
    """
    program = f"import os, {module}, onnxruntime; print(len(os.listdir('/proc/self/task')))"
    silent = ("CI", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment
        | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) <= 2, done.stdout
    assert not list(tmp_path.rglob("*"))


@pytest.mark.skipif(not available_runtimes(), reason="no onnxruntime in this environment")
def test_an_interruption_of_the_import_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native part makes an ImportError of it."""

    def interrupted(_: str) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as exc:
            raise ImportError("initialization failed") from exc

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with monkeypatch.context() as patched:
        patched.setattr("importlib.import_module", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_onnxruntime()
