"""The coordinator's memory: SQLite for what happened, a blob store for models and updates.

One transaction holds an event, the machine's new state and every record that follows from both
(`coordinator.service`). WAL with synchronous=FULL: what was committed survives a power cut. Blobs
are fsynced before the transaction that names them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from coordinator.aggregate_job import Part
from coordinator.aggregation import NORMS_MIN
from coordinator.database import Database, reading
from coordinator.records import Standing, Terms
from coordinator.round_state import AbandonRound, Event, Member, RoundState
from fedtide.blobs import BlobStore
from fedtide.measures import Metrics
from fedtide.messages import BlobRef, Receipt, Update
from fedtide.plan import Plan


class Model(NamedTuple):
    """One global model version."""

    version: int
    ref: BlobRef
    round_id: int
    made_at_ms: int
    metrics: Metrics | None
    """On the coordinator's test set."""
    held_out: Metrics | None
    """On the devices' held-out data."""

    @property
    def judged(self) -> Metrics:
        """On the coordinator's test set if it has one, else on the devices' held-out data."""
        return self.metrics or self.held_out or Metrics(0)


class Store(Database):
    """See the module. Used by one thread. Whatever reads raises a StateError for a damaged row."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        super().__init__(folder, read_only=read_only)
        self.blobs = BlobStore(folder, read_only=read_only)

    @reading
    def load_state(self) -> RoundState:
        """The machine's state as of the last commit."""
        raw = self.fact("round_state")
        return RoundState() if raw is None else msgspec.json.decode(raw, type=RoundState)

    def save_event(self, event: Event, state: RoundState, at_ms: int) -> None:
        """Append to the log, and replace the state."""
        self._db.execute(
            "INSERT INTO events (at_ms, event_json) VALUES (?, ?)",
            (at_ms, msgspec.json.encode(event).decode()),
        )
        self.save_state(state)

    def save_state(self, state: RoundState) -> None:
        """Replace the state."""
        self.set_fact("round_state", msgspec.json.encode(state).decode())

    @reading
    def events(self) -> list[tuple[int, Event]]:
        """The whole log: (at_ms, event), oldest first."""
        rows = self._db.execute("SELECT at_ms, event_json FROM events ORDER BY sequence")
        return [(at_ms, msgspec.json.decode(raw, type=Event)) for at_ms, raw in rows]

    def open_round(self, state: RoundState, terms: Terms, at_ms: int) -> None:
        """Record a round that has just opened, and what is asked of its cohort."""
        plan = msgspec.json.encode(terms.plan).decode()
        self._db.execute(
            "INSERT INTO rounds (round_id, opened_at_ms, cohort_json, plan_json, encoding, kind,"
            " base_version, norm_reference, norm_factor, weights)"
            " VALUES (?, ?, '[]', ?, ?, ?, ?, ?, ?, ?)",
            (state.round_id, at_ms, plan, *terms[1:]),
        )

    def save_cohort(self, round_id: int, device_ids: Iterable[str]) -> None:
        """Record every device that has been given a task of this round."""
        cohort = msgspec.json.encode(sorted(device_ids)).decode()
        self._db.execute("UPDATE rounds SET cohort_json = ? WHERE round_id = ?", (cohort, round_id))

    @reading
    def invited(self, round_id: int, device_id: str) -> bool:
        """Whether this device has been given a task of this round."""
        row = self._db.execute(
            "SELECT cohort_json FROM rounds WHERE round_id = ?", (round_id,)
        ).fetchone()
        return row is not None and device_id in msgspec.json.decode(row[0], type=list[str])

    @reading
    def terms(self, round_id: int) -> Terms:
        """What was asked of a round's cohort, whatever the configuration says by now."""
        plan, *others = self._db.execute(
            "SELECT plan_json, encoding, kind, base_version, norm_reference, norm_factor, weights"
            " FROM rounds WHERE round_id = ?",
            (round_id,),
        ).fetchone()
        return Terms(_decode_plan(plan), *others)

    @reading
    def norms(self) -> list[float]:
        """Of all finite updates of the newest closed round with enough of them; else none."""
        rows = self._db.execute(
            "SELECT norm FROM updates WHERE norm IS NOT NULL AND round_id = (SELECT round_id"
            " FROM updates JOIN rounds USING (round_id) WHERE norm IS NOT NULL"
            " AND outcome != 'open' GROUP BY round_id HAVING count(*) >= ?"
            " ORDER BY round_id DESC LIMIT 1)",
            (NORMS_MIN,),
        )
        return [norm for (norm,) in rows]

    def close_round(self, round_id: int, at_ms: int, abandoned: AbandonRound | None) -> None:
        """Record how a round ended."""
        outcome, reason = ("done", "") if abandoned is None else ("abandoned", abandoned.reason)
        self._db.execute(
            "UPDATE rounds SET closed_at_ms = ?, outcome = ?, reason = ? WHERE round_id = ?",
            (at_ms, outcome, reason, round_id),
        )

    @reading
    def closed_rounds(self, after: int) -> list[tuple[int, str, str, int]]:
        """Rounds above `after` that have closed: id, kind, outcome, and how long they took, ms."""
        return self._db.execute(
            "SELECT round_id, kind, outcome, closed_at_ms - opened_at_ms FROM rounds"
            " WHERE round_id > ? AND outcome != 'open' ORDER BY round_id",
            (after,),
        ).fetchall()

    def save_verdict(
        self,
        update: Update,
        device_id: str,
        receipt: Receipt,
        at_ms: int,
        norm: float | None = None,
    ) -> None:
        """Record an update and its verdict; the first one of a device in a round stands."""
        self._db.execute(
            "INSERT OR IGNORE INTO updates (update_id, round_id, device_id, verdict, reason, at_ms,"
            " examples, training_ms, payload_bytes, update_json, digest, model, norm)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                update.update_id,
                update.round_id,
                device_id,
                receipt.verdict,
                receipt.reason,
                at_ms,
                update.examples,
                update.training_ms,
                0 if update.blob is None else update.blob.size_bytes,
                msgspec.json.encode(update).decode(),
                None if update.blob is None else update.blob.digest,
                update.model,
                norm,
            ),
        )

    @reading
    def answered(self, round_id: int, device_id: str) -> bool:
        """Whether there is a verdict on this device's update in this round."""
        row = self._db.execute(
            "SELECT 1 FROM updates WHERE round_id = ? AND device_id = ?", (round_id, device_id)
        ).fetchone()
        return row is not None

    @reading
    def replayed(self, update: Update, device_id: str) -> Literal["stolen", "own", ""]:
        """Whether this content was accepted before, and how it comes again.

        Two models never lead to the same delta, unless nothing was learned from either (norm 0):
        then it is `stolen`. From one model the same data make it again, so that two devices may
        agree; but what a device has made before, and still counts, is its `own`.
        """
        rows = self._db.execute(
            "SELECT model != ?, device_id = ? AND round_id != ? AND (joined IS NULL OR joined IN"
            " (SELECT round_id FROM rounds WHERE outcome = 'done')) FROM updates"
            " WHERE digest = ? AND verdict = 'accepted' AND norm > 0",
            (update.model, device_id, update.round_id, update.blob and update.blob.digest),
        ).fetchall()
        if any(of_another_model for of_another_model, _ in rows):
            return "stolen"
        return "own" if any(own for _, own in rows) else ""

    def join(self, member: Member, round_id: int, staleness: int) -> None:
        """Record the round with which an accepted update ends: in its model, or abandoned."""
        self._db.execute(
            "UPDATE updates SET joined = ?, staleness = ? WHERE round_id = ? AND device_id = ?",
            (round_id, staleness, member.round_id, member.device_id),
        )

    @reading
    def receipt(self, update_id: str, device_id: str) -> Receipt | None:
        """The verdict on an update of this device, if there is one."""
        row = self._db.execute(
            # Only a liar uses an id in two rounds: what was accepted stays so.
            "SELECT verdict, reason FROM updates WHERE update_id = ? AND device_id = ?"
            " ORDER BY verdict",
            (update_id, device_id),
        ).fetchone()
        return None if row is None else Receipt(update_id, row[0], row[1])

    @reading
    def updates(self, round_id: int) -> list[Update]:
        """Accepted updates of a round, in order of device id: the order of aggregation."""
        rows = self._db.execute(
            "SELECT update_json FROM updates WHERE round_id = ? AND verdict = 'accepted'"
            " ORDER BY device_id",
            (round_id,),
        )
        return [_decode_update(raw) for (raw,) in rows]

    @reading
    def part(self, member: Member, version: int) -> Part:
        """An accepted update, as it counts in the model after `version`."""
        raw, norm, plan = self._db.execute(
            "SELECT update_json, norm, plan_json FROM updates JOIN rounds USING (round_id)"
            " WHERE round_id = ? AND device_id = ?",
            (member.round_id, member.device_id),
        ).fetchone()
        return Part(_decode_update(raw), version - member.version, norm, _decode_plan(plan))

    @reading
    def parts(self, round_id: int) -> list[Part]:
        """The updates that a round's model was made of, in the order of aggregation."""
        rows = self._db.execute(
            "SELECT update_json, staleness, norm, plan_json FROM updates JOIN rounds"
            " USING (round_id) WHERE joined = ? AND verdict = 'accepted'"
            " ORDER BY device_id, round_id",
            (round_id,),
        )
        return [
            Part(_decode_update(raw), staleness, norm, _decode_plan(plan))
            for raw, staleness, norm, plan in rows
        ]

    @reading
    def digests_kept(self, rounds_kept: int) -> set[str]:
        """Digests of all models, and of the updates that wait or joined one of the last rounds."""
        rows = self._db.execute(
            "SELECT digest FROM models UNION SELECT digest FROM updates"
            " WHERE verdict = 'accepted' AND digest IS NOT NULL AND (joined IS NULL"
            " OR joined > (SELECT max(round_id) FROM rounds WHERE outcome != 'open') - ?)",
            (rounds_kept,),
        )
        return {digest for (digest,) in rows}

    @reading
    def digests_waiting(self) -> list[str]:
        """Digests of accepted updates that no model holds yet."""
        rows = self._db.execute(
            "SELECT digest FROM updates WHERE verdict = 'accepted' AND digest IS NOT NULL"
            " AND joined IS NULL"
        )
        return [digest for (digest,) in rows]

    @reading
    def standing(self, device_id: str) -> Standing:
        """How this device has been doing."""
        row = self._db.execute(
            "SELECT strikes, until_ms, reason FROM standings WHERE device_id = ?", (device_id,)
        ).fetchone()
        return Standing() if row is None else Standing(*row)

    @reading
    def quarantined(self, at_ms: int) -> list[str]:
        """Devices that are not invited now."""
        rows = self._db.execute(
            "SELECT device_id FROM standings WHERE until_ms > ? ORDER BY device_id", (at_ms,)
        )
        return [device_id for (device_id,) in rows]

    def set_standing(self, device_id: str, standing: Standing) -> None:
        """Record it; the best one needs no row."""
        if standing == Standing():
            self._db.execute("DELETE FROM standings WHERE device_id = ?", (device_id,))
            return
        self._db.execute(
            "INSERT OR REPLACE INTO standings VALUES (?, ?, ?, ?)", (device_id, *standing)
        )

    def add_model(self, version: int, ref: BlobRef, round_id: int, at_ms: int) -> None:
        """Record a new global model, whose blob is already on disk."""
        self._db.execute(
            "INSERT INTO models (version, digest, size_bytes, round_id, made_at_ms)"
            " VALUES (?, ?, ?, ?, ?)",
            (version, ref.digest, ref.size_bytes, round_id, at_ms),
        )

    def set_metrics(self, version: int, metrics: Metrics, *, held_out: bool) -> None:
        """Record how a model did: on the coordinator's test set, or on held-out data of devices."""
        if metrics.examples == 0:
            return
        change = (
            "UPDATE models SET held_out_json = ? WHERE version = ?"
            if held_out
            else "UPDATE models SET metrics_json = ? WHERE version = ?"
        )
        self._db.execute(change, (msgspec.json.encode(metrics).decode(), version))

    @reading
    def model(self, version: int) -> Model | None:
        """One model version."""
        row = self._db.execute("SELECT * FROM models WHERE version = ?", (version,)).fetchone()
        return None if row is None else _model(row)

    @reading
    def models(self) -> list[Model]:
        """All model versions, oldest first."""
        return [_model(row) for row in self._db.execute("SELECT * FROM models ORDER BY version")]

    def heard(self, device_id: str, hello_json: str, at_ms: int) -> None:
        """Record a device's hello."""
        self._db.execute(
            "INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", (device_id, at_ms, hello_json)
        )

    @reading
    def devices_since(self, at_ms: int) -> int:
        """How many devices were heard last at that time or later."""
        row = self._db.execute("SELECT count(*) FROM devices WHERE heard_at_ms >= ?", (at_ms,))
        return int(row.fetchone()[0])


_decode_metrics = msgspec.json.Decoder(Metrics).decode
_decode_update = msgspec.json.Decoder(Update).decode
_decode_plan = msgspec.json.Decoder(Plan).decode


def _model(row: tuple[object, ...]) -> Model:
    version, digest, size_bytes, round_id, made_at_ms, *jsons = row
    measured = (None if raw is None else _decode_metrics(str(raw)) for raw in jsons)
    ref = BlobRef(digest, size_bytes)  # type: ignore[arg-type]
    return Model(version, ref, round_id, made_at_ms, *measured)  # type: ignore[arg-type]
