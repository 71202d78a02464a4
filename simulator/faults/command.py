"""`python -m simulator`: run seeds with faults, or replay one of them."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from simulator.faults.campaign import EXIT_CODES, run_campaign
from simulator.faults.coverage import never_reached
from simulator.faults.world import simulate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=_range, metavar="FROM:TO", help="run these, TO excluded")
    what.add_argument("--seed", type=int, metavar="N", help="replay one, with its transcript")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores"
    )
    parser.add_argument("--coverage", action="store_true", help="list every count at the end")


def _range(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO with FROM < TO, such as 0:1000")
    return range(int(first), int(last))


def run(parsed: argparse.Namespace) -> int:
    """0: every promise was kept; else what was broken (`campaign.EXIT_CODES`)."""
    if parsed.seed is not None:
        return _replay(parsed.seed)
    summary = run_campaign(parsed.seeds, parsed.processes)
    if parsed.coverage:
        for name, count in sorted(summary.counts.items()):
            print(f"{count:12,} {name}")
    for name in never_reached(summary.counts):
        print(f"never reached: {name}")
    print(summary.line(), flush=True)
    return summary.exit_code


def _replay(seed: int) -> int:
    logging.basicConfig(format="    %(name)s: %(message)s", level=logging.INFO, stream=sys.stdout)
    outcome = simulate(seed, tell=True)
    print(f"transcript {outcome.digest}")
    if outcome.failure is None:
        print(f"seed {seed}: every promise was kept; {outcome.ended}")
        return 0
    print(f"seed {seed}: {outcome.failure.kind}: {outcome.failure.text}")
    return EXIT_CODES[outcome.failure.kind]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())
