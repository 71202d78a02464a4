"""`fedtide verify BUNDLE`: whether the runtimes of this machine compute what PyTorch did."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import NamedTuple

from edge_client.recorded_steps import RecordedSteps, read_recorded_steps
from edge_client.tables import duration, table
from edge_client.trainers.opening import Runtime, available_runtimes, open_trainer
from edge_client.verification import Finding, compare
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import BundleError, ConfigError, VerificationError, install_hint
from fedtide.logs import escaped
from fedtide.runtime import import_onnxruntime
from fedtide.safetensors import read_initial_model
from fedtide.vectors import Vector

RUNTIMES: tuple[Runtime, ...] = ("portable", "ort_training")


class Verdict(NamedTuple):
    """What came of one runtime."""

    text: str
    wrong: Finding | None = None
    failed: BundleError | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="default: 1")


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
    recorded, initial = read_recorded_steps(bundle), read_initial_model(bundle)
    version = import_onnxruntime().__version__
    print(
        f"{escaped(bundle.manifest.name)}, bundle {bundle.digest[:12]}: onnxruntime {version}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
    verdicts = {
        runtime: _verdict(bundle, runtime, parsed.threads, recorded, initial)
        for runtime in RUNTIMES
    }
    print(table([(runtime, verdict.text) for runtime, verdict in verdicts.items()]), flush=True)
    for runtime, verdict in verdicts.items():
        if verdict.failed is not None:
            raise BundleError(f"runtime {runtime} failed: {verdict.failed}") from verdict.failed
        if verdict.wrong is not None:
            raise VerificationError(
                f"runtime {runtime}, {verdict.wrong.where}: the error is "
                f"{verdict.wrong.error:.3g} times the allowed one",
                hint="it would train something else than the exported model: please report "
                "the model and this machine; another runtime or version may be right",
            )
    return 0


def _verdict(
    bundle: Bundle, runtime: Runtime, threads: int, recorded: RecordedSteps, initial: Vector
) -> Verdict:
    runtimes = bundle.manifest.runtimes
    if runtime == "ort_training" and runtimes.ort_training is None:
        because = runtimes.ort_training_absent_because or "it was not exported"
        return Verdict(f"not run: the bundle does not offer it: {escaped(because)}")
    if runtime not in available_runtimes():
        return Verdict("not run: onnxruntime.training is not installed here")
    started = time.monotonic()
    worst = Finding(0.0, "")
    try:
        trainer = open_trainer(bundle, runtime, threads)
        try:
            for finding in compare(trainer, recorded, initial):
                if not finding.error <= 1:
                    return Verdict(f"WRONG: {escaped(finding.where)}", finding)
                worst = max(worst, finding)
        finally:
            trainer.close()
    except BundleError as exc:
        return Verdict("FAILED", failed=exc)
    took = duration(time.monotonic() - started)
    return Verdict(
        f"as PyTorch: its largest error is {worst.error:.2g} of the allowed one "
        f"({escaped(worst.where)}), {len(recorded.batches)} steps in {took}"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
