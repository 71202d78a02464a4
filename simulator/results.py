"""The folder of a simulation: whose results it holds, and which of them still stand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fedtide.errors import ConfigError, DamagedError
from fedtide.files import disk_errors_of, write_atomically
from simulator.fleet.inputs import differing, input_digests
from simulator.fleet.policy_run import as_recorded
from simulator.fleet.record import policy_entry, read_header, read_record
from simulator.fleet.scenario import Policy, Scenario

SCENARIO_FILE = "scenario.json"


class Terms(NamedTuple):
    """What decides everything that is recorded."""

    common: dict[str, Any]
    """Of all policies: the scenario without them."""
    inputs: dict[str, str] | None
    """Digests of the files it names, by key; None: not known, as before they were recorded."""
    entries: dict[str, dict[str, Any]]
    """What the scenario says of each policy alone."""

    @classmethod
    def of(cls, raw: dict[str, Any], inputs: dict[str, str] | None) -> Terms:
        """`raw`: a scenario as it is recorded."""
        common = {key: value for key, value in raw.items() if key != "policy"}
        names = [entry["name"] for entry in raw.get("policy") or [policy_entry(raw, "default")]]
        return cls(common, inputs, {name: policy_entry(raw, name) for name in names})

    @classmethod
    def now(cls, scenario: Scenario) -> Terms:
        """Of a scenario and its files as they are.

        Raises:
            ConfigError: a file cannot be read.
        """
        return cls.of(as_recorded(scenario), input_digests(scenario))

    def other_than(self, before: Terms) -> str:
        """Why policies of both cannot stand side by side; empty: they can."""
        if self.common != before.common:
            return "of another scenario, seed or size"
        changed = differing(before.inputs, self.inputs or {})
        return f"with another file as {', '.join(changed)}" if changed else ""


def record_path(out: Path, policy: str) -> Path:
    """Of a policy."""
    return out / f"{policy}.jsonl.gz"


def models_folder(out: Path, policy: str) -> Path:
    """Of a policy with real learning."""
    return out / f"{policy}.models"


def claim(
    out: Path, scenario: Scenario, chosen: Sequence[Policy], *, force: bool
) -> dict[str, str]:
    """Make the folder this scenario's.

    Results of the same scenario stay, also those of policies that are not chosen. Returns the names
    of the chosen ones whose record is removed, and why: for a person to read.

    Raises:
        ConfigError: it holds what was recorded of another scenario, or with other files.
        StateError: it cannot be used.
    """
    path, terms = out / SCENARIO_FILE, Terms.now(scenario)
    wanted = {policy.name: terms.entries[policy.name] for policy in chosen}
    with disk_errors_of(out):
        before = _read(path)
        other = "" if before is None else terms.other_than(before)
        if other:
            if any(out.glob("*.jsonl.gz")) and not force:
                raise ConfigError(
                    f"{str(out)!r} holds results {other}",
                    hint="give another --out, or --force to remove those results",
                )
            _remove_all(out)
            before = None
        entries = {} if before is None else before.entries
        stale = {}
        for name, entry in wanted.items():
            record, models = record_path(out, name), models_folder(out, name)
            why = _other_program(record)
            if entries.get(name, entry) != entry:
                why = "is another one than that recorded"
            if why:
                if record.exists():
                    stale[name] = why
                _remove(models, record)  # in this order: no models stay that nobody can place
    raw = {**terms.common, "inputs": terms.inputs, "policy": list((entries | wanted).values())}
    write_atomically(path, msgspec.json.encode(raw))
    return stale


def is_recorded(path: Path, scenario: Scenario, policy: Policy) -> bool:
    """Whether an earlier command came to the end of this policy, under the same terms."""
    if not path.exists():
        return False
    wanted = Terms.now(scenario)
    try:
        record = read_record(path)
        before = Terms.of(record.header.scenario, record.header.inputs)
    except (DamagedError, KeyError, TypeError):
        return False
    same = before.entries.get(policy.name) == wanted.entries[policy.name]
    return record.complete and same and not wanted.other_than(before)


def _other_program(path: Path) -> str:
    """Who made a record, if another version of fedtide did: its fleet may have done otherwise."""
    from fedtide import __version__

    if not path.exists():
        return ""
    try:
        version = read_header(path).fedtide
    except DamagedError:
        return ""
    return "" if version == __version__ else f"was recorded by fedtide {version}"


def _read(path: Path) -> Terms | None:
    """Terms under which the folder was used before; None: it was not."""
    if not path.exists():
        return None
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        inputs = msgspec.convert(raw.pop("inputs", None), dict[str, str] | None)
        return Terms.of(raw, inputs)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return Terms({}, None, {})  # damaged: nobody's


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
