"""The outside checker: reads what a federation left on disk with code of its own.

It shares nothing with the code under test but the formats: SQLite tables, JSON, raw float32 named
by SHA-256. What it finds wrong is a list of sentences.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Findings = Iterator[str]
NORMS_MIN = 3
"""Updates of a round for a median of their norms to mean anything."""


class Books:
    """The coordinator's tables and blobs."""

    def __init__(self, folder: Path) -> None:
        self.blobs = folder / "blobs"
        uri = f"file:{folder / 'coordinator.db'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            database.row_factory = sqlite3.Row
            self.updates = [dict(row) for row in database.execute("SELECT * FROM updates")]
            self.rounds = {row["round_id"]: dict(row) for row in _rows(database, "rounds")}
            self.models = {row["version"]: dict(row) for row in _rows(database, "models")}
            facts = {row["name"]: row["value"] for row in _rows(database, "facts")}
        self.state: str = facts.get("round_state", "")
        for update in self.updates:
            update["update"] = json.loads(update["update_json"])

    def content(self, digest: str) -> bytes | None:
        """A blob; None: it is gone or damaged."""
        path = self.blobs / digest
        if not path.exists():
            return None
        content = path.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == digest else None


def _rows(database: sqlite3.Connection, table: str) -> Iterable[sqlite3.Row]:
    return database.execute(f"SELECT * FROM {table} ORDER BY 1")


def check_store(folder: Path) -> list[str]:
    """Everything that is wrong with a coordinator's state folder."""
    books = Books(folder)
    return [*_double_counts(books), *_lost_blobs(books), *_rounds(books), *_models(books)]


