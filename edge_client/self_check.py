"""Whether this version of the client runs on this device: `python -m edge_client.self_check`.

Asked by the installer before a new version takes over: everything that the client imports is
there, and it understands the configuration and the saved state. Nothing is connected or written.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from fedtide import __version__
from fedtide.errors import FedtideError
from fedtide.logs import escaped

_MODULES = (
    "onnxruntime",
    "edge_client.command",
    "edge_client.runner",
    "edge_client.trust",
    "edge_client.trainers.portable",
    "fedtide.cli",
    "fedtide.device_command",
    "fedtide.doctor_command",
    "fedtide.status_command",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check; the exit code."""
    parser = argparse.ArgumentParser(prog="edge_client.self_check")
    parser.add_argument("--config", type=Path, metavar="FILE", help="client.toml")
    parsed = parser.parse_args(arguments)
    try:
        print(f"fedtide {__version__}, onnxruntime {_imported()}")
        if parsed.config is not None:
            _check_config(parsed.config)
    except FedtideError as exc:
        print("fedtide: error:", escaped(str(exc)), file=sys.stderr)
        return exc.exit_code
    return 0


def _imported() -> str:
    for module in _MODULES:
        importlib.import_module(module)
    return importlib.metadata.version("onnxruntime")


def _check_config(path: Path) -> None:
    from edge_client.config import ClientConfig
    from edge_client.linking import with_name
    from edge_client.saved_session import SavedSession
    from fedtide.config import load_config

    config = with_name(load_config(path, ClientConfig))
    if config.state_dir.is_dir():
        SavedSession(config.state_dir, config.federation, config.device).load()


if __name__ == "__main__":
    sys.exit(main())
