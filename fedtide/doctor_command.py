"""`fedtide doctor CONFIG`: what is wrong with an installation or a round, and what to do."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from fedtide import units
from fedtide.checkup import SECONDS, Finding
from fedtide.config import load_config
from fedtide.errors import ConfigError
from fedtide.logs import escaped

PROBLEMS_EXIT_CODE = 8
"""Of none of the errors."""
_SIGNS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}
_DOCTORS = {
    "coordinator": "coordinator.doctor",
    "client": "edge_client.doctor",
    "registrar": "registrar.doctor",
}


class _Doctor(Protocol):
    """What a doctor's module offers."""

    def check(self, path: Path, seconds: float) -> Iterator[Finding]:
        """Everything that can be found out within `seconds`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="coordinator.toml, client.toml or registrar.toml",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(parsed: argparse.Namespace) -> int:
    """Check everything; 0 if nothing is wrong, 8 if there is a problem.

    Raises:
        ConfigError: the file is no configuration of coordinator, client or registrar.
    """
    began_s = time.monotonic()
    kind = _kind(parsed.config)
    # In its sandbox a client sees other folders than its user does.
    if kind == "client" and (unit := units.unit_for(kind, parsed.config)):
        as_json = ["--json"] if parsed.json else []
        return units.try_out(unit, "doctor", *as_json, str(parsed.config.absolute()))
    doctor: _Doctor = importlib.import_module(_DOCTORS[kind])
    found: list[Finding] = []
    for finding in doctor.check(parsed.config, SECONDS):
        found.append(finding)
        if not parsed.json:
            print(_lines(finding), flush=True)
    counts = {level: sum(f.level == level for f in found) for level in _SIGNS}
    took_s = time.monotonic() - began_s
    if parsed.json:
        told = {"problems": counts["problem"], "warnings": counts["warning"], "findings": found}
        print(msgspec.json.encode(told).decode())
    else:
        print(
            f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok "
            f"in {took_s:.1f} s"
        )
    return PROBLEMS_EXIT_CODE if counts["problem"] else 0


def _kind(path: Path) -> Literal["client", "coordinator", "registrar"]:
    keys = load_config(path, dict)
    if "device" in keys or "data" in keys:
        return "client"
    if "bundle" in keys:
        return "coordinator"
    if "broker_dir" in keys:
        return "registrar"
    raise ConfigError(
        f"{str(path)!r} is neither a coordinator's configuration (it has a bundle) nor a client's "
        "(it has a device), nor a registrar's (it has a broker_dir)",
        hint="docs/configuration.md shows them",
    )


def _lines(finding: Finding) -> str:
    what = f"{_SIGNS[finding.level]} {escaped(finding.what)}"
    return f"{what}\n        -> {escaped(finding.todo)}" if finding.todo else what
