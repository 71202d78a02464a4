"""Log lines on stderr, the same for every long-running command."""

from __future__ import annotations

import argparse
import logging
import sys


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--verbose`."""
    parser.add_argument("--verbose", action="store_true", help="log every detail")


def start_logging(parsed: argparse.Namespace) -> None:
    """Write log lines to stderr."""
    logging.basicConfig(
        level=logging.DEBUG if parsed.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
