"""Which runtimes exist here, and the trainer for a bundle."""

from __future__ import annotations

import importlib.util
from typing import Literal

from edge_client.trainers import Trainer
from fedtide.bundle import Bundle
from fedtide.errors import ConfigError
from fedtide.runtime import training_package

Runtime = Literal["portable", "ort_training"]


def available_runtimes() -> tuple[Runtime, ...]:
    """Runtimes installed here, the preferred one first; looks for packages, imports none.

    The portable one is preferred: every bundle has it, and it is as fast (docs/bundle.md).
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    return ("portable",) if training_package() is None else ("portable", "ort_training")


def open_trainer(
    bundle: Bundle, runtime: Literal["auto", "portable", "ort_training"] = "auto", threads: int = 1
) -> Trainer:
    """A trainer for `bundle`, without a model: call its `set_parameters` first.

    Raises:
        ConfigError: the runtime is not installed here.
        BundleError: the bundle does not offer it, or its files are refused.
    """
    available = available_runtimes()
    if runtime != "auto" and runtime not in available:
        raise ConfigError(
            f"runtime {runtime!r} is not installed here, only: {', '.join(available) or 'none'}",
            hint="pip install 'fedtide[client]' installs the portable runtime",
        )
    if not available:
        raise ConfigError("onnxruntime is not installed here", hint="pip install 'fedtide[client]'")
    if runtime == "ort_training":
        from edge_client.trainers.ort_training import OrtTrainingTrainer

        return OrtTrainingTrainer(bundle, threads)
    from edge_client.trainers.portable import PortableTrainer

    return PortableTrainer(bundle, threads)
