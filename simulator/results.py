"""The folder of a simulation: whose results it holds, and which of them still stand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fedtide.errors import ConfigError, DamagedError
from fedtide.files import disk_errors_of, write_atomically
from simulator.fleet.policy_run import as_recorded
from simulator.fleet.record import policy_entry, read_record
from simulator.fleet.scenario import Policy, Scenario

SCENARIO_FILE = "scenario.json"


class Terms(NamedTuple):
    """What decides everything that is recorded."""

    common: dict[str, Any]
    """Of all policies: the scenario without them."""
    entries: dict[str, dict[str, Any]]
    """What the scenario says of each policy alone."""

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Terms:
        """`raw`: a scenario as it is recorded."""
        common = {key: value for key, value in raw.items() if key != "policy"}
        names = [entry["name"] for entry in raw.get("policy") or [policy_entry(raw, "default")]]
        return cls(common, {name: policy_entry(raw, name) for name in names})

    def same_scenario(self, other: Terms) -> bool:
        """Whether policies of both may stand side by side."""
        return self.common == other.common


def record_path(out: Path, policy: str) -> Path:
    """Of a policy."""
    return out / f"{policy}.jsonl.gz"


def models_folder(out: Path, policy: str) -> Path:
    """Of a policy with real learning."""
    return out / f"{policy}.models"


def claim(out: Path, scenario: Scenario, chosen: Sequence[Policy], *, force: bool) -> list[str]:
    """Make the folder this scenario's.

    Results of the same scenario stay, also those of policies that are not chosen. Returns the names
    of the chosen ones whose record was of other settings, and is removed.

    Raises:
        ConfigError: it holds what was recorded of another scenario.
        StateError: it cannot be used.
    """
    path, terms = out / SCENARIO_FILE, Terms.of(as_recorded(scenario))
    wanted = {policy.name: terms.entries[policy.name] for policy in chosen}
    with disk_errors_of(out):
        before = _read(path)
        if before is not None and not before.same_scenario(terms):
            if any(out.glob("*.jsonl.gz")) and not force:
                raise ConfigError(
                    f"{str(out)!r} holds the results of another scenario, seed or size",
                    hint="give another --out, or --force to remove those results",
                )
            _remove_all(out)
            before = None
        entries = {} if before is None else before.entries
        changed = [name for name in wanted if entries.get(name, wanted[name]) != wanted[name]]
        stale = [name for name in changed if record_path(out, name).exists()]
        for name in changed:
            _remove(record_path(out, name), models_folder(out, name))
    raw = {**terms.common, "policy": list((entries | wanted).values())}
    write_atomically(path, msgspec.json.encode(raw))
    return stale


def is_recorded(path: Path, scenario: Scenario, policy: Policy) -> bool:
    """Whether an earlier command came to the end of this policy, under the same terms."""
    from fedtide import __version__

    if not path.exists():
        return False
    try:
        record = read_record(path)
    except DamagedError:
        return False
    header, wanted = record.header, Terms.of(as_recorded(scenario))
    entry = policy_entry(header.scenario, policy.name)
    same = Terms.of(header.scenario).same_scenario(wanted) and entry == wanted.entries[policy.name]
    return record.complete and same and header.fedtide == __version__


def _read(path: Path) -> Terms | None:
    """Terms under which the folder was used before; None: it was not."""
    if not path.exists():
        return None
    try:
        return Terms.of(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return Terms({}, {})  # damaged: nobody's


def _remove_all(out: Path) -> None:
    """What runs of any scenario have left; nothing else that lies there."""
    _remove(*out.glob("*.jsonl.gz"), *out.glob("*.models"))
    _remove(out / "summary.json", out / "report.html")


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
