"""The same examples in every kind of local data."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_client.data.config import DataConfig
from fedtide.manifest import Array
from simulator.faults.fake_learning import fake_bundle

SHAPE = (1, 4, 4)
MANIFEST = msgspec.structs.replace(
    fake_bundle(8).manifest, inputs=Array(SHAPE, "float32"), labels=Array((), "int64"), classes=3
)
CLASSES = ("ant", "bee", "cat")
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def examples(count: int, seed: int = 0) -> tuple[Pixels, Labels]:
    """Bytes [count, 1, 4, 4], all different, and classes; more with the same seed go on."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, (1000, *SHAPE)).astype(np.uint8)
    made.reshape(1000, -1)[:, 0] = np.arange(1000) % 256
    return made[:count], (np.arange(count) % 3).astype(np.int64)


def as_model(x: Pixels) -> NDArray[np.float32]:
    return np.divide(x, 255, dtype=np.float32)


class Kind(ABC):
    """Writes examples, and says how they are configured."""

    rows_kept_apart = False
    """Whether a single bad example can be told from the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, x: Pixels, y: Labels) -> None: ...

    @abstractmethod
    def config(self, **more: Any) -> DataConfig: ...

    @abstractmethod
    def vanish(self) -> None: ...


class Npz(Kind):
    def write(self, x: Pixels, y: Labels) -> None:
        np.savez(self.folder / "d.npz", x=as_model(x), y=y)

    def config(self, **more: Any) -> DataConfig:
        return DataConfig(self.folder / "d.npz", **more)

    def vanish(self) -> None:
        (self.folder / "d.npz").unlink()


class NpyBytes(Kind):
    def write(self, x: Pixels, y: Labels) -> None:
        for name, array in (("x", x), ("y", y.astype(np.int16))):
            np.save(self.folder / f"new-{name}.npy", array)
            (self.folder / f"new-{name}.npy").rename(self.folder / f"{name}.npy")

    def config(self, **more: Any) -> DataConfig:
        x, y = (self.folder / name for name in ("x.npy", "y.npy"))
        return DataConfig(x, labels_path=y, divisor=255, **more)

    def vanish(self) -> None:
        (self.folder / "y.npy").unlink()


class Csv(Kind):
    rows_kept_apart = True

    def write(self, x: Pixels, y: Labels) -> None:
        with (self.folder / "d.csv").open("w") as file:
            file.write(",".join([*(f"p{i}" for i in range(16)), "kind"]) + "\n")
            for row, label in zip(as_model(x).reshape(-1, 16), y, strict=True):
                file.write(",".join([*map(repr, row.tolist()), CLASSES[label]]) + "\n")

    def config(self, **more: Any) -> DataConfig:
        return DataConfig(self.folder / "d.csv", classes=CLASSES, **more)

    def vanish(self) -> None:
        (self.folder / "d.csv").unlink()


class Images(Kind):
    rows_kept_apart = True

    def write(self, x: Pixels, y: Labels) -> None:
        from PIL import Image

        for number, (image, label) in enumerate(zip(x, y, strict=True)):
            path = self.folder / "images" / CLASSES[label] / f"{number:04}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0]).save(path)
                os.utime(path, ns=(number * 10**9, 10**18 + number * 10**9))

    def config(self, **more: Any) -> DataConfig:
        return DataConfig(self.folder / "images", classes=CLASSES, **more)

    def vanish(self) -> None:
        (self.folder / "images").rename(self.folder / "elsewhere")


class Sqlite(Kind):
    rows_kept_apart = True

    def write(self, x: Pixels, y: Labels) -> None:
        with contextlib.closing(sqlite3.connect(self.folder / "d.db")) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS seen (image BLOB, kind TEXT)")
            database.execute("DELETE FROM seen")
            rows = zip(as_model(x), y, strict=True)
            database.executemany(
                "INSERT INTO seen VALUES (?, ?)", [(i.tobytes(), CLASSES[k]) for i, k in rows]
            )
            database.commit()

    def config(self, **more: Any) -> DataConfig:
        query = "SELECT image, kind FROM seen ORDER BY rowid;"
        return DataConfig(self.folder / "d.db", query=query, classes=CLASSES, **more)

    def vanish(self) -> None:
        (self.folder / "d.db").unlink()


class Function(Kind):
    def write(self, x: Pixels, y: Labels) -> None:
        np.savez(self.folder / "raw.npz", x=x, y=y)
        (self.folder / "mine.py").write_text(
            "import numpy as np\n\n\ndef load(path):\n    print('hello')\n"
            "    with np.load(path) as file:\n        return file['x'], file['y'].astype('u1')\n"
        )

    def config(self, **more: Any) -> DataConfig:
        function = self.folder / "mine.py:load"
        return DataConfig(self.folder / "raw.npz", function=function, divisor=255, **more)

    def vanish(self) -> None:
        (self.folder / "raw.npz").unlink()


KINDS: dict[str, type[Kind]] = {
    "npz": Npz,
    "npy": NpyBytes,
    "csv": Csv,
    "images": Images,
    "sqlite": Sqlite,
    "function": Function,
}
