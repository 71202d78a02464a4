"""`fedtide registrar --config registrar.toml`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtide.config import load_config
from fedtide.logs import add_log_arguments, start_logging
from registrar.config import RegistrarConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="registrar.toml")
    add_log_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the registrar until it is told to stop."""
    start_logging(parsed)
    config = load_config(parsed.config, RegistrarConfig)
    from registrar.service import run_registrar

    run_registrar(config)
    return 0
