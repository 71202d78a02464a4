"""The files that a scenario names, by what is in them: another trace makes another scenario."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedtide.errors import ConfigError
from fedtide.manifest import MANIFEST_NAME
from simulator.fleet.profiles import MODELS
from simulator.fleet.scenario import Scenario


def input_digests(scenario: Scenario) -> dict[str, str]:
    """SHA-256 of the trace, of benchmarks, and of the manifest of a model in a folder, by key.

    A manifest has the digests of its bundle's files. Models by name are the program's own.

    Raises:
        ConfigError: one cannot be read.
    """
    return {key: _digest(key, path) for key, path in _files(scenario)}


def differing(recorded: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Keys whose files are not those of then. None: recorded before digests were."""
    if recorded is None:
        return []
    return sorted(key for key in {*recorded, *now} if recorded.get(key) != now.get(key))


def _files(scenario: Scenario) -> Iterator[tuple[str, Path]]:
    if scenario.availability.trace is not None:
        yield "availability.trace", scenario.availability.trace
    for number, group in enumerate(scenario.fleet.group, 1):
        if group.benchmark is not None:
            yield f"fleet.group {number}: benchmark", group.benchmark
    learning = scenario.learning
    if learning.parameters is None and learning.model not in MODELS:
        yield "learning.model", Path(learning.model) / MANIFEST_NAME


def _digest(key: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(f"{key} {str(path)!r} cannot be read: {exc.strerror}") from exc
