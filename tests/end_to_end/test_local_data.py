"""One model, six devices, six kinds of local data: handwritten digits as each would hold them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from coordinator.store import Store
from demo.brokers import COORDINATOR, Broker, find_broker
from demo.local import LocalFederation, wait_for
from tests import bundles
from tests.end_to_end.test_federation import DEVICE_PYTHON, WAIT_S, accepted, assert_clean, query

KINDS = ("npz", "npy", "csv", "images", "sqlite", "function")
NAMES = [f"digit {number}" for number in range(10)]
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def digits() -> tuple[Pixels, Labels]:
    """Bytes 0 to 16 [1797, 1, 8, 8], shuffled."""
    with np.load(Path("demo/digits.npz")) as archive:
        x, y = archive["x"].astype(np.uint8)[:, None], archive["y"].astype(np.int64)
    order = np.random.default_rng(3).permutation(len(x))
    return x[order], y[order]


def rows(x: Pixels, y: Labels) -> Iterator[str]:
    for image, label in zip(x, y, strict=True):
        yield ",".join([*(str(value / 16) for value in image.ravel().tolist()), NAMES[label]])


def write(folder: Path, kind: str, x: Pixels, y: Labels) -> tuple[Path, dict[str, Any]]:
    """The data in this kind: `data.path` and the rest of the table."""
    scaled = np.divide(x, 16, dtype=np.float32)
    match kind:
        case "npz":
            np.savez(folder / "d.npz", x=scaled, y=y)
            return folder / "d.npz", {}
        case "npy":
            np.save(folder / "x.npy", x)
            np.save(folder / "y.npy", y.astype(np.uint8))
            return folder / "x.npy", {"labels_path": str(folder / "y.npy"), "divisor": 16}
        case "csv":
            (folder / "d.csv").write_text("".join(f"{row}\n" for row in rows(x, y)))
            return folder / "d.csv", {"header": False, "classes": NAMES}
        case "images":
            for number, (image, label) in enumerate(zip(x, y, strict=True)):
                path = folder / "images" / NAMES[label] / f"{number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0]).save(path)
            return folder / "images", {"classes": NAMES, "divisor": 16}
        case "sqlite":
            with contextlib.closing(sqlite3.connect(folder / "d.db")) as database:
                database.execute("CREATE TABLE seen (label INTEGER, image BLOB)")
                images = [image.astype("<f4").tobytes() for image in scaled]
                pairs = zip(y.tolist(), images, strict=True)
                database.executemany("INSERT INTO seen VALUES (?, ?)", pairs)
                database.commit()
            wanted = {"query": "SELECT image, label FROM seen", "label_columns": ["label"]}
            return folder / "d.db", wanted
        case _:
            np.savez(folder / "raw.npz", pixels=x, digits=y)
            (folder / "mine.py").write_text(
                "import numpy as np\n\n\ndef load(path):\n    with np.load(path) as raw:\n"
                "        return raw['pixels'].astype('f4') / 16, raw['digits']\n"
            )
            return folder / "raw.npz", {"function": str(folder / "mine.py:load")}


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    kind = find_broker("mosquitto")
    with Broker(kind, tmp_path / "broker", (COORDINATOR, *KINDS)) as running:
        yield running


def examples_of(local: LocalFederation, device: str) -> list[int]:
    told = query(
        local,
        "SELECT examples FROM updates WHERE verdict = 'accepted' "
        f"AND device_id = '{device}' ORDER BY round_id",
    )
    return [int(str(row[0])) for row in told]


def test_devices_of_six_kinds_train_one_model(tmp_path: Path, mosquitto: Broker) -> None:
    x, y = digits()
    each, bundle = 150, bundles.build("tiny_cnn")
    np.savez(
        tmp_path / "test.npz",
        x=np.divide(x[-500:], 16, dtype=np.float32),
        y=y[-500:],
    )
    with LocalFederation(tmp_path / "run", mosquitto) as local:
        local.add_coordinator(
            bundle,
            rounds={"count": 12, "cohort_size": 6, "devices_min": 6, "quorum": 4},
            plan={"epochs": 2, "learning_rate": 0.1, "batch_size": 10, "momentum": 0.9},
            evaluation={"data": str(tmp_path / "test.npz")},
        )
        for place, kind in enumerate(KINDS):
            part = slice(place * each, (place + 1) * each)
            folder = tmp_path / kind
            folder.mkdir()
            path, more = write(folder, kind, x[part], y[part])
            data = {"held_out_fraction": 0.2, **more}
            local.add_device(kind, path, DEVICE_PYTHON, data=data)
            words: list[str | Path] = [
                "--config",
                local.folder / f"{kind}.toml",
                "--bundle",
                bundle,
            ]
            checked = subprocess.run(
                [DEVICE_PYTHON, "-m", "fedtide", "client", "check-data", "--json", *words],
                capture_output=True,
                text=True,
                check=False,
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
            told = json.loads(checked.stdout)
            assert told["kind"] == kind
            assert told["examples"]["training"] + told["examples"]["held_out"] == each
        local.start()
        wait_for(lambda: accepted(local, 2) == len(KINDS), "two rounds", WAIT_S)
        with (tmp_path / "csv" / "d.csv").open("a") as file:
            file.writelines(f"{row}\n" for row in rows(x[1000:1100], y[1000:1100]))
            file.write("0.5,0.5")  # the next row is on its way
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        assert_clean(local)
        for kind in KINDS:
            counts = examples_of(local, kind)
            assert len(counts) >= 6
            assert 0.7 * each < counts[0] < 0.9 * each
            assert (counts[-1] > counts[0] + 60) == (kind == "csv"), (kind, counts)
        log = local.devices["csv"].log_path.read_text()
        assert "the local data grew from" in log
        assert "the last line has no end yet" in log
    store = Store(local.state_dir, read_only=True)
    models = store.models()
    store.close()
    assert (models[-1].judged.accuracy or 0) > 0.8
    assert models[-1].held_out is not None
