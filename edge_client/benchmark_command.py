"""`fedtide client benchmark BUNDLE`: how fast this machine trains a bundle, and in what memory."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from edge_client.child import ask
from edge_client.config import THREADS_MAX
from edge_client.tables import duration, size, table
from edge_client.trainers.opening import Runtime, available_runtimes
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import BundleError, ConfigError, install_hint
from fedtide.logs import escaped

_STARTING_S = 600
"""A configuration may take this much longer than it should: loading, and its slowest steps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    numbers: dict[str, Any] = {"type": _numbers, "metavar": "N[,N...]"}
    parser.add_argument(
        "--batch-size", default=[10], help="examples in a batch (default: 10)", **numbers
    )
    parser.add_argument(
        "--threads", default=[1], help="default: 1", metavar="N[,N...]", type=_threads
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="S", help="for each line of the table (5)"
    )
    parser.add_argument(
        "--runtime",
        choices=("auto", "all", "portable", "ort_training"),
        default="auto",
        help="auto: the one that the client would use",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(parsed: argparse.Namespace) -> int:
    """Measure every combination of what was asked for, one after the other.

    Raises:
        BundleError: the bundle is damaged or cannot be trained here.
        ConfigError: the runtime is not installed here.
    """
    bundle = open_bundle_dir(parsed.bundle)
    configurations = [
        (runtime, threads, batch_size)
        for runtime in _runtimes(bundle, parsed.runtime)
        for threads in parsed.threads
        for batch_size in parsed.batch_size
    ]
    results = []
    for number, (runtime, threads, batch_size) in enumerate(configurations, 1):
        given = {"runtime": runtime, "threads": threads, "batch_size": batch_size}
        print(
            f"{number} of {len(configurations)}: {runtime}, {_count(threads, 'thread')}, batches "
            f"of {batch_size}, {parsed.seconds:g} s ...",
            file=sys.stderr,
            flush=True,
        )
        results.append(given | _measure(parsed.bundle, given, parsed.seconds))
    told = {
        "name": bundle.manifest.name,
        "digest": bundle.digest,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "results": results,
    }
    print(json.dumps(told, indent=1) if parsed.json else _as_text(told))
    failed = next((entry["error"] for entry in results if "error" in entry), None)
    if failed is not None:
        raise BundleError(f"it could not be measured: {failed}")
    return 0


def _runtimes(bundle: Bundle, asked: str) -> tuple[Runtime, ...]:
    available = available_runtimes()
    if not available:
        raise ConfigError("onnxruntime is not installed here", hint=install_hint("client"))
    if asked == "auto":
        return available[:1]
    if asked == "all":
        offered = bundle.manifest.runtimes.ort_training is not None
        return tuple(name for name in available if name == "portable" or offered)
    found = tuple(name for name in available if name == asked)
    if not found:
        raise ConfigError(f"runtime {asked!r} is not installed here, only: {', '.join(available)}")
    return found


def _measure(folder: Path, given: dict[str, Any], seconds: float) -> dict[str, Any]:
    words = [str(folder), *(str(given[key]) for key in ("runtime", "threads", "batch_size"))]
    return ask("edge_client.benchmark", [*words, str(seconds)], seconds + _STARTING_S)


def _as_text(told: dict[str, Any]) -> str:
    rows = [
        ("runtime", "threads", "batch", "median step", "p90", "steps/s", "examples/s", "GFLOP/s",
         "load", "memory before", "peak"),
    ]  # fmt: skip
    for entry in told["results"]:
        head = (entry["runtime"], str(entry["threads"]), str(entry["batch_size"]))
        if "error" in entry:
            rows.append((*head, "failed", *7 * ("",)))
            continue
        before, peak = entry["resident_before_bytes"], entry["resident_peak_bytes"]
        flops = entry["flops_per_s"]
        rows.append(
            (
                *head,
                duration(entry["median_s"]),
                duration(entry["p90_s"]),
                f"{1 / entry['median_s']:,.1f}",
                f"{entry['examples_per_s']:,.0f}",
                "?" if flops is None else f"{flops / 1e9:.3g}",
                duration(entry["load_s"]),
                "?" if before is None else size(before),
                "?" if peak is None else size(peak),
            )
        )
    measured = [entry for entry in told["results"] if "error" not in entry]
    lines = [
        f"{escaped(told['name'])}, bundle {told['digest'][:12]}, on {told['machine']}, "
        f"{_count(told['cores'] or 1, 'core')}",
        table(rows, right=1),
    ]
    if measured:
        lines.append(
            "  memory: of the whole process; before: Python, onnxruntime, a batch, and the "
            f"model once ({size(measured[0]['model_bytes'])})"
        )
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _threads(text: str) -> list[int]:
    return _numbers(text, THREADS_MAX)


def _numbers(text: str, most: int = 1_000_000) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= most for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers from 1 to {most}, such as 1,10"
        )
    return numbers


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds up to a day")
    return number
