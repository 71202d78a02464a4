"""`fedtide demo`: a whole federation on this machine, with what goes wrong in real ones."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from demo.outcome import ROUNDS, Outcome
from fedtide.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="data and faults (1)")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"training rounds ({ROUNDS})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="results (results/)"
    )
    parser.add_argument(
        "--broker",
        choices=("auto", "mosquitto", "amqtt"),
        default="auto",
        help="auto takes Mosquitto where it is installed",
    )
    parser.add_argument(
        "--device-python",
        default=os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable),
        metavar="PATH",
        help="Python of the devices with the portable runtime ($FEDTIDE_DEVICE_PYTHON, or this)",
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a live screen")
    parser.add_argument(
        "--faults",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether devices die, lag and vanish",
    )


def run(parsed: argparse.Namespace) -> int:
    """Run the demo; 0 only if the federation did what it promises."""
    if parsed.rounds < 1 or parsed.seed < 0:
        raise ConfigError("--rounds must be at least 1, and --seed at least 0")
    found = shutil.which(parsed.device_python)
    if found is None:
        raise ConfigError(f"--device-python {parsed.device_python!r} is no program")
    python = str(Path(found).absolute())
    # A plain kill must stop the federation's processes as Ctrl-C does, and Ctrl-C must work even
    # where it was inherited as ignored, as in a shell's background job.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    from demo.run import Options, run_demo

    outcome = run_demo(
        Options(
            seed=parsed.seed,
            rounds=parsed.rounds,
            out=parsed.out.resolve(),
            broker=parsed.broker,
            device_python=python,
            plain=parsed.plain,
            faults=parsed.faults,
        )
    )
    print(_summary(outcome, parsed.out))
    failure = outcome.failure()
    if failure is not None:
        print(f"\nfedtide: the demo failed: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def _summary(outcome: Outcome, out: Path) -> str:
    """The end of the story, in a few lines."""
    runtimes = sorted(set(outcome.runtimes.values()))
    mixed = ", ".join(f"{list(outcome.runtimes.values()).count(r)} on {r}" for r in runtimes)
    abandoned = f" ({outcome.abandoned} more abandoned)" if outcome.abandoned else ""
    return f"""
accuracy on {outcome.test_examples} unseen images
  the federation          {outcome.accuracy:7.1%}
  all data in one place   {outcome.central_accuracy:7.1%}
  best device alone       {outcome.best_single_accuracy:7.1%}

{outcome.rounds} rounds{abandoned} over {outcome.broker}, \
{len(outcome.runtimes)} devices ({mixed}), {outcome.seconds:.0f} s in all
{outcome.dropouts} times a device was killed in mid-training, {outcome.late} updates came too late
the exported model, run by onnxruntime, reads {outcome.inference_accuracy:.1%}, as the \
coordinator measured

{out}/demo.html       the report
{out}/demo.json       the figures
{out}/inference.onnx  the model, ready to deploy"""
