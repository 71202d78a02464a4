"""`fedtide export FILE_OR_MODULE:FUNCTION --out DIR`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fedtide.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from export.exporting import Exported

_OPSETS = (18, 19, 20, 21)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fedtide export`; imports nothing heavy."""
    parser.add_argument(
        "model",
        metavar="FILE_OR_MODULE:FUNCTION",
        help="a function without arguments that returns export.ModelSpec, such as "
        "my_model.py:build or export.models.fedavg:mnist_cnn",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory of the bundle; missing ones above it are made",
    )
    parser.add_argument("--name", help="name of the model (default: the function's)")
    parser.add_argument(
        "--opset", type=int, choices=_OPSETS, default=_OPSETS[0], help="ONNX opset (default: 18)"
    )
    parser.add_argument(
        "--runtime",
        choices=("all", "portable"),
        default="all",
        help="portable: leave out the artifacts for onnxruntime.training",
    )


def run(args: argparse.Namespace) -> int:
    """Export as `args` say; 0, or an error of `fedtide.errors`.

    Raises:
        ExportError, ConfigError, StateError: see `export.exporting.export_bundle`.
    """
    started = time.monotonic()
    new_folder = not args.out.absolute().parent.exists()
    with _progress() as progress:
        progress("loading the model")
        function, function_name = load_function(args.model)
        try:
            spec = function()
        except Exception as exc:
            raise ExportError(f"{args.model} raised {type(exc).__name__}: {exc}") from exc
        from export.exporting import export_bundle

        exported = export_bundle(
            spec,
            args.out,
            name=args.name or function_name,
            opset=args.opset,
            ort_training=args.runtime == "all",
            progress=progress,
        )
    place = str(args.out)
    if new_folder:
        place += f", in the new folder {str(args.out.parent)!r}"
    _summarise(exported, place, time.monotonic() - started)
    return 0


def load_function(target: str) -> tuple[Callable[[], object], str]:
    """The function that `FILE_OR_MODULE:FUNCTION` names, and its name.

    Raises:
        ConfigError: there is no such file, module or function.
        ExportError: importing it raised.
    """
    source, separator, name = target.rpartition(":")
    if not separator or not source or not name.isidentifier():
        raise ConfigError(
            f"{target!r} names no function", hint="write it as my_model.py:function_name"
        )
    module = _load_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{source!r} has no function {name!r}")
    return function, name


def _load_module(source: str) -> ModuleType:
    path = Path(source)
    is_file = path.suffix == ".py" or "/" in source or path.is_file()
    if is_file and not path.is_file():
        raise ConfigError(f"there is no file {source!r}")
    try:
        if not is_file:
            return importlib.import_module(source)
        # As `python FILE` would: what lies beside the file can be imported.
        sys.path.insert(0, str(path.resolve().parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{source!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    except ModuleNotFoundError as exc:
        raise ConfigError(f"{source!r} cannot be imported: {exc}") from exc
    except ConfigError:
        raise
    except Exception as exc:
        raise ExportError(f"importing {source!r} raised {type(exc).__name__}: {exc}") from exc
    return module


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows each stage on stderr, and at its end how long it took."""
    stages = (
        _SpinningStages()
        if sys.stderr.isatty() and importlib.util.find_spec("rich")
        else _PlainStages()
    )
    started = time.monotonic()
    current = ""

    def progress(stage: str) -> None:
        nonlocal started, current
        if current:
            stages.end(current, f"{time.monotonic() - started:.1f} s")
        started, current = time.monotonic(), stage
        stages.begin(stage)

    try:
        yield progress
    except BaseException:
        stages.end(current, f"stopped after {time.monotonic() - started:.1f} s")
        raise
    else:
        stages.end(current, f"{time.monotonic() - started:.1f} s")
    finally:
        stages.close()


class _PlainStages:
    """A line for each stage."""

    def begin(self, stage: str) -> None:
        print(f"{stage} ...", end=" ", file=sys.stderr, flush=True)

    def end(self, _stage: str, outcome: str) -> None:
        print(outcome, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to undo."""


class _SpinningStages:
    """The same, and a spinner beside the current stage."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr, highlight=False)
        self._status = self._console.status("")
        self._status.start()

    def begin(self, stage: str) -> None:
        self._status.update(stage)

    def end(self, stage: str, outcome: str) -> None:
        self._console.print(f"{stage} ... {outcome}", markup=False)

    def close(self) -> None:
        self._status.stop()


def _summarise(exported: Exported, place: str, seconds: float) -> None:
    manifest = exported.bundle.manifest
    size = sum(entry.size_bytes for entry in manifest.files.values())
    trainable = manifest.trained.stop - manifest.trained.start
    lines = [
        f"{manifest.name}: {manifest.elements_count:,} values, {trainable:,} trainable, "
        f"in {len(manifest.tensors)} tensors",
        f"verified against PyTorch: {', '.join(exported.verified)}",
        f"bundle {exported.bundle.digest[:12]} in {place}: {len(manifest.files) + 1} files, "
        f"{size / 1e6:.1f} MB, {seconds:.1f} s",
    ]
    if manifest.runtimes.ort_training_absent_because:
        lines.insert(2, f"without ort_training: {manifest.runtimes.ort_training_absent_because}")
    print("\n".join(lines), file=sys.stderr)
