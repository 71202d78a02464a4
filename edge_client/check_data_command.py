"""`fedtide client check-data`: what this device's data are, and why a model would refuse them.

Nothing is sent and nothing is changed; it works without a broker, and beside a running client.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from edge_client.config import ClientConfig
from edge_client.data import NotNowError, Problems, open_source
from edge_client.data.config import DataConfig, classes_line, sub_folders
from edge_client.data.summary import summary
from edge_client.data.table import FieldError
from edge_client.holdings import stored_bundle
from edge_client.tables import table
from fedtide import units
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.config import convert_config, load_config
from fedtide.errors import ConfigError, DataError
from fedtide.files import write_public
from fedtide.logs import escaped, start_logging
from fedtide.manifest import MANIFEST_NAME
from fedtide.memory_limit import limit_memory
from fedtide.ownership import become_owner_of

Told = dict[str, Any]
PROBLEMS_SHOWN = 5
_LISTED = 10
"""A longer list is told by its first half and its length."""
_NAME_CHARS_MAX = 60
"""Of a column or a class."""
_FLAGS = ("labels", "query", "function", "classes")
_FLAGS_HINT = (
    "--data is data.path, --labels data.labels_path, and so on (--help); other keys are for "
    "client.toml: give that with --config"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="client.toml"
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="default: the device's own")
    without = parser.add_argument_group("instead of --config, with every other key at its default")
    without.add_argument("--data", metavar="PATH", help="as data.path")
    without.add_argument("--labels", metavar="PATH", help="as data.labels_path")
    without.add_argument("--query", metavar="SELECT", help="as data.query")
    without.add_argument("--function", metavar="FILE.py:NAME", help="as data.function")
    without.add_argument("--classes", metavar="NAME[,NAME...]", help="as data.classes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(parsed: argparse.Namespace) -> int:
    """Print it; 0 if the data can be used, 4 if they are refused.

    Raises:
        DataError: of a folder of images nothing is there.
        ConfigError: neither a configuration nor data are given, or both; or they are wrong.
        BundleError: the bundle that is given cannot be read.
    """
    start_logging(parsed)
    limit_memory()
    supposed = _supposed_classes(parsed)
    config, state_dir = _configured(parsed, supposed)
    bundle = None if parsed.bundle is None else open_bundle_dir(parsed.bundle)
    if state_dir is not None:
        if unit := units.unit_for("client", parsed.config):
            return _ask_service(unit, parsed, bundle)
        become_owner_of(state_dir)
        bundle = bundle or stored_bundle(state_dir)
    told = look(config, bundle, columns_chosen=parsed.config is not None)
    if supposed:
        line = classes_line(supposed)
        told["notes"].insert(
            0,
            f"each sub-folder is taken for a class; in [data] of client.toml: {line}, in the order "
            "of the model's outputs, the same on every device",
        )
    print(json.dumps(told, indent=1) if parsed.json else as_text(told))
    return DataError.exit_code if told["refused"] else 0


def _ask_service(unit: str, parsed: argparse.Namespace, bundle: Bundle | None) -> int:
    """In its sandbox the client sees other folders than its user does: let it look itself."""
    words = ["client", "check-data", "--config", str(parsed.config.absolute())]
    words += ["--json"] if parsed.json else []
    if bundle is None:
        return units.try_out(unit, *words)
    # The bundle may be where only root gets; of it no more is needed.
    with tempfile.TemporaryDirectory(prefix="fedtide-", dir="/run") as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_public(folder / MANIFEST_NAME, bundle.fetch(MANIFEST_NAME))
        return units.try_out(unit, *words, "--bundle", name)


def _supposed_classes(parsed: argparse.Namespace) -> list[str]:
    """Names of sub-folders, if a folder of images and nothing else is given.

    Raises:
        DataError: it has none.
    """
    others = [name for name in _FLAGS if getattr(parsed, name) is not None]
    if others or parsed.data is None:
        return []
    names = sub_folders(Path(parsed.data))
    if not names and Path(parsed.data).is_dir():
        raise DataError(
            f"{parsed.data!r} has no sub-folder that this user can see",
            hint="a folder of images has one for each class",
        )
    return names


def _configured(parsed: argparse.Namespace, supposed: list[str]) -> tuple[DataConfig, Path | None]:
    given = [name for name in ("data", *_FLAGS) if getattr(parsed, name) is not None]
    if parsed.config is not None:
        if given:
            raise ConfigError(f"--{given[0]} and --config exclude each other")
        config = load_config(parsed.config, ClientConfig)
        return config.data, config.state_dir
    names = {"data": "path", "labels": "labels_path"}
    raw: Told = {names.get(name, name): getattr(parsed, name) for name in given}
    if not raw:
        raise ConfigError("which data? give --config FILE or --data PATH", hint="see docs/data.md")
    if "classes" in raw:
        raw["classes"] = raw["classes"].split(",")
    elif supposed:
        raw["classes"] = supposed
    return convert_config(raw, DataConfig, "the command line", hint=_FLAGS_HINT), None


class _OfAnyColumn(Problems):
    """The columns are still to be chosen: what stands in one is no reason to refuse the data."""

    def __init__(self) -> None:
        super().__init__(PROBLEMS_SHOWN)
        self._fields, self._first = 0, ""

    def add(self, error: DataError) -> None:
        """One more."""
        if isinstance(error, FieldError):
            self._fields += 1
            self._first = self._first or str(error.args[0])
        else:
            super().add(error)

    def notes(self) -> list[str]:
        """What has to be known for the choice."""
        if not self._fields:
            return []
        return [
            f"{self._fields:,} lines have an input that is missing or no number, the first: "
            f"{self._first}; in [data] of client.toml input_columns names the columns "
            'that are used, and missing = "skip" leaves out lines where one is missing'
        ]


def look(config: DataConfig, bundle: Bundle | None, *, columns_chosen: bool) -> Told:
    """What there is, as JSON has it; without a bundle, as far as it can be seen."""
    told: Told = {
        "kind": config.kind,
        "source": config.where,
        "bundle": None,
        "seen": None,
        "examples": None,
        "notes": [],
        "problems": {"count": 0, "first": []},
        "refused": None,
    }
    if bundle is not None:
        told["bundle"] = {"name": bundle.manifest.name, "digest": bundle.digest}
    problems = Problems(PROBLEMS_SHOWN) if columns_chosen or bundle else _OfAnyColumn()
    try:
        source = open_source(config)
        source.stamp()
        told["seen"] = source.describe(problems)
        if isinstance(problems, _OfAnyColumn):
            told["notes"] = problems.notes()
        if bundle is not None:
            problems = Problems(PROBLEMS_SHOWN)  # the same once more, and others
            loaded = source.load(bundle.manifest, problems)
            told["notes"] = list(loaded.notes)
            told["examples"] = summary(loaded.dataset, bundle.manifest)
        _judge(told, problems, config)
    except NotNowError as exc:
        told["refused"] = {"what": str(exc.args[0]), "todo": "ask again"}
    except DataError as exc:
        told["refused"] = _said(exc)
    except MemoryError:
        what = f"the examples of {config.where} do not fit into memory"
        told["refused"] = {"what": what, "todo": "data.examples_max limits how many are used"}
    return told


def _judge(told: Told, problems: Problems, config: DataConfig) -> None:
    told["problems"] = {"count": problems.count, "first": [_said(e) for e in problems.shown]}
    count = told["examples"]["training"] if told["examples"] else config.examples_min
    if problems.count:
        one = problems.count == 1
        what = f"{problems.count:,} example{' is' if one else 's are'} wrong"
        told["refused"] = {"what": f"{what}: the data are refused whole", "todo": "correct them"}
    elif count < config.examples_min:
        what = f"{count:,} examples to train on, at least {config.examples_min:,} are needed here"
        held_out = told["examples"]["held_out"] if told["examples"] else 0
        todo = "wait for more, or lower data.examples_min"
        if held_out and config.held_out_fraction:
            todo += f"; {held_out:,} are held out: lower data.held_out_fraction to train on more"
        told["refused"] = {"what": what, "todo": todo}


def _said(error: DataError) -> Told:
    return {"what": str(error.args[0]), "todo": error.hint or ""}


def as_text(told: Told) -> str:
    """The same for a person."""
    rows = [("kind", told["kind"]), ("source", told["source"])]
    for name, value in (told["seen"] or {}).items():
        rows.append((name.replace("_", " "), _short(value)))
    bundle = told["bundle"]
    rows.append(("bundle", f"{bundle['name']} {bundle['digest'][:12]}" if bundle else "none here"))
    for name, value in (told["examples"] or {}).items():
        rows.append((name.replace("_", " "), _short(value)))
    lines = [table([(name, escaped(text)) for name, text in rows], indent=0)]
    lines += [f"note     {escaped(note)}" for note in told["notes"]]
    for found in told["problems"]["first"]:
        lines += _sign("PROBLEM", found)
    if told["refused"]:
        lines += _sign("REFUSED", told["refused"])
    elif told["examples"] is None:
        lines.append("ok       the data can be read; whether they fit a model tells --bundle DIR")
    else:
        lines.append("ok       the data fit the model")
    return "\n".join(lines)


def _sign(sign: str, found: Told) -> list[str]:
    lines = [f"{sign}  {escaped(found['what'])}"]
    return [*lines, f"      -> {escaped(found['todo'])}"] if found["todo"] else lines


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return (
            ", ".join(f"{_cut(name)}: {_short(entry)}" for name, entry in value.items()) or "none"
        )
    if isinstance(value, list):
        if len(value) > _LISTED:
            return f"{', '.join(map(_cut, value[: _LISTED // 2]))}, … ({len(value):,})"
        return ", ".join(map(_cut, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_CHARS_MAX else f"{name[:_NAME_CHARS_MAX]}…"
