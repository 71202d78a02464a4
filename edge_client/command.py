"""`fedtide client --config client.toml`, and its actions `benchmark` and `check-data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_client import benchmark_command, check_data_command
from edge_client.config import ClientConfig
from fedtide.config import load_config
from fedtide.errors import ConfigError
from fedtide.logs import add_log_arguments, start_logging
from fedtide.memory_limit import limit_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="client.toml")
    add_log_arguments(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=False)
    help_text = "measure how fast this machine trains a bundle, instead of running the client"
    benchmark = actions.add_parser("benchmark", help=help_text, description=help_text)
    benchmark_command.add_arguments(benchmark)
    help_text = "say what the local data are, and why a model would refuse them"
    check_data = actions.add_parser("check-data", help=help_text, description=help_text)
    check_data_command.add_arguments(check_data)


def run(parsed: argparse.Namespace) -> int:
    """Run the client until it is told to stop, or what is asked for instead."""
    if parsed.action == "benchmark":
        return benchmark_command.run(parsed)
    if parsed.action == "check-data":
        return check_data_command.run(parsed)
    if parsed.config is None:
        raise ConfigError("the client needs --config FILE", hint="see docs/configuration.md")
    start_logging(parsed)
    config = load_config(parsed.config, ClientConfig)
    limit_memory()
    from edge_client.runner import run_client

    run_client(config)
    return 0
