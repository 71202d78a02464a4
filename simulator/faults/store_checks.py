"""What a coordinator's database must hold after every commit, read as rows, without its code.

Every model is computed again, from rows and blobs alone: McMahan et al. 2016, Algorithm 1, with the
discount of late updates of Nguyen et al. 2022 (FedBuff, section 5) and the norm bound of Sun et
al. 2019.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from fedtide.bundle import sha256_hex

Row = tuple[Any, ...]
Unsafe = Callable[[str, str], None]
NORMS_MIN = 3
FILES_MAX = 60


class StoreChecks:
    """The store of one coordinator, from commit to commit."""

    def __init__(self, folder: Path, quorum: int, rotten: AbstractSet[str], unsafe: Unsafe) -> None:
        self._folder = folder
        self._quorum = quorum
        self._rotten = rotten
        """Digests of what is damaged on purpose: nothing can be computed from it."""
        self._unsafe = unsafe
        self.models: list[Row] = []
        self.rounds: dict[int, Row] = {}
        self.settled: dict[tuple[str, int], str] = {}
        """(device, round of its task) to where its accepted update went."""
        self.contents: dict[str, tuple[tuple[str, int], str]] = {}
        """Digest of a counted update to whose it was, and the model that it started from."""
        self.said: dict[tuple[str, str], Row] = {}
        """(device, update id) to its row, for each update that was said to be accepted."""

    def committed(self, database: sqlite3.Connection) -> None:
        """A transaction has been committed."""
        models = database.execute(
            "SELECT version, digest, round_id FROM models ORDER BY version"
        ).fetchall()
        if models[: len(self.models)] != self.models:
            self._unsafe("models never change", f"{self.models} became {models}")
        for row in models[len(self.models) :]:
            self._new_model(database, row)
            self.models.append(row)
        rows = database.execute(
            "SELECT round_id, outcome, reason, kind FROM rounds WHERE round_id >= ?"
            " ORDER BY round_id",
            (max(self.rounds, default=1),),
        ).fetchall()
        for row in rows:
            self._round(database, row)

    def accepted(self, database: sqlite3.Connection, device_id: str, update_id: str) -> None:
        """The coordinator is saying that this update is accepted."""
        key = (device_id, update_id)
        if database.in_transaction:
            self._unsafe("receipt after commit", f"{key} is accepted inside a transaction")
        row = database.execute(
            "SELECT round_id, verdict, update_json FROM updates"
            " WHERE update_id = ? AND device_id = ? ORDER BY verdict",
            (update_id, device_id),
        ).fetchone()
        if row is None or row[1] != "accepted":
            self._unsafe("receipt after commit", f"{key} is accepted, its row is {row}")
            return
        self.said[key] = row
        blob = msgspec.json.decode(row[2])["blob"]
        if blob is None or blob["digest"] in self._rotten:
            return
        if not (self._folder / "blobs" / blob["digest"]).exists():
            settled = self.settled.get((device_id, row[0]))
            if settled is None:
                self._unsafe("receipt after commit", f"the content of {key} is not stored")

    def invited(self, database: sqlite3.Connection, device_id: str, round_id: int) -> None:
        """The coordinator is sending this round's task to this device."""
        row = database.execute(
            "SELECT cohort_json FROM rounds WHERE round_id = ?", (round_id,)
        ).fetchone()
        if row is None or device_id not in msgspec.json.decode(row[0]):
            self._unsafe("only invited", f"{device_id} gets round {round_id}, its cohort is {row}")

    def waiting_contents(self) -> list[str]:
        """Digests of updates that were said to be accepted and are in no closed round."""
        blobs = [
            msgspec.json.decode(raw)["blob"]
            for (device_id, _), (round_id, _, raw) in self.said.items()
            if (device_id, round_id) not in self.settled
        ]
        return sorted(blob["digest"] for blob in blobs if blob is not None)

    # ---- rounds ----

    def _round(self, database: sqlite3.Connection, row: Row) -> None:
        round_id, outcome, reason, kind = row
        before, newest = self.rounds.get(round_id), max(self.rounds, default=0)
        if before is None and round_id != newest + 1:
            self._unsafe("round ids grow", f"{round_id} follows {newest}")
        if before is not None and before[1] not in ("open", outcome):
            self._unsafe("closed rounds stay", f"{before} became {row}")
        if outcome == "abandoned" and not reason:
            self._unsafe("reasons", f"round {round_id} is abandoned without one")
        if outcome != "open" and (before is None or before[1] == "open"):
            self._closed(database, round_id, outcome, kind)
        self.rounds[round_id] = row

    def _closed(self, database: sqlite3.Connection, round_id: int, outcome: str, kind: str) -> None:
        parts = self._parts(database, round_id)
        for device_id, task_round, update, _ in parts:
            key = (device_id, task_round)
            if key in self.settled:
                self._unsafe("counted twice", f"{key}: {self.settled[key]}, and round {round_id}")
            self.settled[key] = f"{outcome} round {round_id}"
            row = database.execute(
                "SELECT cohort_json FROM rounds WHERE round_id = ?", (task_round,)
            ).fetchone()
            if row is None or device_id not in msgspec.json.decode(row[0]):
                self._unsafe("only invited", f"{key} counts in round {round_id}, cohort {row}")
            if outcome == "done" and update["blob"] is not None:
                self._content_once(update, key)
        quorum = 1 if kind == "evaluate" else self._quorum
        names = {device_id for device_id, *_ in parts}
        if outcome == "done" and len(names) < quorum:
            self._unsafe("quorum", f"round {round_id} closed with {sorted(names)} of {quorum}")

    def _content_once(self, update: dict[str, Any], key: tuple[str, int]) -> None:
        """Two devices may learn the same from the same model; nobody learns it from two models."""
        digest, model = update["blob"]["digest"], update["model"]
        before, other = self.contents.setdefault(digest, (key, model))
        if other != model:
            self._unsafe("content counted twice", f"{digest[:12]} of {before} counts for {key}")

    def _parts(
        self, database: sqlite3.Connection, round_id: int
    ) -> list[tuple[str, int, dict[str, Any], int]]:
        """(device, round of its task, update, staleness) of what joined a round."""
        rows = database.execute(
            "SELECT device_id, round_id, update_json, staleness FROM updates"
            " WHERE joined = ? AND verdict = 'accepted' ORDER BY device_id, round_id",
            (round_id,),
        ).fetchall()
        return [(d, r, msgspec.json.decode(raw), s) for d, r, raw, s in rows]

    # ---- models ----

    def _new_model(self, database: sqlite3.Connection, row: Row) -> None:
        version, digest, round_id = row
        if version != len(self.models):
            self._unsafe("model versions", f"{version} follows {len(self.models) - 1}")
        content = _blob(self._folder, digest)
        if content is None:
            self._unsafe("model stored", f"the content of model {version} is not here")
        elif version:
            base = _blob(self._folder, self.models[-1][1])
            recomputed = None if base is None else self._recomputed(database, base, round_id)
            digests = {u["blob"]["digest"] for _, _, u, _ in self._parts(database, round_id)}
            if recomputed != content and not digests & self._rotten:
                names = [(d, r, s) for d, r, _, s in self._parts(database, round_id)]
                self._unsafe("recomputed", f"model {version} of round {round_id} from {names}")

    def _recomputed(self, database: sqlite3.Connection, base: bytes, round_id: int) -> bytes | None:
        base_version, factor = database.execute(
            "SELECT base_version, norm_factor FROM rounds WHERE round_id = ?",
            (round_id,),
        ).fetchone()
        versions = {digest: version for version, digest, _ in self.models}
        deltas, weights = [], []
        for _, _, update, staleness in self._parts(database, round_id):
            content = _blob(self._folder, update["blob"]["digest"])
            if content is None or staleness != base_version - versions[update["model"]]:
                return None
            values = np.frombuffer(content, {"f32": "<f4", "f16": "<f2"}[update["encoding"]])
            deltas.append(values.astype(np.float32).astype(np.float64))
            weights.append(update["examples"] / math.sqrt(1 + staleness))
        if not deltas:
            return None
        norms = [math.sqrt(float(np.dot(delta, delta))) for delta in deltas]
        bound = factor * median(norms) if factor and len(norms) >= NORMS_MIN else math.inf
        total = np.zeros_like(deltas[0])
        for delta, weight, norm in zip(deltas, weights, norms, strict=True):
            scale = 1.0 if norm <= bound or bound == 0 else bound / norm
            total += delta * (weight * scale)
        mean = (total / sum(weights)).astype(np.float32)
        model = np.frombuffer(base, "<f4").astype(np.float64) + mean
        recomputed: bytes = model.astype("<f4").tobytes()
        return recomputed

    # ---- the end ----

    def at_the_end(self) -> None:
        """Every update that was said to be accepted is where it must be; nothing piles up."""
        path = self._folder / "coordinator.db"
        if not path.exists():
            return
        database = sqlite3.connect(path)
        raw = database.execute("SELECT value FROM facts WHERE name = 'round_state'").fetchone()
        state = msgspec.json.decode(raw[0]) if raw else {}
        members = [*state.get("cohort", ()), *state.get("carried", ())]
        waiting = {m["update_id"] for m in members if m.get("answer") == "accepted"}
        for key, (round_id, _, update_json) in self.said.items():
            row = database.execute(
                "SELECT verdict, update_json FROM updates WHERE device_id = ? AND update_id = ?",
                key,
            ).fetchone()
            if row != ("accepted", update_json):
                self._unsafe("accepted stays", f"{key} of round {round_id} is now {row}")
            if (key[0], round_id) not in self.settled and key[1] not in waiting:
                self._unsafe("accepted lost", f"{key} of round {round_id} is nowhere")
        database.close()
        for name in ("partial", "blobs"):
            count = sum(1 for _ in (self._folder / name).iterdir())
            if count > FILES_MAX:
                self._unsafe("files", f"{count} files in {name}")


def _blob(folder: Path, digest: str) -> bytes | None:
    try:
        content = (folder / "blobs" / digest).read_bytes()
    except FileNotFoundError:
        return None
    return content if sha256_hex(content) == digest else None
