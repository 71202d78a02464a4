"""`fedtide verify BUNDLE`: whether the runtimes of this machine compute what PyTorch did."""

from __future__ import annotations

import argparse
import math
import platform
from pathlib import Path
from typing import NamedTuple

from edge_client.child import ask
from edge_client.config import THREADS_MAX
from edge_client.recorded_steps import read_recorded_steps
from edge_client.tables import duration, table
from edge_client.trainers.opening import Runtime, available_runtimes
from edge_client.verification import Finding
from fedtide.bundle import open_bundle_dir
from fedtide.errors import BundleError, ConfigError, VerificationError, install_hint
from fedtide.logs import escaped
from fedtide.manifest import Runtimes
from fedtide.runtime import import_onnxruntime
from fedtide.safetensors import read_initial_model

RUNTIMES: tuple[Runtime, ...] = ("portable", "ort_training")


_SECONDS_MAX = 3600
"""For all steps of one runtime: a machine that is slower will not train the model either."""


class Verdict(NamedTuple):
    """What came of one runtime."""

    text: str
    wrong: Finding | None = None
    failed: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument("--threads", type=_threads, default=1, metavar="N", help="default: 1")


def run(parsed: argparse.Namespace) -> int:
    """Do the steps that the export recorded on every runtime that is here.

    Raises:
        VerificationError: a runtime computes something else.
        BundleError: the bundle is damaged, or has no recorded steps; or a runtime fails.
        ConfigError: no runtime is installed here.
    """
    bundle = open_bundle_dir(parsed.bundle)
    for path in bundle.manifest.files:
        bundle.read(path)  # complete, and undamaged
    if not available_runtimes():
        raise ConfigError("onnxruntime is not installed here", hint=install_hint("client"))
    read_recorded_steps(bundle)  # they fit the manifest, or this says why not
    read_initial_model(bundle)
    version = import_onnxruntime().__version__
    print(
        f"{escaped(bundle.manifest.name)}, bundle {bundle.digest[:12]}: onnxruntime {version}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
    verdicts = {
        runtime: _verdict(parsed.bundle, bundle.manifest.runtimes, runtime, parsed.threads)
        for runtime in RUNTIMES
    }
    print(table([(runtime, verdict.text) for runtime, verdict in verdicts.items()]), flush=True)
    for runtime, verdict in verdicts.items():
        if verdict.failed is not None:
            raise BundleError(f"runtime {runtime} failed: {verdict.failed}")
        if verdict.wrong is not None:
            raise VerificationError(
                f"runtime {runtime}, {verdict.wrong.where}: the error is "
                f"{verdict.wrong.error:.3g} times the allowed one",
                hint="it would train something else than the exported model: please report "
                "the model and this machine; another runtime or version may be right",
            )
    return 0


def _verdict(folder: Path, runtimes: Runtimes, runtime: Runtime, threads: int) -> Verdict:
    if runtime == "ort_training" and runtimes.ort_training is None:
        because = runtimes.ort_training_absent_because or "it was not exported"
        return Verdict(f"not run: the bundle does not offer it: {escaped(because)}")
    if runtime not in available_runtimes():
        return Verdict("not run: onnxruntime.training is not installed here")
    words = [str(folder), runtime, str(threads)]
    found = ask("edge_client.verification", words, _SECONDS_MAX)
    if "error" in found:
        return Verdict("FAILED", failed=found["error"])
    ratio = found["ratio"]
    finding = Finding(math.inf if ratio is None else ratio, found["where"])
    if not finding.error <= 1:
        return Verdict(f"WRONG: {escaped(finding.where)}", finding)
    return Verdict(
        f"as PyTorch: its largest error is {finding.error:.2g} of the allowed one "
        f"({escaped(finding.where)}), {found['steps']} steps in {duration(found['seconds'])}"
    )


def _threads(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= THREADS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {THREADS_MAX}")
    return int(text)
