"""`fedtide coordinator --config coordinator.toml`."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordinator.config import CoordinatorConfig
from fedtide.config import load_config
from fedtide.logs import add_log_arguments, start_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="coordinator.toml"
    )
    add_log_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the coordinator until the federation is finished or it is told to stop."""
    start_logging(parsed)
    config = load_config(parsed.config, CoordinatorConfig)
    from coordinator.runner import run_coordinator

    return run_coordinator(config)
