"""What must hold whatever fails, judged from outside: by what is said on the wire, by rows that
are committed, by files in folders. Nothing here asks the machines.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fedtide.bundle import sha256_hex

if TYPE_CHECKING:
    from simulator.coordinator import Coordinator
    from simulator.device import Device
    from simulator.process import Process
    from simulator.world import World

OUTBOX_MAX = 16
MESSAGES_MAX = 600
"""Of one process in one second: more is a storm."""
DECODED_BYTES_MAX = 20_000
FILES_MAX = 40
Row = tuple[Any, ...]


class StoreHistory:
    """What the store of one coordinator has held at each commit."""

    def __init__(self) -> None:
        self.models: list[Row] = []
        self.rounds: dict[int, Row] = {}
        self.accepted: dict[tuple[str, str], Row] = {}
        """(device, update id) of what was said to be accepted."""
        self.receipts: dict[tuple[str, str], str] = {}


class Checks:
    """See the module. `world.fail` hears of every violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stores: dict[str, StoreHistory] = {}
        self._receipts_said: set[tuple[str, str]] = set()
        self._outboxes: dict[str, dict[str, str | None]] = {}
        self._second: dict[str, tuple[int, int]] = {}

    def _unsafe(self, name: str, text: str) -> None:
        self._world.fail("safety", f"{name}: {text}")

    def history(self, process: Process) -> StoreHistory:
        """Of this coordinator's store."""
        return self._stores.setdefault(process.name, StoreHistory())

    # ---- the wire ----

    def said(self, process: Process, topic: str, payload: bytes) -> None:
        """A process has said something."""
        second = self._world.agenda.now_ms // 1_000
        at, count = self._second.get(process.name, (second, 0))
        count = count + 1 if at == second else 1
        self._second[process.name] = (second, count)
        if count > MESSAGES_MAX:
            kinds = f"the last one on {topic}"
            self._unsafe("storm", f"{process.name} says {count} messages in a second, {kinds}")
        if process.name not in self._world.coordinator_names or len(payload) > DECODED_BYTES_MAX:
            return
        if "/down/" not in topic:
            return
        body = msgspec.msgpack.decode(payload)["body"]
        device_id = topic.rsplit("/", 1)[1]
        if body["type"] == "receipt":
            self._receipt(process, device_id, body)
        elif body["type"] == "task":
            self._task(process, device_id, body)

    def _receipt(self, process: Process, device_id: str, body: dict[str, Any]) -> None:
        update_id, verdict = body["update_id"], body["verdict"]
        key = (device_id, update_id)
        history = self.history(process)
        self._receipts_said.add(key)
        self._world.seen("verdict", f"{verdict}: {body['reason']}")
        before = history.receipts.setdefault(key, verdict)
        liar = any(d.hostile and d.device_id == device_id for d in self._world.devices)
        if before != verdict and not (liar and before != "accepted"):
            self._unsafe("receipts agree", f"{key}: {before}, then {verdict}: {body['reason']}")
        if verdict != "accepted":
            return
        database = _database(process)
        if database.in_transaction:
            self._unsafe("receipt after commit", f"{key} is accepted inside a transaction")
        row = database.execute(
            "SELECT round_id, device_id, verdict, update_json FROM updates"
            " WHERE update_id = ? AND device_id = ?",
            (update_id, device_id),
        ).fetchone()
        if row is None or row[2] != "accepted":
            self._unsafe("receipt after commit", f"{key} is accepted, its row is {row}")
            return
        history.accepted[key] = row
        blob = msgspec.json.decode(row[3])["blob"]
        if blob is not None and not (process.folder / "blobs" / blob["digest"]).exists():
            self._unsafe("receipt after commit", f"{key} is accepted, its content is not stored")

    def _task(self, process: Process, device_id: str, body: dict[str, Any]) -> None:
        row = (
            _database(process)
            .execute(
                "SELECT cohort_json, outcome FROM rounds WHERE round_id = ?", (body["round_id"],)
            )
            .fetchone()
        )
        if row is None or device_id not in msgspec.json.decode(row[0]):
            self._unsafe("only invited", f"{device_id} gets round {body['round_id']}: {row}")

    # ---- the coordinator's store ----

    def committed(self, process: Process, database: sqlite3.Connection) -> None:
        """A transaction has been committed."""
        history = self.history(process)
        models = database.execute(
            "SELECT version, digest, round_id FROM models ORDER BY version"
        ).fetchall()
        if models[: len(history.models)] != history.models:
            self._unsafe("models never change", f"{history.models} became {models}")
        for row in models[len(history.models) :]:
            self._new_model(process, database, row, len(history.models))
            history.models.append(row)
        self._rounds(database, history)

    def _rounds(self, database: sqlite3.Connection, history: StoreHistory) -> None:
        rows = database.execute(
            "SELECT round_id, outcome, reason, cohort_json, kind FROM rounds"
            " WHERE round_id >= ? ORDER BY round_id",
            (max(history.rounds, default=1),),
        ).fetchall()
        for row in rows:
            before = history.rounds.get(row[0])
            if before is None and row[0] != max(history.rounds, default=0) + 1:
                self._unsafe("round ids grow", f"{row[0]} follows {max(history.rounds, default=0)}")
            if before is not None and before[1] not in ("open", row[1]):
                self._unsafe("closed rounds stay", f"{before} became {row}")
            if row[1] == "abandoned" and not row[2]:
                self._unsafe("reasons", f"round {row[0]} is abandoned without one")
            if row[1] == "done" and (before is None or before[1] != "done"):
                self._closed(database, row)
            history.rounds[row[0]] = row

    def _closed(self, database: sqlite3.Connection, row: Row) -> None:
        round_id, cohort, kind = row[0], msgspec.json.decode(row[3]), row[4]
        accepted = [
            name
            for (name,) in database.execute(
                "SELECT device_id FROM updates WHERE round_id = ? AND verdict = 'accepted'",
                (round_id,),
            )
        ]
        strangers = set(accepted) - set(cohort)
        if strangers:
            self._unsafe("only invited", f"round {round_id} counts {sorted(strangers)}")
        quorum = 1 if kind == "evaluate" else self._world.settings.config.rounds.quorum
        if len(accepted) < quorum:
            self._unsafe("quorum", f"round {round_id} closed with {accepted}, quorum {quorum}")

    def _new_model(
        self, process: Process, database: sqlite3.Connection, row: Row, expected: int
    ) -> None:
        version, digest, round_id = row
        if version != expected:
            self._unsafe("model versions", f"{version} follows {expected - 1}")
        content = _blob(process.folder, digest)
        if content is None:
            self._unsafe("model stored", f"model {version} is committed, its content is not here")
            return
        if version == 0:
            return
        base = _blob(process.folder, self.history(process).models[-1][1])
        updates = database.execute(
            "SELECT update_json FROM updates WHERE round_id = ? AND verdict = 'accepted'"
            " ORDER BY device_id",
            (round_id,),
        ).fetchall()
        assert base is not None
        recomputed = _average(
            process.folder, base, [msgspec.json.decode(raw) for (raw,) in updates]
        )
        if recomputed != content:
            names = [msgspec.json.decode(raw)["update_id"] for (raw,) in updates]
            self._unsafe(
                "recomputed", f"model {version} is not the mean of round {round_id} {names}"
            )

    def coordinator_looked_at(self, process: Coordinator) -> None:
        """An event was handled, or a life ended."""
        if not process.alive:
            return
        deadline = process.service.next_deadline_at_ms()
        state = process.service._state
        self._world.seen("phase", state.phase)
        if not state.reason:
            self._world.fail("liveness", f"no reason: {process.name} is {state.phase}")
        if deadline is None and state.phase not in ("finished", "aggregating"):
            self._world.fail("liveness", f"no deadline: {process.name} is {state.phase}")

    # ---- the device's folder ----

    def device_looked_at(self, device: Device) -> None:
        """An event was handled, or a life ended."""
        if device.alive:
            durable = device.session._state.durable  # only whether it is new
            if durable is device._durable:
                return
            device._durable = durable
        saved = _saved_session(device.folder)
        outbox: dict[str, str | None] = {
            update["update_id"]: None if update["blob"] is None else update["blob"]["digest"]
            for update in (saved or {}).get("outbox", ())
        }
        before = self._outboxes.get(device.name, {})
        for update_id in sorted(before.keys() - outbox.keys()):
            answered = (device.device_id, update_id) in self._receipts_said
            if not answered and len(before) < OUTBOX_MAX:
                self._unsafe("outbox", f"{device.name} forgets {update_id} without a receipt")
        for update_id, digest in () if device.hostile else outbox.items():
            if digest is not None and not (device.folder / "blobs" / digest).exists():
                self._unsafe("outbox", f"{device.name} owes {update_id} and has no content of it")
        self._outboxes[device.name] = outbox

    # ---- the end ----

    def at_the_end(self, process: Coordinator) -> None:
        """Every accepted update is in one model, or in a round that says why not."""
        path = process.folder / "coordinator.db"
        if not path.exists():
            return
        database = sqlite3.connect(path)
        history = self.history(process)
        for key, (round_id, _, _, update_json) in history.accepted.items():
            row = database.execute(
                "SELECT verdict, update_json FROM updates WHERE device_id = ? AND update_id = ?",
                key,
            ).fetchone()
            if row != ("accepted", update_json):
                self._unsafe("accepted stays", f"{key} of round {round_id} is now {row}")
        database.close()
        self._files(process)

    def _files(self, process: Process) -> None:
        for name in ("partial", "blobs"):
            count = sum(1 for _ in (process.folder / name).iterdir())
            if count > FILES_MAX:
                self._unsafe("files", f"{process.name} has {count} files in {name}")