def _counted(books: Books) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Each accepted training update, and the round that it joined; None: it waits for one."""
    for row in books.updates:
        if row["verdict"] == "accepted" and row["update"].get("blob"):
            yield row.get("joined", row["round_id"]), row


def _double_counts(books: Books) -> Findings:
    accepted = [row for row in books.updates if row["verdict"] == "accepted"]
    keys = Counter((row["round_id"], row["device_id"]) for row in accepted)
    keys += Counter((row["update_id"], row["device_id"]) for row in accepted)
    for key, times in keys.items():
        # Each update is one row of each kind.
        if times > 1:
            yield f"{key} was accepted {times} times"


def _lost_blobs(books: Books) -> Findings:
    for round_id, row in _counted(books):
        blob = row["update"]["blob"]
        content = books.content(blob["digest"])
        if content is None or len(content) != blob["size_bytes"]:
            yield f"the update of {row['device_id']} in round {round_id} is not on disk"


def _rounds(books: Books) -> Findings:
    made = {model["round_id"] for model in books.models.values()}
    for round_id, row in books.rounds.items():
        if row["outcome"] == "abandoned" and not row["reason"]:
            yield f"round {round_id} is abandoned without a reason"
        if row["outcome"] == "done" and row["kind"] == "train" and round_id not in made:
            yield f"round {round_id} is done and has no model"
    for joined, row in _counted(books):
        nowhere = joined is None and row["update_id"] not in books.state
        if nowhere or (joined is not None and joined not in books.rounds):
            yield f"the update of {row['device_id']} was accepted and is in no round"


def _models(books: Books) -> Findings:
    """Each model follows from the one before it and the updates counted in its round."""
    for version, model in books.models.items():
        content = books.content(model["digest"])
        if content is None:
            yield f"model {version} is not on disk"
            continue
        base_row = books.models.get(version - 1)
        if base_row is None:
            if version:
                yield f"model {version - 1} is missing"
            continue
        base = books.content(base_row["digest"])
        rows = [row for counted, row in _counted(books) if counted == model["round_id"]]
        if base is None:
            continue
        if not rows:
            yield f"model {version} was made of nothing"
        elif _recomputed(books, base, rows, books.rounds[model["round_id"]]) != content:
            yield f"model {version} is not what its {len(rows)} updates make"


def _recomputed(
    books: Books, base: bytes, rows: list[dict[str, Any]], terms: dict[str, Any]
) -> bytes | None:
    """w + sum_k (n_k / n) delta_k in float64, in order of device; n_k / sqrt(1 + staleness) for
    late ones, and none longer than so many times the median."""
    old: NDArray[np.float32] = np.frombuffer(base, "<f4")
    deltas, weights = [], []
    for row in sorted(rows, key=lambda row: (row["device_id"], row["round_id"])):
        content = books.content(row["update"]["blob"]["digest"])
        if content is None:
            return None
        kind = "<f2" if row["update"]["encoding"] == "f16" else "<f4"
        deltas.append(np.frombuffer(content, kind).astype(np.float32).astype(np.float64))
        weights.append(row["examples"] / math.sqrt(1 + (row.get("staleness") or 0)))
    norms = [math.sqrt(float(np.dot(delta, delta))) for delta in deltas]
    factor = terms.get("norm_factor")
    bound = factor * median(norms) if factor and len(norms) >= NORMS_MIN else math.inf
    total = np.zeros(len(old))
    for delta, weight, norm in zip(deltas, weights, norms, strict=True):
        total += delta * (weight * (1.0 if norm <= bound or bound == 0 else bound / norm))
    mean = (total / sum(weights)).astype(np.float32)
    model: bytes = (old.astype(np.float64) + mean).astype("<f4").tobytes()
    return model


def check_receipts(folder: Path, heard: Iterable[tuple[str, str, str]]) -> list[str]:
    """Receipts that were said and are not in the books: (device, update id, verdict) each."""
    books = Books(folder)
    known = {(r["device_id"], r["update_id"]) for r in books.updates if r["verdict"] == "accepted"}
    return [
        f"{device} got a receipt for {update_id}, and the store does not know it"
        for device, update_id, verdict in sorted(heard)
        if verdict == "accepted" and (device, update_id) not in known
    ]


def check_device(folder: Path, log: str, store: Path) -> list[str]:
    """A device's outbox is whole, and what its log says was accepted is in the books."""
    findings = []
    for update in outbox(folder):
        blob = update.get("blob")
        if blob is not None:
            path = folder / "blobs" / blob["digest"]
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
            if digest != blob["digest"]:
                findings.append(f"{folder.name}: the outbox has lost round {update['round_id']}")
    books = Books(store)
    accepted = {
        row["round_id"]
        for row in books.updates
        if row["device_id"] == folder.name and row["verdict"] == "accepted"
    }
    for line in log.splitlines():
        if "the update is accepted" in line:
            round_id = int(line.partition("round ")[2].partition(":")[0])
            if round_id not in accepted:
                findings.append(f"{folder.name}: round {round_id} was accepted and is not stored")
    return findings


def outbox(folder: Path) -> list[dict[str, Any]]:
    """Updates that a device still owes, by its newest intact generation."""
    newest: tuple[int, bytes] = (-1, b"{}")
    for index in (0, 1):
        path = folder / f"session.{index}"
        raw = path.read_bytes() if path.exists() else b""
        if len(raw) >= 40 and hashlib.sha256(raw[32:]).digest() == raw[:32]:
            newest = max(newest, (int.from_bytes(raw[32:40], "little"), raw[40:]))
    updates: list[dict[str, Any]] = json.loads(newest[1]).get("outbox", [])
    return updates


def check_logs(logs: Iterable[Path]) -> list[str]:
    """No traceback anywhere."""
    return [
        f"{path.name} has a traceback"
        for path in logs
        if "Traceback" in path.read_text(errors="replace")
    ]


def leftovers(folder: Path) -> list[str]:
    """Processes that still run with a configuration of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fedtide" in words and any(word.startswith(bytes(folder)) for word in words):
            found.append(f"process {path.parent.name} is left over")
    return found
