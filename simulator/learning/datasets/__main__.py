"""`python -m simulator.learning.datasets`: what data there are, and fetch what is missing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from fedtide.errors import FedtideError
from simulator.learning.datasets import DATA_SETS, TrainingData, data_folder, open_data_set
from simulator.learning.datasets.download import download


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulator.learning.datasets")
    parser.add_argument("name", nargs="?", choices=sorted(DATA_SETS), help="default: all")
    parser.add_argument(
        "--data-dir", type=Path, metavar="FOLDER", help="default: FEDTIDE_DATA, else the cache"
    )
    parser.add_argument("--download", action="store_true", help="fetch the files that are missing")
    parsed = parser.parse_args(arguments)
    if parsed.download and parsed.name is None:
        parser.error("--download needs the name of one data set")
    data_dir = parsed.data_dir or data_folder()
    try:
        if parsed.name is None:
            return _all(data_dir)
        if parsed.download:
            download(parsed.name, data_dir, lambda line: print(line, flush=True))
        print(*_described(open_data_set(parsed.name, data_dir)), sep="\n")
    except FedtideError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


def _all(data_dir: Path) -> int:
    print(f"in {data_dir}:")
    for name in sorted(DATA_SETS):
        try:
            print(f"{name}: {open_data_set(name, data_dir).about}")
        except FedtideError as exc:
            print(f"{name}: {Exception.__str__(exc)}")
    return 0


def _described(data: TrainingData) -> list[str]:
    some = data.examples(np.arange(1))
    lines = [
        data.about,
        f"x {some.x.dtype}{list(some.x.shape[1:])}, y {some.y.dtype}{list(some.y.shape[1:])}; "
        f"{len(data):,} examples to train on, {len(data.test.y):,} to test",
    ]
    if data.labels is not None:
        counts = enumerate(np.bincount(data.labels))
        lines.append("of each class: " + ", ".join(f"{label}: {n:,}" for label, n in counts))
    if data.groups is not None:
        sizes = np.bincount(data.groups)
        lines.append(
            f"{len(sizes):,} natural users with {sizes.min():,} to {sizes.max():,} examples, "
            f"{sizes.mean():.1f} on average, {np.median(sizes):.0f} in the middle"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