def _database(process: Process) -> sqlite3.Connection:
    store = process.store  # type: ignore[attr-defined]
    connection: sqlite3.Connection = store._db
    return connection


def _blob(folder: Path, digest: str) -> bytes | None:
    try:
        content = (folder / "blobs" / digest).read_bytes()
    except FileNotFoundError:
        return None
    return content if sha256_hex(content) == digest else None


def _average(folder: Path, base: bytes, updates: list[dict[str, Any]]) -> bytes | None:
    """McMahan et al. 2016, Algorithm 1, once more: w + sum n_k delta_k / n, in float64."""
    model = np.frombuffer(base, "<f4").astype(np.float64)
    total, examples = np.zeros_like(model), 0
    for update in updates:
        content = _blob(folder, update["blob"]["digest"])
        if content is None:
            return None
        delta = np.frombuffer(content, {"f32": "<f4", "f16": "<f2"}[update["encoding"]])
        total += delta.astype(np.float32).astype(np.float64) * update["examples"]
        examples += update["examples"]
    if not examples:
        return None
    mean = (total / examples).astype(np.float32)
    return (model + mean).astype("<f4").tobytes()


def _saved_session(folder: Path) -> dict[str, Any] | None:
    """The newest intact generation of a device's session, read without its code."""
    newest: tuple[int, bytes] | None = None
    for index in (0, 1):
        try:
            raw = (folder / f"session.{index}").read_bytes()
        except FileNotFoundError:
            continue
        if hashlib.sha256(raw[32:]).digest() == raw[:32] and len(raw) >= 40:
            found = (int.from_bytes(raw[32:40], "little"), raw[40:])
            newest = found if newest is None else max(newest, found)
    return None if newest is None else msgspec.json.decode(newest[1])
