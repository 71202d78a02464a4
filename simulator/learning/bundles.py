"""A bundle by the name of a model: exported once on this machine, and kept."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from fedtide import __version__
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import ConfigError, ExportError, StateError
from fedtide.manifest import MANIFEST_NAME
from simulator.learning.datasets.catalogue import cache_folder

MODELS = {
    "mnist_2nn": "export.models.fedavg:mnist_2nn",
    "mnist_lr": "export.models.fedavg:mnist_lr",
    "mnist_cnn": "export.models.fedavg:mnist_cnn",
    "cifar_cnn": "export.models.fedavg:cifar_cnn",
    "char_lstm": "export.models.fedavg:char_lstm",
    "word_lstm": "export.models.fedavg:word_lstm",
    "digits": "demo.model:digits_mlp",
}
EXPORT_S = 600.0


def named_bundle(model: str, base: Path = Path()) -> Bundle:
    """The bundle of a model of `MODELS`, or in the folder `model`, relative to `base`.

    The first use of a name exports it, which needs torch and takes some seconds to a minute.

    Raises:
        ConfigError: neither a name nor a folder, or there is no torch to export it with.
        BundleError: what is in the folder is no bundle.
        ExportError: the export failed.
        StateError: the disk that has the cache is full or failing.
    """
    target = MODELS.get(model)
    if target is None:
        folder = base / model
        if not folder.is_dir():
            raise ConfigError(
                f"model {model!r} is neither the folder of a bundle nor one of: {', '.join(MODELS)}"
            )
        return open_bundle_dir(folder)
    folder = cache_folder() / "bundles" / f"{model}-{_version_of(target)}"
    if not (folder / MANIFEST_NAME).exists():
        _export(model, target, folder)
    return open_bundle_dir(folder)


def _version_of(target: str) -> str:
    """Of what decides a bundle's content: a bundle of an earlier version is not taken for it."""
    folders = {
        Path(__file__).parents[2] / name for name in ("export", target.split(".", maxsplit=1)[0])
    }
    digest = hashlib.sha256(f"{__version__} {target}".encode())
    for folder in sorted(folders):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _export(model: str, target: str, folder: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"the model {model!r} must be exported first, and torch is not installed here",
            hint=f"where it is: fedtide export {target} --out {model}; then give that folder as "
            "the model",
        )
    print(
        f"exporting {model} to {folder}, once; up to a minute or two ...",
        file=sys.stderr,
        flush=True,
    )
    command = [sys.executable, "-m", "fedtide", "export", target, "--out", str(folder)]
    command += ["--runtime", "portable"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_S, check=False)
    if done.returncode:
        told = done.stderr.partition("fedtide: error: ")[2] or done.stderr[-2000:]
        kind = StateError if done.returncode == StateError.exit_code else ExportError
        raise kind(f"the export of {model!r} failed: {told.strip()}")
