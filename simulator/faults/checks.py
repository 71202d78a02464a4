"""What must hold whatever fails, judged from outside: by what is said on the wire, by rows that
are committed, by files in folders. Nothing here asks the machines.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from simulator.faults.store_checks import StoreChecks

if TYPE_CHECKING:
    from simulator.faults.coordinator import Coordinator
    from simulator.faults.device import Device
    from simulator.faults.process import Process
    from simulator.faults.world import World

OUTBOX_MAX = 16
MESSAGES_MAX = 600
"""Of one process in one second: more is a storm."""
DECODED_BYTES_MAX = 20_000


class Checks:
    """See the module. `world.fail` hears of every violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stores: dict[str, StoreChecks] = {}
        self._receipts: dict[tuple[str, str, str], str] = {}
        """(coordinator, device, update id) to the first verdict that was said."""
        self._welcomed_at_ms: dict[str, int] = {}
        self._answered: set[tuple[str, str]] = set()
        self._outboxes: dict[str, dict[str, str | None]] = {}
        self._second: dict[str, tuple[int, int]] = {}

    def _unsafe(self, name: str, text: str) -> None:
        self._world.fail("safety", f"{name}: {text}")

    def _store(self, process: Process) -> StoreChecks:
        if process.name not in self._stores:
            quorum = self._world.settings.config.rounds.quorum
            self._stores[process.name] = StoreChecks(
                process.folder, quorum, self._world.rotten, self._unsafe
            )
        return self._stores[process.name]

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
        if len(payload) > DECODED_BYTES_MAX:
            return
        device_id = topic.rsplit("/", 1)[1]
        if "/down/" in topic:
            body = msgspec.msgpack.decode(payload)["body"]
            if body["type"] == "receipt":
                self._receipt(process, device_id, body)
            elif body["type"] == "task":
                self._store(process).invited(_database(process), device_id, body["round_id"])
            elif body["type"] == "welcome" and process is self._world.coordinator:
                self._welcomed_at_ms[device_id] = self._world.agenda.now_ms
            elif body["type"] == "problem":
                self._world.seen("problem", body["reason"].split(":")[0])
        elif "/up/" in topic and not process.hostile:
            body = msgspec.msgpack.decode(payload)["body"]
            if body["type"] == "offer":
                self._offer(process, device_id, body["update"]["update_id"])

    def _receipt(self, process: Process, device_id: str, body: dict[str, Any]) -> None:
        update_id, verdict = body["update_id"], body["verdict"]
        self._answered.add((device_id, update_id))
        self._world.seen("verdict", f"{verdict}: {body['reason']}")
        key = (process.name, device_id, update_id)
        before = self._receipts.setdefault(key, verdict)
        liar = any(d.garbles and d.device_id == device_id for d in self._world.devices)
        if before != verdict and not (liar and before != "accepted"):
            self._unsafe("receipts agree", f"{key}: {before}, then {verdict}: {body['reason']}")
        if verdict == "accepted":
            self._store(process).accepted(_database(process), device_id, update_id)

    def _offer(self, device: Process, device_id: str, update_id: str) -> None:
        saved = _saved_session(device.folder) or {}
        stored = any(update["update_id"] == update_id for update in saved.get("outbox", ()))
        # A save that fails may still have reached the disk: then it is the one after a receipt.
        if not stored and (device_id, update_id) not in self._answered:
            self._unsafe("stored before offered", f"{device.name} offers {update_id}")

    def committed(self, process: Process, database: sqlite3.Connection) -> None:
        """A coordinator has committed a transaction."""
        self._store(process).committed(database)

    def coordinator_looked_at(self, process: Coordinator) -> None:
        """An event was handled, or a life ended."""
        if not process.alive:
            return
        deadline = process.service.next_deadline_at_ms()
        state = process.service._state
        self._world.seen("phase", state.phase)
        if not state.reason:
            self._world.fail("liveness", f"no reason: {process.name} is {state.phase}")
        if deadline is None and state.phase != "finished":
            self._world.fail("liveness", f"no deadline: {process.name} is {state.phase}")

    def waiting_contents(self, process: Process) -> list[str]:
        """Digests of updates that were said to be accepted and are in no round that has closed."""
        return self._store(process).waiting_contents()

    def welcomed_at_ms(self, device: Device) -> int:
        """When the coordinator last answered a hello of this device."""
        return self._welcomed_at_ms.get(device.device_id, 0)

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
            answered = (device.device_id, update_id) in self._answered
            if not answered and not device.hostile and len(before) < OUTBOX_MAX:
                self._unsafe("outbox", f"{device.name} forgets {update_id} without a receipt")
        for update_id, digest in () if device.hostile else outbox.items():
            if digest is not None and not (device.folder / "blobs" / digest).exists():
                self._unsafe("outbox", f"{device.name} owes {update_id} and has no content of it")
        self._outboxes[device.name] = outbox

    def at_the_end(self, process: Process) -> None:
        """No process runs any more."""
        self._store(process).at_the_end()


def _database(process: Process) -> sqlite3.Connection:
    store = process.store  # type: ignore[attr-defined]
    connection: sqlite3.Connection = store._db
    return connection


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
