"""How long does it take to make a model of 100 updates of 1,663,370 float32, and how much memory?

The coordinator's own path, from updates on disk to the next model on disk: each is read, checked by
its digest and its values, weighted and added in float64; the model is written and fsynced. Beside
it, in turns, each in a process of its own (ratios are medians of processor time, turn by turn):

- `sum`: the plain numpy sum of the same arrays, which are in memory already, in float32;
- `mean`: fedtide's weighted mean of them, also from memory;
- `flower`, `flower_inplace`: Flower's `aggregate` and `aggregate_inplace` of them, from its own
  form in memory, with a Python that has it: `--flower PYTHON`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ELEMENTS, UPDATES, RUNS = 1_663_370, 100, 9
EXAMPLES = 600
VARIANTS = ("fedtide", "sum", "mean")
OF_FLOWER = ("flower", "flower_inplace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--flower", help="Python of an environment with flwr")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        work(options.variant, options.folder)
        return
    from benchmarks.measurement import save

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_updates(folder, options.updates)
        pythons = dict.fromkeys(VARIANTS, sys.executable)
        if options.flower:
            pythons |= dict.fromkeys(OF_FLOWER, options.flower)
        turns: dict[str, list[dict[str, float]]] = {variant: [] for variant in pythons}
        for _ in range(options.runs):
            for variant, python in pythons.items():
                turns[variant].append(turn(python, variant, folder))
    figures: dict[str, float] = {"updates": options.updates, "elements": ELEMENTS}
    for variant, taken in turns.items():
        for key in taken[0]:
            figures[f"{variant}_{key}"] = round(statistics.median(t[key] for t in taken), 3)
    for other in list(pythons)[1:]:
        pairs = zip(turns["fedtide"], turns[other], strict=True)
        ratio = statistics.median(a["processor_s"] / b["processor_s"] for a, b in pairs)
        figures[f"fedtide_over_{other}"] = round(ratio, 2)
    figures["updates_per_second"] = round(options.updates / figures["fedtide_wall_s"], 1)
    save("aggregation", figures, {"turns": turns})


def turn(python: str, variant: str, folder: Path) -> dict[str, float]:
    """One variant, once."""
    command = [python, str(Path(__file__)), "--variant", variant, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    out = subprocess.check_output(command, env=environment, text=True)
    taken: dict[str, float] = json.loads(out.splitlines()[-1])
    return taken


def write_updates(folder: Path, count: int) -> None:
    """Updates and a model as the coordinator stores them, and the list of their digests."""
    from fedtide.blobs import BlobStore

    store, rng = BlobStore(folder), np.random.default_rng(0)
    refs = [
        store.put((rng.standard_normal(ELEMENTS, np.float32) * 0.05).tobytes())
        for _ in range(count + 1)
    ]
    (folder / "digests").write_text("\n".join(ref.digest for ref in refs))


def work(variant: str, folder: Path) -> None:
    """In a process of its own: prepare, then aggregate once, measured."""
    digests = (folder / "digests").read_text().split()
    prepare = {"fedtide": stored, "sum": plain_sum, "mean": mean_of_arrays}.get(variant)
    aggregate = flower(variant, folder, digests) if prepare is None else prepare(folder, digests)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = memory("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    aggregate()
    taken = {
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
        "extra_mb": (memory("VmHWM") - before) / 1e6,
    }
    print(json.dumps(taken))


def stored(folder: Path, digests: list[str]) -> Callable[[], object]:
    """The coordinator's job, as its service makes it."""
    from coordinator.aggregate_job import Aggregated, AggregateJob, Part, run_aggregate_job
    from fedtide.blobs import BlobStore
    from fedtide.messages import BlobRef, Update

    base, *refs = (BlobRef(digest, 4 * ELEMENTS) for digest in digests)
    parts = tuple(
        Part(
            Update(
                update_id=f"u{number}",
                run_id="r",
                round_id=1,
                kind="train",
                model=base.digest,
                examples=EXAMPLES,
                blob=ref,
                encoding="f32",
                steps=1,
                training_ms=1,
            )
        )
        for number, ref in enumerate(refs)
    )
    job = AggregateJob(1, base, parts, ELEMENTS)
    store = BlobStore(folder)

    def run() -> None:
        result = run_aggregate_job(job, store, None)
        assert isinstance(result, Aggregated), result
        store.discard(result.model.digest)

    return run


def arrays(folder: Path, digests: list[str]) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """All updates in memory."""
    return [np.fromfile(folder / "blobs" / digest, np.float32) for digest in digests[1:]]


def plain_sum(folder: Path, digests: list[str]) -> Callable[[], object]:
    values = arrays(folder, digests)

    def run() -> object:
        total = np.zeros(ELEMENTS, np.float32)
        for value in values:
            total += value
        return total

    return run


def mean_of_arrays(folder: Path, digests: list[str]) -> Callable[[], object]:
    from coordinator.aggregation import Contribution, weighted_mean

    values = [Contribution(EXAMPLES, value) for value in arrays(folder, digests)]
    return lambda: weighted_mean(values, ELEMENTS)


def flower(variant: str, folder: Path, digests: list[str]) -> Callable[[], object]:
    """Of the newest Flower; `aggregate_inplace` reads its own serialised form, from memory."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.server.strategy.aggregate import aggregate, aggregate_inplace

    values = arrays(folder, digests)
    if variant == "flower":
        return lambda: aggregate([([value], EXAMPLES) for value in values])
    results = [
        (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([value]), EXAMPLES, {}))
        for value in values
    ]
    return lambda: aggregate_inplace(results)


def memory(name: str) -> int:
    """A line of this process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
