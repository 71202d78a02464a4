"""Which data of this device are used, and how often and how much of them (docs/data.md)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedtide.config import Positive

Kind = Literal["npz", "npy", "csv", "images", "sqlite", "function"]
Column = str | Annotated[int, Meta(ge=1)]
_SUFFIXES: dict[str, Kind] = {
    ".npy": "npy",
    ".csv": "csv",
    ".tsv": "csv",
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
}
_TABLES: frozenset[Kind] = frozenset({"csv", "sqlite"})
_CLASSES_TOLD = 100
"""Most names of sub-folders in a message."""
_USED_BY: dict[str, frozenset[Kind]] = {
    "labels_path": frozenset({"npy"}),
    "query": frozenset({"sqlite"}),
    "input_columns": _TABLES,
    "label_columns": _TABLES,
    "header": frozenset({"csv"}),
    "delimiter": frozenset({"csv"}),
    "missing": _TABLES,
    "classes": frozenset({"csv", "sqlite", "images"}),
    "divisor": frozenset({"npz", "npy", "images", "function"}),
    "fit": frozenset({"images"}),
    "time_ms_max": frozenset({"sqlite", "function"}),
}
"""A key that has no effect is an error: somebody believes that it has."""


def sub_folders(path: Path) -> list[str]:
    """Names of the folders in `path`, sorted; of a path that cannot be looked into, none."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError:
        return []


def classes_line(names: list[str]) -> str:
    """The line of `[data]` that makes classes of these names; TOML writes a list as JSON does."""
    return f"classes = {json.dumps(names, ensure_ascii=False)}"


def _classes_needed(path: Path | None) -> str:
    names = [] if path is None else sub_folders(path)
    line = f"; its own are: {classes_line(names)}" if 0 < len(names) <= _CLASSES_TOLD else ""
    return (
        f"the folder of images {str(path)!r} needs `data.classes`, the names of its sub-folders "
        f"in the order of the model's outputs{line}"
    )


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Local data; they never leave the device. What is given tells their `kind`."""

    path: Path | None = None
    """A file, or a folder of images; of a function: what it is called with, and watched."""
    labels_path: Path | None = None
    query: str | None = None
    function: Path | None = None
    """`FILE.py:NAME` or `MODULE:NAME`; a path, so that a file is relative to the configuration."""
    input_columns: tuple[Column, ...] | None = None
    """Names, or numbers from 1; by default all but the labels'."""
    label_columns: Annotated[tuple[Column, ...], Meta(min_length=1)] | None = None
    """By default the last."""
    header: bool | None = None
    """Whether the first line names the columns; None: it does, and one of numbers is refused."""
    delimiter: Annotated[str, Meta(min_length=1, max_length=1)] | None = None
    missing: Literal["refuse", "skip"] = "refuse"
    classes: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    """Names, in the order of the model's outputs: the same on every device."""
    divisor: Annotated[float, Meta(gt=0)] | None = None
    """What bytes are divided by where the model takes float32."""
    fit: Literal["exact", "convert"] = "exact"
    """Whether images of another size or colour are refused or made to fit."""
    time_ms_max: Positive = 60_000
    held_out_fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Part of the examples kept for evaluation, where the data name none."""
    examples_min: Positive = 1
    """With fewer to train on, this device does not take part."""
    examples_max: Positive | None = None
    """Most that are used, the held-out ones included."""
    choice: Literal["newest", "sample"] = "newest"
    """Which of them, if there are more."""
    rounds_per_day_max: Positive | None = None
    again_after_ms: Positive | None = None
    """From the beginning of a training to that of the next."""

    def __post_init__(self) -> None:
        kind = self.kind  # raises if nothing is given
        if self.function is not None:
            place, _, name = self.function.name.rpartition(":")
            if not place or not name.isidentifier():
                raise ValueError(
                    f"`data.function` is FILE.py:NAME or MODULE:NAME, not {self.function.name!r}"
                )
        if kind == "npy" and self.labels_path is None:
            raise ValueError("`data.path` is an .npy with the inputs: give `data.labels_path`, too")
        if kind == "sqlite" and (self.query is None or self.path is None):
            raise ValueError(
                "a database needs both `data.path` and `data.query` (SELECT inputs, label ...)"
            )
        if kind == "images" and self.classes is None:
            raise ValueError(_classes_needed(self.path))
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("a name occurs twice in `data.classes`")
        defaults = DataConfig.__struct_defaults__
        for name, default in zip(DataConfig.__struct_fields__, defaults, strict=True):
            kinds = _USED_BY.get(name)
            if kinds is not None and kind not in kinds and getattr(self, name) != default:
                raise ValueError(f"`data.{name}` has no effect on data of kind {kind!r}")

    @property
    def kind(self) -> Kind:
        """Where the examples come from."""
        if self.function is not None:
            return "function"
        if self.path is None:
            raise ValueError("the required key `path`, or `function`, is missing")
        if self.query is not None:
            return "sqlite"
        suffix = self.path.suffix.lower()
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
        if self.classes is not None and suffix != ".npz":
            return "images"  # perhaps on a disk that is not there yet
        try:
            folder = self.path.is_dir()
        except OSError:  # not ours to look into: whoever opens it says so
            folder = False
        return "images" if folder else "npz"

    @property
    def where(self) -> str:
        """Its source, for messages."""
        if self.function is not None:
            return f"function {self.function.name!r}"
        return repr(str(self.path))
