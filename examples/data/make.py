"""python examples/data/make.py FOLDER: the same examples in every kind of local data."""

from __future__ import annotations

import contextlib
import csv
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np

CLASSES = ("calm", "wind", "storm")
COLUMNS = ("north", "east", "up", "gust")
TABLES = {
    "npz": 'path = "readings.npz"\nheld_out_fraction = 0.2',
    "npy": 'path = "x.npy"\nlabels_path = "y.npy"\nheld_out_fraction = 0.2',
    "csv": f'path = "readings.csv"\nclasses = {list(CLASSES)}\nmissing = "skip"',
    "sqlite": 'path = "readings.db"\nquery = "SELECT north, east, up, gust, weather FROM readings '
    f'ORDER BY rowid"\nclasses = {list(CLASSES)}\nexamples_max = 10_000',
    "images": f'path = "images"\nclasses = {list(CLASSES)}\nfit = "convert"',
    "function": 'function = "my_function.py:load"\npath = "readings.csv"\nrounds_per_day_max = 24',
}

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(1)
y = np.arange(60) % 3
x = (rng.standard_normal((60, 4)) + 3 * y[:, None]).astype(np.float32)

np.savez(folder / "readings.npz", x=x, y=y)
np.save(folder / "x.npy", x)
np.save(folder / "y.npy", y)
with (folder / "readings.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow((*COLUMNS, "weather"))
    rows.writerows((*map(float, row), CLASSES[k]) for row, k in zip(x, y, strict=True))
(folder / "readings.db").unlink(missing_ok=True)
with contextlib.closing(sqlite3.connect(folder / "readings.db")) as database:
    database.execute("CREATE TABLE readings (north, east, up, gust, weather)")
    database.executemany(
        "INSERT INTO readings VALUES (?, ?, ?, ?, ?)",
        [(*map(float, row), CLASSES[k]) for row, k in zip(x, y, strict=True)],
    )
    database.commit()
shutil.copy(Path(__file__).with_name("my_function.py"), folder)
with contextlib.suppress(ImportError):
    from PIL import Image

    for number, k in enumerate(y):
        path = folder / "images" / CLASSES[k] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 80 * (k + 1), (8, 8)).astype(np.uint8)).save(path)
for kind, table in TABLES.items():
    (folder / f"{kind}.toml").write_text(
        f'federation = "home"\ndevice = "pi-1"\nstate_dir = "state"\n\n[data]\n{table}\n'
    )
