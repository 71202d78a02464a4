"""The folder of a simulation: whose results it holds, and which of them still stand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fedtide.config import shortened
from fedtide.errors import ConfigError, DamagedError
from fedtide.files import disk_errors_of, write_atomically
from simulator.fleet.environment import other_packages
from simulator.fleet.inputs import differing, input_digests
from simulator.fleet.policy_run import as_recorded
from simulator.fleet.record import policy_entry, read_header, read_record
from simulator.fleet.scenario import Policy, Scenario

SCENARIO_FILE = "scenario.json"
OF_ALL_POLICIES = SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"


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
            if not before.common:
                return f"of a scenario that nobody knows: {SCENARIO_FILE} is damaged"
            changed_key = _differing_key(before.common, self.common)
            return f"of another scenario, seed or size: {changed_key}"
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
        ConfigError: it holds what was recorded of another scenario, with other files, or begun with
            other packages; or files that nobody simulated.
        StateError: it cannot be used; whose results it holds cannot be read.
    """
    path, terms = out / SCENARIO_FILE, Terms.now(scenario)
    wanted = {policy.name: terms.entries[policy.name] for policy in chosen}
    with disk_errors_of(out):
        if not force:
            _check_foreign(out)
        before = _read(path)
        other = "" if before is None else terms.other_than(before)
        if other:
            if any(out.glob("*.jsonl.gz")) and not force:
                kind = ConfigError if before and before.common else DamagedError
                raise kind(
                    f"{str(out)!r} holds results {other}",
                    hint="give another --out, or --force to remove those results",
                )
            _remove_all(out)
            before = None
        entries = {} if before is None else before.entries
        stale = {}
        begun = {name: where for name in wanted if (where := _begun_elsewhere(out, name))}
        if begun and not force:
            name, elsewhere = next(iter(begun.items()))
            raise ConfigError(
                f"policy {name!r} was begun in {str(out)!r} {elsewhere}: no replay could follow",
                hint="go on where it was begun, or give --force to begin that policy anew",
            )
        for name, entry in wanted.items():
            record, models = record_path(out, name), models_folder(out, name)
            why = _other_program(record)
            if name in begun:
                why = why or f"was begun {begun[name]}"
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


def _begun_elsewhere(out: Path, policy: str) -> str:
    """The other packages of a run that did not come to its end; one that did stays what it is."""
    path = record_path(out, policy)
    if not path.exists():
        return ""
    try:
        elsewhere = other_packages(read_header(path).packages)
        return "" if not elsewhere or read_record(path).complete else elsewhere
    except DamagedError:
        return ""


def _check_foreign(out: Path) -> None:
    """Nobody's report is overwritten by ours."""
    if (out / SCENARIO_FILE).exists():
        return
    for path in (out / name for name in OF_ALL_POLICIES):
        if path.exists():
            raise ConfigError(
                f"{str(out)!r} holds {path.name!r}, and no simulation was run there",
                hint="give another --out, or --force to overwrite it",
            )


def _differing_key(before: Any, now: Any, key: str = "") -> str:
    """The first key that differs, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = ((f"{key}.{name}".lstrip("."), name) for name in {**before, **now})
        inner = (_differing_key(before.get(name), now.get(name), path) for path, name in pairs)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        numbered = enumerate(zip(before, now, strict=True), 1)
        inner = (_differing_key(old, new, f"{key} {number}") for number, (old, new) in numbered)
    else:
        return "" if before == now else f"{key} was {shortened(before)}, and is {shortened(now)}"
    return next(filter(None, inner), "")


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
    _remove(*(out / name for name in OF_ALL_POLICIES))


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
