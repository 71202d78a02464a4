"""The one door to onnxruntime: imported late, without torch, and given scanned bytes only."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedtide import limits
from fedtide.errors import BundleError, ConfigError, install_hint
from fedtide.onnx_scan import scan_model

_TRAINING = "onnxruntime.training"
_NO_DOMAINS: Mapping[str, frozenset[str]] = {}


def training_package() -> Path | None:
    """Folder of `onnxruntime.training`, None if the build has none. Imports nothing."""
    spec = importlib.util.find_spec("onnxruntime")
    for base in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(base) / "training"
        if (folder / "api").is_dir():
            return folder
    return None


def import_onnxruntime() -> Any:
    """The module `onnxruntime`, whichever of its two builds is installed.

    `import onnxruntime` of the training build imports `onnxruntime.training`, and with it torch,
    onnx and h5py where they exist: 598 MB instead of 42 MB. An empty package in its place, with
    the right path, keeps all of it out; its submodules stay importable.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    if "onnxruntime" in sys.modules:
        return sys.modules["onnxruntime"]
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError("onnxruntime is not installed here", hint=install_hint("client"))
    try:
        return _imported(training_package())
    except ImportError as exc:  # which its native part makes of whatever interrupts it
        if _interrupted(exc):
            raise KeyboardInterrupt from exc
        raise


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _imported(folder: Path | None) -> Any:
    if folder is None:
        return importlib.import_module("onnxruntime")
    package = types.ModuleType(_TRAINING)
    package.__path__ = [str(folder)]
    sys.modules[_TRAINING] = package
    # onnxruntime probes for this one and accepts its absence; it is what imports torch.
    probe = f"{_TRAINING}.ortmodule"
    sys.modules[probe] = None  # type: ignore[assignment]
    try:
        module = importlib.import_module("onnxruntime")
    finally:
        del sys.modules[probe]
    module.training = package  # type: ignore[attr-defined]
    return module


def session_options(threads: int) -> Any:
    """`SessionOptions` for a small device: few threads that never spin.

    Measured on the training step of the 1.66 M parameter CNN, batch 10: 79 MB PSS as here, 80
    with the memory pattern, 87 without the arena. On an LSTM of 0.8 M parameters the pattern is
    worth 3 % of the time and costs 20 MB; the arena is worth 10 %.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # a failure is raised; the log would only say it again
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Never guess: bytes that are both ONNX and ORT format would be scanned as one, run as other.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def load_session(
    raw: bytes,
    *,
    threads: int = 1,
    extra_domains: Mapping[str, frozenset[str]] = _NO_DOMAINS,
    bytes_max: int = limits.GRAPH_BYTES_MAX,
) -> Any:
    """An `onnxruntime.InferenceSession` of the ONNX file `raw`, after a scan, on the CPU.

    Raises:
        BundleError: the scan or onnxruntime refuses the model.
        ConfigError: onnxruntime is not installed.
    """
    scan = scan_model(raw, extra_domains=extra_domains, bytes_max=bytes_max)
    ort = import_onnxruntime()
    if scan.operators["", "ScatterND"]:
        # onnxruntime adds rows from several threads at once without a lock, and loses some
        # (measured with 1.19.2 and 1.31.1): such a graph gets one thread, whatever was asked for.
        threads = 1
    try:
        return ort.InferenceSession(
            raw, session_options(threads), providers=["CPUExecutionProvider"]
        )
    except Exception as exc:  # its errors share no base class
        raise BundleError(f"onnxruntime {ort.__version__} refuses the model: {exc}") from exc
