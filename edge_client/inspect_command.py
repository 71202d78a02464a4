"""`fedtide inspect BUNDLE`: what a bundle holds and what it will cost a device."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from edge_client.arithmetic import measure_speed
from edge_client.description import as_text, describe
from edge_client.trainers.opening import available_runtimes
from fedtide import limits
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import BundleError
from fedtide.manifest import File
from fedtide.onnx_scan import ORT_TRAINING_OPERATORS, Scan, scan_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(parsed: argparse.Namespace) -> int:
    """Check every file and print what the bundle holds; runs nothing of it.

    Raises:
        BundleError: the bundle is damaged, or a device would refuse it.
    """
    bundle = open_bundle_dir(parsed.bundle)
    manifest = bundle.manifest
    for name, entry in manifest.files.items():
        _check_file(parsed.bundle / name, name, entry)
    told = describe(
        manifest,
        bundle.digest,
        _scans(bundle),
        available_runtimes(),
        measure_speed() if manifest.estimates is not None else None,
    )
    print(json.dumps(told, indent=1) if parsed.json else as_text(told))
    return 0


def _check_file(path: Path, name: str, entry: File) -> None:
    """As `Bundle.read` does, but of any size, in constant memory."""
    try:
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise BundleError(
                f"{name!r} is damaged: it is no file of {entry.size_bytes:,} bytes",
                hint="copy or export the bundle again",
            )
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise BundleError(f"{name!r} of the bundle cannot be read: {exc}") from exc
    if actual != entry.sha256:
        raise BundleError(
            f"{name!r} is damaged: its SHA-256 is {actual[:12]}…, not {entry.sha256[:12]}…",
            hint="copy or export the bundle again",
        )


def _scans(bundle: Bundle) -> dict[str, Scan]:
    runtimes, files = bundle.manifest.runtimes, bundle.manifest.files
    ort = runtimes.ort_training
    ours = (runtimes.portable.train, runtimes.portable.evaluate)
    scans = {}
    for path in (*ours, *((ort.train, ort.optimizer) if ort is not None else ())):
        if files[path].size_bytes > limits.GRAPH_BYTES_MAX:  # before it is read
            raise BundleError(
                f"{path!r} has {files[path].size_bytes:,} bytes, at most "
                f"{limits.GRAPH_BYTES_MAX:,} are loaded"
            )
        extra = {} if path in ours else ORT_TRAINING_OPERATORS
        try:
            scans[path] = scan_model(bundle.read(path), extra_domains=extra)
        except BundleError as exc:
            raise BundleError(f"{path!r}: {exc}") from exc
    return scans
