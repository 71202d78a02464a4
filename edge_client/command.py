"""`fedtide client --config client.toml`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_client.config import ClientConfig
from fedtide.config import load_config
from fedtide.logs import add_log_arguments, start_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="client.toml")
    add_log_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the client until it is told to stop."""
    start_logging(parsed)
    config = load_config(parsed.config, ClientConfig)
    from edge_client.runner import run_client

    run_client(config)
    return 0
